"""Text normalisation and alphabets: what training reads, and what the processor writes as labels."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Optional

from .configuration_master_asr import SPECIAL_TOKENS

APOSTROPHES = "'\u2018\u2019\u02bc\u02b9\u00b4`"


def normalize(text: str, dropped: Optional[Counter] = None) -> str:
    """Lower-cased NFKC text of letters, marks (Indic vowel signs are marks), apostrophes and single spaces.

    Args:
        dropped: counts every character that is left out, if given.
    """
    for apostrophe in APOSTROPHES:
        text = text.replace(apostrophe, "'")
    kept = []
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(character)
        if kind[0] in "LM" or character == "'":
            kept.append(character)
        elif kind == "Cf":  # joiners and direction marks stand inside words: dropped without a gap
            if dropped is not None:
                dropped[character] += 1
        else:
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
