"""Scripts of texts, and the sentences that a language keeps; normalisation and alphabets are the package's own."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Optional

from modeling_master_asr.signs_master_asr import LETTERS_WHERE_THEY_STAND, in_one_way, stands_inside_words
from modeling_master_asr.text_master_asr import build_vocab, has_two_is, normalize, spell_sentences

WITHOUT_SPACES = ("CJK", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
ONE_SCRIPT = {name: "CJK" for name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "BOPOMOFO", "HANGUL")}  # written together
WORDS_IN_BRACKETS = re.compile(r"[\[<({【〔][^\[\]<>(){}【】〔〕]*[^\W\d_][^\[\]<>(){}【】〔〕]*[\])>}】〕]")
SIGN_IN_A_WORD = re.compile(r"\S*[^\W\d_][!|=:?*^\"+~·](?=[^\W\d_])\S*|(?<!\S)[!|/=]+[^\W\d_]\S*")  # o:nen, ha?a; !gâi: signs that people type for letters
KEPT_TEXT = 200_000  # characters of sentences a language, transcripts first; 900,000 win half a point more (RESULTS.md, Voices), in a config four times as large


def script_of(letter: str) -> Optional[str]:
    """The script of a letter by its Unicode name, `LATIN` or `CYRILLIC`; None for what belongs to none (marks, modifiers)."""
    if unicodedata.category(letter)[0] != "L":
        return None
    name = unicodedata.name(letter, "").partition(" ")[0]
    return None if name in ("", "MODIFIER", "SUPERSCRIPT", "SUBSCRIPT", "CARON") else ONE_SCRIPT.get(name, name)


def doubtful(raw: str, text: str, language: str) -> Iterator[tuple[str, str]]:
    """(what is doubtful, an example) of what became of a transcript."""
    whole = unicodedata.normalize("NFKC", raw)
    bare = "".join(c for c in LETTERS_WHERE_THEY_STAND.sub("", in_one_way(whole)) if unicodedata.category(c)[0] != "M" and not stands_inside_words(c))
    if found := SIGN_IN_A_WORD.search(bare):
        yield "a sign in a word, or before its first letter, is a gap: write it as a letter if it is one", found.group()
    if found := WORDS_IN_BRACKETS.search(whole):
        yield "words in brackets are kept, as if they were said: take them out if they are none", found.group()
    if "ı" in text and "I" in raw and not has_two_is(language):
        yield f"a capital I became an i beside an ı: {language!r} is no code of a language that has both, as Turkish has", raw


def letters_of(texts: Iterable[str]) -> str:
    """The letters of normalised texts, side by side; what is written above, below or between letters stands on a circle."""
    vocab = build_vocab(texts)
    return "".join(f"\u25cc{letter}" if unicodedata.category(letter) in ("Mn", "Mc", "Cf") else letter for letter in vocab if len(letter) == 1 and letter != "|")


def beginning(sentences: Iterable[str], characters: int) -> list[str]:
    """The first sentences that are no longer together, a line each; one that does not fit any more is passed over."""
    kept = []
    for sentence in sentences:
        if len(sentence) < characters:
            kept.append(sentence)
            characters -= len(sentence) + 1
    return kept


def without(sentences: Iterable[str], texts: Iterable[str], language: str) -> list[str]:
    """The sentences but those that say one of `texts` (`said_in`)."""
    wanted, kept = [_Said(text) for text in set(texts)], []
    for sentence in sentences:
        normalised = normalize(sentence, language=language)
        if not any(text.by(normalised) for text in wanted):
            kept.append(sentence)
    return kept


def keep_text(accelerator, model, language: str, splits, config, more: Iterable[str] = ()) -> None:
    """Gives a language that has trained the sentences that it is read with from now on, as `--text` says: what it trained on, those
    that it had and further ones, `KEPT_TEXT` characters of them.

    Args:
        splits: the run's `training.loop.splits.Splits`.
        more: further ones, of which those stay out that validation or test clips say.
    """
    before, more = model.config.text(language).splitlines(), list(more)
    transcripts = [clip.text for clip in splits.training if clip.language == language]
    kept = [*transcripts, *before] if config.text == "transcripts" else []
    if before and not kept:
        model.config.set_text(language, "")
        accelerator.print(f"The {len(before)} sentences that {language!r} had are gone (--text none).")
    held_out = [clip.text for clip in [*splits.validation, *splits.test, *splits.left_out]]
    try:
        allowed, given, written, fitting = spelled(model, language, kept, more, held_out, KEPT_TEXT)
        model.config.set_text(language, "\n".join(fitting))  # as they are spelled already
    except ValueError as error:  # what was trained is saved, whatever its sentences
        accelerator.print(f"Read {'with the sentences that it had' if model.config.text(language) else 'greedily'}: {error}")
        return
    if fitting:
        accelerator.print(f"{language!r} is read with {len(fitting)} sentences in mind, which its files hold: whoever publishes them publishes these (--text none without --more_text: none).")
    for lost, why in (
        (len(more) - len(allowed), "are said in validation or test clips, whose figures they would flatter"),
        (len(given) - len(written), "hold what the alphabet lacks (digits, signs, letters), or are written as others are"),
        (len(written) - len(fitting), f"do not fit into {KEPT_TEXT:,} characters beside the others (a sentence a line, please)"),
    ):
        if lost:
            accelerator.print(f"{lost} sentences were left out: they {why}.")


def spelled(model, language: str, own: list[str], more: list[str], held_out: Iterable[str], characters: int) -> tuple[list[str], ...]:
    """Of a language's own sentences and further ones: the further ones that no held-out text says; these beside its own, once each; those that its
    alphabet spells, as it spells them; and of these as many as fit into so many characters.

    Raises:
        ValueError: if there are sentences, and its alphabet spells none.
    """
    allowed = without(more, held_out, language)
    given, vocab, written = list(dict.fromkeys([*own, *allowed])), model.config.vocab(language), {}
    for sentences, raw in ((own, False), (allowed, True)):  # a language's own were normalised when it got them
        with contextlib.suppress(ValueError):
            written |= dict.fromkeys(spell_sentences(sentences, language, vocab, raw))
    if given and not written:
        spell_sentences(given, language, vocab)  # says why
    return allowed, given, list(written), beginning(written, characters)


def said_in(texts: Iterable[str], sentences: Iterable[str]) -> list[bool]:
    """Of each normalised text, whether a normalised sentence says it, or holds it where it has three words or more; or six letters, where
    words are not divided."""
    sentences = list(sentences)
    return [any(map(_Said(text).by, sentences)) for text in texts]


class _Said:
    """A normalised text that sentences may say."""

    def __init__(self, text: str):
        joined = text.replace(" ", "")
        self.text, self.is_long = text, text.count(" ") >= 2
        self.joined = joined if len(joined) >= 6 and main_script([text]) in WITHOUT_SPACES else None

    def by(self, sentence: str) -> bool:
        return (
            self.text == sentence or (self.is_long and f" {self.text} " in f" {sentence} ")
            or (self.joined is not None and self.joined in sentence.replace(" ", ""))
        )  # fmt: skip


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
