"""Data from strangers, one line an input: what is given, and what must be said or read. The next one is one line more.

Every case lies in a folder with `a.wav` and `b.wav` (0.5 s each); outside of it lies `private.wav`, which nobody may read.
"""

import gzip
import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import tiny_model
from huggingface_hub import HfApi

from modeling_master_asr import MasterASRProcessor
from training import evaluate
from training.loop import recordings
from training.loop.sources import _own_files, read_data, read_manifest
from training.prepare_speech import HELD_OUT_S, Entry, drop_other_scripts, prompt_entries, refusal, split_by_text, transcript

ROW = {"audio": "a.wav", "language": "en", "text": "ab", "split": "train"}


def line(**changes) -> str:
    return json.dumps(ROW | changes, ensure_ascii=False) + "\n"


def csv_of(*rows: str, header: str = "audio,language,text,split") -> str:
    return "".join(f"{row}\n" for row in (header, *rows))


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    """A data folder with two recordings, and a private one beside it."""
    place = tmp_path / "data"
    for number, path in enumerate((place / "a.wav", place / "b.wav", tmp_path / "private.wav")):
        write(path, b"")
        soundfile.write(path, np.random.default_rng(number).standard_normal(8000) * 0.1, 16_000)
    return place


def read(path, **options):
    clips, report = read_data([str(path)], Path(path).parent / "cache", **options)
    return clips, "\n".join(report.lines(clips))


# what is given, file name, its content, the texts that are read
READ = [
    ("U+2028 inside a line of JSON", "m.jsonl", line(text="a\u2028b") + line(text="c"), ["a b", "c"]),
    ("U+0085 inside a line of JSON", "m.jsonl", line(text="a\u0085b") + line(text="c"), ["a b", "c"]),
    ("U+001E inside a line of JSON", "m.jsonl", line(text="a|b").replace("|", "\x1e") + line(text="c"), ["a b", "c"]),
    ("U+001E before every line of JSON", "m.jsonl", "\x1e" + line() + "\x1e" + line(), ["ab", "ab"]),
    ("U+2029 in a field of CSV", "m.csv", csv_of("a.wav,en,a\u2029b,train", "b.wav,en,c,train"), ["a b", "c"]),
    ("a byte order mark before JSON", "m.jsonl", b"\xef\xbb\xbf" + line().encode(), ["ab"]),
    ("a byte order mark before CSV", "m.csv", b"\xef\xbb\xbf" + csv_of("a.wav,en,ab,train").encode(), ["ab"]),
    ("UTF-16 with its mark", "m.csv", csv_of("a.wav,en,žluť,train").encode("utf-16"), ["žluť"]),
    ("UTF-16 with its mark, big-endian", "m.jsonl", b"\xfe\xff" + line(text="žluť").encode("utf-16-be"), ["žluť"]),
    ("line ends of Windows", "m.jsonl", line().replace("\n", "\r\n") * 2, ["ab", "ab"]),
    ("line ends of Windows in CSV", "m.csv", csv_of("a.wav,en,ab,train").replace("\n", "\r\n"), ["ab"]),
    ("semicolons", "m.csv", csv_of("a.wav;en;ab, c;train", header="audio;language;text;split"), ["ab c"]),
    ("tabs in a .csv", "m.csv", csv_of("a.wav\ten\tab\ttrain", header="audio\tlanguage\ttext\tsplit"), ["ab"]),
    ("upper-case headers with spaces", "m.csv", csv_of("a.wav,en,ab,train", header="Audio, LANGUAGE ,Text,Split"), ["ab"]),
    ("upper-case keys", "m.jsonl", '{"Audio": "a.wav", "Language": "en", "Text": "ab", "Split": "train"}', ["ab"]),
    ("spaces after commas", "m.csv", csv_of('a.wav, en, "ab, c", train'), ["ab c"]),
    ("a suffix in capitals", "m.JSONL", line(), ["ab"]),
    ("a quote inside a field", "m.csv", csv_of('a.wav,en,he said "ab" so,train'), ["he said ab so"]),
    ("a doubled quote", "m.csv", csv_of('a.wav,en,"he said ""ab"", so",train'), ["he said ab so"]),
    ("a lone quote in a table with tabs", "m.tsv", csv_of('a.wav\ten\t"ab\ttrain', "b.wav\ten\tc\ttrain", header="audio\tlanguage\ttext\tsplit"), ["ab", "c"]),
    ("blank lines", "m.csv", csv_of("a.wav,en,ab,train", "", "b.wav,en,c,train", ""), ["ab", "c"]),
    ("audio as an object with a path", "m.jsonl", line(audio={"path": "a.wav", "bytes": None}), ["ab"]),
    ("an absolute path below the folder", "m.jsonl", None, ["ab"]),
    ("a path that leaves the folder and comes back", "m.jsonl", line(audio="../data/a.wav"), ["ab"]),
    ("emoji with U+FE0F", "m.jsonl", line(text="ab \u2764\ufe0f 1\ufe0f\u20e3 c"), ["ab c"]),
]  # fmt: skip


