"""Stage 2: adds one language to a trained model from minutes of speech; nothing else moves.

    accelerate launch training/adapt_language.py --model runs/stage1/model --data data/manifest.jsonl --language es --out runs/es

One minute on a CPU, from a clone:

    python -m training.adapt_language --model checkpoints/master-asr-whisper-base --data demo/manifest.jsonl --language es \
        --out runs/es --steps 40
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Optional

if not __package__:  # started by its path, as `accelerate launch` does: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.configuration_master_asr import ALL_PARTS, PAPER_PARTS
from training.loop.config import EVALUATE_EVERY, Count, CountOrZero, LoopConfig, Positive, as_record, parse
from training.loop.data import Collator, Features, bucket, drop_impossible, minutes_of
from training.loop.optim import Turns, freeze_front_end
from training.loop.record import facts_of_run, write_json
from training.loop.sharding import unsharded
from training.loop.steps import Splits, load_splits, opened, place, tested, train
from training.loop.text import build_vocab

DEFAULT_PARTS = ("mapping", "head", "delta")
# First tries that served for es; what else was tried is in RESULTS.md.
LEARNING_RATES = {"T": 1e-3, "head": 2e-3, "specialist": 3e-3, "delta": 1e-3}


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(LoopConfig):
    """The settings of stage 2."""

    model: str = HfArg(help="folder or hub id of a Master-ASR model")
    language: str = HfArg(help="code of the new language, as the data has it")
    minutes: Positive = HfArg(default=10.0, help="of training audio, at most")
    parts: list[str] = HfArg(default_factory=lambda: list(DEFAULT_PARTS), help="the paper's: mapping head",
                             metadata={"choices": ALL_PARTS})  # fmt: skip
    rank: Count = HfArg(default=8, help="of specialist and delta")
    init: str = HfArg(default="nearest", help='"nearest", "random" or a loaded language')
    steps: Count = HfArg(default=300, help="updates of what the language owns")
    finetune_steps: CountOrZero = HfArg(default=0, help='"+ ft": afterwards all weights, this many steps')
    finetune_learning_rate: Positive = HfArg(default=1e-4, help="of all weights")
    alpha: Positive = HfArg(default=10.0, help="T's learning rate over the others'")
    beta: Count = HfArg(default=5, help="T moves every beta steps")
    mapping_gradient: Literal["accumulated", "last"] = HfArg(
        default="last", help="of T: over its beta steps, or of the last of them alone, which is faster"
    )
    mapping_learning_rate: Positive = HfArg(default=LEARNING_RATES["T"], help="of T before alpha")
    head_learning_rate: Positive = HfArg(default=LEARNING_RATES["head"], help="of the head")
    specialist_learning_rate: Positive = HfArg(default=LEARNING_RATES["specialist"], help="of the part, if there is one")
    delta_learning_rate: Positive = HfArg(default=LEARNING_RATES["delta"], help="of the part, if there is one")
    evaluate_every: Count = HfArg(default=100, help=EVALUATE_EVERY)

    def __post_init__(self):
        super().__post_init__()
        if not set(PAPER_PARTS) <= set(self.parts):
            raise ValueError(f"--parts: got {self.parts}; allowed: {list(PAPER_PARTS)} and any of {[p for p in ALL_PARTS if p not in PAPER_PARTS]}.")


def learning_rates(config: AdaptConfig) -> dict[str, float]:
    return {"T": config.mapping_learning_rate, **{part: getattr(config, f"{part}_learning_rate") for part in ("head", "specialist", "delta")}}


def load(accelerator, config: AdaptConfig) -> tuple[MasterASRForCTC, MasterASRProcessor]:
    """The trained model that gets the language.

    Raises:
        ValueError: if it cannot get this one, or start it so.
    """
    model = MasterASRForCTC.from_pretrained(config.model).to(accelerator.device)
    if config.language in model.languages:
        raise ValueError(f"--language: got {config.language!r}; allowed: one that {config.model} does not have. It has {model.languages}.")
    starts = ["nearest", "random", *model.languages]
    if config.init not in starts:
        raise ValueError(f"--init: got {config.init!r}; allowed: one of {starts}.")
    return model, MasterASRProcessor.from_pretrained(config.model)


def nearest(model, processor, features, training, vocab, config: AdaptConfig) -> str:
    """The loaded language whose assembly reads five batches of the new one best."""
    sample = bucket(training, config.batch_s, random.Random(config.seed))[:5]
    losses = model.rank_assemblies([Collator(features, processor, spares=training)(batch) for batch in sample], vocab)
    print("CTC loss of the loaded assemblies:", {code: round(loss, 2) for code, loss in losses.items()})
    return min(losses, key=losses.get)


def add_language(model, processor, features, training, config: AdaptConfig) -> None:
    """Adds the language with its alphabet, its mapping started as `--init` says, and freezes the rest."""
    vocab = build_vocab(clip.text for clip in training)
    processor.add_language(config.language, vocab)
    init = nearest(model, processor, features, training, vocab, config) if config.init == "nearest" else config.init
    model.add_language(config.language, vocab, init=init, parts=config.parts, rank=config.rank)
    model.freeze_except(config.language)


def announce(model, config: AdaptConfig, training, dropped) -> dict:
    """Says what trains; returns what of it stands in the result."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kilobytes = parameter_kilobytes(model.assemblies[config.language].complete_state_dict())
    gates = model.assemblies[config.language].mapping.numel()
    print(f"{trainable:,} trainable parameters, {kilobytes:.0f} KB, {gates} bits of gates; minutes {minutes_of(training)}; dropped {len(dropped)} clips")
    return {"trainable": trainable, "kilobytes": round(kilobytes, 1), "dropped": [str(clip.audio) for clip in dropped], "parts": config.parts}


