"""Data as it really comes: `--data` takes any mix of these, each optionally with its language in front (`sr=PATH`).

    manifest.jsonl, manifest.csv     audio, language, text, and where known duration_s, split (columns may be named as elsewhere)
    a Common Voice folder            train.tsv, dev.tsv, test.tsv or validated.tsv beside clips/
    an audiofolder                   metadata.csv or metadata.jsonl with file_name, at the top or in train/, validation/, test/
    x.parquet or a folder of them    with an Audio column
    hub:owner/name, hub:owner/name:config    a dataset on the Hub, streamed: with its language in front it
                                     stops once that has its minutes; as long as it stays as it is, once a cache

Data comes from strangers: what a row may open is in recordings.py, what a text table may look like in tables.py.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from modeling_master_asr.audio_master_asr import DOWNLOAD_TIMEOUT_S
from modeling_master_asr.signs_master_asr import is_spoken
from modeling_master_asr.text_master_asr import normalize
from training.loop.record import read_jsonl, write_jsonl
from training.loop.recordings import MAX_DOWNLOAD_GB, LeftOut, Shelf, kind, seconds_of
from training.loop.report import Clip, Report
from training.loop.tables import COLUMNS, TABLES, TORN, of_columns, pick, read_table
from training.loop.text import doubtful

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "development": "validation", "test": "test", "testing": "test",
    # CHOICE: "eval" is what Trainer calls it; some mean test by it. Held out from training either way
    "eval": "validation", "evaluation": "validation",
}  # fmt: skip
VOICE_TABLES = ("train", "dev", "test", "validated")  # of a Common Voice folder
CODE = r"\w[\w-]*"  # of a language
CODE_IN_WORDS = "letters, digits, _ and -, such as 'en' or 'pa-IN'"
HELD_OUT_MINUTES = 30.0  # of validation and of test, which a stream gives at least if it has them
FORMS = ("parquet", "arrow", "csv", "json")  # of the Hub's data sets: tables; `datasets` itself opens files that rows of other forms name


@dataclass
class Row:
    """One row of a source before it is a clip."""

    where: str  # "x.csv, line 3"
    fields: dict  # audio, text, language, duration_s, split; None where it has none
    shelf: Shelf
    split: Optional[str] = None  # of its source, where that has one


class Budget:
    """How much of a streamed source is wanted: its first minutes, and some splits. Of the others all is read, and a seed chooses.

    Args:
        minutes: to train on, of each language; None: all there is. Held-out splits give as much, and at least `HELD_OUT_MINUTES`:
            figures of a minute of speech would say nothing, and a stream may hold days.
        code: the language of the whole source, where that is known.
        splits: those that are wanted; None: all.
    """

    def __init__(self, minutes: Optional[float] = None, code: str = "", splits: Optional[Collection[str]] = None):
        self.minutes, self.code, self.splits = minutes, code, splits
        self.heard_s: Counter = Counter()  # (split, language) -> seconds of usable clips
        self.cut: set = set()  # those that have more
        self.unwanted: set = set()  # splits of which nothing was read

    def wants(self, split: Optional[str]) -> bool:
        """Whether a split is to be read; None, of texts that are yet to be divided, always is."""
        if self.splits is None or split is None or split in self.splits:
            return True
        self.unwanted.add(split)
        return False

    def of(self, split: str) -> float:
        """Minutes wanted of a split."""
        return self.minutes if split == "train" else max(self.minutes, HELD_OUT_MINUTES)

    def spent(self, row: Row) -> bool:
        """Whether a row's language has its minutes, or nobody wants its split; never where texts are yet to be divided into splits."""
        if not self.wants(row.split):
            return True
        if self.minutes is None or row.split is None:
            return False
        key = row.split, self.code or str(row.fields["language"]).strip()  # as `_language` will have it, or refuse it
        if self.heard_s[key] < 60 * self.of(row.split):
            return False
        self.cut.add(key)
        return True

    def lines(self, path: str) -> list[str]:
        """What was left unread of a source."""
        unread = [f"{path}: {', '.join(sorted(self.unwanted))} not read, so nobody knows what it shares with the rest"] if self.unwanted else []
        return [*unread, *(f"{path}: of {language}'s {split} clips the first {self.of(split):g} minutes" for split, language in sorted(self.cut))]


