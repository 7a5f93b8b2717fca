"""Voices that nobody trained on: a manifest without some speakers, and one of them alone.

    python -m benchmarks.voices --data data/manifest.jsonl --heard small --out data/fish
    python -m training.train_multilingual --data data/fish_heard.jsonl ... --out runs/fish
    python -m training.evaluate --model ./runs/fish/model --data data/fish_others.jsonl --out runs/fish_others.json

Dialogue (cs, nl) is divided by its characters, as the scripts name them: `--heard` stay, the others, or those of `--tested`, are tested
on, with no sentence that training holds. The prompts of the other languages have one voice each, which stays.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Optional

from training.loop.record import read_jsonl, write_jsonl
from training.prepare_speech import DIALOGUE

FISHES = ("small", "big")  # the two who talk most


def divide(clips: list[dict], heard: set[str], tested: Optional[set[str]] = None) -> tuple[list[dict], list[dict]]:
    """(clips to train on and to test in the voices heard, test clips of other voices: of all, or of those `tested`)."""
    is_heard = [clip["language"] not in DIALOGUE or clip["speaker"] in heard for clip in clips]
    own = [clip for clip, stays in zip(clips, is_heard) if stays]
    said = {(clip["language"], clip["text"]) for clip in own if clip["split"] == "train"}

    def is_tested(clip: dict) -> bool:
        if clip["speaker"] == "both":  # which one who is heard says too
            return False
        if tested is not None and clip["speaker"] not in tested:
            return False
        if (clip["language"], clip["text"]) in said:  # a sentence that was trained on, in another voice
            return False
        return clip["split"] != "train" or clip["speaker"] not in FISHES  # their held-out sentences are enough

    return own, [{**clip, "split": "test"} for clip, stays in zip(clips, is_heard) if not stays and is_tested(clip)]


def write(path: Path, clips: list[dict]) -> None:
    write_jsonl(path, clips)
    minutes = defaultdict(float)
    for clip in clips:
        minutes[clip["language"], clip["split"]] += clip["duration_s"] / 60
    print(f"{path}: " + ", ".join(f"{language} {split} {total:.1f} min" for (language, split), total in sorted(minutes.items())))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a manifest that names speakers, as training.prepare_speech writes it")
    parser.add_argument("--heard", required=True, nargs="+", help="characters to train on, such as small and big")
    parser.add_argument("--tested", nargs="+", help="characters to test on; else all that are not heard")
    parser.add_argument("--out", required=True, type=Path, help="OUT_heard.jsonl and OUT_others.jsonl, in the folder of --data, whose paths they share")
    args = parser.parse_args(argv)
    clips = read_jsonl(args.data)
    known = {clip["speaker"] for clip in clips if clip["language"] in DIALOGUE}
    for option, names in (("--heard", args.heard), ("--tested", args.tested or [])):
        if unknown := set(names) - known:
            parser.error(f"{option}: got {sorted(unknown)}; allowed: {sorted(known)}.")
    if both := set(args.heard) & set(args.tested or []):
        parser.error(f"--tested: got {sorted(both)}, which are heard too; allowed: others.")
    if args.out.resolve().parent != args.data.resolve().parent:
        parser.error(f"--out: got {args.out}; allowed: a name in the folder of {args.data}.")
    heard, others = divide(clips, set(args.heard), args.tested and set(args.tested))
    write(args.out.with_name(f"{args.out.name}_heard.jsonl"), heard)
    write(args.out.with_name(f"{args.out.name}_others.jsonl"), others)


if __name__ == "__main__":
    main()
