"""Scripts of texts, and which sentences a language may keep; normalisation and alphabets are the package's own and handed on."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Optional

from modeling_master_asr.text_master_asr import build_vocab, normalize

__all__ = ["beginning", "build_vocab", "letters_beside", "main_script", "normalize", "script_of", "without"]

WITHOUT_SPACES = ("CJK", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
ONE_SCRIPT = {name: "CJK" for name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "BOPOMOFO", "HANGUL")}  # written together


def script_of(letter: str) -> Optional[str]:
    """The script of a letter by its Unicode name, `LATIN` or `CYRILLIC`; None for what belongs to none (marks, modifiers)."""
    if unicodedata.category(letter)[0] != "L":
        return None
    name = unicodedata.name(letter, "").partition(" ")[0]
    return None if name in ("", "MODIFIER") else ONE_SCRIPT.get(name, name)


def beginning(sentences: Iterable[str], characters: int) -> list[str]:
    """The first sentences that are no longer together, a line each; one that does not fit any more is passed over."""
    kept = []
    for sentence in sentences:
        if len(sentence) < characters:
            kept.append(sentence)
            characters -= len(sentence) + 1
    return kept


def without(sentences: Iterable[str], texts: Iterable[str], language: str) -> list[str]:
    """The sentences but those that say one of `texts`, or hold one of three words or more; of six letters, where words are not divided."""
    texts = set(texts)
    long = [f" {text} " for text in texts if text.count(" ") >= 2]
    undivided = [joined for text in texts if len(joined := text.replace(" ", "")) >= 6 and main_script([text]) in WITHOUT_SPACES]

    def says_one(text: str) -> bool:
        joined = text.replace(" ", "")
        return text in texts or any(held in f" {text} " for held in long) or any(held in joined for held in undivided)

    return [sentence for sentence in sentences if not says_one(normalize(sentence, language=language))]


def main_script(texts: Iterable[str]) -> Optional[str]:
    """The script of most letters, or None where there are no letters."""
    counts = Counter(letter for text in texts for letter in text)
    scripts: Counter = Counter()
    for letter, count in counts.items():
        scripts[script_of(letter)] += count
    del scripts[None]
    return scripts.most_common(1)[0][0] if scripts else None


def letters_beside(text: str, script: Optional[str]) -> dict[str, set[str]]:
    """Letters of `text` that another script than `script` owns: `{script: letters}`."""
    others: dict[str, set[str]] = {}
    for letter in set(text):
        of_letter = script_of(letter)
        if of_letter not in (None, script):
            others.setdefault(of_letter, set()).add(letter)
    return others
