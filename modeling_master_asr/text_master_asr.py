"""Text normalisation and alphabets: what training reads, and what the processor writes as labels."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Optional

from transformers.utils import logging

from .configuration_master_asr import SPACE_TOKEN, SPECIAL_TOKENS
from .signs_master_asr import (
    APOSTROPHES,
    CAPITAL_CHEROKEE,
    JOINED_BY_RULE,
    LETTERLIKE,
    LETTERS_WHERE_THEY_STAND,
    QUOTES,
    SPOKEN,
    UNSAID,
    in_one_way,
    in_plain_letters,
    stands_inside_words,
)  # fmt: skip

logger = logging.get_logger(__name__)

MAX_PAIRS = 100  # of quotation marks around one another
CATALAN_DOT = re.compile("(?<=[lL])\u00b7(?=[lL])")  # col·lega, where an alphabet lacks the dot
# whose capital of ı is I, and of i is İ: Turkish, Azerbaijani, Crimean Tatar, Gagauz, Ottoman, Talysh, Zazaki (not Karakalpak: Í, I)
TWO_IS = ("tr", "tur", "az", "aze", "azj", "crh", "gag", "ota", "tly", "zza", "diq", "kiu")
TWO_IS_IN_LATIN = ("kk", "kaz", "tt", "tat")  # Kazakh and Tatar, which are mostly written in Cyrillic: kk-Latn


def lowered(text: str, language: str) -> str:
    """Lower-cased text; a capital İ is an i everywhere (Unicode's rule would leave its dot as a character of its own), in Turkish and its
    neighbours I is an ı, and Cherokee stays in capitals, as it is written.
    """
    text = text.replace("İ", "i")
    return (text.replace("I", "ı") if has_two_is(language) else text).lower().translate(CAPITAL_CHEROKEE)


def has_two_is(language: str) -> bool:
    """Whether the language has an i without a dot beside the one with it, in the script that its code names."""
    code, *tags = re.split("[-_]", language.lower())
    return (code in TWO_IS and not {"cyrl", "arab"}.intersection(tags)) or (code in TWO_IS_IN_LATIN and "latn" in tags)


def without_quotes(text: str) -> str:
    """Words with single spaces; a lone apostrophe is a quote."""
    return " ".join(word for word in text.split() if word.strip("'"))


def without_pairs(text: str) -> str:
    """`text` without single quotation marks that stand in pairs around words; what stands alone is an apostrophe ('s avonds, po').

    CHOICE: typewriter's apostrophes (') are quotes where they enclose one word of several letters, or the second follows a punctuation
    mark; else they stay, since nothing tells 'hello you' from 'ndrangheta un po'. Typographic ones are, where the first one opens.
    """
    for _ in range(MAX_PAIRS):
        inner = _without_outer_pairs(text)
        if inner == text:
            break
        text = inner
    return text


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
            if len(inner) > 1 and (text[opened] in "\u2018\u201a`\u05f3" or not _in_word(before) or " " not in inner):
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
    """Lower-cased NFC text in plain letters (`in_plain_letters`), their marks (Indic vowel signs are marks), apostrophes and single spaces.

    CHOICE: the paper names no normalisation.

    Args:
        dropped: counts every character that is left out, if given.
        language: its code; a few languages have capitals of their own.
        raw: whether apostrophes in pairs or alone may be quotation marks, and a mark on nothing what an emoji left; in a text that was normalised
            before, or that a model wrote, all are what they are ('ashdla').
    """
    written = in_one_way(in_plain_letters(unicodedata.normalize("NFC", text)))
    bare = without_pairs(written) if raw else written
    lost = Counter(written) - Counter(bare)
    bare = with_one_apostrophe(bare)
    letters_here = {found.start() for found in LETTERS_WHERE_THEY_STAND.finditer(bare)}
    kept = []
    for place, character in enumerate(bare):
        is_letter = place in letters_here or character in LETTERLIKE
        without_gap = stands_inside_words(character) and not is_letter
        kind = unicodedata.category(character)[0]
        stray = raw and kind == "M" and kept[-1:] in ([], [" "])  # a mark on a sign that was dropped, such as an emoji's
        if (is_letter or kind in "LM" or character == "'") and not (without_gap or stray):
            kept.append(character)
            continue
        if not (without_gap or stray):
            kept.append(" ")
        lost[character] += not character.isspace()
    # lower-cased once its gaps are known (a Greek sigma ends its word); then a small letter and its mark may be one where the capital's were two
    small = " ".join(unicodedata.normalize("NFC", lowered("".join(kept), language)).split())
    clean = without_quotes(small) if raw else small
    lost["'"] += small.count("'") - clean.count("'")
    if dropped is not None:
        dropped.update(+lost)
    return clean


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
    for sign in "\u00b4\u1fbd\u1fbf":  # of which NFKC would make a space and a mark
        text = text.replace(sign, "'")
    text = in_one_way(composed(text.replace("|", " "), frozenset(known)), frozenset(known))  # | is the token of a space
    text = text if "\u00b7" in known else CATALAN_DOT.sub("", text)
    text = without_pairs(text) if raw else text
    no_letters = {found.start() for found in JOINED_BY_RULE.finditer(text)} - {found.start() for found in LETTERS_WHERE_THEY_STAND.finditer(text)}
    for place, character in enumerate(text):
        if character not in known and character in APOSTROPHES:
            character = next((mark for mark in APOSTROPHES if mark in known), "" if character == "\u05f3" else "'")
        is_alone = character == "\u00b7" and not (_in_word(text[place - 1 : place]) and _in_word(text[place + 1 : place + 2]))
        if character and (character not in known or place in no_letters or is_alone):
            kind = unicodedata.category(character)
            if stands_inside_words(character):
                character = ""
            elif kind[0] in "ZC" or (kind[0] == "P" and character not in SPOKEN) or character in UNSAID:
                character = " "
        marked.append(character)
    text = without_quotes("".join(marked)) if raw else " ".join("".join(marked).split())
    lower = lowered(text, language)
    if len(lower) == len(text):
        lower = "".join(as_it_is if as_it_is in known else _in_case(small, known, language) for as_it_is, small in zip(text, lower))
    has_any = any(character in known - {" "} or unicodedata.category(character)[0] == "L" for character in lower)
    return lower if has_any else ""


def composed(text: str, known: frozenset[str]) -> str:
    """Text in plain letters, but as an alphabet spells it that holds letters which NFKC takes apart (Thai ำ, Bengali য়, Armenian և), or marks of their own."""
    whole, divided = _taken_apart(known)
    pieces = divided.split(text) if divided else [text]
    text = "".join(piece if piece in whole else in_plain_letters(unicodedata.normalize("NFC", piece), known) for piece in pieces)
    for character, parts in whole.items():
        if len(parts) > 1 and not known.issuperset(parts):  # of one letter: a w is no ʷ
            text = text.replace(parts, character)
    return "".join(_with_own_marks(character, known) for character in text)


@lru_cache(maxsize=64)
def _taken_apart(known: frozenset[str]) -> tuple[dict[str, str], Optional[re.Pattern]]:
    """The characters of an alphabet that NFKC takes apart, with their parts; and the pattern that finds them."""
    whole = {character: parts for character in sorted(known) if (parts := unicodedata.normalize("NFKC", character)) != character}
    return whole, re.compile(f"([{re.escape(''.join(whole))}])") if whole else None


def _with_own_marks(character: str, known: frozenset[str]) -> str:
    """A letter and its marks one by one, where an alphabet holds these and not the whole."""
    apart = unicodedata.normalize("NFD", character)
    return apart if character not in known and len(apart) > 1 and set(apart.lower()) <= known else character


def _in_case(small: str, known: set[str], language: str) -> str:
    """A letter as an alphabet has it that may hold capitals alone, or small Cherokee."""
    capital = "İ" if small == "i" and has_two_is(language) else small.upper()
    return next((form for form in (small, capital, small.lower()) if form in known), small)


def characters_of(alphabet: dict[str, int]) -> set[str]:
    """What a text of an alphabet is made of: the characters of its tokens, and the space."""
    return {" "}.union(*(token for token in alphabet if token not in SPECIAL_TOKENS))


def tokens_of(text: str, alphabet: dict[str, int]) -> list[str]:
    """The tokens of a spelled text, the longest first ("ch" before "c"); what no token is, character by character."""
    text = text.replace(" ", SPACE_TOKEN)
    clusters, lengths = _clusters_of(tuple(alphabet))
    if not clusters:
        return list(text)
    tokens, start = [], 0
    while start < len(text):  # a look-up a length: an alternation of thousands would be tried one by one, and no other thread runs meanwhile
        token = next((piece for length in lengths if (piece := text[start : start + length]) in clusters), text[start])
        tokens.append(token)
        start += len(token)
    return tokens


@lru_cache(maxsize=64)
def _clusters_of(tokens: tuple[str, ...]) -> tuple[frozenset[str], list[int]]:
    """The tokens of several characters, and their lengths, the longest first."""
    clusters = frozenset(token for token in tokens if len(token) > 1 and token not in SPECIAL_TOKENS)
    return clusters, sorted(set(map(len, clusters)), reverse=True)


def with_single_spaces(path: list[int], blank: int, space: int) -> list[int]:
    """Tokens of frames in which a space that follows another, with nothing but blanks between, is blank: a gap between two words is one."""
    kept, last = list(path), blank
    for at, token in enumerate(kept):
        if token == space and last == space and kept[at - 1] != space:
            kept[at] = blank
        elif token != blank:
            last = token
    return kept


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
    characters = sorted({character for text in texts for character in text} - {" ", *SPECIAL_TOKENS})
    return {token: row for row, token in enumerate([*SPECIAL_TOKENS, *characters])}
