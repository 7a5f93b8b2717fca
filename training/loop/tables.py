"""Text tables as people save them (JSON lines, commas, semicolons, tabs): rows by their lower-cased column names, or the line that is broken."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

TABLES = (".jsonl", ".csv", ".tsv")
COLUMNS = {
    "audio": ("audio", "path", "file_name", "file"), "text": ("text", "sentence", "transcription", "transcript"),
    "language": ("language", "locale", "lang"), "duration_s": ("duration_s", "duration"), "split": ("split",),
}  # fmt: skip
MARKS = (  # UTF-32's begins like UTF-16's, so it comes first
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
TORN = "another number of fields than the header has, or beside one: a text over several lines?"


def read_table(path: Path, torn: list[str]) -> Iterator[tuple[str, dict]]:
    """`("x.csv, line 3", {column: value})` of every row; columns are lower-cased.

    Args:
        torn: gets the lines of a table with tabs that are left out, since they may be parts of one row (`TORN`).

    Raises:
        ValueError: naming the file, the line and the cause, where it is not plain what is meant.
    """
    text = read_text(path)
    rows = _with_one_text(list(_json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text, torn)))
    columns = dict.fromkeys(name for _, row in rows for name in row)  # of the whole table, None in rows that do not name them: exports drop empty fields
    for number, row in rows:
        yield f"{path}, line {number}", columns | row


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of another UTF that says so by its byte order mark.

    Raises:
        ValueError: naming the line that is not. CHOICE: other encodings are not guessed: every byte is a letter in each of
            them, so a wrong guess would be wrong letters, in silence.
    """
    raw = path.read_bytes()
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not {encoding.upper()} (byte 0x{raw[error.start]:02x}). Save the file as UTF-8, such as by: "
            "iconv -f LATIN1 -t UTF-8, or whatever it was written in."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line} holds a NUL character: UTF-16 without its byte order mark? Save the file as UTF-8.")
    return text


def pick(row: dict, where: str) -> dict:
    """The fields of a row by our names; None where a field is empty or not there.

    Raises:
        ValueError: if it has no column for the recording or for the text, naming those it has.
    """
    for name, what in (("audio", "name the recording"), ("text", "hold the text")):
        if not set(COLUMNS[name]) & set(row):
            raise ValueError(f"{where} has the columns {list(row)}; one of {list(COLUMNS[name])} has to {what}.")
    return {name: next((row[c] for c in columns if row.get(c) not in (None, "")), None) for name, columns in COLUMNS.items()}


def of_columns(raw: dict) -> dict:
    """A row of a table that is not read whole: of columns that may be its text the first, since what stands in another may be how it is pronounced."""
    row = {_column(name): value for name, value in raw.items()}
    texts = [name for name in COLUMNS["text"] if name in row]
    return {name: value for name, value in row.items() if name not in texts[1:]}


def _with_one_text(rows: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """Rows whose text is in one column: of those that may be it the first that a row names, where the table has rows with two of them; else the one that is
    filled (tables put together).
    """
    texts = COLUMNS["text"]
    if not any(sum(bool(str(row[name] or "").strip()) for name in texts if name in row) > 1 for _, row in rows):
        return rows
    others = [(number, row, [name for name in texts if name in row][1:]) for number, row in rows]
    return [(number, {name: value for name, value in row.items() if name not in beside}) for number, row, beside in others]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    """Rows as they are written, with the keys that each names."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028, U+0085 and others are legal inside a string
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip(), strict=False)  # control characters inside strings are no harm
            if not isinstance(row, dict):
                raise ValueError(f"it is a {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is broken ({type(error).__name__}: {error}). A line is a JSON object with audio, language and text."
            ) from error
        yield number, {_column(name): value for name, value in row.items()}


def _csv_rows(path: Path, text: str, torn: list[str]) -> Iterator[tuple[int, dict]]:
    delimiter = _delimiter(path, text)
    records = _records(path, text, delimiter)
    names = [_column(name) for name in next(records, (0, []))[1]]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{path} has the column {twice!r} twice. Rename one of them.")
    for number, row in _whole(path, records, names, torn) if delimiter == "\t" else records:
        if len(row) > len(names):
            raise ValueError(f"{path}, line {number} has {len(row)} fields, the header {len(names)}. Put texts that hold the delimiter into quotes.")
        yield number, {name: value.strip() for name, value in zip(names, row)} | dict.fromkeys(names[len(row) :])


def _whole(path: Path, records: Iterator[tuple[int, list[str]]], names: list[str], torn: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table without quoting that have the header's fields, but for empty ones at the end; the others go to `torn`, and with them a row just before or after
    one that opens, or closes, a quote: the rest of a text that a spreadsheet has put over several lines.

    Raises:
        ValueError: if no row has them.
    """
    rows, wanted = list(records), len("\t".join(names).rstrip("\t").split("\t"))
    needed = 1 + max((i for i, name in enumerate(names) if name in (*COLUMNS["audio"], *COLUMNS["text"])), default=wanted - 1)
    whole = [len(row) >= wanted or (len(row) >= needed and not any(_lone_quotes(row))) for _, row in rows]
    fits = [is_whole and not any(value.strip() for value in row[len(names) :]) for is_whole, (_, row) in zip(whole, rows)]
    if rows and not any(fits):
        number, row = rows[0]
        raise ValueError(f"{path}, line {number} has {len(row)} fields, the header {wanted}, and no other row fits it either. Mend the header.")
    for i, (number, row) in enumerate(rows):
        lone = _lone_quotes(row)
        opens = i + 1 < len(rows) and not fits[i + 1] and any(value.startswith('"') for value in lone)
        closes = i > 0 and not fits[i - 1] and any(value.endswith('"') for value in lone)
        if fits[i] and not opens and not closes:
            yield number, row[: len(names)]
        else:
            torn.append(f"{path}, line {number}")


def _lone_quotes(row: list[str]) -> list[str]:
    return [value.strip() for value in row if value.count('"') % 2]


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record that is not blank."""
    # Common Voice's tsv files quote nothing: a lone " is part of the sentence
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {start}: {error}. Is a quote open? Close it; inside of quotes it is written twice.") from error
        if record is None:
            return
        # CHOICE: one line a clip: a field with a line end is nearly always a lone quote that swallowed the rows up to the next one
        if any("\n" in value or "\r" in value for value in record):
            raise ValueError(
                f"{path}, line {start}: a quote that opens here runs over the end of its line and would swallow the next rows. "
                "Close it, or write the text in one line."
            )
        if any(value.strip() for value in record):
            yield start, record


def _delimiter(path: Path, text: str) -> str:
    """The one that finds most known columns in the header; the suffix's own where that says nothing."""
    header = text.lstrip().partition("\n")[0]
    known = {name for columns in COLUMNS.values() for name in columns}
    candidates = "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"
    return max(candidates, key=lambda delimiter: sum(_column(name.strip(' \r"')) in known for name in header.split(delimiter)))


def _column(name: object) -> str:
    return str(name).strip().lower()
