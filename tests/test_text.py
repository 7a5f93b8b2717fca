"""Normalisation keeps what is spoken, in every script."""

from collections import Counter

import pytest

from training.loop.text import build_vocab, normalize


@pytest.mark.parametrize("raw, clean", [
    ("Où est L\u2019été ?  Là-bas!", "où est l'été là bas"),
    ("Žluťoučký KŮŇ…", "žluťoučký kůň"),
    ("Привет, Ёжик! № 5", "привет ёжик no"),
    ("हिन्दी में लिखो।", "हिन्दी में लिखो"),
    ("ਪੰਜਾਬੀ ਭਾਸ਼ਾ", "ਪੰਜਾਬੀ ਭਾਸ਼ਾ"),
    ("ଓଡ଼ିଆ ଭାଷା", "ଓଡ଼ିଆ ଭାଷା"),
    ("السَّلامُ عليكم؟", "السَّلامُ عليكم"),
    ("สวัสดีค่ะ", "สวัสดีค่ะ"),
    ("'quoted' don't", "'quoted' don't"),
    ("ﬁne", "fine"),
    ("‘ ’", ""),
])  # fmt: skip
def test_letters_marks_and_apostrophes_survive(raw, clean):
    import unicodedata

    assert normalize(raw) == unicodedata.normalize("NFKC", clean)


def test_every_dropped_character_is_counted():
    dropped = Counter()
    normalize("a, b, c! \u200d5", dropped)
    assert dropped == {",": 2, "!": 1, "\u200d": 1, "5": 1}


def test_a_vocab_has_its_special_tokens_and_every_character_once():
    assert build_vocab(["ab ba", "ñ'"]) == {"[PAD]": 0, "[UNK]": 1, "|": 2, "'": 3, "a": 4, "b": 5, "ñ": 6}
