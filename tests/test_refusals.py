"""What a script refuses it says in words alone: what was received, what is allowed and what to do next."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.adapt_language import further_sentences
from training.evaluate import languages_there, text_of
from training.loop.data import select

# ---- further sentences


def of_adapt(path: Path) -> list[str]:
    return further_sentences(SimpleNamespace(more_text=path))


def of_evaluate(path: Path) -> list[str]:
    return text_of(f"xx={path}")[1]


@pytest.mark.parametrize("read", [of_adapt, of_evaluate])
def test_further_sentences_may_be_any_utf_that_says_so_and_are_never_guessed(tmp_path, read):
    path = tmp_path / "more.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("marque žluť\r\nb\n".encode(encoding))
        assert read(path) == ["marque žluť", "b"]
    path.write_bytes("a\nmarque\n".encode("utf-16-le"))  # of ASCII letters: valid UTF-8, with a NUL behind each
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=r"more.txt, line 1 holds a NUL character: UTF-16 without its byte order mark\?.*allowed: .*a UTF-8 text file"):
        read(path)
    path.write_bytes("a\naño\n".encode("latin-1"))
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=r"more.txt, line 2 is not UTF-8 \(byte 0xf1\).*allowed: .*a UTF-8 text file"):
        read(path)


# ---- clips


def test_where_no_clip_is_left_the_lines_above_are_pointed_to_and_no_code_is_blamed():
    said = "^No clip of the data can be used; the lines above say why.$"
    with pytest.raises(ValueError, match=said):
        select([], "validation", ["xx"])
    with pytest.raises(SystemExit, match=said):
        languages_there([], "test", SimpleNamespace(languages=["en"]))
