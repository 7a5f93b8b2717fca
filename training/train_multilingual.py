r"""Stage 1: trains W, M, T and the heads of several languages together.

    accelerate launch training/train_multilingual.py --data data/manifest.jsonl --out runs/stage1 --backbone openai/whisper-base \
        --num_specialists 2 --minutes_per_language 25 --steps 3000 --evaluate_every 1000 --gamma 150 --languages en fr it ru cs nl

All settings of the shipped model are in README, "Train your own"; the defaults are the paper's XLSR-53 and 100,000 steps.

One minute on a CPU:

    python -m training.train_multilingual --data data/manifest.jsonl --out runs/try --backbone openai/whisper-base \
        --languages en it --steps 40 --evaluate_every 20 --gamma 10
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Optional

if not __package__:  # started by its path, as `accelerate launch` does: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

import torch
from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.artisan_master_asr import SPECIALIST_NOISE
from modeling_master_asr.text_master_asr import build_vocab
from training.loop.config import EVALUATE_EVERY, Count, CountOrZero, NotNegative, PartsConfig, Positive, Share, parse
from training.loop.data import Features, by_language, drop_impossible, minutes_of, without_broken
from training.loop.launch import opened, place, run, run_as
from training.loop.metrics import measured
from training.loop.models import check_there
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json
from training.loop.sharding import unsharded
from training.loop.splits import Splits, load_splits
from training.loop.steps import train
from training.loop.stopping import minutes_left
from training.loop.text import keep_text
from training.loop.watching import mapping_figures


@dataclass(frozen=True, kw_only=True)
class MultilingualConfig(PartsConfig):
    """The settings of stage 1."""

    preset: Literal["paper", "small", "best"] = HfArg(default="paper", help="what each language owns")
    backbone: str = HfArg(default="facebook/wav2vec2-large-xlsr-53", help="folder or hub id of a pretrained speech encoder")
    num_layers: Optional[Count] = HfArg(default=None, help="keep only the encoder's first layers")
    languages: Optional[list[str]] = HfArg(default=None, help="codes, as the data has them; else all that it has clips of to train on")
    minutes_per_language: Positive = HfArg(default=60.0, help="of training audio, at most")
    steps: Count = HfArg(default=100_000, help="updates of the weights")
    evaluate_every: Count = HfArg(default=300, help=EVALUATE_EVERY)
    learning_rate: Positive = HfArg(default=5e-5, help="of W")
    head_learning_rate: Optional[Positive] = HfArg(default=None, help="else as W")
    mapping_learning_rate: Optional[Positive] = HfArg(default=None, help="of T before alpha; else as W")
    sparsity: Share = HfArg(default=0.3, help="t, the fraction masked out")
    num_specialists: Count = HfArg(default=4, help="K")
    alpha: Positive = HfArg(default=10.0, help="what --mapping_learning_rate, or else W's, is multiplied by for T")
    beta: Count = HfArg(default=5, help="T moves every beta steps")
    gamma: CountOrZero = HfArg(default=5000, help="W and M take turns of gamma steps, W first; 0: both at once")
    specialist_noise: NotNegative = HfArg(default=SPECIALIST_NOISE, help="of M at the start, relative to its mean, 0.5 |W|")
    gates: Literal["learnt", "open", "own"] = HfArg(
        default="learnt", help="by T; or baselines with T fixed: all open, one mask for all languages; or each language its own specialist alone"
    )
    artisan_targets: Optional[list[str]] = HfArg(default=None, help="names of the linear layers that get masks; else the attention projections")


def alphabets(clips) -> dict[str, dict[str, int]]:
    """`{language: vocab}` of training texts, languages in the order of `--languages`, or of the data."""
    return {code: build_vocab(clip.text for clip in of_language) for code, of_language in by_language(clips).items()}


def build(config: MultilingualConfig, clips) -> tuple[MasterASRForCTC, MasterASRProcessor]:
    """The model on its backbone, alphabets from the training texts.

    Raises:
        FileNotFoundError: if `--backbone` is no folder that is there, and can be no hub id.
        ValueError: for `--gates own` without a specialist for each language.
    """
    count = len({clip.language for clip in clips})
    if config.gates == "own" and config.num_specialists != count:
        raise ValueError(f"--gates own: got --num_specialists {config.num_specialists}; allowed: one a language, {count}.")
    check_there(config.backbone)  # before any hub is asked
    folder = Path(config.backbone).expanduser()
    model = MasterASRForCTC.from_backbone(
        str(folder) if folder.is_dir() else config.backbone, alphabets(clips), num_specialists=config.num_specialists, sparsity=config.sparsity, num_layers=config.num_layers,
        artisan_targets=config.artisan_targets, **config.owned(),
    )  # fmt: skip
    for own, assembly in enumerate(model.assemblies.values()):
        assembly.reset_mapping()  # drawn once more than it has to be: a seed goes on giving the model that RESULTS.md measured
        if config.gates != "learnt":
            torch.nn.init.constant_(assembly.mapping, 1.0 if config.gates == "open" else -1.0)
            assembly.mapping.requires_grad_(False)
        if config.gates == "own":
            torch.nn.init.ones_(assembly.mapping[:, own])
    for layer in model.master_asr.artisan_layers:
        layer.reset_specialists(noise=config.specialist_noise)
    model.freeze_feature_encoder()  # CHOICE: the paper names no frozen layers; the convolutions stay as they were pretrained
    model.freeze_idle_masks()
    return model, MasterASRProcessor.from_model(model)


def learning_rates(config: MultilingualConfig) -> dict[str, float]:
    """`{group of `training.loop.optim.named_groups`: learning rate}`."""
    rate = config.learning_rate
    return {
        "W": rate, "M": rate, "head": config.head_learning_rate or rate,
        "T": config.mapping_learning_rate or rate, **config.rates_of_parts(),
    }  # fmt: skip


def announce(model, config: MultilingualConfig, clips, dropped) -> None:
    """Says how much trains, on how many minutes, and which clips do not; and where M waits for its turn until the run is over."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    print(f"{trainable:,} trainable of {total:,} parameters; minutes of training audio {minutes_of(clips)}")
    if dropped:
        print(f"Dropped {len(dropped)} clips whose text needs more frames than they have: {[str(c.audio) for c in dropped[:5]]}")
    if config.gamma >= config.steps and config.sparsity > 0:
        print(f"WARNING: M never moves: W has the first turn, of --gamma {config.gamma} steps, and the run has {config.steps}. The shipped model took turns of 150.")


