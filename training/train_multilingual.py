"""Stage 1: trains W, M, T and the heads of several languages together.

    accelerate launch training/train_multilingual.py --data data/manifest.jsonl --out runs/stage1 --backbone openai/whisper-base

One minute on a CPU:

    python -m training.train_multilingual --data data/manifest.jsonl --out runs/try --backbone openai/whisper-base \
        --languages en it --steps 40 --evaluate_every 20
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started by its path, as `accelerate launch` does: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate.utils import set_seed

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.artisan_master_asr import SPECIALIST_NOISE
from training.loop.data import Features, drop_impossible, minutes_of, select
from training.loop.metrics import evaluate_clips
from training.loop.optim import Turns, freeze_front_end
from training.loop.record import facts_of_run, write_json
from training.loop.sharding import unsharded
from training.loop.steps import add_loop_arguments, load_clips, make_accelerator, place, train
from training.loop.text import build_vocab
from training.loop.watching import mapping_figures


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--backbone", default="facebook/wav2vec2-large-xlsr-53")
    parser.add_argument("--num_layers", type=int, help="keep only the encoder's first layers")
    parser.add_argument("--languages", nargs="+", default=["en", "fr", "it", "ru", "cs", "nl"])
    parser.add_argument("--minutes_per_language", type=float, default=60)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="of W")
    parser.add_argument("--specialist_learning_rate", type=float, help="of M; default: as W")
    parser.add_argument("--head_learning_rate", type=float, help="default: as W")
    parser.add_argument("--mapping_learning_rate", type=float, help="of T before alpha; default: as W")
    parser.add_argument("--sparsity", type=float, default=0.3, help="t, the fraction masked out")
    parser.add_argument("--num_specialists", type=int, default=4, help="K")
    parser.add_argument("--alpha", type=float, default=10, help="T's learning rate over the others'")
    parser.add_argument("--beta", type=int, default=5, help="T moves every beta steps")
    parser.add_argument("--gamma", type=int, default=5000, help="W and M take turns of gamma steps; 0: both at once")
    parser.add_argument("--mapping_std", type=float, default=0.01, help="of T at the start")
    parser.add_argument("--specialist_noise", type=float, default=SPECIALIST_NOISE, help="of M at the start, relative to |W|")
    parser.add_argument("--one_mask", action="store_true", help="baseline: all gates open in every language, T fixed")
    parser.add_argument("--evaluate_every", type=int, default=300)
    add_loop_arguments(parser)
    return parser.parse_args(argv)


def build(args, clips) -> tuple[MasterASRForCTC, MasterASRProcessor]:
    """The model on its backbone, alphabets from the training texts."""
    vocabs = {code: build_vocab(c.text for c in clips if c.language == code) for code in args.languages}
    model = MasterASRForCTC.from_backbone(
        args.backbone, vocabs, num_specialists=args.num_specialists, sparsity=args.sparsity, num_layers=args.num_layers
    )
    for assembly in model.assemblies.values():
        torch.nn.init.normal_(assembly.mapping, std=args.mapping_std)
        if args.one_mask:
            torch.nn.init.ones_(assembly.mapping)
            assembly.mapping.requires_grad_(False)
    for layer in model.master_asr.artisan_layers:
        layer.reset_specialists(noise=args.specialist_noise)
    freeze_front_end(model)
    if args.sparsity == 0:  # nothing is masked: M and T have nothing to say
        for layer in model.master_asr.artisan_layers:
            layer.specialists.requires_grad_(False)
        for assembly in model.assemblies.values():
            assembly.mapping.requires_grad_(False)
    return model, MasterASRProcessor.from_model(model)


def learning_rates(args) -> dict[str, float]:
    rate = args.learning_rate
    return {
        "W": rate, "M": args.specialist_learning_rate or rate, "head": args.head_learning_rate or rate,
        "T": args.mapping_learning_rate or rate,
    }  # fmt: skip


def announce(model, clips, dropped) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    print(f"{trainable:,} trainable of {total:,} parameters; minutes of training audio {minutes_of(clips)}")
    if dropped:
        print(f"Dropped {len(dropped)} clips whose text needs more frames than they have: {[str(c.audio) for c in dropped[:5]]}")


def summary(result: dict) -> list[str]:
    """One screen: test CER and WER a language, and what happened to the masks."""
    lines = [f"{'language':10}{'minutes':>9}{'CER, %':>9}{'WER, %':>9}"]
    for code, rate in [*result["test"]["languages"].items(), ("macro", result["test"]["macro"])]:
        minutes = result["minutes"].get(code)
        lines.append(f"{code:10}{'' if minutes is None else f'{minutes:.1f}':>9}{rate['cer']:9.2f}{rate['wer']:9.2f}")
    lines += [f"{name.replace('_', ' ')}: {value:.3g}" for name, value in result["mapping"].items()]
    lost = len(result["log"]["skipped"]), len(result["log"]["broken_clips"])
    return lines + ([f"lost: {lost[0]} steps with gradients that were not finite, {lost[1]} broken clips"] if any(lost) else [])


def main(argv=None) -> None:
    args = parse(argv)
    set_seed(args.seed)
    accelerator = make_accelerator(args, "stage1")
    clips = load_clips(accelerator, args, args.minutes_per_language)
    training = select(clips, "train", args.languages, args.minutes_per_language, args.seed)
    validation = select(clips, "validation", args.languages)
    model, processor = build(args, training)
    training, dropped = drop_impossible(training, processor, model, speed=1.1)
    announce(model, training, dropped)
    features = Features(processor, args.features_cache)
    place(accelerator, model, args)
    turns = Turns(model, args.alpha, args.beta, args.gamma, learning_rates(args), args.steps, beta2=args.beta2)
    args.out.mkdir(parents=True, exist_ok=True)
    log = train(accelerator, model, processor, features, turns, training, validation, args.out, args)
    model = unsharded(model)
    if accelerator.is_main_process:
        model.requires_grad_(True)
        model.save_pretrained(args.out / "model")
        processor.save_pretrained(args.out / "model")
    test = evaluate_clips(model, processor, features, select(clips, "test", args.languages), accelerator)
    if not accelerator.is_main_process:
        return
    result = {
        **facts_of_run(), "minutes": minutes_of(training), "dropped": [str(clip.audio) for clip in dropped], "test": test,
        "mapping": mapping_figures(model), "log": log,
    }  # fmt: skip
    write_json(args.out / "run.json", result)
    accelerator.end_training()
    print("\n".join(summary(result)))
    print(f"Wrote {args.out / 'run.json'} and {args.out / 'model'}.")
    print(f"Next: accelerate launch training/adapt_language.py --model {args.out / 'model'} --data {' '.join(args.data)} --language es --out runs/es")


if __name__ == "__main__":
    main()
