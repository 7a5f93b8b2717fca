"""Stage 2: adds one language to a trained model from minutes of speech; nothing else moves.

    accelerate launch training/adapt_language.py --model runs/stage1/model --data data/manifest.jsonl --language es --out runs/es

One minute on a CPU, from a clone:

    python -m training.adapt_language --model checkpoints/master-asr-whisper-base --data demo/manifest.jsonl --language es \
        --out runs/es --steps 40
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

if not __package__:  # started by its path, as `accelerate launch` does: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.configuration_master_asr import ALL_PARTS, PAPER_PARTS
from training.loop.config import EVALUATE_EVERY, Count, CountOrZero, LoopConfig, Positive, as_record, parse
from training.loop.data import Collator, Features, bucket, drop_impossible, minutes_of, select
from training.loop.metrics import evaluate_clips
from training.loop.optim import Turns, freeze_front_end
from training.loop.record import facts_of_run, write_json
from training.loop.sharding import unsharded
from training.loop.steps import load_clips, make_accelerator, place, train
from training.loop.text import build_vocab

# First tries that served for es; what else was tried is in RESULTS.md.
LEARNING_RATES = {"T": 1e-3, "head": 2e-3, "specialist": 3e-3, "delta": 1e-3}


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(LoopConfig):
    """The settings of stage 2."""

    model: str = HfArg(help="folder or hub id of a Master-ASR model")
    language: str = HfArg(help="code of the new language, as the data has it")
    minutes: Positive = HfArg(default=10.0, help="of training audio, at most")
    parts: list[str] = HfArg(default_factory=lambda: ["mapping", "head", "delta"], help="the paper's: mapping head",
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


def add_language(model, processor, features, training, config: AdaptConfig) -> None:
    """Adds the language with its alphabet, its mapping started as `--init` says, and freezes the rest."""
    vocab = build_vocab(clip.text for clip in training)
    processor.add_language(config.language, vocab)
    batches = None
    if config.init == "nearest":
        sample = bucket(training, config.batch_s, random.Random(config.seed))[:5]
        batches = [Collator(features, processor, spares=training)(batch) for batch in sample]
        print("CTC loss of the loaded assemblies:", {k: round(v, 2) for k, v in model.rank_assemblies(batches, vocab).items()})
    model.add_language(config.language, vocab, init=config.init, parts=config.parts, rank=config.rank, batches=batches)
    model.freeze_except(config.language)


def finetune(accelerator, model, processor, features, training, validation, config: AdaptConfig) -> tuple[MasterASRForCTC, dict]:
    """ "+ ft": every weight trains, from where stage 2 ended."""
    model.unfreeze()
    freeze_front_end(model)
    place(accelerator, model, config)
    rate = config.finetune_learning_rate
    config = replace(config, out=config.out / "finetune", steps=config.finetune_steps, resume=None)
    turns = Turns(model, config.alpha, config.beta, 0, dict.fromkeys(("W", "M", "T", "head", "specialist", "delta"), rate), config.steps, beta2=config.beta2)
    log = train(accelerator, model, processor, features, turns, training, validation, config)
    return unsharded(model), log


def main(argv=None) -> None:
    config = parse(AdaptConfig, __doc__, argv)
    set_seed(config.seed)
    accelerator = make_accelerator(config, "stage2")
    clips = load_clips(accelerator, config, config.minutes)
    training = select(clips, "train", [config.language], config.minutes, config.seed)
    validation = select(clips, "validation", [config.language])
    test = select(clips, "test", [config.language])
    model = MasterASRForCTC.from_pretrained(config.model).to(accelerator.device)
    processor = MasterASRProcessor.from_pretrained(config.model)
    features = Features(processor, config.features_cache)
    add_language(model, processor, features, training, config)
    training, dropped = drop_impossible(training, processor, model, speed=1.1)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kilobytes = parameter_kilobytes(model.assemblies[config.language].complete_state_dict())
    gates = model.assemblies[config.language].mapping.numel()
    print(f"{trainable:,} trainable parameters, {kilobytes:.0f} KB, {gates} bits of gates; minutes {minutes_of(training)}; dropped {len(dropped)} clips")
    config.out.mkdir(parents=True, exist_ok=True)
    place(accelerator, model, config)
    turns = Turns(model, config.alpha, config.beta, 0, learning_rates(config), config.steps, config.mapping_gradient, config.beta2)
    log = train(accelerator, model, processor, features, turns, training, validation, config)
    model = unsharded(model)
    result = {
        **facts_of_run(), "config": as_record(config), "minutes": minutes_of(training), "trainable": trainable, "kilobytes": round(kilobytes, 1),
        "dropped": [str(clip.audio) for clip in dropped], "parts": config.parts, "test": evaluate_clips(model, processor, features, test, accelerator), "log": log,
    }  # fmt: skip
    facts = {"cer": result["test"]["macro"]["cer"], "wer": result["test"]["macro"]["wer"], "minutes": result["minutes"]}
    if accelerator.is_main_process:
        model.save_assembly(config.language, config.out / "assembly", **facts)
    if config.finetune_steps:
        model, result["finetune_log"] = finetune(accelerator, model, processor, features, training, validation, config)
        result["finetune_test"] = evaluate_clips(model, processor, features, test, accelerator)
    if not accelerator.is_main_process:
        return
    if config.finetune_steps:
        model.save_pretrained(config.out / "model")
        processor.save_pretrained(config.out / "model")
    write_json(config.out / "run.json", result)
    accelerator.end_training()
    print(f"test CER {facts['cer']:.2f}, WER {facts['wer']:.2f}. Wrote {config.out / 'assembly'} and {config.out / 'run.json'}.")
    print(f"Next: python -m training.transcribe CLIP --model {config.model} --assembly {config.out / 'assembly'} --language {config.language}")


if __name__ == "__main__":
    main()
