"""Text normalisation and alphabets: what training reads, and what the processor writes as labels."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Optional

from transformers.utils import logging

from .configuration_master_asr import SPACE_TOKEN, SPECIAL_TOKENS

logger = logging.get_logger(__name__)

APOSTROPHES = "'\u2018\u2019\u02bc\u02bb\u02b9\u00b4`"  # CHOICE: the letters ʼ and ʻ too: who lacks them types ', and one sound is one token
QUOTES = "'\u2018\u2019\u201a\u00b4`"  # those of them that are no letters, and the low one, which is never an apostrophe
# Unicode's default ignorables that are no format characters (category Cf): letters and marks by category, and nothing to be seen or heard
INVISIBLE = frozenset(
    chr(code)
    for first, last in ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
                        (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF))  # fmt: skip
    for code in range(first, last + 1)
)


WITHIN_WORDS = frozenset("\u05f3\u05f4\u0640")  # Hebrew geresh and gershayim, the Arabic stretch
L_WITH_DOT = str.maketrans({"\u0140": "l\u00b7", "\u013f": "L\u00b7"})  # as old fonts have it
CATALAN_LL = re.compile("(?<=[lL])\u00b7(?=[lL])")  # col·lega; elsewhere, as in Greek, it is a punctuation mark
SPOKEN = frozenset("'%‰&@#§")  # of what Unicode calls punctuation: a word, or part of one
TWO_IS = ("tr", "tur", "az", "aze", "azj", "crh", "gag")  # whose capital of ı is I, and of i is İ


def lowered(text: str, language: str = "") -> str:
    """Lower-cased text; a capital İ is an i everywhere (Unicode's rule would leave its dot as a character of its own), and in Turkish
    and its neighbours I is an ı.
    """
    text = text.replace("İ", "i")
    return (text.replace("I", "ı") if _has_two_is(language) else text).lower()


def _has_two_is(language: str) -> bool:
    return re.split("[-_]", language.lower())[0] in TWO_IS


def stands_inside_words(character: str) -> bool:
    """Joiners, direction marks, variation selectors, and marks within a word: not heard, and no gap where they are left out."""
    return unicodedata.category(character) in ("Cf", "Me") or character in INVISIBLE or character in WITHIN_WORDS


def without_quotes(text: str) -> str:
    """Words with single spaces; a lone apostrophe is a quote."""
    return " ".join(word for word in text.split() if word.strip("'"))


def without_pairs(text: str) -> str:
    """`text` without single quotation marks that stand in pairs around words; what stands alone is an apostrophe ('s avonds, po').

    CHOICE: typewriter's apostrophes (') are quotes where they enclose one word of several letters, or the second follows a punctuation
    mark; else they stay, since nothing tells 'hello you' from 'ndrangheta un po'. Typographic ones are, where the first one opens.
    """
    inner = _without_outer_pairs(text)
    return text if inner == text else without_pairs(inner)


def _without_outer_pairs(text: str) -> str:
    kept, opened = list(text), None
    for i, character in enumerate(text):
        if character not in QUOTES:
            continue
        before, after = text[i - 1 : i] if i else "", text[i + 1 : i + 2]
        begins, ends = not _in_word(before) and _in_word(after), not _in_word(after) and before.strip() != ""
        if begins:
            opened = i
        elif ends and opened is not None:
            inner = text[opened + 1 : i]
            if len(inner) > 1 and (text[opened] in "\u2018\u201a`" or not _in_word(before) or " " not in inner):
                kept[opened], kept[i] = "", ""
            opened = None
    return "".join(kept)


def _in_word(character: str) -> bool:
    return unicodedata.category(character or " ")[0] in "LMN"


def with_one_apostrophe(text: str) -> str:
    """`text` with ' for whatever is written as an apostrophe."""
    for apostrophe in APOSTROPHES:
        text = text.replace(apostrophe, "'")
    return text


def normalize(text: str, dropped: Optional[Counter] = None, language: str = "", raw: bool = True) -> str:
    """Lower-cased NFKC text of letters, their marks (Indic vowel signs are marks), apostrophes and single spaces.

    Args:
        dropped: counts every character that is left out, if given.
        language: its code; a few languages have capitals of their own.
        raw: whether apostrophes in pairs may be quotation marks; in a text that was normalised before they are letters ('ashdla').
    """
    text = CATALAN_LL.sub("", text.translate(L_WITH_DOT))
    text = with_one_apostrophe(without_pairs(text) if raw else text)
    kept = []
    small = lowered(with_one_apostrophe(unicodedata.normalize("NFKC", text)), language)  # once more: ŉ is taken apart
    for character in unicodedata.normalize("NFKC", small):  # again: a small letter and its mark may be one where the capital's were two
        kind = unicodedata.category(character)
        without_gap = stands_inside_words(character)
        stray = kind[0] == "M" and kept[-1:] in ([], [" "])  # a mark on a sign that was dropped, such as an emoji's
        if (kind[0] in "LM" or character == "'") and not (without_gap or stray):
            kept.append(character)
            continue
        if not (without_gap or stray):
            kept.append(" ")
        if dropped is not None and not character.isspace():
            dropped[character] += 1
    return without_quotes(unicodedata.normalize("NFKC", "".join(kept)))  # once more: what stood between two marks is gone


