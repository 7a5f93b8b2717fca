"""Builds a real multilingual corpus of recorded speech from Debian packages: 16 kHz FLAC and a JSONL manifest.

    python -m training.prepare_speech --out data                      # all seven languages, about 3 minutes
    python -m training.prepare_speech --out data --languages es       # one of them: the manifest then has no others

Needs Debian or Ubuntu (apt-get, dpkg-deb), no root. Telephone prompts (asterisk-core-sounds: en, es, fr CC BY-SA 3.0;
it, ru CC BY 3.0) and acted dialogue (fillets-ng-data: cs, nl, GPL-2+). Splits are fixed by a hash of the text, so no two
of them share a sentence.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

import soundfile
from num2words import num2words
from tqdm import tqdm

from modeling_master_asr.audio_master_asr import decode_audio
from modeling_master_asr.backbone_master_asr import SAMPLING_RATE_HZ
from modeling_master_asr.text_master_asr import normalize
from training.loop.launch import run
from training.loop.record import write_jsonl
from training.loop.text import letters_beside, main_script

PROMPTS = {"en": "CC BY-SA 3.0", "es": "CC BY-SA 3.0", "fr": "CC BY-SA 3.0", "it": "CC BY 3.0", "ru": "CC BY 3.0"}
DIALOGUE = ("cs", "nl")
LANGUAGES = (*PROMPTS, *DIALOGUE)
MIN_S, MAX_S = 0.5, 20.0
HELD_OUT_S = 200.0  # a language, for validation and again for test
DRAWN_OUT = {"cs": 1, "nl": 2}  # letters that are left of three and more: "krrrutý", "heeeel"
# What is written otherwise than it is spoken or spelled, found by a dictionary, by ear of Whisper, and by eye; `unusable` are the
# clips that say other words than their text.
CORRECTIONS = json.loads(Path(__file__).with_name("corrections.json").read_text(encoding="utf-8"))
GLUED = re.compile(r"\b[a-z]+(-[a-z0-9]+)+:")  # the name of the listing's next line, whose line break is missing


@dataclass
class Entry:
    """One clip as its package has it."""

    language: str
    source: Path
    name: str
    raw_text: str
    licence: str
    package: str
    speaker: str  # the voice a package has, or the character as its script names it


def packages_of(language: str) -> list[str]:
    if language in DIALOGUE:
        return ["fillets-ng-data", f"fillets-ng-data-{language}"]
    return [f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"]


def unpacked(packages: list[str], cache: Path) -> Path:
    """Downloads and unpacks Debian packages once; returns the folder they are unpacked in."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in tqdm(packages, desc="packages"):
        done = cache / f"{package}.done"
        if done.exists():
            continue
        try:
            subprocess.run(["apt-get", "download", package], cwd=cache, check=True, capture_output=True, text=True)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            raise SystemExit(f"apt-get download {package} failed: {reason.strip()}\nRun `apt-get update` once, on Debian or Ubuntu.") from error
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, "root"], cwd=cache, check=True)
        done.touch()
    return cache / "root"


def prompt_entries(root: Path, language: str) -> list[Entry]:
    """asterisk-core-sounds: `name: transcript` lines beside `sounds/<voice>/name.g722`."""
    package = f"asterisk-core-sounds-{language}"
    listing = gzip.decompress((root / f"usr/share/doc/{package}/core-sounds-{language}.txt.gz").read_bytes())
    voice = next((root / "usr/share/asterisk/sounds").glob(f"{language}_*"))
    entries = {}
    for line in listing.decode("utf-8-sig").splitlines():
        name, colon, text = line.partition(":")
        name, text = name.strip(), text.strip()
        if colon and not line.startswith(";") and name not in entries:  # es has the text of 10 under the name of 0 as well
            text = GLUED.split(text.removeprefix(f"{name}:"))[0].strip()
            entries[name] = Entry(language, voice / f"{name}.g722", name, text, PROMPTS[language], package, voice.name)
    return list(entries.values())


def dialogue_entries(root: Path, language: str) -> list[Entry]:
    """fillets-ng: pairs of `dialogId("name", "font_<character>", ...)` and `dialogStr("text")` in `script/<level>/dialogs_<language>.lua`."""
    entries = []
    for script in sorted((root / "usr/share/games/fillets-ng/script").glob(f"*/dialogs_{language}.lua")):
        text = script.read_text(encoding="utf-8")
        for name, character, spoken in re.findall(r'dialogId\("([^"]+)", "font_(\w+)".*?\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)', text):
            source = root / f"usr/share/games/fillets-ng/sound/{script.parent.name}/{language}/{name}.ogg"
            name = f"{script.parent.name}/{name}"
            entries.append(Entry(language, source, name, spoken, "GPL-2+", f"fillets-ng-data-{language}", character))
    return entries


def spell_digits(text: str, language: str) -> str:
    """The keys of "press 1 for ..." as the words that are spoken; longer numbers are left as they are."""
    return re.sub(r"(?<![\d.,:-])\d(?![\d:]|[.,]\d)", lambda digit: f" {num2words(int(digit[0]), lang=language)} ", text)


def transcript(entry: Entry, dropped: Optional[Counter] = None) -> str:
    """An entry's text, normalized, as it is spelled and spoken."""
    text = normalize(spell_digits(entry.raw_text, entry.language), dropped)
    if entry.language == "cs":
        text = " ".join(text.replace("'", "").split())  # which no Czech word holds: they stand for quotation marks
    for wrong, right in CORRECTIONS[entry.language]["phrases"].items():
        text = re.sub(rf"(?<![\w']){re.escape(wrong)}(?![\w'])", right, text)
    if entry.language in DRAWN_OUT:
        text = re.sub(r"([^\W\d_])\1{2,}", lambda run: run[1] * DRAWN_OUT[entry.language], text)
    return text


