"""What a run shows of itself: error rates, how decided and how different its languages are, and their picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Optional

import numpy as np
import torch
from tqdm import tqdm

from modeling_master_asr.artisan_master_asr import open_gates_of_layers, pack_mask, select_mask, specialist_scores
from training.loop.metrics import evaluate_clips
from training.loop.pictures import gate_differences, gates_of, similarity_figure
from training.loop.sharding import is_sharded, whole

MASKS_WATCHED = 20  # masks of so many languages are compared; of the others, the gates are


@torch.no_grad()
def masks_of(model, first: Iterable[str]) -> dict[str, list[torch.Tensor]]:
    """Masks of 20 languages, `first` before the others, one an Artisan layer, bit-packed."""
    codes = list(dict.fromkeys([*first, *model.languages]))[:MASKS_WATCHED]
    owned = {code: model.assemblies[code]() for code in codes}
    gates = {code: open_gates_of_layers(own.mapping) for code, own in owned.items()}
    masks = {code: [] for code in codes}
    for index, layer in enumerate(model.master_asr.artisan_layers):
        specialists = whole(layer.specialists)
        for code, own in owned.items():
            scores = specialist_scores(specialists, gates[code][index], own.own_specialist(index))
            masks[code].append(pack_mask(select_mask(scores, model.config.sparsity)).cpu())
    return masks


def share_of_differing_bits(some: list[torch.Tensor], others: list[torch.Tensor], weights_a_layer: list[int]) -> float:
    """The share of bits in which two lists of packed masks differ, each layer counting once."""
    differing = [int(np.bitwise_count((a ^ b).numpy()).sum()) / size for a, b, size in zip(some, others, weights_a_layer)]
    return sum(differing) / len(differing)


def weights_a_layer(model) -> list[int]:
    """How many weights each Artisan layer masks."""
    return [math.prod(layer.specialists.shape[1:]) for layer in model.master_asr.artisan_layers]


def mapping_figures(model, masks=None, languages: Optional[list[str]] = None) -> dict:
    """How decided and how different languages are: std of T, open gates, share of mask bits in which pairs differ.

    Args:
        masks: what `masks_of` found, if it is known.
        languages: whose T is described, such as those that train; pairs are theirs with each other and with the others. None: all.
    """
    languages = languages or model.languages
    masks = masks or masks_of(model, languages)
    rows = torch.stack([a.mapping.detach().float().cpu() for a in model.assemblies.values()])  # (L, layers, K)
    gates = torch.stack([gates_of(a.mapping) for a in model.assemblies.values()])
    of_these = [model.languages.index(code) for code in languages]
    own, share = rows[of_these], torch.sigmoid(rows[of_these])
    entropy = (torch.special.entr(share) + torch.special.entr(1 - share)) / math.log(2)
    figures = {
        "std_of_T": float(own.std()), "entropy_of_T_bits": float(entropy.mean()), "share_of_open_gates": float(gates[of_these].float().mean()),
        "specialists_in_use_a_layer": float(gates[of_these].any(0).sum(-1).float().mean()), "dead_specialists": int((~gates.any(0)).sum()),
    }  # fmt: skip
    sizes = weights_a_layer(model)
    pairs = [(a, b) for a, b in itertools.combinations(masks, 2) if a in languages or b in languages]
    differing = [share_of_differing_bits(masks[a], masks[b], sizes) for a, b in pairs]
    if differing:
        figures["share_of_mask_bits_in_which_languages_differ"] = sum(differing) / len(differing)
        figures["languages_whose_masks_are_compared"] = len(masks)
    return figures


def state_of_masks(accelerator, model, languages: list[str]) -> Optional[dict]:
    """`{"gates": {language: (layers, K) booleans}, "masks": ...}` in the main process; all have to call it."""
    if accelerator.is_main_process or is_sharded(model):
        masks = masks_of(model, languages)  # gathers the specialists where they are sharded
        gates = {code: gates_of(model.assemblies[code].mapping) for code in languages}
        return {"gates": gates, "masks": masks} if accelerator.is_main_process else None
    return None


def watch(accelerator, model, processor, features, validation, step: int, log: dict, first, languages: list[str]) -> None:
    """Validation CER, the mapping's figures and the similarity picture, into the log, the trackers and the terminal.

    Args:
        first: `state_of_masks` when the run started, to measure change from.
        languages: those whose T trains: its figures are of them alone.
    """
    rates = log["validation"][str(step)] = evaluate_clips(model, processor, features, validation, accelerator, greedy=True)
    now = state_of_masks(accelerator, model, languages)
    if now is None:
        return
    sizes = weights_a_layer(model)
    changed = [share_of_differing_bits(now["masks"][code], first["masks"][code], sizes) for code in languages if code in now["masks"]]
    flipped = [(now["gates"][code] != first["gates"][code]).float().mean() for code in languages]
    figures = log["mapping"][str(step)] = {
        **mapping_figures(model, now["masks"], languages),
        "share_of_flipped_gates": float(sum(flipped) / len(flipped)),
        "share_of_changed_mask_bits": sum(changed) / len(changed),
    }
    flat = {f"cer/{code}": r["cer"] for code, r in rates["languages"].items()}
    accelerator.log({**flat, "cer/macro": rates["macro"]["cer"], **{f"T/{k}": v for k, v in figures.items()}}, step=step)
    if len(model.languages) > 1:
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_figure("similarity", similarity_figure(gate_differences(model), model.languages), step)
    per_language = " ".join(f"{code} {r['cer']:.1f}" for code, r in rates["languages"].items())
    gates = f"{100 * figures['share_of_open_gates']:.0f} % of gates open, {100 * figures['share_of_flipped_gates']:.1f} % flipped"
    tqdm.write(f"step {step}: validation CER {rates['macro']['cer']:.2f} ({per_language}); T: std {figures['std_of_T']:.2f}, {gates}")
