"""What of a language's test clips is said in the minutes that it trained on: no text is in two splits, but a part of a sentence may be.

    python -m benchmarks.said --data data/manifest.jsonl --language es --series es6 --out benchmarks/results/said_es6.json

Of each run in the series, the test's CER with these clips and without them; and Whisper's, which trained on none, on the same clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks import labels
from benchmarks.tables import edits_of_clips, of_method, whisper_edits
from training.loop.data import select
from training.loop.record import facts_of_run, write_json
from training.loop.sources import Clip, read_data
from training.loop.text import said_in


def said(clips: list[Clip], code: str, config: dict) -> np.ndarray:
    """Whether a clip of those that the run of `config` trained on says what a test clip says, or holds three words of it and more: a mask of the test clips."""
    training = select(clips, "train", [code], config["minutes"], config["seed"])
    return np.array(said_in([clip.text for clip in select(clips, "test", [code])], [clip.text for clip in training]))


def cer(edits: np.ndarray) -> float:
    """CER in % of edits and characters, `(2, clips)`."""
    return 100 * edits[0].sum() / edits[1].sum()


def of_run(run: dict, mask: np.ndarray, whisper: np.ndarray) -> dict:
    """Of one run `{"said", "greedy", "with_text", "whisper"}`: how many test clips are said, and the CER of all clips and of the others.

    Raises:
        ValueError: if it was tested on other clips.
    """
    read = {"greedy": edits_of_clips(run), "with_text": edits_of_clips(run["with_text"]), "whisper": whisper}
    if any(edits.shape != (2, len(mask)) or not np.array_equal(edits[1], whisper[1]) for edits in read.values()):
        raise ValueError(f"{run['command']}: tested on other clips than --data holds. Pass the manifest that it was run with.")
    return {"seed": run["config"]["seed"], "said": int(mask.sum()), **{name: {"all": cer(edits), "others": cer(edits[:, ~mask])} for name, edits in read.items()}}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="as in training")
    parser.add_argument("--language", required=True)
    parser.add_argument("--series", required=True, choices=list(labels.SERIES))
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    clips, _ = read_data(args.data, args.out.parent / "recordings")
    whisper = whisper_edits(args.language)
    found = {
        name: [of_run(run, said(clips, args.language, run["config"]), whisper) for run in of_method(name, args.series)] for name in labels.METHODS
    }
    write_json(args.out, {**facts_of_run(), "methods": {name: runs for name, runs in found.items() if runs}})
    print(f"Wrote {args.out}. Next: python -m benchmarks.tables")


if __name__ == "__main__":
    main()