def spelled(text: str, known: set[str], language: str = "", raw: bool = True) -> str:
    """`text` as an alphabet spells it: what it knows stays as it stands but for quotation marks in pairs, other letters are lower-cased, or capitals
    where it has only those; other punctuation is a gap.

    What is left is kept, so that whoever encodes it can name it: digits and symbols are spoken, whether the alphabet has them or not.

    Args:
        known: the alphabet's characters, and the space.
        raw: as in `normalize`.

    Returns:
        "" for a text without anything that is known, and without a letter.
    """
    marked = []
    text = text.replace("\u00b4", "'").replace("|", " ")  # of the first NFKC would make a space and a mark; the second is the token of a space
    text = composed(text.translate(L_WITH_DOT) if "\u0140" not in known else text, known)
    text = text if "\u00b7" in known else CATALAN_LL.sub("", text)
    for character in without_pairs(text) if raw else text:
        if character not in known and character in APOSTROPHES:
            character = next((mark for mark in APOSTROPHES if mark in known), "'")
        if character not in known:
            kind = unicodedata.category(character)
            if stands_inside_words(character):
                character = ""
            elif kind[0] in "ZC" or (kind[0] == "P" and character not in SPOKEN):
                character = " "
        marked.append(character)
    text = without_quotes("".join(marked))
    lower = lowered(text, language)
    if len(lower) == len(text):
        lower = "".join(as_it_is if as_it_is in known else _in_case(small, known, language) for as_it_is, small in zip(text, lower))
    has_any = any(character in known - {" "} or unicodedata.category(character)[0] == "L" for character in lower)
    return lower if has_any else ""


def composed(text: str, known: set[str]) -> str:
    """NFKC text, but as an alphabet spells it that holds letters which NFKC takes apart (Thai ำ, Bengali য়, Armenian և), or marks of their own."""
    whole = [character for character in sorted(known) if unicodedata.normalize("NFKC", character) != character]
    pieces = re.split(f"([{re.escape(''.join(whole))}])", text) if whole else [text]
    text = "".join(piece if piece in whole else unicodedata.normalize("NFKC", piece) for piece in pieces)
    for character in whole:
        taken_apart = unicodedata.normalize("NFKC", character)
        if not set(taken_apart) <= known:
            text = text.replace(taken_apart, character)
    return "".join(_with_own_marks(character, known) for character in text)


def _with_own_marks(character: str, known: set[str]) -> str:
    """A letter and its marks one by one, where an alphabet holds these and not the whole."""
    apart = unicodedata.normalize("NFD", character)
    return apart if character not in known and len(apart) > 1 and set(apart.lower()) <= known else character


def _in_case(small: str, known: set[str], language: str) -> str:
    """A letter as an alphabet has it that may hold capitals alone."""
    capital = "İ" if small == "i" and _has_two_is(language) else small.upper()
    return capital if small not in known and capital in known else small


def characters_of(alphabet: dict[str, int]) -> set[str]:
    """What a text of an alphabet is made of: the characters of its tokens, and the space."""
    return {" "}.union(*(token for token in alphabet if token not in SPECIAL_TOKENS))


def tokens_of(text: str, alphabet: dict[str, int]) -> list[str]:
    """The tokens of a spelled text, the longest first ("ch" before "c"); what no token is, character by character."""
    letters = sorted((token for token in alphabet if token not in SPECIAL_TOKENS), key=len, reverse=True)
    return re.findall("|".join([*map(re.escape, letters), "."]), text.replace(" ", SPACE_TOKEN), re.DOTALL)


def spell_sentences(sentences: Iterable[str], language: str, vocab: dict[str, int], raw: bool = True) -> list[str]:
    """The sentences as an alphabet spells them, each once, without those that it cannot spell.

    Args:
        raw: False for sentences that were normalised already, whose apostrophes are all letters.

    Raises:
        ValueError: if there are some and none is left; for one text in the place of several; for what is no text.
    """
    if isinstance(sentences, str):
        raise ValueError("sentences is one text; a list of texts is wanted, one a sentence: text.splitlines().")
    sentences, kept = list(sentences), {}
    if strange := [sentence for sentence in sentences if not isinstance(sentence, str)]:
        raise ValueError(f"sentences: got {strange[0]!r} among them; allowed: texts.")
    known = characters_of(vocab)
    for sentence in sentences:
        written = " ".join(spelled(sentence, known, language, raw).split())
        if written and known.issuperset(written) and all(token in vocab for token in tokens_of(written, vocab)):
            kept[written] = None
    if sentences and not kept:
        raise ValueError(f"None of these {len(sentences)} sentences can be spelled with the alphabet of {language!r}: {sorted(known - {' '})}.")
    if len(kept) < len(sentences):
        logger.info(f"{language!r} keeps {len(kept)} of {len(sentences)} sentences: the others are there already or hold what its alphabet lacks.")
    return list(kept)


def build_vocab(texts: Iterable[str]) -> dict[str, int]:
    """`{token: id}` of the characters of normalised texts, after blank, unknown and space."""
    characters = sorted({character for text in texts for character in text} - {" "})
    return {token: row for row, token in enumerate([*SPECIAL_TOKENS, *characters])}