def read_data(
    sources: list[str], cache: Path, minutes: Optional[float] = None, min_s: float = 0.2, max_s: float = 30.0,
    allow_outside: bool = False, max_download_gb: float = MAX_DOWNLOAD_GB, download_timeout_s: float = DOWNLOAD_TIMEOUT_S,
    splits: Optional[Collection[str]] = None,
) -> tuple[list[Clip], Report]:  # fmt: skip
    """Clips of all sources. A broken clip costs that clip, is counted and named, never the run.

    Args:
        sources: see the module's docstring.
        cache: folder for recordings that come inside parquet files.
        minutes: where a streamed source may stop, see `Budget`.
        min_s, max_s: clips of another duration are skipped.
        allow_outside: manifests and local parquet files may name recordings that do not lie below their folder.
        max_download_gb: of recordings, from one data set of the Hub.
        download_timeout_s: in which each row, or file that a row names, has to arrive from the Hub.
        splits: of streamed sources, those that are read; None: all.

    Raises:
        FileNotFoundError: for a source that is not there.
        TimeoutError: for a data set of the Hub that keeps us waiting.
        ValueError: for one of no known kind, without rows, or that names no language; for a table that is broken, by its line;
            for a row that names a file outside.
    """
    report, clips = Report(), []
    for source in sources:
        code, path = _language_and_path(source)
        if not path.strip():
            raise ValueError(f"--data holds {source!r}, which names nothing. It takes files, folders and hub:owner/name.")
        budget = Budget(minutes, code, splits)
        shelf = Shelf(path, Path(cache), allow_outside=allow_outside, max_download_gb=max_download_gb, download_timeout_s=download_timeout_s)
        listed = None
        if path.startswith("hub:"):
            _open_hub(path, shelf)
            listed = shelf.list_of(source, minutes, min_s, max_s, None if splits is None else sorted(splits))
            if there := read_listed(listed):
                report.sources.append(f"{path}: the {len(there)} clips that were read of it before, since it has not changed ({listed}; what was left out was said then)")
                clips += there
                continue
        rows, hashed, named, first = 0, 0, set(), len(clips)
        for row in tqdm(_rows(path, shelf, report, budget), desc=f"reading {path}", unit=" clips", disable=None, leave=False):
            rows += 1
            language = _renamed(row, code, named) if code else _language(row, source)
            try:
                clip = _clip(row, language, report)
                if not min_s <= clip.duration_s <= max_s:
                    by_entry = "" if _seconds(row.fields["duration_s"]) is None else ", as its entry says"
                    raise LeftOut(f"not {min_s} to {max_s} s long{by_entry}", f"{clip.audio}: {clip.duration_s:.1f} s")
            except LeftOut as error:
                report.skip(language, error.reason, f"{row.where}: {error.about}" if error.about != "" else row.where)
                continue
            hashed += row.split is None
            budget.heard_s[row.split, language] += clip.duration_s
            clips.append(clip)
        if not rows:
            others = f" of {', '.join(sorted(splits))}; it has {', '.join(sorted(budget.unwanted))}" if budget.unwanted else ""
            raise ValueError(f"{path} holds no rows{others}.")
        report.sources += [f"{path}: {hashed} clips of no named split, divided by a hash of their texts"] if hashed else []
        report.sources += budget.lines(path)
        if listed is not None and clips[first:]:
            write_jsonl(listed, ({**asdict(clip), "audio": clip.audio.name} for clip in clips[first:]))
    return clips, report


def read_listed(listed: Path) -> list[Clip]:
    """The clips that a list beside their recordings names; none if there is no list, or one of them is gone."""
    if not listed.is_file():
        return []
    clips = [Clip(**{**row, "audio": listed.parent / row["audio"]}) for row in read_jsonl(listed)]
    return clips if all(clip.audio.is_file() for clip in clips) else []


def read_manifest(path: str | Path) -> list[Clip]:
    """Clips of a manifest, or another local source, that has to be whole: the first row that cannot be used is an error.

    Raises:
        ValueError: naming the line and the cause.
        FileNotFoundError: if there is no manifest.
    """
    report, clips = Report(), []
    for row in _rows(str(path), Shelf(str(path), Path(path).parent / "recordings"), report, Budget()):
        try:
            clips.append(_clip(row, _language(row, str(path)), report))
        except LeftOut as error:
            raise ValueError(f"{row.where}: {error}. Mend or drop the line.") from error
    if report.torn:
        raise ValueError(f"{report.torn[0]}: {TORN}. Mend or drop the line.")
    if not clips:
        raise ValueError(f"{path} holds no rows.")
    return clips


def _language_and_path(source: str) -> tuple[str, str]:
    """`sr=PATH` divided at its first `=`; a path may hold others."""
    code, equals, path = source.partition("=")
    return (code, path) if equals and re.fullmatch(CODE, code) and not Path(source).exists() else ("", source)


