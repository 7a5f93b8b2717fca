"""The demo: Spanish from 10 minutes of recordings, on a laptop, without disturbing the other languages.

    make demo
    python -m demo.run --parts mapping head        # the paper's own stage 2
    python -m demo.run --steps 6 --test_minutes 0.3  # a glance (CI)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import pipeline

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from training.adapt_language import LEARNING_RATES, add_language
from training.loop.data import Features, minutes_of, read_manifest, select
from training.loop.metrics import evaluate_clips
from training.loop.optim import Turns
from training.loop.steps import train

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "checkpoints" / "master-asr-whisper-base"
DATA = HERE / "manifest.jsonl"
LANGUAGE = "es"


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["mapping", "head", "delta"], choices=ALL_PARTS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--test_minutes", type=float, default=10, help="of held-out clips to score")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args = parser.parse_args(argv)
    settings = {"language": LANGUAGE, "init": "nearest", "rank": 8, "batch_s": 24.0, "seed": 0}
    loop = dict(evaluate_every=10**9, resume=None, patience=0,
                max_minutes=None, temperature=1.0)  # fmt: skip
    return argparse.Namespace(**vars(args), **settings, **loop)


@torch.no_grad()
def logits_of_others(model, processor, clips) -> dict[str, torch.Tensor]:
    """The logits of one clip of every language but Spanish."""
    model.eval()
    features = Features(processor)
    first = {clip.language: clip for clip in reversed(clips) if clip.language != LANGUAGE}
    return {code: model(**processor.pad([features(clip)]), language=code).logits for code, clip in first.items()}


def adapt(model, processor, features, clips, args) -> dict:
    """Adds Spanish and trains its assembly; returns CER before and after."""
    training, test = select(clips, "train", [LANGUAGE], 10), select(clips, "test", [LANGUAGE], args.test_minutes)
    add_language(model, processor, features, training, args)
    before = evaluate_clips(model, processor, features, test)["macro"]["cer"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kilobytes = parameter_kilobytes(model.assemblies[LANGUAGE].complete_state_dict())
    print(f"Training {trainable:,} parameters ({kilobytes:.0f} KB) on {minutes_of(training)[LANGUAGE]} minutes of Spanish.")
    turns = Turns(model, alpha=10, beta=5, gamma=0, learning_rates=LEARNING_RATES, num_steps=args.steps, mapping_gradient="last")
    validation = select(clips, "validation", [LANGUAGE], args.test_minutes)
    train(Accelerator(cpu=True), model, processor, features, turns, training, validation, args.out, args)
    after = evaluate_clips(model, processor, features, test)["macro"]["cer"]
    return {"before": before, "after": after, "trainable": trainable, "kilobytes": kilobytes}


def transcribe(folder: Path, clips) -> None:
    """One test clip a language through the stock `pipeline` call, from the exported folder's own code."""
    asr = pipeline("automatic-speech-recognition", model=str(folder), trust_remote_code=True)
    first = {clip.language: clip for clip in reversed(clips) if clip.split == "test" and clip.duration_s > 3}
    for code, clip in first.items():
        print(f"  {code}  heard: {asr(str(clip.audio), language=code)['text']}\n      said:  {clip.text}")


def main(argv=None) -> None:
    args = parse(argv)
    set_seed(0)
    start_s = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    clips = read_manifest(DATA)
    model = MasterASRForCTC.from_pretrained(CHECKPOINT)
    processor = MasterASRProcessor.from_pretrained(CHECKPOINT)
    others = logits_of_others(model, processor, clips)
    result = adapt(model, processor, Features(processor), clips, args)
    same = all(torch.equal(logits, others[code]) for code, logits in logits_of_others(model, processor, clips).items())
    model.save_assembly(LANGUAGE, args.out / "assembly")
    model.save_pretrained(args.out / "model")
    processor.save_pretrained(args.out / "model")
    print(f"\nSpanish CER on held-out clips: {result['before']:.1f} % before, {result['after']:.1f} % after {args.steps} steps.")
    print(f"Trained {result['trainable']:,} parameters; the assembly is {result['kilobytes']:.0f} KB: {args.out / 'assembly'}")
    print(f"Logits of {sorted(others)} bit-equal to before: {same}")
    transcribe(args.out / "model", clips)
    print(f"\nDone in {(time.time() - start_s) / 60:.1f} minutes.")
    print(f"Next: python -m training.transcribe YOUR.mp3 --model {args.out / 'model'} --language es --json")
    if not same:
        raise SystemExit("Another language's logits changed: this is a bug, please report it.")


if __name__ == "__main__":
    main()
