"""Preset best by another way: all of the encoder's weights train first, their change is cut to the rank of the delta, which trains on.

    python -m benchmarks.full_first --full_steps 600 --steps 400 (as training.adapt_language)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.weights_master_asr import AssembledWeights, Layout
from training.adapt_language import AdaptConfig, add_language, announce, learning_rates, load, trained
from training.loop.config import Count, Positive, as_record, parse
from training.loop.data import Features, drop_impossible, minutes_of
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json
from training.loop.steps import keep_text, load_splits, measured, opened, place, tested, train


@dataclass(frozen=True, kw_only=True)
class FullFirstConfig(AdaptConfig):
    """The settings."""

    full_steps: Count = HfArg(default=600, help="of all weights, before")
    full_learning_rate: Positive = HfArg(default=1e-4, help="of all weights")


@torch.no_grad()
def assembled(model, layout: Layout, language: str) -> list[torch.Tensor]:
    weights = AssembledWeights(layout, model.assemblies[language], language, model.config.sparsity, None, len(model.languages), False)
    return [weights.parameter(layer, "weight").clone() for layer in layout.linear]


@torch.no_grad()
def cut(model, layout: Layout, language: str, before: list[torch.Tensor]) -> float:
    """Puts the change of every weight, nearest in the delta's rank, into the delta, and the weights back; returns the share of its norm that stays."""
    changed = assembled(model, layout, language)
    for layer, weight in zip(layout.linear, before):
        layer._parameters["weight"].copy_(weight)
    kept = whole = 0.0
    for (up, down), after, start in zip(model.assemblies[language].delta(), changed, assembled(model, layout, language)):
        u, scale, v = torch.linalg.svd(after - start, full_matrices=False)
        rank = up.shape[1]
        half = scale[:rank].sqrt()
        up.copy_(u[:, :rank] * half), down.copy_(half[:, None] * v[:rank])
        kept, whole = kept + float((scale[:rank] ** 2).sum()), whole + float((scale**2).sum())
    return (kept / whole) ** 0.5


def full_first(accelerator, config: FullFirstConfig, model, processor, features, splits) -> dict:
    layout, own = model.master_asr.layout, model.assemblies[config.language]
    before = [layer._parameters["weight"].detach().clone() for layer in layout.linear]
    own.delta.requires_grad_(False)
    for layer in layout.linear:
        layer._parameters["weight"].requires_grad_(True)
    place(accelerator, model, config)
    first = replace(config, out=config.out / "full", steps=config.full_steps)
    rates = {**learning_rates(config), "W": config.full_learning_rate}
    turns = Turns(model, config.alpha, config.beta, 0, rates, config.full_steps, config.mapping_gradient, config.beta2, config.mapping_decay, config.mapping_rest)
    log = train(accelerator, model, processor, features, turns, splits.training, splits.validation, first)
    model.eval()
    share = cut(model, layout, config.language, before)
    model.freeze_except(config.language)
    own.mapping.requires_grad_(False)
    after_cut = tested(accelerator, model, processor, features, splits.validation, greedy=True)["macro"]
    print(f"Of the change's norm {share:.2f} stays at this rank; validation {after_cut}.")
    return {"log_full": log, "share_kept": share, "validation_after_cut": after_cut}


def main(argv=None) -> None:
    config = parse(FullFirstConfig, __doc__, argv)
    with opened(config, "full_first") as accelerator:
        set_seed(config.seed)
        model, processor = load(accelerator, config)
        splits = load_splits(accelerator, config, [config.language], config.minutes)
        features = Features(processor, config.features_cache)
        add_language(model, processor, features, splits.training, config)
        splits.training, dropped = drop_impossible(splits.training, processor, model, speed=1.1)
        result = {**facts_of_run(model), "config": as_record(config), "minutes": minutes_of(splits.training)}
        result |= announce(model, config, splits.training, dropped)
        result |= full_first(accelerator, config, model, processor, features, splits)
        model, result["log"] = trained(accelerator, replace(config, out=config.out / "delta"), model, processor, features, splits)
        result["kilobytes"] = round(parameter_kilobytes(model.assemblies[config.language].content_of_file()), 1)
        result["base_after"] = model.master_asr.base_fingerprint()[:12]
        assert result["base_after"] == result["base"]
        keep_text(accelerator, model, config.language, splits, config, config.further_sentences())
        result |= measured(accelerator, model, processor, features, splits)
        write_json(config.out / "run.json", result)
    print({name: result[name]["macro"] for name in ("validation", "test")})


if __name__ == "__main__":
    main()
