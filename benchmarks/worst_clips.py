r"""The worst test clips of each language side by side: transcript, our text, stock Whisper's, and what the audio is like.

    python -m benchmarks.worst_clips --model ./checkpoints/master-asr-whisper-base --data data/manifest.jsonl \
        --languages en fr it ru cs nl --out benchmarks/results/worst_clips.json

`--heard` is written by `benchmarks.zero_shot`. Verdicts are judgements made by hand, from both texts and the facts of the audio
and without listening; they stand in `--verdicts`, `{language: {file: [verdict, remark]}}`, and are only copied from there.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.signal import welch

from benchmarks.zero_shot import by_name, read_heard, spell_numbers
from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.audio_master_asr import decode_audio
from modeling_master_asr.backbone_master_asr import SAMPLING_RATE_HZ
from modeling_master_asr.text_master_asr import normalize
from training.loop.data import Collator, Features, select
from training.loop.metrics import edits_of, transcribe_clips
from training.loop.models import processor_of
from training.loop.record import facts_of_run, write_json
from training.loop.sources import Clip, read_data

VERDICTS = (
    "wrong or incomplete transcript", "spelled otherwise", "foreign name", "noise, effect or shouting", "very short", "read by neither",
    "our error",
)  # fmt: skip
FRAME = SAMPLING_RATE_HZ // 50  # samples of a level: 20 ms
FLOOR = 1e-5  # -100 dB, below what 16 bits hold
COUNT = 20  # clips of each language
BAND_DB = 50.0  # a band ends where the spectrum last stands this far below its peak


def decibels(amplitude) -> np.ndarray:
    return 20 * np.log10(np.maximum(amplitude, FLOOR))


def audio_facts(samples: np.ndarray) -> dict[str, float]:
    """Level, peak, share of clipped samples, crude SNR (90th percentile of frames over the 10th) and bandwidth."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)  # (T,) -> (frames, FRAME)
    quiet, loud = np.percentile(decibels(np.sqrt((frames**2).mean(axis=1))), [10, 90])
    frequencies, power = welch(samples, SAMPLING_RATE_HZ, nperseg=512)
    audible = frequencies[10 * np.log10(power + 1e-20) > 10 * np.log10(power.max() + 1e-20) - BAND_DB]
    return {
        "rms_db": round(float(decibels(np.sqrt((samples**2).mean()))), 1),
        "peak_db": round(float(decibels(np.abs(samples).max())), 1),
        "clipped_share": round(float((np.abs(samples) >= 0.99).mean()), 5),
        "snr_db": round(float(loud - quiet), 1), "bandwidth_hz": int(audible.max()),
    }  # fmt: skip


def heard_by_us(folder: str, clips: list[Clip]) -> list[str]:
    """Greedy texts of the model in `folder`."""
    model = MasterASRForCTC.from_pretrained(folder).eval()
    processor = processor_of(model, folder)
    return [text or "" for text in transcribe_clips(model, processor, Collator(Features(processor), processor), clips, greedy=True)]


def side_by_side(clip: Clip, ours: str, whispers: str) -> dict:
    """One clip's texts, each with its CER in %."""
    wrong = {"ours": edits_of(ours, clip.text)[0], "whisper": edits_of(whispers, clip.text)[0]}
    return {
        "file": clip.audio.name, "language": clip.language, "duration_s": clip.duration_s, "reference": clip.text,
        "ours": ours, "whisper": whispers, "edits": wrong["ours"], "cer": round(100 * wrong["ours"] / len(clip.text), 1),
        "cer_whisper": round(100 * wrong["whisper"] / len(clip.text), 1),
    }  # fmt: skip


def worst(entries: list[dict], count: int) -> list[dict]:
    """The `count` entries of highest CER of each language, of equal ones those with more edits."""
    chosen = []
    for code in dict.fromkeys(entry["language"] for entry in entries):
        of_language = [entry for entry in entries if entry["language"] == code]
        chosen += sorted(of_language, key=lambda entry: (-entry["cer"], -entry["edits"], entry["file"]))[:count]
    return chosen


def add_facts(chosen: list[dict], named: dict[tuple[str, str], Clip]) -> None:
    for entry in chosen:
        entry["audio"] = audio_facts(decode_audio(named[entry["language"], entry["file"]].audio, SAMPLING_RATE_HZ))


def add_verdicts(chosen: list[dict], path: Path) -> None:
    verdicts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for entry in chosen:
        entry["verdict"], entry["remark"] = verdicts.get(entry["language"], {}).get(entry["file"], ["not judged", ""])


def summary(entries: list[dict], chosen: list[dict]) -> dict:
    """A language's share of edits that stand in its worst clips, and how often each verdict was given."""
    languages = {}
    for code in dict.fromkeys(entry["language"] for entry in entries):
        total = sum(entry["edits"] for entry in entries if entry["language"] == code)
        of_code = [entry for entry in chosen if entry["language"] == code]
        counts = Counter(entry["verdict"] for entry in of_code)
        languages[code] = {
            "share_of_edits": round(sum(entry["edits"] for entry in of_code) / max(total, 1), 3),
            "verdicts": {verdict: counts[verdict] for verdict in (*VERDICTS, *sorted(set(counts) - set(VERDICTS)))},
        }
    return languages


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--languages", required=True, nargs="+")
    parser.add_argument("--heard", type=Path, default=Path("runs/zero_shot/heard.jsonl"))
    parser.add_argument("--verdicts", type=Path, default=Path("benchmarks/results/worst_clips_verdicts.json"))
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    clips = select(read_data(args.data, args.heard.parent / "recordings")[0], "test", args.languages)
    named, heard = by_name(clips), read_heard(args.heard)
    whispers = [normalize(spell_numbers(heard[clip.language, clip.audio.name]["text"], clip.language), language=clip.language) for clip in clips]
    entries = [side_by_side(*texts) for texts in zip(clips, heard_by_us(args.model, clips), whispers)]
    chosen = worst(entries, COUNT)
    add_facts(chosen, named)
    add_verdicts(chosen, args.verdicts)
    languages = summary(entries, chosen)
    write_json(args.out, {**facts_of_run(), "languages": languages, "clips": chosen})
    for code, row in languages.items():
        print(code, f"{100 * row['share_of_edits']:.0f} % of all edits;", row["verdicts"])
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