def _rows(path: str, shelf: Shelf, report: Report, budget: Budget) -> Iterator[Row]:
    """Rows of one source."""
    if path.startswith("hub:"):
        return _from_hub(path, shelf, report, budget)
    place = Path(path)
    if not place.exists():
        in_front = f"In front of = a code is wanted: {CODE_IN_WORDS}. " if "=" in path else ""
        raise FileNotFoundError(f"No data at {path}. --data takes manifests, Common Voice folders, audiofolders, parquet files and hub:owner/name. {in_front}"
                                "A corpus to start with: python -m training.prepare_speech --out data.")  # fmt: skip
    shelf.folder = shelf.root = place.parent if place.is_file() else place
    if place.is_file() and place.suffix.lower() in TABLES:
        return _from_tables([place], shelf, report)
    files = [place] if place.suffix.lower() == ".parquet" and place.is_file() else below(place, "*.parquet")
    tables = below(place, "metadata.csv", "metadata.jsonl")
    has_clips = (place / "clips").is_dir()
    of_voices = [table for name in VOICE_TABLES if has_clips and (table := place / f"{name}.tsv").is_file()]
    if files and (others := [*tables, *of_voices]):
        raise ValueError(f"{path} holds parquet files, such as {files[0]}, and data of another kind beside them, {others[0]}. Name what is meant: a folder below it, or a file.")
    if files:
        return _from_parquet(files, shelf, report, budget)
    if tables and not of_voices:
        return _from_tables(tables, shelf, report)
    if has_clips:
        return _common_voice(place, shelf, report)
    raise ValueError(f"{path} is no manifest (.jsonl, .csv), Common Voice folder (clips/), audiofolder (metadata.csv) or parquet file.")


def below(folder: Path, *patterns: str) -> list[Path]:
    """Files of these names in a folder and those below it, linked ones too, each of which is looked into once."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    return sorted(found)


def split_named(name: str) -> Optional[str]:
    """The split that `TEST`, `dev` or `train.clean.100` mean, or None."""
    return SPLITS.get(re.split(r"[^a-z]", name.strip().lower())[0])


def _splits_of(files: list[Path], root: Path, report: Report) -> dict[Path, Optional[str]]:
    """The split of every file by its own name or its folders'; all None where no name is one.

    CHOICE: test.csv without a split column is test. By their texts, most of its clips would go to training.

    Raises:
        ValueError: if some are and others are not: these would be put into splits by their texts, test data among them.
    """
    splits = {}
    for file in files:
        of_names = map(split_named, [file.stem, *reversed(file.relative_to(root).parts[:-1])])
        splits[file] = next((split for split in of_names if split), SPLITS.get(root.resolve().name.lower()))
    unknown = [str(file) for file, split in splits.items() if split is None]
    if unknown and len(unknown) < len(splits):
        raise ValueError(f"{unknown} is no split by name, and files beside it are; known are {list(SPLITS)}. Rename it, or name the files one by one.")
    report.sources += [f"{file}: {split} by its name, where a row says nothing else" for file, split in splits.items() if split]
    return splits


def _from_tables(tables: list[Path], shelf: Shelf, report: Report) -> Iterator[Row]:
    splits = _splits_of(tables, shelf.root, report)
    for table in tables:
        own = replace(shelf, folder=table.parent)
        of_folders = _splits_of_recordings(table, report) if splits[table] is None else {}
        for where, raw in read_table(table, report.torn):
            yield _row(where, raw, own, splits[table] or of_folders.get(where))


def _splits_of_recordings(table: Path, report: Report) -> dict[str, str]:
    """The split of every row of a table that stands above `train/` and `test/`, by the folders of its recording; of rows that name a
    recording, and no split of their own.

    Raises:
        ValueError: if some lie in such folders and others do not.
    """
    splits, elsewhere = {}, None
    for where, raw in read_table(table, []):  # torn lines are counted where the clips are read
        fields = pick(raw, where)
        if not isinstance(fields["audio"], str) or fields["split"] is not None:
            continue
        path = Path(fields["audio"].replace("\\", "/"))  # as Windows writes it
        folders = (path.relative_to(table.parent) if path.is_relative_to(table.parent) else path).parts[:-1]
        split = None if Path(*folders).is_absolute() else next((SPLITS[name.lower()] for name in reversed(folders) if name.lower() in SPLITS), None)
        if split:
            splits[where] = split
        else:
            elsewhere = elsewhere or where
    if splits and elsewhere:
        raise ValueError(f"{elsewhere}: the recording lies in no folder that is a split by name, and others of the table do; known are {list(SPLITS)}. "
                         "Rename its folder, or give the table a column split.")  # fmt: skip
    report.sources += [f"{table}: {', '.join(dict.fromkeys(splits.values()))} by the recordings' folders, where a row says nothing else"] if splits else []
    return splits


def _row(where: str, raw: dict, shelf: Shelf, split: Optional[str]) -> Row:
    """A row with its split.

    Raises:
        ValueError: for a split of no known name.
    """
    fields = pick(raw, where)
    named = fields["split"]
    if named is not None and str(named).strip():
        split = split_named(named) if isinstance(named, str) else None
        if split is None:
            raise ValueError(f"{where}: the split is {named!r}; known are {list(SPLITS)}. Rename it, or leave the column out: texts are then divided by a hash.")
    return Row(where, fields, shelf, split)


def _common_voice(folder: Path, shelf: Shelf, report: Report) -> Iterator[Row]:
    shelf.folder = folder / "clips"
    durations = {}
    listed = folder / "clip_durations.tsv"
    if listed.is_file():
        for _, row in read_table(listed, []):
            name, milliseconds = [*row.values(), None][:2]
            durations[name] = int(milliseconds) / 1000 if str(milliseconds).isdecimal() else None
    tables = {name: folder / f"{name}.tsv" for name in ("train", "dev", "test") if (folder / f"{name}.tsv").is_file()}
    if "train" not in tables:
        tables = {"validated": folder / "validated.tsv"}
    for name, table in tables.items():
        if not table.is_file():
            raise ValueError(f"{folder} has clips/, but neither train.tsv nor validated.tsv beside it.")
        for where, raw in read_table(table, report.torn):
            row = _row(where, raw, shelf, split_named(name))
            row.fields["language"] = row.fields["language"] or folder.resolve().name
            row.fields["duration_s"] = row.fields["duration_s"] or durations.get(row.fields["audio"])
            yield row


def _from_parquet(files: list[Path], shelf: Shelf, report: Report, budget: Budget) -> Iterator[Row]:
    """Rows of local parquet files, one at a time: a small file may hold large ones."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    splits = _splits_of(files, shelf.root, report)
    wanted = {column for columns in COLUMNS.values() for column in columns}
    for file in files:
        own = replace(shelf, folder=file.parent)
        try:
            opened = ParquetFile(file)
            columns = [name for name in opened.schema_arrow.names if name.lower() in wanted]
            pick(dict.fromkeys(name.lower() for name in opened.schema_arrow.names), str(file))
            batches = (row for batch in opened.iter_batches(batch_size=1, columns=columns) for row in batch.to_pylist())
            for number, raw in enumerate(batches):
                where = f"{file}, {splits[file] or 'no split'}, row {number}"
                row = _row(where, of_columns(raw), own, splits[file])
                if not budget.spent(row):
                    yield row
        except (ArrowException, OSError) as error:
            raise ValueError(f"{file} is no parquet file that can be read ({error}). Fetch it again.") from error


