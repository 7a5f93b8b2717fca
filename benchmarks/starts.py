"""Where a delta starts and how its rank lies over the layers: ideas from others, each tried on preset best.

    python -m benchmarks.starts --start singular --model ./checkpoints/master-asr-whisper-base --data data/manifest.jsonl --language es \
        --out runs/singular

`singular`: down is the r largest right singular vectors of the language's own weights instead of noise, at the same length (as SSVD,
arXiv 2509.02830, and DAMA, arXiv 2602.01008, start from the weights' own directions). `ends`: the same number of values, more of them in
the first and the last layer than between (DAMA).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from training.adapt_language import AdaptConfig, add_language, announce, load, trained
from training.loop.config import as_record, parse
from training.loop.data import Features, drop_impossible, minutes_of
from training.loop.record import facts_of_run, write_json
from training.loop.steps import load_splits, opened, tested

ENDS, BETWEEN = 22, 12  # ranks that cost as much as 16 everywhere, over five layers


@dataclass(frozen=True, kw_only=True)
class StartConfig(AdaptConfig):
    """The settings of one start."""

    start: Literal["singular", "ends"] = HfArg(help="what is tried")


@torch.no_grad()
def start_singular(model, language: str) -> int:
    layout = model.master_asr.layout
    model.eval()
    weights = model.master_asr.assembled(language)
    for layer, (_, down) in zip(layout.linear, model.assemblies[language].delta()):
        right = torch.linalg.svd(weights.parameter(layer, "weight").float(), full_matrices=False).Vh  # up is zero: W * B alone
        down.copy_(right[: len(down)] * down.norm(dim=1).mean())
    return 0


@torch.no_grad()
def start_ends(model, language: str) -> int:
    """Rows of zeros between zero columns get no gradient and stay: the layers between have less rank than the matrices could hold.

    Returns:
        How many values stay zero.
    """
    idle = 0
    depths = {module: int(found[1]) for name, module in model.master_asr.backbone.named_modules() if (found := re.search(r"layers\.(\d+)\.", name))}
    for layer, (_, down) in zip(model.master_asr.layout.linear, model.assemblies[language].delta()):
        if 0 < depths.get(layer, 0) < max(depths.values()):
            down[BETWEEN:] = 0
            idle += (len(down) - BETWEEN) * (layer.in_features + layer.out_features)
    return idle


START = {"singular": start_singular, "ends": start_ends}


def run(accelerator, config: StartConfig) -> dict:
    """Trains and tests one language."""
    set_seed(config.seed)
    if config.start == "ends":
        config = replace(config, rank=ENDS)
    model, processor = load(accelerator, config)
    splits = load_splits(accelerator, config, [config.language], config.minutes)
    features = Features(processor, config.features_cache)
    add_language(model, processor, features, splits.training, config)
    idle = START[config.start](model, config.language)
    splits.training, dropped = drop_impossible(splits.training, processor, model, speed=1.1)
    result = {**facts_of_run(), "config": as_record(config), "minutes": minutes_of(splits.training), **announce(model, config, splits.training, dropped)}
    result["trainable"] -= idle
    model, result["log"] = trained(accelerator, config, model, processor, features, splits)
    validation, test = (tested(accelerator, model, processor, features, clips) for clips in (splits.validation, splits.test))
    return {**result, "validation": validation, "test": test}


def main(argv=None) -> None:
    config = parse(StartConfig, __doc__, argv)
    with opened(config, "start") as accelerator:
        result = run(accelerator, config)
        write_json(config.out / "run.json", result)
    print(f"{config.start}: test CER {result['test']['macro']['cer']:.2f}. Wrote {config.out / 'run.json'}.")


if __name__ == "__main__":
    main()
