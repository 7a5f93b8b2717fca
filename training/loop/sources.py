"""Data as it really comes: `--data` takes any mix of these, each optionally with its language in front (`sr=PATH`).

    manifest.jsonl, manifest.csv     audio, language, text, and where known duration_s, split (columns may be named as elsewhere)
    a Common Voice folder            train.tsv, dev.tsv, test.tsv or validated.tsv beside clips/
    an audiofolder                   metadata.csv or metadata.jsonl with file_name, at the top or in train/, validation/, test/
    x.parquet or a folder of them    with an Audio column
    hub:owner/name, hub:owner/name:config    a dataset on the Hub, streamed: it stops once a language has its minutes
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import soundfile
from tqdm import tqdm

from training.loop.data import Clip
from training.loop.text import build_vocab, normalize

COLUMNS = {
    "audio": ("audio", "path", "file_name", "file"), "text": ("text", "sentence", "transcription", "transcript"),
    "language": ("language", "locale", "lang"), "duration_s": ("duration_s", "duration"), "split": ("split",),
}  # fmt: skip
SPLITS = {"train": "train", "dev": "validation", "validation": "validation", "valid": "validation", "test": "test"}


@dataclass
class Report:
    """What was read, and what was left out and why."""

    skipped: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # language -> reason -> clips
    examples: dict[str, str] = field(default_factory=dict)  # reason -> one clip
    dropped_characters: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))

    def skip(self, language: Optional[str], reason: str, name: str) -> None:
        self.skipped[language or "?"][reason] += 1
        self.examples.setdefault(reason, name)

    def lines(self, clips: list[Clip]) -> list[str]:
        """A line a language: hours and clips a split, alphabet, dropped characters, skipped clips with the reason."""
        out = []
        for language in sorted({clip.language for clip in clips} | set(self.skipped)):
            mine = [clip for clip in clips if clip.language == language]
            amounts = []
            for split in ("train", "validation", "test"):
                of_split = [clip.duration_s for clip in mine if clip.split == split]
                if of_split:
                    amounts.append(f"{split} {sum(of_split) / 3600:.2f} h in {len(of_split)} clips")
            letters = "".join(token for token in build_vocab(clip.text for clip in mine) if len(token) == 1 and token != "|") if mine else ""
            out.append(f"{language}: {', '.join(amounts) or 'nothing'}; alphabet {letters}")
            if self.dropped_characters[language]:
                out.append(f"    dropped characters {dict(self.dropped_characters[language].most_common(12))}")
            for reason, count in self.skipped[language].items():
                out.append(f"    skipped {count}: {reason} (such as {self.examples[reason]})")
        return out


def read_data(
    sources: list[str], cache: Path, minutes: Optional[float] = None, min_s: float = 0.2, max_s: float = 30.0
) -> tuple[list[Clip], Report]:
    """Clips of all sources. A broken clip costs that clip, is counted and named, never the run.

    Args:
        sources: see the module's docstring.
        cache: folder for recordings that come inside parquet files.
        minutes: where a streamed source may stop, for each language and split.
        min_s, max_s: clips of another duration are skipped.

    Raises:
        FileNotFoundError: for a source that is not there.
        ValueError: for one of no known kind, or that names no language.
    """
    report, clips = Report(), []
    for source in sources:
        code, _, path = source.rpartition("=") if "=" in source and not Path(source).exists() else ("", "", source)
        for row in tqdm(_rows(path, cache, minutes), desc=f"reading {path}", unit=" clips", disable=None, leave=False):
            clip = _clip(row, code, path, report)
            if clip is None:
                continue
            if not min_s <= clip.duration_s <= max_s:
                report.skip(clip.language, f"not {min_s} to {max_s} s long", str(clip.audio))
                continue
            clips.append(clip)
    return clips, report


def _rows(path: str, cache: Path, minutes: Optional[float]) -> Iterator:
    """Rows `{audio, text, language, duration_s, split}` of one source."""
    if path.startswith("hub:"):
        return _from_datasets(path, cache, minutes)
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"No data at {path}. --data takes manifests, Common Voice folders, audiofolders, parquet files and hub:owner/name. "
                                "A corpus to start with: python -m training.prepare_speech --out data.")  # fmt: skip
    if place.suffix in (".jsonl", ".csv", ".tsv"):
        return _table(place, place.parent, None)
    if place.suffix == ".parquet" or (place.is_dir() and any(place.rglob("*.parquet"))):
        return _from_datasets(path, cache, minutes)
    if (place / "clips").is_dir():
        return _common_voice(place)
    tables = sorted([*place.rglob("metadata.csv"), *place.rglob("metadata.jsonl")]) if place.is_dir() else []
    if tables:
        return (row for table in tables for row in _table(table, table.parent, SPLITS.get(table.parent.name)))
    raise ValueError(f"{path} is no manifest (.jsonl, .csv), Common Voice folder (clips/), audiofolder (metadata.csv) or parquet file.")


def _json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row.get("audio")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is broken ({error}). A line is a JSON object with audio, language and text.") from error
        yield number, row


def _table(path: Path, folder: Path, split: Optional[str]) -> Iterator[dict]:
    if path.suffix == ".jsonl":
        rows = _json_rows(path)
    else:
        tab = path.suffix == ".tsv"
        text = path.read_text(encoding="utf-8-sig")
        # Common Voice's tsv files quote nothing: a lone " is part of the sentence
        read = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.DictReader(io.StringIO(text))
        rows = enumerate(read, start=2)
    for number, row in rows:
        fields = {name: next((row[c] for c in columns if row.get(c) not in (None, "")), None) for name, columns in COLUMNS.items()}
        fields["where"] = f"{path}, line {number}"
        fields["audio"] = None if fields["audio"] is None else folder / fields["audio"]
        yield {**fields, "split": fields["split"] or split}


def _common_voice(folder: Path) -> Iterator[dict]:
    durations = {}
    listed = folder / "clip_durations.tsv"
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines()[1:]:
            name, _, milliseconds = line.partition("\t")
            durations[name] = float(milliseconds) / 1000
    official = [name for name in ("train", "dev", "test") if (folder / f"{name}.tsv").is_file()]
    for name in official if "train" in official else ["validated"]:
        for row in _table(folder / f"{name}.tsv", folder / "clips", SPLITS.get(name)):
            row["language"] = row["language"] or folder.name
            row["duration_s"] = row["duration_s"] or (durations.get(row["audio"].name) if row["audio"] else None)
            yield row


def _from_datasets(path: str, cache: Path, minutes: Optional[float]) -> Iterator[dict]:
    """Rows of parquet files or of a Hub data set; recordings are written to `cache` as they came, once."""
    from datasets import Audio, get_dataset_split_names, load_dataset

    if path.startswith("hub:"):
        name, _, config = path.removeprefix("hub:").partition(":")
        arguments, splits = {"path": name, "name": config or None}, get_dataset_split_names(name, config or None)
    else:
        files = [path] if Path(path).is_file() else [str(p) for p in sorted(Path(path).rglob("*.parquet"))]
        by_split = defaultdict(list)
        for file in files:
            by_split[next((s for s in SPLITS if Path(file).name.startswith(s) or Path(file).parent.name == s), "train")].append(file)
        arguments, splits = {"path": "parquet", "data_files": dict(by_split)}, list(by_split)
    for split in splits:
        data = load_dataset(**arguments, split=split, streaming=True)
        column = next((c for c in COLUMNS["audio"] if c in data.features), None)
        if column is None:
            raise ValueError(f"{path} has the columns {list(data.features)}; one of {list(COLUMNS['audio'])} has to hold audio.")
        if isinstance(data.features[column], Audio):
            data = data.cast_column(column, Audio(decode=False))
        seconds: Counter = Counter()
        for number, row in enumerate(data):
            fields = {name: next((row[c] for c in columns if row.get(c) is not None), None) for name, columns in COLUMNS.items()}
            code = fields["language"]
            if minutes is not None and seconds[code] >= 60 * minutes:
                if len(seconds) == 1 and code is None:
                    break
                continue
            audio = row[column]
            content = audio["bytes"] if audio.get("bytes") else Path(audio["path"]).read_bytes()
            kept = _keep(content, cache, Path(audio.get("path") or "clip").suffix)
            fields |= {"audio": kept, "split": SPLITS.get(fields["split"] or split, split), "where": f"{path}, {split}, row {number}"}
            try:
                fields["duration_s"] = soundfile.info(str(kept)).duration
                seconds[code] += fields["duration_s"]
            except RuntimeError:
                fields["duration_s"] = None  # counted as broken by `_clip`
            yield fields


def _keep(content: bytes, cache: Path, suffix: str) -> Path:
    path = Path(cache) / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix or '.audio'}"
    if not path.exists():  # written beside and renamed: two processes may do it at once
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(content)
        os.replace(part, path)
    return path


def _clip(row: dict, code: str, source: str, report: Report) -> Optional[Clip]:
    """A Clip of a row, or None after counting why not."""
    language = code or row["language"]
    if not language:
        raise ValueError(f"{row['where']} names no language. Give it for the whole source: --data xx={source}.")
    name = str(row["audio"] or row["where"])
    if row["audio"] is None or not Path(row["audio"]).is_file():
        report.skip(language, "no recording", name)
        return None
    text = normalize(row["text"] or "", report.dropped_characters[language])
    if not text:
        report.skip(language, "empty transcript", name)
        return None
    try:
        duration_s = float(row["duration_s"]) if row["duration_s"] else soundfile.info(str(row["audio"])).duration
    except (RuntimeError, ValueError) as error:
        report.skip(language, f"cannot be decoded ({type(error).__name__})", name)
        return None
    split = SPLITS.get(row["split"] or "", None) or split_of(text)
    return Clip(Path(row["audio"]), language, text, duration_s, split)


def split_of(text: str) -> str:
    """A split by the text alone, 80 / 10 / 10: where a source has none, no text is then in two splits."""
    draw = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return "train" if draw < 8 else "validation" if draw == 8 else "test"
