"""Text normalisation and alphabets: what training reads, and what the processor writes as labels."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Optional

from .configuration_master_asr import SPECIAL_TOKENS

APOSTROPHES = "'\u2018\u2019\u02bc\u02b9\u00b4`"
# Unicode's default ignorables that are no format characters (category Cf): letters and marks by category, and nothing to be seen or heard
INVISIBLE = frozenset(
    chr(code)
    for first, last in ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
                        (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF))  # fmt: skip
    for code in range(first, last + 1)
)


def normalize(text: str, dropped: Optional[Counter] = None) -> str:
    """Lower-cased NFKC text of letters, their marks (Indic vowel signs are marks), apostrophes and single spaces.

    Args:
        dropped: counts every character that is left out, if given.
    """
    for apostrophe in APOSTROPHES:
        text = text.replace(apostrophe, "'")
    kept = []
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(character)
        without_gap = kind in ("Cf", "Me") or character in INVISIBLE  # joiners, direction marks, variation selectors stand inside words
        stray = kind[0] == "M" and kept[-1:] in ([], [" "])  # a mark on a sign that was dropped, such as an emoji's
        if (kind[0] in "LM" or character == "'") and not (without_gap or stray):
            kept.append(character)
            continue
        if not (without_gap or stray):
            kept.append(" ")
        if dropped is not None and not character.isspace():
            dropped[character] += 1
    words = "".join(kept).split()
    words = [word.strip("'") if not word.strip("'") else word for word in words]  # a lone apostrophe is a quote
    return " ".join(word for word in words if word)


def build_vocab(texts: Iterable[str]) -> dict[str, int]:
    """`{token: id}` of the characters of normalised texts, after blank, unknown and space."""
    characters = sorted({character for text in texts for character in text} - {" "})
    return {token: row for row, token in enumerate([*SPECIAL_TOKENS, *characters])}