def train_model(accelerator, config: MultilingualConfig, model, processor, features, splits: Splits) -> tuple[MasterASRForCTC, dict]:
    """The model after its steps, and their log."""
    place(accelerator, model, config)
    turns = Turns(model, config.alpha, config.beta, config.gamma, learning_rates(config), config.steps, beta2=config.beta2)
    log = train(accelerator, model, processor, features, turns, splits.training, splits.validation, config, stage="stage1")
    return unsharded(model), log


def save(accelerator, model, processor, folder: Path) -> None:
    """Writes the model, before anything is tested: no figure is worth a training."""
    if accelerator.is_main_process:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        print(f"Trained: {folder}.")
    accelerator.wait_for_everyone()


def summary(result: dict) -> list[str]:
    """One screen: test CER and WER a language, and what happened to the masks."""
    test, greedy = result["with_text"]["test"], result["test"]
    lines = [f"{'language':10}{'minutes':>9}{'CER, %':>9}{'WER, %':>9}{'greedy: CER, %':>16}{'WER, %':>9}"] if test else ["No test figures."]
    for code, rate in [*test["languages"].items(), ("macro", test["macro"])] if test else []:
        minutes = result["minutes"].get(code)
        lines.append(f"{code:10}{'' if minutes is None else f'{minutes:.1f}':>9}{rate['cer']:9.2f}{rate['wer']:9.2f}"
                     f"{(of := greedy['languages'].get(code, greedy['macro']))['cer']:16.2f}{of['wer']:9.2f}")  # fmt: skip
    lines += [f"{name.replace('_', ' ')}: {value:.3g}" for name, value in result["mapping"].items()]
    lost = len(result["log"]["skipped"]), len(result["log"]["broken_clips"])
    return lines + ([f"lost: {lost[0]} steps with gradients that were not finite, {lost[1]} broken clips"] if any(lost) else [])


def report(config: MultilingualConfig, result: dict) -> None:
    """The result on disk and on one screen, and the next command."""
    write_json(config.out / "run.json", result)
    print("\n".join(summary(result)))
    print(f"Wrote {config.out / 'run.json'} and {config.out / 'model'}.")
    model = shlex.quote(str(config.out / "model"))
    language = "xx" if "es" in result["minutes"] else "es"  # one that it has not
    print(f"Next: python -m training.adapt_language --model {model} --data {shlex.join(config.data)} --language {language} --out runs/{language}")


def main(argv=None) -> None:
    config = parse(MultilingualConfig, __doc__, argv)
    with opened(config) as accelerator:
        started_s = time.monotonic()
        facts = facts_of_run()  # now: the code may change while it runs
        set_seed(config.seed)
        splits = load_splits(accelerator, config, config.languages, config.minutes_per_language)
        model, processor = build(config, splits.training)
        splits.training, dropped = drop_impossible(splits.training, processor, model)
        if alphabets(splits.training) != {code: model.config.vocab(code) for code in model.languages}:  # letters of dropped clips alone
            set_seed(config.seed)
            model, processor = build(config, splits.training)
        announce(model, config, splits.training, dropped)
        features = Features(processor, config.features_cache)
        rest = replace(config, max_minutes=minutes_left(config, started_s))
        model, log = train_model(accelerator, rest, model, processor, features, splits)
        splits.training = without_broken(splits.training, log)
        for code in model.languages:
            keep_text(accelerator, model, code, splits, config)
        save(accelerator, model, processor, config.out / "model")
        figures = measured(accelerator, model, processor, features, splits)
        if accelerator.is_main_process:
            report(config, {
                **facts, **run_as(accelerator, config), "minutes": minutes_of(splits.training),
                "dropped": [str(clip.audio) for clip in dropped], **figures, "mapping": mapping_figures(model), "log": log,
            })  # fmt: skip


if __name__ == "__main__":
    run(main)