@pytest.mark.parametrize("name, content, texts", [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_what_is_plainly_meant_is_read(folder, name, content, texts):
    path = write(folder / name, line(audio=str(folder / "a.wav")) if content is None else content)
    clips, _ = read(path)
    assert [clip.text for clip in clips] == texts and {(clip.language, clip.split) for clip in clips} == {("en", "train")}
    assert [clip.text for clip in read_manifest(path)] == texts


# what is given, file name, its content, what the error says
REFUSED = [
    ("an empty file of JSON", "m.jsonl", "", "m.jsonl holds no rows"),
    ("an empty CSV", "m.csv", "", "m.csv holds no rows"),
    ("a header alone", "m.csv", csv_of(), "m.csv holds no rows"),
    ("a broken line", "m.jsonl", line() + '{"audio": "a.wav"', "m.jsonl, line 2 is broken .*A line is a JSON object"),
    ("no text in any of two rows", "m.jsonl", '{"audio": "a.wav"}\n{"audio": "b.wav", "language": "en"}', r"line 1 has the columns \['audio', 'language'\]; one of \['text'"),
    ("a line that is a list", "m.jsonl", '["a.wav", "ab"]', "line 1 is broken .*list.*A line is a JSON object"),
    ("brackets without an end", "m.jsonl", "[" * 100_000, "line 1 is broken .RecursionError"),
    ("latin-1", "m.jsonl", line() + line(text="été"), None),
    ("latin-1 in CSV", "m.csv", csv_of("a.wav,en,ab,train").encode() + "a.wav,en,été,train\n".encode("latin-1"),
     r"m.csv, line 3 is not UTF-8 \(byte 0xe9\).*iconv"),
    ("UTF-16 without its mark", "m.csv", csv_of("a.wav,en,ab,train").encode("utf-16-le"), "m.csv, line 1 holds a NUL .*UTF-16"),
    ("a quote that swallows rows", "m.csv", csv_of('a.wav,en,"ab,train', "b.wav,en,c,train", 'a.wav,en,d",train'),
     "m.csv, line 2: a quote that opens here runs over the end of its line"),
    ("a quote that is never closed", "m.csv", csv_of("a.wav,en,ab,train", 'a.wav,en,"ab,train', "b.wav,en,c,train"),
     "m.csv, line 3: .*quote"),
    ("words after a closing quote", "m.csv", csv_of('a.wav,en,"ab" c,train'), "m.csv, line 2: .*quote"),
    ("a comma that splits the text", "m.csv", csv_of("a.wav,en,ab, c,train"), "m.csv, line 2 has 5 fields, the header 4.*quotes"),
    ("a column twice", "m.csv", csv_of("a.wav,en,ab,c", header="audio,language,text,TEXT"), "m.csv has the column 'text' twice"),
    ("no header", "m.csv", "a.wav,en,ab,train\nb.wav,en,c,train\n", "m.csv, line 2 has the columns .*one of .'audio', 'path'"),
    ("no audio in JSON", "m.jsonl", '{"wav": "a.wav", "language": "en", "text": "ab"}', r"line 1 has the columns \['wav', 'language', 'text'\]; one of \['audio'"),
    ("no text in JSON", "m.jsonl", '{"audio": "a.wav", "language": "en"}', r"line 1 has the columns \['audio', 'language'\]; one of \['text'"),
    ("no text in CSV", "m.csv", csv_of("a.wav,en", header="audio,language"), r"line 2 has the columns \['audio', 'language'\]; one of \['text'"),
    ("no language", "m.jsonl", '{"audio": "a.wav", "text": "ab"}', "line 1 names no language. Give it for the whole source: --data xx="),
    ("a number as language", "m.jsonl", line(language=7), "line 1: the language is 7"),
    ("a path as language", "m.jsonl", line(language="../en"), r"line 1: the language is '\.\./en'; a code is letters"),
    ("an unknown split", "m.jsonl", line(split="holdout"), r"line 1: the split is 'holdout'.*known are .*'train', 'training'.*'test'"),
    ("a number as split", "m.jsonl", line(split=1), "line 1: the split is 1"),
    ("a path to a file of the system", "m.jsonl", line(audio="/etc/passwd"), "line 1 names ./etc/passwd.*not below .*data.*--allow_outside"),
    ("a path out of the folder", "m.jsonl", line(audio="../private.wav"), "line 1 names .../private.wav.*not below .*--allow_outside"),
    ("a path out of the folder in CSV", "m.csv", csv_of("../private.wav,en,ab,train"), "line 2 names .../private.wav.*not below"),
    ("a path in an object", "m.jsonl", line(audio={"path": "../private.wav"}), "names .../private.wav.*not below"),
    ("a link out of the folder", "m.jsonl", line(audio="link.wav"), "names .link.wav.*not below"),
    ("a folder of links", "m.jsonl", line(audio="up/private.wav"), "names .up/private.wav.*not below"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, said", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_not_plain_is_refused_by_file_line_and_cause(folder, name, content, said):
    (folder / "link.wav").symlink_to(folder.parent / "private.wav")
    (folder / "up").symlink_to(folder.parent)
    if said is None:
        content, said = content.encode("latin-1"), r"m.jsonl, line 2 is not UTF-8 \(byte 0xe9\).*iconv"
    path = write(folder / name, content)
    for reader in (read, read_manifest):
        with pytest.raises(ValueError, match=f"(?s){said}"):
            reader(path)


# what is given, the fields of a row, why it is left out
LEFT_OUT = [
    ("a number as text", {"text": 5}, "the transcript is a number, not text"),
    ("a list as text", {"text": ["ab"]}, "the transcript is a list, not text"),
    ("true as text", {"text": True}, "the transcript is true or false, not text"),
    ("null as text", {"text": None}, "empty transcript"),
    ("signs alone as text", {"text": "?! \u2764\ufe0f"}, "empty transcript"),
    ("null as audio", {"audio": None}, "no recording"),
    ("an empty path", {"audio": ""}, "no recording"),
    ("a folder as audio", {"audio": "."}, "no recording"),
    ("a file that is not there", {"audio": "none.wav"}, "no recording"),
    ("a NUL in a path", {"audio": "a\0.wav"}, "no recording"),
    ("a path of 5,000 letters", {"audio": "a" * 5000}, "no recording"),
    ("a number as audio", {"audio": 7}, "the recording is a number: a path is read"),
    ("samples as audio", {"audio": {"array": [0.0], "sampling_rate": 16000}}, "the recording is an object with array, sampling_rate: a path is read"),
    ("bytes as JSON", {"audio": {"bytes": "UklGRg==", "path": None}}, "the recording is bytes as text: a path is read"),
    ("an address as audio", {"audio": "http://127.0.0.1/a.wav"}, "no recording"),
    ("words as audio", {"audio": "m.jsonl"}, "cannot be decoded"),
    ("raw samples as audio", {"audio": "a.raw"}, "cannot be decoded"),
    ("signs that steer a terminal", {"audio": "\x1b]0;owned\x07.wav"}, "no recording"),
    ("a folder of the home as audio", {"audio": "~/a.wav"}, "no recording: ~ is not expanded in data"),
    ("a declared hour", {"duration_s": 3600}, "not 0.2 to 30.0 s long, as its entry says"),
]  # fmt: skip


@pytest.mark.parametrize("changes, reason", [case[1:] for case in LEFT_OUT], ids=[case[0] for case in LEFT_OUT])
def test_a_row_that_cannot_be_used_costs_that_row_and_is_named(folder, changes, reason):
    write(folder / "a.raw", bytes(16_000))
    path = write(folder / "m.jsonl", line(**changes) + line(audio="b.wav", text="good"))
    clips, report = read(path)
    assert [clip.text for clip in clips] == ["good"]
    assert f"skipped 1: {reason}" in report and ("m.jsonl, line 1" in report) and "\x1b" not in report, report
    if "long" not in reason:
        with pytest.raises(ValueError, match=f"m.jsonl, line 1.*{reason}"):
            read_manifest(path)


@pytest.mark.parametrize("declared", [math.nan, math.inf, -1, 0, "nan", "five", "1e999", True, [3], None])
def test_a_duration_that_is_none_is_measured_and_said(folder, declared):
    clips, report = read(write(folder / "m.jsonl", line(duration_s=declared)))
    assert [clip.duration_s for clip in clips] == [0.5]
    assert ("noted 1: a declared duration that is no number of seconds, measured" in report) == (declared is not None)


@pytest.mark.parametrize("name, split", [
    ("TRAIN", "train"), ("training", "train"), ("train.clean.100", "train"), ("Dev", "validation"), ("dev_clean", "validation"),
    ("valid", "validation"), ("val", "validation"), ("Eval", "validation"), ("development", "validation"), ("validation", "validation"),
    ("TEST", "test"), ("testing", "test"), ("test-other", "test"), (" test ", "test"),
])  # fmt: skip
def test_a_split_is_known_by_its_usual_spellings(folder, name, split):
    clips, _ = read(write(folder / "m.jsonl", line(split=name)))
    assert [clip.split for clip in clips] == [split]


@pytest.mark.parametrize("name, split", [
    ("test.jsonl", "test"), ("Dev.jsonl", "validation"), ("train_clean.jsonl", "train"), ("test/m.jsonl", "test"), ("m.jsonl", None),
])  # fmt: skip
def test_a_manifest_without_splits_is_the_split_that_its_file_or_folder_is_called(folder, name, split):
    (folder / "test").mkdir()
    rows = [json.dumps({"audio": str(folder / "a.wav"), "text": f"word {'abcdefghij'[i % 10] * (i // 10 + 1)}", "language": "en"}) for i in range(50)]
    clips, report = read(write(folder / name, "\n".join(rows)), allow_outside=True)
    assert {clip.split for clip in clips} == ({split} if split else {"train", "validation", "test"})
    assert (f"{name}: {split} by its name, where a row says nothing else" in report) == bool(split)


@pytest.mark.parametrize("form", ["metadata.csv", "parquet"])
def test_a_folder_called_test_is_test_however_deep(folder, form):
    for split in ("train", "test"):
        if form == "parquet":
            (folder / f"sets/{split}/en").mkdir(parents=True)
            parquet(folder, {"bytes": b"WAV", "path": None}).rename(folder / f"sets/{split}/en/0000.parquet")
        else:
            write(folder / f"sets/{split}/en/metadata.csv", "file_name,language,text\na.wav,en,ab\n")
            (folder / f"sets/{split}/en/a.wav").write_bytes((folder / "a.wav").read_bytes())
    assert sorted(clip.split for clip in read(folder / "sets")[0]) == ["test", "train"]


def test_a_table_of_an_unknown_split_beside_known_ones_is_refused(folder):
    for split in ("train", "holdout"):
        write(folder / f"sets/{split}/metadata.csv", "file_name,language,text\na.wav,en,ab\n")
    with pytest.raises(ValueError, match=r"holdout.*is no split.*known are"):
        read(folder / "sets")


@pytest.mark.parametrize("source", ["", "en="])
def test_no_name_is_not_the_folder_that_one_stands_in(folder, monkeypatch, source):
    write(folder / "metadata.csv", "file_name,language,text\na.wav,en,ab\n")
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=f"--data holds {source!r}, which names nothing"):
        read_data([source], folder / "cache")


def test_outside_files_are_read_when_that_is_said(folder):
    path = write(folder / "m.jsonl", line(audio="../private.wav"))
    assert [clip.text for clip in read(path, allow_outside=True)[0]] == ["ab"]


@pytest.mark.parametrize("source", ["es={}", "pt-BR={}"])
def test_the_first_equals_sign_divides_language_and_path(folder, source):
    path = write(folder / "a=b/m.jsonl", line(audio="a.wav"))
    (path.parent / "a.wav").write_bytes((folder / "a.wav").read_bytes())
    clips, _ = read_data([source.format(path)], folder / "cache")
    assert [clip.language for clip in clips] == [source.partition("=")[0]]
    assert [clip.language for clip in read(path)[0]] == ["en"]


def test_recordings_and_texts_in_train_and_test_are_counted_and_said(folder):
    (folder / "copy.wav").write_bytes((folder / "a.wav").read_bytes())
    rows = [line(), line(audio="copy.wav", text="other", split="test"), line(audio="b.wav", split="test"), line(audio="b.wav", text="c", split="test")]
    report = read(write(folder / "m.jsonl", "".join(rows)))[1]
    assert "WARNING: 1 of 3 test recordings are also in train (such as" in report and "copy.wav" in report
    assert "WARNING: 1 of 3 test texts are also in train (such as 'ab')" in report
    assert "WARNING: 1 recordings have several texts (such as" in report and "b.wav: ['ab', 'c'])" in report
    rows = [line(split="validation"), line(audio="b.wav", split="test"), line(audio="b.wav", text="c", split="train")]
    report = read(write(folder / "m.jsonl", "".join(rows)))[1]
    assert "WARNING: 1 of 1 test texts are also in validation (such as 'ab')" in report
    clean = read(write(folder / "m.jsonl", line() + line(audio="b.wav", text="c", split="test")))[1]
    assert "WARNING" not in clean


def test_letters_of_a_second_script_are_named_with_their_clips(folder):
    rows = [line(text="привет мир"), line(text="сайт asterisk org"), line(text="первoe"), line(text="да", language="xx")]
    report = read(write(folder / "m.jsonl", "".join(rows)))[1]
    assert "letters beside CYRILLIC: LATIN 'aegikorst' in 2 of 3 clips (such as 'сайт asterisk org')" in report
    assert "xx: " in report and report.count("letters beside") == 1


@pytest.mark.parametrize("form, codec, suffix", [("mp4", "aac", "m4a"), ("webm", "libopus", "webm"), ("matroska", "libopus", "mka")])
def test_m4a_and_webm_are_measured_where_no_duration_is_declared(folder, form, codec, suffix):
    with av.open(str(folder / f"a.{suffix}"), "w", format=form, options={"live": "1"} if form == "webm" else {}) as out:
        stream = out.add_stream(codec, rate=48_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    clips, _ = read(write(folder / "m.jsonl", line(audio=f"a.{suffix}")))
    assert [clip.duration_s for clip in clips] == [pytest.approx(1.0, abs=0.1)]


def test_a_common_voice_folder_opens_nothing_outside_and_says_what_it_lacks(folder):
    voice = folder.parent / "cv/en"
    write(voice / "clips/a.wav", (folder / "a.wav").read_bytes())
    with pytest.raises(ValueError, match="en has clips/, but neither train.tsv nor validated.tsv"):
        read(voice)
    write(voice / "validated.tsv", "path\tsentence\na.wav\tab\u2028c\n")
    write(voice / "clip_durations.tsv", "clip\tduration[ms]\na.wav\tlong\n")
    assert [(clip.text, clip.duration_s) for clip in read(voice)[0]] == [("ab c", 0.5)]
    write(voice / "validated.tsv", "path\tsentence\n../../../private.wav\tab\n")
    with pytest.raises(ValueError, match="validated.tsv, line 2 names .*private.wav.*not below .*cv/en"):
        read(voice)
    (voice / "clips/a.wav").unlink()
    (voice / "clips").rmdir()
    (voice / "clips").symlink_to(folder)
    write(voice / "validated.tsv", "path\tsentence\na.wav\tab\n")
    with pytest.raises(ValueError, match="validated.tsv, line 2 names 'a.wav', which is not below"):
        read(voice)


# what is given as audio of a row in a parquet file, what is said
PARQUET = [
    ("bytes", {"bytes": b"WAV", "path": "x.wav"}, None),
    ("bytes alone", {"bytes": b"WAV", "path": None}, None),
    ("bytes with a name that is a path", {"bytes": b"WAV", "path": "/../../x.wav/../.py\n;rm"}, None),
    ("a path below the folder", {"bytes": None, "path": "a.wav"}, None),
    ("null", None, "skipped 1: no recording"),
    ("null in null", {"bytes": None, "path": None}, "skipped 1: no recording"),
    ("bytes that are no audio", {"bytes": b"root:x:0:0", "path": "x.wav"}, "skipped 1: cannot be decoded"),
]  # fmt: skip


def parquet(folder, audio, name="train-0.parquet") -> Path:
    if audio and audio["bytes"] == b"WAV":
        audio = audio | {"bytes": (folder / "a.wav").read_bytes()}
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"audio": pa.array([audio], struct), "text": ["ab"], "language": ["en"]})
    pq.write_table(table, folder / name)
    return folder / name


@pytest.mark.parametrize("audio, said", [case[1:] for case in PARQUET], ids=[case[0] for case in PARQUET])
def test_a_parquet_row_holds_bytes_or_a_file_below_it(folder, audio, said):
    clips, report = read(parquet(folder, audio))
    assert said in report if said else [clip.text for clip in clips] == ["ab"], report
    assert all(path.parent == folder / "cache" and path.suffix in (".wav", ".audio") for path in (folder / "cache").rglob("*"))


@pytest.mark.parametrize("path", ["/etc/passwd", "../private.wav", "../data/../private.wav"])
def test_a_parquet_row_opens_no_file_outside(folder, path):
    with pytest.raises(ValueError, match=r"train, row 0 names .*not below .*data.*--allow_outside"):
        read(parquet(folder, {"bytes": None, "path": path}))
    assert not (folder / "cache").exists()


def test_a_damaged_or_unnamed_parquet_file_is_named(folder):
    write(folder / "p/train-0.parquet", b"PAR1 nothing")
    with pytest.raises(ValueError, match="train-0.parquet is no parquet file that can be read"):
        read(folder / "p")
    (folder / "p/train-0.parquet").unlink()
    parquet(folder, {"bytes": b"WAV", "path": None}, "train-0.parquet")
    parquet(folder, {"bytes": b"WAV", "path": None}, "holdout.parquet")
    with pytest.raises(ValueError, match=r"holdout.parquet.*is no split.*known are"):
        read(folder)


def dataset_on(hub, folder, files: dict, name: str = "tester/set") -> str:
    api = HfApi(token="a-token")
    api.create_repo(name, repo_type="dataset")
    for path, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name, repo_type="dataset")
    return f"hub:{name}"


REMOTE = [
    ("a file of the system", "/etc/passwd"),
    ("a recording of this machine", "{private}"),
    ("a way up", "../private.wav"),
    ("a file address", "file://{private}"),
    ("another server", "http://127.0.0.1:9/a.wav"),
    ("another data set", "hf://datasets/someone/private/a.wav"),
    ("another data set by a way up", "hf://datasets/tester/set/../../someone/private/a.wav"),
    ("a model", "hf://tester/set/a.wav"),
    ("a chain", "zip://a.wav::{private}"),
]  # fmt: skip


@pytest.mark.parametrize("path", [case[1] for case in REMOTE], ids=[case[0] for case in REMOTE])
def test_a_row_of_the_hub_opens_nothing_but_its_own_bytes(folder, hub, path, monkeypatch):
    monkeypatch.chdir(folder)
    private = folder.parent / "private.wav"
    content = parquet(folder, {"bytes": None, "path": path.format(private=private)}).read_bytes()
    source = dataset_on(hub, folder, {"data/train-00000-of-00001.parquet": content})
    asked = len(hub.requests)
    clips, report = read_data([source], folder / "cache")
    assert not clips and not (folder / "cache").exists()
    assert "skipped 1: names a file that is not of the data set: not opened" in "\n".join(report.lines(clips))
    assert not [request for request in hub.requests[asked:] if "private" in request[1]]


def test_a_row_of_the_hub_may_name_a_file_of_its_own_repo(folder, hub):
    content = parquet(folder, {"bytes": None, "path": "hf://datasets/tester/set/audio/a.wav"}).read_bytes()
    source = dataset_on(hub, folder, {"data/train-00000-of-00001.parquet": content, "audio/a.wav": (folder / "a.wav").read_bytes()})
    clips, _ = read_data([source], folder / "cache")
    assert [clip.text for clip in clips] == ["ab"] and clips[0].audio.read_bytes() == (folder / "a.wav").read_bytes()


def test_a_row_of_the_hub_may_name_its_file_by_itself(folder, hub):
    """`datasets` neither opens nor encodes what an Audio column names: it could not here, without torchcodec."""
    sound = (folder / "a.wav").read_bytes()
    features = "".join(f"  - name: {name}\n    dtype: {kind}\n" for name, kind in (("path", "audio"), ("language", "string"), ("text", "string")))
    for name, typed in (("plain", ""), ("typed", f"dataset_info:\n  features:\n{features}")):
        paths = ("sounds/a.wav", "sounds/none.wav", "/etc/passwd.pcm")
        rows = "".join(json.dumps({"path": path, "language": "en", "text": "ab"}) + "\n" for path in paths).encode()
        card = f"---\n{typed}configs:\n- config_name: default\n  data_files: train.jsonl\n---\n".encode()
        source = dataset_on(hub, folder, {"train.jsonl": rows, "sounds/a.wav": sound, "README.md": card}, f"tester/{name}")
        clips, report = read_data([source], folder / "cache")
        assert [clip.audio.read_bytes() == sound for clip in clips] == [True]
        assert report.skipped["en"] == {"no recording": 1, "names a file that is not of the data set: not opened": 1}


def test_a_stream_ends_where_its_language_has_its_minutes(folder, hub):
    sound = {"bytes": (folder / "a.wav").read_bytes(), "path": "a.wav"}
    rows = [{"audio": sound, "text": "ab", "split": "train"}] * 2 + [{"audio": sound, "text": "ab", "split": "never read"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    source = dataset_on(hub, folder, {"data/train-00000-of-00001.parquet": (folder / "rows.parquet").read_bytes()})
    with pytest.raises(ValueError, match="the split is 'never read'"):
        read_data([f"en={source}"], folder / "cache")
    clips, _ = read_data([f"en={source}"], folder / "cache", minutes=0.4 / 60)
    assert len(clips) == 1


def test_a_card_on_the_hub_cannot_name_local_data(folder, hub):
    (folder / "private").mkdir()
    local = parquet(folder, {"bytes": b"WAV", "path": None}).rename(folder / "private/train-0.parquet")
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {local}\n---\n"
    source = dataset_on(hub, folder, {"README.md": card.encode(), "data/train-00000-of-00001.parquet": local.read_bytes()})
    with pytest.raises(ValueError, match="don't belong to tester/set|names data that is not its own"):  # datasets itself, in its newer releases
        read_data([source], folder / "cache")


@pytest.mark.parametrize("file", ["/home/me/train.parquet", "hf://datasets/someone/private@main/a.parquet", "zip://a::hf://datasets/tester/set@main/a",
                                  "hf://datasets/tester/setting@main/a.parquet", "http://127.0.0.1:9/a.parquet"])  # fmt: skip
def test_only_files_of_the_data_set_itself_are_its_data(file):
    builder = type("Parquet", (), {"__module__": "datasets.packaged_modules.parquet.parquet", "config": SimpleNamespace(data_files={"train": [file]})})()
    with pytest.raises(ValueError, match=f"hub:tester/set names data that is not its own: .*{file}"):
        _own_files(builder, "tester/set")


@pytest.mark.parametrize("form, files", [
    ("hdf5", {"data/train-0.h5": b"\x89HDF\r\n\x1a\n"}),
    ("audiofolder", {"train/a.wav": b"RIFF", "train/metadata.csv": b"file_name,language,text\na.wav,en,ab\n"}),
])  # fmt: skip
def test_a_set_of_another_form_is_refused_with_the_way_to_read_it(folder, hub, form, files):
    source = dataset_on(hub, folder, files)
    with pytest.raises(ValueError, match=f"hub:tester/set is of the form {form}; .*hf download tester/set --repo-type dataset"):
        read_data([source], folder / "cache")


def test_unknown_splits_of_a_set_on_the_hub_are_not_read_and_said(folder, hub):
    good = parquet(folder, {"bytes": b"WAV", "path": None}).read_bytes()
    source = dataset_on(hub, folder, {"data/test-0.parquet": good})
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test*\n  - split: invalidated\n    path: data/inv*\n---\n"
    for name, content in {"data/invalid-0.parquet": good, "README.md": card.encode()}.items():
        HfApi(token="a-token").upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="tester/set", repo_type="dataset")
    clips, report = read_data([source], folder / "cache")
    assert [clip.split for clip in clips] == ["test"]
    assert "hub:tester/set: splits not read: ['invalidated']" in "\n".join(report.lines(clips))


def test_downloads_have_limits_that_the_message_names(folder, hub, monkeypatch):
    good = parquet(folder, {"bytes": b"WAV", "path": None}).read_bytes()
    source = dataset_on(hub, folder, {"data/train-00000-of-00001.parquet": good})
    monkeypatch.setattr(recordings, "MAX_RECORDING_BYTES", 10_000)
    clips, report = read_data([source], folder / "cache")
    assert not clips and "skipped 1: more than 10000 bytes (MAX_RECORDING_BYTES)" in "\n".join(report.lines(clips))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="hub:tester/set has sent more than 1e-05 GB of recordings.*max_download_gb"):
        read_data([source], folder / "cache", max_download_gb=1e-5)


# what keeps the reader waiting, how, what is waited for by the message
STALLS = [
    ("the answer to the name", "/api/datasets/tester/set", "silent", "the list of its files"),
    ("the first file", "train-0.", "silent", "the columns of train"),
    ("the first file, byte by byte", "train-0.", "trickle", "the columns of train"),
    ("the second file", "train-1.", "silent", "its next row, train, row 1"),
    ("the second file, byte by byte", "train-1.", "trickle", "its next row, train, row 1"),
    ("a file that a row names", "audio/a.wav", "silent", "'hf://datasets/tester/set/audio/a.wav'"),
    ("a file that a row names, byte by byte", "audio/a.wav", "trickle", "'hf://datasets/tester/set/audio/a.wav'"),
]  # fmt: skip


@pytest.mark.parametrize("address, how, what", [case[1:] for case in STALLS], ids=[case[0] for case in STALLS])
def test_a_data_set_that_does_not_arrive_ends_by_a_time_that_the_message_names(folder, hub, address, how, what):
    """The client's own limits are of one read of one request, and it tries again and again."""
    row = parquet(folder, {"bytes": None, "path": "hf://datasets/tester/set/audio/a.wav"}).read_bytes()
    files = {f"data/train-{number}.parquet": row for number in range(2)}
    source = dataset_on(hub, folder, files | {"audio/a.wav": (folder / "a.wav").read_bytes()})
    assert len(read_data([source], folder / "cache")[0]) == 2  # also imports what the short time below is not meant for
    hub.stalls[address] = how
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=re.escape(f"hub:tester/set: {what} did not arrive within download_timeout_s=2. ") + ".*--download_timeout_s"):
        read_data([source], folder / "another cache", download_timeout_s=2)
    assert time.monotonic() - started < 20


