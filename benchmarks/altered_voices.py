"""Training clips once more, through other throats, rooms and noise: does that help with voices that nobody trained on?

    pip install audiomentations pyroomacoustics
    python -m benchmarks.altered_voices --data data/voices_one_heard.jsonl --languages cs nl --out data/voices_altered_heard.jsonl

Every training clip of these languages stays, and gets a copy beside it: its pitch shifted by up to four semitones either way, most of them in
a simulated room, most under coloured noise (5 to 30 dB).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import soundfile
from audiomentations import AddColorNoise, Compose, PitchShift, RoomSimulator
from tqdm import tqdm


def alterations() -> Compose:
    return Compose([
        PitchShift(min_semitones=-4, max_semitones=4, p=0.9),
        RoomSimulator(min_size_x=2.5, max_size_x=8, min_size_y=2.5, max_size_y=8, max_order=8, leave_length_unchanged=True, p=0.6),
        AddColorNoise(min_snr_db=5, max_snr_db=30, p=0.6),
    ])  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a manifest")
    parser.add_argument("--languages", required=True, nargs="+", help="whose training clips get a copy")
    parser.add_argument("--out", required=True, type=Path, help="the manifest with both, in the folder of --data; copies go beside it")
    args = parser.parse_args(argv)
    random.seed(0), np.random.seed(0)
    clips = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    alter, copies = alterations(), args.out.parent / args.out.stem
    altered = []
    for clip in tqdm([clip for clip in clips if clip["split"] == "train" and clip["language"] in args.languages]):
        samples, rate_hz = soundfile.read(args.data.parent / clip["audio"], dtype="float32")
        changed = alter(samples=samples, sample_rate=rate_hz)[: len(samples)]
        path = copies / clip["language"] / Path(clip["audio"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, changed / max(1.0, float(np.abs(changed).max())), rate_hz)
        altered.append({**clip, "audio": str(path.relative_to(args.out.parent))})
    args.out.write_text("".join(json.dumps(clip, ensure_ascii=False) + "\n" for clip in [*clips, *altered]), encoding="utf-8")
    print(f"{args.out}: {len(clips)} clips and {len(altered)} altered copies.")


if __name__ == "__main__":
    main()
