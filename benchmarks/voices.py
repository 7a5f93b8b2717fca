"""Voices that nobody trained on: a manifest without some speakers, and one of them alone.

    python -m benchmarks.voices --data data/manifest.jsonl --heard small
    python -m training.train_multilingual --data data/own_voices.jsonl ... --out runs/voices
    python -m training.evaluate --model ./runs/voices/model --data data/other_voices.jsonl --out runs/voices_others.json

Dialogue (cs, nl) is divided by its characters, as the scripts name them: `--heard` stay, the others are tested on, with no sentence
that training holds. The prompts of the other languages have one voice each, which stays.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from training.prepare_speech import DIALOGUE


def divide(clips: list[dict], heard: set[str]) -> tuple[list[dict], list[dict]]:
    """(clips to train on and to test in the voices heard, test clips of other voices)."""
    is_heard = [clip["language"] not in DIALOGUE or clip["speaker"] in heard for clip in clips]
    own = [clip for clip, stays in zip(clips, is_heard) if stays]
    said = {(clip["language"], clip["text"]) for clip in own if clip["split"] == "train"}
    # "both" is said by one who is heard
    fishes = {"small", "big"}  # the two who talk most: their held-out sentences are enough
    others = [
        {**clip, "split": "test"} for clip, stays in zip(clips, is_heard)
        if not stays and clip["speaker"] != "both" and (clip["language"], clip["text"]) not in said and (clip["speaker"] not in fishes or clip["split"] != "train")
    ]  # fmt: skip
    return own, others


def write(path: Path, clips: list[dict]) -> None:
    path.write_text("".join(json.dumps(clip, ensure_ascii=False) + "\n" for clip in clips), encoding="utf-8")
    minutes = defaultdict(float)
    for clip in clips:
        minutes[clip["language"], clip["split"]] += clip["duration_s"] / 60
    print(f"{path}: " + ", ".join(f"{language} {split} {total:.1f} min" for (language, split), total in sorted(minutes.items())))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a manifest that names speakers, as training.prepare_speech writes it")
    parser.add_argument("--heard", required=True, nargs="+", help="characters to train on, such as small and big")
    args = parser.parse_args(argv)
    clips = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    unknown = set(args.heard) - {clip["speaker"] for clip in clips if clip["language"] in DIALOGUE}
    if unknown:
        parser.error(f"--heard: got {sorted(unknown)}; allowed: {sorted({clip['speaker'] for clip in clips if clip['language'] in DIALOGUE})}.")
    own, others = divide(clips, set(args.heard))
    write(args.data.with_name("own_voices.jsonl"), own)
    write(args.data.with_name("other_voices.jsonl"), others)


if __name__ == "__main__":
    main()