def refusal(entry: Entry) -> str:
    """Why a clip is unusable by its transcript, or ''."""
    if entry.name in CORRECTIONS[entry.language].get("unusable", {}):
        return "other words are spoken than written, or none"
    if not entry.source.exists():
        return "no recording"
    if re.search(r"[\[\]<>(){}]", entry.raw_text):
        return "tones or remarks in brackets"
    if re.search(r"\d", spell_digits(entry.raw_text, entry.language)):
        return "numbers that can be read in several ways"
    if re.search(r"[#*@%&+=_]", entry.raw_text):
        return "symbols that are spoken as words"
    if "www." in entry.raw_text:
        return "web addresses, whose dots are spoken"
    words = transcript(entry).split()
    if not words:
        return "empty transcript"
    if all(len(word) == 1 for word in words):
        return "letters, whose names are spoken"
    return ""


def split_by_text(clips: list[dict]) -> None:
    """Sets `split` of one language's clips: whole texts go to test, then validation, in the order of their hash."""
    by_text = defaultdict(list)
    for clip in clips:
        by_text[clip["text"]].append(clip)
    held_s = {"test": 0.0, "validation": 0.0}
    for text in sorted(by_text, key=lambda t: hashlib.sha256(t.encode()).hexdigest()):
        split = next((name for name, seconds in held_s.items() if seconds < HELD_OUT_S), "train")
        for clip in by_text[text]:
            clip["split"] = split
            if split != "train":
                held_s[split] += clip["duration_s"]


def drop_other_scripts(clips: list[dict], skipped: Counter) -> list[dict]:
    """One language's clips without those that hold a letter of another script than its own: names left as they are written
    elsewhere, letters that look alike. Each would add letters to the alphabet that are hardly ever heard.

    After `split_by_text`, so that every other clip keeps the split that it had.
    """
    script = main_script(clip["text"] for clip in clips)
    kept = [clip for clip in clips if not letters_beside(clip["text"], script)]
    if len(kept) < len(clips):
        skipped["words in another script"] += len(clips) - len(kept)
    return kept


def convert(entries: list[Entry], out: Path, skipped: Counter, dropped: Counter) -> list[dict]:
    """Decodes one language's usable clips to FLAC and returns their manifest lines."""
    clips = []
    for entry in tqdm(entries, desc=entries[0].language if entries else "", leave=False):
        reason = refusal(entry)
        if not reason:
            samples = decode_audio(entry.source, SAMPLING_RATE_HZ)
            duration_s = len(samples) / SAMPLING_RATE_HZ
            reason = "" if MIN_S <= duration_s <= MAX_S else f"not {MIN_S}-{MAX_S} s long"
        if reason:
            skipped[reason] += 1
            continue
        audio = Path("audio") / entry.language / f"{entry.name.replace('/', '__')}.flac"
        (out / audio).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out / audio, samples, SAMPLING_RATE_HZ)
        clips.append({
            "audio": str(audio), "language": entry.language, "text": transcript(entry, dropped), "duration_s": round(duration_s, 3),
            "speaker": entry.speaker, "licence": entry.licence, "package": entry.package,
        })  # fmt: skip
    return clips


def report(language: str, clips: list[dict], skipped: Counter, dropped: Counter) -> None:
    minutes = Counter()
    for clip in clips:
        minutes[clip["split"]] += clip["duration_s"] / 60
    parts = ", ".join(f"{name} {minutes[name]:.1f} min" for name in ("train", "validation", "test"))
    tqdm.write(f"{language}: {len(clips)} clips, {parts}; skipped {dict(skipped)}; dropped characters {dict(dropped.most_common(6))}")


def next_command(manifest: Path, languages: list[str]) -> str:
    """Stage 1 on the corpus, of a size for a laptop: the script's own defaults are the paper's backbone and 100,000 steps."""
    chosen = [code for code in LANGUAGES if code != "es"] if set(languages) == set(LANGUAGES) else languages  # Spanish is left to be added
    return (f"accelerate launch training/train_multilingual.py --data {shlex.quote(str(manifest))} --out runs/stage1 --backbone openai/whisper-base "
            f"--num_specialists 2 --minutes_per_language 25 --steps 3000 --evaluate_every 1000 --gamma 150 --languages {' '.join(chosen)}")  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), choices=LANGUAGES)
    args = parser.parse_args(argv)
    packages = dict.fromkeys(package for language in args.languages for package in packages_of(language))
    root = unpacked([*packages], args.out / "packages")
    lines = []
    for language in args.languages:
        skipped, dropped = Counter(), Counter()
        entries = (dialogue_entries if language in DIALOGUE else prompt_entries)(root, language)
        clips = convert(entries, args.out, skipped, dropped)
        split_by_text(clips)
        clips = drop_other_scripts(clips, skipped)
        report(language, clips, skipped, dropped)
        lines += clips
    manifest = args.out / "manifest.jsonl"
    write_jsonl(manifest, lines)
    print(f"Wrote {manifest}. Next: {next_command(manifest, args.languages)}\nAll settings of the shipped model: README, \"Train your own\".")


if __name__ == "__main__":
    run(main)