def trained(accelerator, config: AdaptConfig, model, processor, features, splits: Splits) -> tuple[MasterASRForCTC, dict]:
    """The model after the steps of the language's assembly, and their log."""
    place(accelerator, model, config)
    turns = Turns(model, config.alpha, config.beta, 0, learning_rates(config), config.steps, config.mapping_gradient, config.beta2)
    log = train(accelerator, model, processor, features, turns, splits.training, splits.validation, config)
    return unsharded(model), log


def save(accelerator, config: AdaptConfig, model, splits: Splits, test: Optional[dict] = None) -> None:
    """Writes the assembly: before it is tested, and with its figures afterwards."""
    if accelerator.is_main_process:
        figures = {"cer": test["macro"]["cer"], "wer": test["macro"]["wer"]} if test else {}
        model.save_assembly(config.language, config.out / "assembly", **figures, minutes=minutes_of(splits.training))
        if not test:
            print(f"Trained: {config.out / 'assembly'}.")
    accelerator.wait_for_everyone()


def finetuned(accelerator, config: AdaptConfig, model, processor, features, splits: Splits, started_s: float) -> tuple[MasterASRForCTC, dict]:
    """ "+ ft": every weight trains, from where stage 2 ended; the model is written, and returned with the log."""
    left = config.max_minutes and max(config.max_minutes - (time.monotonic() - started_s) / 60, 1e-9)
    model.unfreeze()
    freeze_front_end(model)
    place(accelerator, model, config)
    config = replace(config, out=config.out / "finetune", steps=config.finetune_steps, resume=config.resume and "newest", max_minutes=left)
    rates = dict.fromkeys(("W", "M", "T", "head", "specialist", "delta"), config.finetune_learning_rate)
    turns = Turns(model, config.alpha, config.beta, 0, rates, config.steps, beta2=config.beta2)
    log = train(accelerator, model, processor, features, turns, splits.training, splits.validation, config)
    model = unsharded(model)
    if accelerator.is_main_process:
        folder = config.out.parent / "model"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        print(f"Trained: {folder}.")
    accelerator.wait_for_everyone()
    return model, log


def report(config: AdaptConfig, result: dict) -> None:
    """The result on disk and on one screen, and the next command."""
    write_json(config.out / "run.json", result)
    for name, test in (("test", result["test"]), ("test after + ft", result.get("finetune_test"))):
        if test:
            print(f"{name}: CER {test['macro']['cer']:.2f}, WER {test['macro']['wer']:.2f}.")
    print(f"Wrote {config.out / 'assembly'} and {config.out / 'run.json'}.")
    print(f"Next: python -m training.transcribe CLIP --model {config.model} --assembly {config.out / 'assembly'} --language {config.language}")


def main(argv=None) -> None:
    config = parse(AdaptConfig, __doc__, argv)
    with opened(config, "stage2") as accelerator:
        started_s = time.monotonic()
        set_seed(config.seed)
        model, processor = load(accelerator, config)
        splits = load_splits(accelerator, config, [config.language], config.minutes)
        features = Features(processor, config.features_cache)
        add_language(model, processor, features, splits.training, config)
        splits.training, dropped = drop_impossible(splits.training, processor, model, speed=1.1)
        result = {**facts_of_run(), "config": as_record(config), "minutes": minutes_of(splits.training)}
        result |= announce(model, config, splits.training, dropped)
        model, result["log"] = trained(accelerator, config, model, processor, features, splits)
        save(accelerator, config, model, splits)
        result["test"] = tested(accelerator, model, processor, features, splits.test)
        if result["test"]:
            save(accelerator, config, model, splits, result["test"])
        if config.finetune_steps:
            model, result["finetune_log"] = finetuned(accelerator, config, model, processor, features, splits, started_s)
            result["finetune_test"] = tested(accelerator, model, processor, features, splits.test)
        if accelerator.is_main_process:
            report(config, result)


if __name__ == "__main__":
    main()
