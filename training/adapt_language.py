"""Stage 2: adds one language to a trained model from minutes of speech; nothing else moves.

    accelerate launch training/adapt_language.py --model runs/stage1/model --data data/manifest.jsonl --language es --out runs/es

One minute on a CPU, from a clone:

    python -m training.adapt_language --model checkpoints/master-asr-whisper-base --data demo/manifest.jsonl --language es \
        --out runs/es --steps 40
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

if not __package__:  # started by its path, as `accelerate launch` does: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from accelerate.utils import set_seed

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from training.loop.data import Collator, Features, bucket, drop_impossible, minutes_of, select
from training.loop.metrics import evaluate_clips
from training.loop.optim import Turns, freeze_front_end
from training.loop.record import facts_of_run, write_json
from training.loop.sharding import unsharded
from training.loop.steps import add_loop_arguments, load_clips, make_accelerator, place, train
from training.loop.text import build_vocab

# First tries that served for es; what else was tried is in RESULTS.md.
LEARNING_RATES = {"T": 1e-3, "head": 2e-3, "specialist": 3e-3, "delta": 1e-3}


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a Master-ASR model")
    parser.add_argument("--language", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--parts", nargs="+", default=["mapping", "head", "delta"], choices=ALL_PARTS,
                        help="the paper's: mapping head")  # fmt: skip
    parser.add_argument("--rank", type=int, default=8, help="of specialist and delta")
    parser.add_argument("--init", default="nearest", help='"nearest", "random" or a loaded language')
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--finetune_steps", type=int, default=0, help='"+ ft": afterwards all weights, this many steps')
    parser.add_argument("--finetune_learning_rate", type=float, default=1e-4)
    parser.add_argument("--alpha", type=float, default=10, help="T's learning rate over the others'")
    parser.add_argument("--beta", type=int, default=5)
    parser.add_argument("--mapping_gradient", default="last", choices=["accumulated", "last"],
                        help="of T: over its beta steps, or of the last of them alone, which is faster")  # fmt: skip
    parser.add_argument("--mapping_learning_rate", type=float, default=LEARNING_RATES["T"], help="of T before alpha")
    for part in ("head", "specialist", "delta"):
        parser.add_argument(f"--{part}_learning_rate", type=float, default=LEARNING_RATES[part])
    parser.add_argument("--evaluate_every", type=int, default=100)
    add_loop_arguments(parser)
    return parser.parse_args(argv)


def learning_rates(args) -> dict[str, float]:
    return {"T": args.mapping_learning_rate, **{part: getattr(args, f"{part}_learning_rate") for part in ("head", "specialist", "delta")}}


def add_language(model, processor, features, training, args) -> None:
    """Adds the language with its alphabet, its mapping started as `--init` says, and freezes the rest."""
    vocab = build_vocab(clip.text for clip in training)
    processor.add_language(args.language, vocab)
    batches = None
    if args.init == "nearest":
        sample = bucket(training, args.batch_s, random.Random(args.seed))[:5]
        batches = [Collator(features, processor, spares=training)(batch) for batch in sample]
        print("CTC loss of the loaded assemblies:", {k: round(v, 2) for k, v in model.rank_assemblies(batches, vocab).items()})
    model.add_language(args.language, vocab, init=args.init, parts=args.parts, rank=args.rank, batches=batches)
    model.freeze_except(args.language)


def finetune(accelerator, model, processor, features, training, validation, args) -> tuple[MasterASRForCTC, dict]:
    """ "+ ft": every weight trains, from where stage 2 ended."""
    model.unfreeze()
    freeze_front_end(model)
    place(accelerator, model, args)
    rate = args.finetune_learning_rate
    args = argparse.Namespace(**{**vars(args), "steps": args.finetune_steps, "resume": None})
    turns = Turns(model, args.alpha, args.beta, 0, dict.fromkeys(("W", "M", "T", "head", "specialist", "delta"), rate), args.steps, beta2=args.beta2)
    log = train(accelerator, model, processor, features, turns, training, validation, args.out / "finetune", args)
    return unsharded(model), log


def main(argv=None) -> None:
    args = parse(argv)
    set_seed(args.seed)
    accelerator = make_accelerator(args, "stage2")
    clips = load_clips(accelerator, args, args.minutes)
    training = select(clips, "train", [args.language], args.minutes, args.seed)
    validation = select(clips, "validation", [args.language])
    test = select(clips, "test", [args.language])
    model = MasterASRForCTC.from_pretrained(args.model).to(accelerator.device)
    processor = MasterASRProcessor.from_pretrained(args.model)
    features = Features(processor, args.features_cache)
    add_language(model, processor, features, training, args)
    training, dropped = drop_impossible(training, processor, model, speed=1.1)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kilobytes = parameter_kilobytes(model.assemblies[args.language].complete_state_dict())
    gates = model.assemblies[args.language].mapping.numel()
    print(f"{trainable:,} trainable parameters, {kilobytes:.0f} KB, {gates} bits of gates; minutes {minutes_of(training)}; dropped {len(dropped)} clips")
    args.out.mkdir(parents=True, exist_ok=True)
    place(accelerator, model, args)
    turns = Turns(model, args.alpha, args.beta, 0, learning_rates(args), args.steps, args.mapping_gradient, args.beta2)
    log = train(accelerator, model, processor, features, turns, training, validation, args.out, args)
    model = unsharded(model)
    result = {
        **facts_of_run(), "minutes": minutes_of(training), "trainable": trainable, "kilobytes": round(kilobytes, 1),
        "dropped": [str(clip.audio) for clip in dropped], "parts": args.parts, "test": evaluate_clips(model, processor, features, test, accelerator), "log": log,
    }  # fmt: skip
    facts = {"cer": result["test"]["macro"]["cer"], "wer": result["test"]["macro"]["wer"], "minutes": result["minutes"]}
    if accelerator.is_main_process:
        model.save_assembly(args.language, args.out / "assembly", **facts)
    if args.finetune_steps:
        model, result["finetune_log"] = finetune(accelerator, model, processor, features, training, validation, args)
        result["finetune_test"] = evaluate_clips(model, processor, features, test, accelerator)
    if not accelerator.is_main_process:
        return
    if args.finetune_steps:
        model.save_pretrained(args.out / "model")
        processor.save_pretrained(args.out / "model")
    write_json(args.out / "run.json", result)
    accelerator.end_training()
    print(f"test CER {facts['cer']:.2f}, WER {facts['wer']:.2f}. Wrote {args.out / 'assembly'} and {args.out / 'run.json'}.")
    print(f"Next: python -m training.transcribe CLIP --model {args.model} --assembly {args.out / 'assembly'} --language {args.language}")


if __name__ == "__main__":
    main()