def _from_hub(path: str, shelf: Shelf, report: Report, budget: Budget) -> Iterator[Row]:
    """Rows of a data set on the Hub, streamed.

    Raises:
        ValueError: see `_open_hub`; for a set that has no split of a known name.
    """
    builder, files = shelf.hub or _open_hub(path, shelf)
    unknown = [str(split) for split in files if split_named(str(split)) is None]
    if len(unknown) == len(files):
        raise ValueError(f"{path} has the splits {unknown}; known are {list(SPLITS)}.")
    if unknown:
        report.sources.append(f"{path}: splits not read: {unknown} (known are {', '.join(SPLITS)})")
    for split in files:
        if str(split) not in unknown and budget.wants(split_named(str(split))):
            for row in _stream(builder, str(split), f"{path}, {split}", shelf):
                if not budget.spent(row):
                    yield row
                elif budget.code:  # else another language may follow
                    break


def _open_hub(path: str, shelf: Shelf) -> tuple:
    """Asks what files a data set on the Hub has; no code of its repo runs (`datasets` from 4.0 on), and its card names no data but its own.

    Raises:
        ValueError: for another name than `owner/name`; for a set that names other data.
    """
    from datasets import load_dataset_builder

    name, _, config = path.removeprefix("hub:").partition(":")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ValueError(f"{path} is no data set of the Hub: it is named hub:owner/name, or hub:owner/name:config.")
    if Path(name).exists():
        raise ValueError(f"{path}: a folder of that name is here, and would be read in its place. Start from another folder.")
    shelf.repo = name
    builder = shelf.arrived("the list of its files", lambda: load_dataset_builder(name, config or None))
    if hasattr(builder.config, "keep_default_na"):  # of a csv: "null" and "nan" are words
        builder.config.keep_default_na, builder.config.na_values = False, [""]
    shelf.hub = builder, _own_files(builder, name)
    return shelf.hub


