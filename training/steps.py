"""The training loop that both stages share, its evaluation, its checkpoints and its watching."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import numpy as np
import torch
import transformers
from tqdm import tqdm

from modeling_master_asr.artisan_master_asr import open_gates, select_mask, specialist_scores
from training.data import Clip, Collator, bucket, to_device, training_batches
from training.metrics import error_rates, macro

CHECKPOINT = "checkpoint.pt"


def facts_of_run() -> dict:
    """Command, commit and versions: what a figure needs beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, accelerate)}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "unknown",
        "versions": {**versions, "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
    }


def write_json(path: str | Path, content: dict) -> None:
    """Writes beside and renames, so a stopped run leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


@torch.no_grad()
def transcribe_clips(model, processor, collator: Collator, clips: list[Clip], batch_s: float = 60.0, language=None) -> list[str]:
    """Greedy text of each clip, in order; `language` reads them all with another language's assembly."""
    model.eval()
    position = {id(clip): i for i, clip in enumerate(clips)}
    texts = [""] * len(clips)
    for batch in bucket(clips, batch_s, random.Random(0)):
        inputs = to_device(collator(batch), model.device)
        inputs.pop("labels")
        codes = inputs.pop("language")
        row = language or codes[0]
        logits = model(**inputs, language=row).logits
        frames = model.master_asr.frame_counts(inputs[model.main_input_name], inputs["attention_mask"])
        for clip, text in zip(batch, processor.batch_decode(logits.argmax(-1), row, frames=frames)):
            texts[position[id(clip)]] = text
    return texts


def evaluate_clips(model, processor, features, clips: list[Clip]) -> dict:
    """`{"languages": {code: {"cer", "wer"}}, "macro": {...}}` in %."""
    collator = Collator(features, processor)
    texts = transcribe_clips(model, processor, collator, clips)
    rates = {}
    for language in dict.fromkeys(clip.language for clip in clips):
        pairs = [(text, clip.text) for text, clip in zip(texts, clips) if clip.language == language]
        rates[language] = error_rates([p for p, _ in pairs], [r for _, r in pairs])
    return {"languages": rates, "macro": macro(rates)}


@torch.no_grad()
def masks_of(model) -> dict[str, list[torch.Tensor]]:
    """Every language's masks, one boolean `[out, in]` an Artisan layer."""
    base, masks = model.master_asr, {}
    for code, assembly in model.assemblies.items():
        masks[code] = []
        for index, layer in enumerate(base.artisan_layers):
            scores = specialist_scores(layer.specialists, open_gates(assembly.mapping[index]), assembly.own_specialist(index))
            masks[code].append(select_mask(scores, model.config.sparsity))
    return masks


def share_of_differing_bits(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The share of bits in which two lists of masks differ, each layer counting once."""
    return sum(float((a != b).float().mean()) for a, b in zip(some, others)) / len(some)


def mapping_figures(model, masks=None) -> dict:
    """How decided and how different the languages are: std of T, open gates, share of mask bits in which pairs differ."""
    masks = masks or masks_of(model)
    rows = torch.stack([a.mapping.detach().float().cpu() for a in model.assemblies.values()])  # (L, layers, K)
    figures = {"std_of_T": float(rows.std()), "share_of_open_gates": float((rows > 0).float().mean())}
    pairs = [share_of_differing_bits(masks[a], masks[b]) for a, b in itertools.combinations(masks, 2)]
    if pairs:
        figures["share_of_mask_bits_in_which_languages_differ"] = sum(pairs) / len(pairs)
    return figures


def gates_of(model) -> torch.Tensor:
    """All gate bits, `(L, layers, K)` booleans."""
    return torch.stack([a.mapping.detach().cpu() > 0 for a in model.assemblies.values()])


def save_checkpoint(out: Path, model, turns, step: int, log: dict) -> None:
    """One file, written beside and renamed: model, optimizers, T's buffer, step and random generators."""
    part = out / (CHECKPOINT + ".part")
    state = {
        "model": model.state_dict(), "turns": turns.state_dict(), "step": step, "log": log,
        "rng": (torch.get_rng_state(), np.random.get_state(), random.getstate()),
    }  # fmt: skip
    torch.save(state, part)
    os.replace(part, out / CHECKPOINT)


def load_checkpoint(out: Path, model, turns) -> tuple[int, dict]:
    """Restores the newest checkpoint and returns (next step, log)."""
    state = torch.load(out / CHECKPOINT, map_location="cpu", weights_only=False)
    model.load_state_dict(state["model"])
    turns.load_state_dict(state["turns"])
    torch.set_rng_state(state["rng"][0])
    np.random.set_state(state["rng"][1])
    random.setstate(state["rng"][2])
    return state["step"], state["log"]


def train(accelerator, model, processor, features, turns, clips, validation, out: Path, args) -> dict:
    """Runs the steps that are left; returns the log: losses, validation figures, T's behaviour."""
    collator = Collator(features, processor, full_augment_step=args.steps // 4, seed=args.seed)
    log = {"validation": {}, "loss": {}, "mapping": {}}
    first_step = 0
    if args.resume and (out / CHECKPOINT).exists():
        first_step, log = load_checkpoint(out, model, turns)
        tqdm.write(f"Resumed at step {first_step}.")
    wrapped = accelerator.prepare(model)
    first, recent = (gates_of(model), masks_of(model)), []
    progress = tqdm(total=args.steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True)
    for step, batch in training_batches(clips, args.batch_s, args.seed, first_step):
        if step >= args.steps:
            break
        if step % args.evaluate_every == 0 and step and str(step) not in log["validation"]:
            watch(accelerator, model, processor, features, validation, step, log, first)
            save_checkpoint(out, model, turns, step, log)
        model.train()
        turns.begin(step)
        loss = wrapped(**to_device(collator(batch, step), accelerator.device)).loss
        accelerator.backward(loss)
        turns.step(step)
        recent = [*recent[-19:], float(loss.detach())]
        progress.update()
        progress.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", turn=turns.phase(step))
        if step % 20 == 0:
            log["loss"][str(step)] = round(sum(recent) / len(recent), 4)
            accelerator.log({"loss": log["loss"][str(step)], f"loss/{batch[0].language}": recent[-1]}, step=step)
    progress.close()
    watch(accelerator, model, processor, features, validation, args.steps, log, first)
    return log


def watch(accelerator, model, processor, features, validation, step: int, log: dict, first) -> None:
    """Validation CER and the mapping's figures, into the log, TensorBoard and the terminal."""
    rates = evaluate_clips(model, processor, features, validation)
    first_gates, first_masks = first  # as they were when this run started
    masks = masks_of(model)
    changed = [share_of_differing_bits(masks[code], first_masks[code]) for code in masks]
    figures = {
        **mapping_figures(model, masks),
        "share_of_flipped_gates": float((gates_of(model) != first_gates).float().mean()),
        "share_of_changed_mask_bits": sum(changed) / len(changed),
    }
    log["validation"][str(step)], log["mapping"][str(step)] = rates, figures
    flat = {f"cer/{code}": r["cer"] for code, r in rates["languages"].items()}
    accelerator.log({**flat, "cer/macro": rates["macro"]["cer"], **{f"T/{k}": v for k, v in figures.items()}}, step=step)
    per_language = " ".join(f"{code} {r['cer']:.1f}" for code, r in rates["languages"].items())
    tqdm.write(f"step {step}: validation CER {rates['macro']['cer']:.2f} ({per_language}); {figures}")
