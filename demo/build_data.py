"""Makes the recordings that the repo carries: Spanish for adapting, and three test clips of every other language, as Opus.

    python -m demo.build_data --data data/manifest.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile

from modeling_master_asr.audio_master_asr import decode_audio
from modeling_master_asr.backbone_master_asr import SAMPLING_RATE_HZ
from training.loop.data import select
from training.loop.record import write_jsonl
from training.loop.sources import read_manifest

HERE = Path(__file__).parent


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    args = parser.parse_args(argv)
    clips = read_manifest(args.data)
    chosen = select(clips, "train", ["es"], minutes=10)
    chosen += select(clips, "validation", ["es"], minutes=1.5) + select(clips, "test", ["es"])
    for language in ("en", "fr", "it", "ru", "cs", "nl"):
        wordy = [c for c in select(clips, "test", [language]) if 3 < c.duration_s < 7]
        chosen += wordy[:3]
    lines = []
    for clip in chosen:
        name = Path("audio") / clip.language / f"{clip.audio.stem}.ogg"
        if not (HERE / name).exists():  # each encoding has another serial number: a recording that stays is the same file
            (HERE / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(HERE / name, decode_audio(clip.audio, SAMPLING_RATE_HZ), SAMPLING_RATE_HZ, format="OGG", subtype="OPUS", compression_level=0.9)
        lines.append({"audio": str(name), "language": clip.language, "text": clip.text, "duration_s": clip.duration_s, "split": clip.split})
    write_jsonl(HERE / "manifest.jsonl", lines)
    for path in set(HERE.glob("audio/*/*.ogg")) - {HERE / line["audio"] for line in lines}:
        path.unlink()
    size = sum(p.stat().st_size for p in HERE.glob("audio/*/*.ogg")) / 1e6
    print(f"{len(lines)} clips, {size:.1f} MB. Next: make demo")


if __name__ == "__main__":
    main()