def _own_files(builder, name: str) -> dict[str, list[str]]:
    """`{split: files}` of a data set on the Hub.

    Raises:
        ValueError: if its card names files of another place, or they are of a kind that is not read.
    """
    files = {split: [str(file) for file in of_split] for split, of_split in (builder.config.data_files or {}).items()}
    foreign = [file for of_split in files.values() for file in of_split if not file.startswith(f"hf://datasets/{name}@")]
    if foreign:
        raise ValueError(f"hub:{name} names data that is not its own: {foreign[:3]}. Nothing of it was opened.")
    form = type(builder).__module__.rpartition(".")[2]
    if form not in FORMS:
        raise ValueError(f"hub:{name} is of the form {form}; those that are streamed: {', '.join(FORMS)}. Download it, and pass the folder: "
                         f"hf download {name} --repo-type dataset --local-dir FOLDER")  # fmt: skip
    return files


def _stream(builder, split: str, where: str, shelf: Shelf) -> Iterator[Row]:
    data = shelf.arrived(f"the columns of {split}", lambda: builder.as_streaming_dataset(split=split))
    if data.features:
        data = data.decode(False)  # bytes as they came: recordings are decoded by us, pictures by nobody
    rows = iter(data)
    for number in itertools.count():
        raw = shelf.arrived(f"its next row, {split}, row {number}", lambda: next(rows, None))
        if raw is None:
            return
        shelf.count(sum(len(value.get("bytes") or b"") for value in raw.values() if isinstance(value, dict)))
        yield _row(f"{where}, row {number}", of_columns(raw), shelf, split_named(split))


def _language(row: Row, source: str) -> str:
    code = row.fields["language"]
    if not code or (isinstance(code, str) and not code.strip()):
        raise ValueError(f"{row.where} names no language. Give it for the whole source: --data {shlex.quote(f'xx={source}')}.")
    if not isinstance(code, str):
        raise ValueError(f"{row.where}: the language is {code!r}, {kind(code)}; a code is wanted, such as 'en' or 'pa-IN'.")
    if not re.fullmatch(CODE, code.strip()):
        raise ValueError(f"{row.where}: the language is {code!r}; a code is {CODE_IN_WORDS}.")
    return code.strip()


def _renamed(row: Row, code: str, named: set[str]) -> str:
    """`code`, of a row whose source was given it; `named` collects what its rows say.

    Raises:
        ValueError: if they name several languages.
    """
    named |= {str(row.fields["language"]).strip().lower()} - {"", "none"}
    if len(named) > 1:
        raise ValueError(f"{row.where}: {code}= says one language for the whole source, and its rows name {sorted(named)}. Leave {code}= out, or divide the rows.")
    return code


def _clip(row: Row, language: str, report: Report) -> Clip:
    """A Clip of a row.

    Raises:
        LeftOut: if it cannot be used.
    """
    audio = row.shelf.file_of(row.fields["audio"], row.where)
    raw = row.fields["text"]
    if raw is not None and not isinstance(raw, str):  # CHOICE: refused: digits are no letters, and nobody knows how they were spoken
        raise LeftOut(f"the transcript is {kind(raw)}, not text", audio)
    dropped: Counter = Counter()
    text = normalize(raw or "", dropped, language)
    report.dropped_characters[language].update(dropped)
    if not text:
        raise LeftOut("empty transcript", audio)
    if any(map(is_spoken, dropped)):
        report.unspelled[language].append(raw)
    for reason, example in doubtful(raw, text, language):
        report.note(language, reason, f"{audio}: {example!r}")
    declared = row.fields["duration_s"]
    if not audio.stat().st_size:
        raise LeftOut("an empty file", audio)
    duration_s = _seconds(declared)
    if duration_s is None:
        duration_s = seconds_of(audio)
        if declared is not None:
            report.note(language, "a declared duration that is no number of seconds, measured", f"{row.where}: {declared!r}")
    return Clip(audio, language, text, duration_s, row.split or split_of(text))


def _seconds(declared: object) -> Optional[float]:
    """A declared duration, or None if it is none: not a number, not finite, not above 0."""
    try:
        seconds = float(declared) if isinstance(declared, (int, float, str)) and not isinstance(declared, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None


def split_of(text: str) -> str:
    """A split by the text alone, 80 / 10 / 10: where a source has none, no text is then in two splits."""
    draw = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return "train" if draw < 8 else "validation" if draw == 8 else "test"