READ_STALLED = """
import sys
sys.path.insert(0, "tests")
from conftest import HUB
from huggingface_hub import HfApi
from training.loop.sources import read_data
api = HfApi(token="a-token")
api.create_repo("tester/set", repo_type="dataset")
api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo="train-0.parquet", repo_id="tester/set", repo_type="dataset")
read_data(["hub:tester/set"], sys.argv[2])
HUB.stalls["train-0."] = "trickle"
read_data(["hub:tester/set"], sys.argv[2] + "-2", download_timeout_s=2)
"""


def test_a_process_ends_in_order_whatever_still_keeps_a_thread_waiting(folder):
    """Told to end, and waited for: an interpreter that ended under a thread inside of pyarrow aborted, with exit code 134."""
    path = parquet(folder, {"bytes": b"WAV", "path": None})
    done = subprocess.run([sys.executable, "-c", READ_STALLED, path, folder / "cache"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("TimeoutError: hub:tester/set: the columns of train"), done.stderr[-2000:]


@pytest.mark.parametrize("source, said", [
    ("hub:parquet", "hub:owner/name"),
    ("hub:../private", "hub:owner/name"),
    ("hub:/etc/passwd", "hub:owner/name"),
    ("hub:owner/local", "a folder of that name is here"),
])  # fmt: skip
def test_a_name_on_the_hub_is_never_a_local_file(folder, hub, monkeypatch, source, said):
    (folder / "owner/local").mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=said):
        read_data([source], folder / "cache")


def test_the_corpus_drops_clips_with_words_in_another_script_and_no_other_clip_changes_its_split():
    texts = [f"слово {'абвгдежзик'[i % 10] * (i // 10 + 1)}" for i in range(40)] + ["первoe", "сайт asterisk"]
    clips = [{"text": text, "duration_s": 20.0} for text in texts]
    split_by_text(clips)
    skipped = Counter()
    assert drop_other_scripts(clips, skipped) == clips[:-2] and skipped == {"words in another script": 2}
    assert drop_other_scripts(clips[:-2], Counter()) == clips[:-2]
    assert Counter(clip["split"] for clip in clips) == {"test": 10, "validation": 10, "train": 22}


def test_a_text_that_several_voices_say_is_whole_in_one_split_and_neither_alphabet_nor_order_chooses_it():
    texts = [f"{letter}{other}" for letter in "abcdefghij" for other in "abcd"]
    clips = [{"text": text, "duration_s": 7.0} for text in texts for _ in range(3)]  # 210 s a split are reached within a text
    split_by_text(clips)
    of_text = {text: {clip["split"] for clip in clips if clip["text"] == text} for text in texts}
    assert all(len(splits) == 1 for splits in of_text.values())
    by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    count = math.ceil(HELD_OUT_S / 21.0)
    assert [of_text[text] for text in by_hash] == [{"test"}] * count + [{"validation"}] * count + [{"train"}] * (40 - 2 * count)
    again = [dict(clip, split=None) for clip in reversed(clips)]
    split_by_text(again)
    assert again[::-1] == clips


@pytest.mark.parametrize("language, name, raw_text, made", [
    ("es", "a", "Marque 3 para Ingresar un numero.", "marque el número tres para ingresar un número"),
    ("es", "a", "Presione 3", "presione tres"), ("es", "a", "numeroso", "numeroso"),
    ("es", "vm-opts", "Marque 2", "other words are spoken than written, or none"),
    ("it", "a", "www.asterisk.org", "web addresses, whose dots are spoken"), ("en", "letters/b", "b", "letters, whose names are spoken"),
    ("en", "spy-nbs", "N B S", "letters, whose names are spoken"), ("fr", "a", "l'appellant", "l'appelant"), ("ru", "a", "Что бы выйти", "чтобы выйти"),
    ("cs", "a", "Krrrutý ’potvoru‘ hmmm", "krutý potvoru hm"), ("nl", "a", "heeeeel ssst zo'n auto", "heel sst zo'n auto"),
])  # fmt: skip
def test_a_transcript_of_the_corpus_is_what_is_spoken_or_the_reason_why_it_is_left_out(language, name, raw_text, made, tmp_path):
    entry = Entry(language, tmp_path, name, raw_text, "", "", "")
    assert (refusal(entry) or transcript(entry)) == made


def test_a_listing_with_a_missing_line_break_or_a_name_twice_gives_each_recording_its_own_text(tmp_path):
    (tmp_path / "usr/share/doc/asterisk-core-sounds-es").mkdir(parents=True)
    (tmp_path / "usr/share/asterisk/sounds/es_MX").mkdir(parents=True)
    lines = "; a remark\na: uno b-c: dos\nd: d: tres\ndigits/0: cero\ndigits/0: diez\n"
    (tmp_path / "usr/share/doc/asterisk-core-sounds-es/core-sounds-es.txt.gz").write_bytes(gzip.compress(lines.encode()))
    assert [(entry.name, entry.raw_text) for entry in prompt_entries(tmp_path, "es")] == [("a", "uno"), ("d", "tres"), ("digits/0", "cero")]


def test_a_language_that_the_model_lacks_is_said_before_data_is_read(folder, capsys):
    model = tiny_model()
    model.save_pretrained(folder / "model")
    MasterASRProcessor.from_model(model).save_pretrained(folder / "model")
    options = ["--model", str(folder / "model"), "--out", str(folder / "result.json"), "--data"]
    with pytest.raises(SystemExit, match=r"no assembly for \['xx'\]. It has \['en', 'fr', 'ru'\]. Load theirs with --assembly"):
        evaluate.main([*options, "nowhere", "--languages", "en", "xx"])
    foreign = write(folder / "m.jsonl", line(language="xx", split="test"))
    with pytest.raises(SystemExit, match=r"--data has test clips of \['xx'\], the model has .*no language in common"):
        evaluate.main([*options, str(foreign)])
    with pytest.raises(SystemExit):  # said before hours of it, not after
        evaluate.main([*options, str(foreign), "--out", str(folder)])
    assert f"--out {folder} is a folder" in capsys.readouterr().err
    both = write(folder / "m.jsonl", line(language="xx", split="test") + line(split="test"))
    evaluate.main([*options, str(both)])
    assert "Not scored, the model lacks them: ['xx']" in capsys.readouterr().out
    assert list(json.loads((folder / "result.json").read_text())["languages"]) == ["en"]
