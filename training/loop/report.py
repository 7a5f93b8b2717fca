"""A clip, and what is said of a data set's clips before a run: how much there is, what was left out and why, what looks wrong."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.loop.recordings import copies, printable, repeats
from training.loop.tables import TORN
from training.loop.text import letters_beside, letters_of, main_script

SHOWN = 12  # kinds of dropped characters


@dataclass(frozen=True)
class Clip:
    """One recording and what is said in it."""

    audio: Path
    language: str
    text: str
    duration_s: float
    split: str


@dataclass
class Report:
    """What was read, what was left out and why, and what looks wrong."""

    skipped: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # language -> reason -> clips
    noted: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # the same of clips that were kept
    examples: dict[tuple[str, str], str] = field(default_factory=dict)  # (language, reason) -> one clip
    dropped_characters: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    unspelled: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # language -> texts that lost what is spoken
    torn: list[str] = field(default_factory=list)  # lines of tables that may be parts of one row
    sources: list[str] = field(default_factory=list)  # a line about a whole source

    def skip(self, language: str, reason: str, name: str) -> None:
        self.skipped[language][reason] += 1
        self.examples.setdefault((language, reason), name)

    def note(self, language: str, reason: str, name: str) -> None:
        self.noted[language][reason] += 1
        self.examples.setdefault((language, reason), name)

    def lines(self, clips: list[Clip]) -> list[str]:
        """A line a language: hours and clips a split, alphabet; then what was dropped, skipped, noted, and what train shares with test."""
        out = list(self.sources)
        if self.torn:
            out.append(f"skipped {len(self.torn)} lines: {TORN} (such as {printable(self.torn[0])})")
        for language in sorted({clip.language for clip in clips} | set(self.skipped)):
            mine = [clip for clip in clips if clip.language == language]
            amounts = []
            for split in ("train", "validation", "test"):
                of_split = [clip.duration_s for clip in mine if clip.split == split]
                if of_split:
                    amounts.append(f"{split} {sum(of_split) / 60:.1f} min in {len(of_split)} clips")
            out.append(f"{language}: {', '.join(amounts) or 'nothing'}; alphabet {letters_of(clip.text for clip in mine)}")
            if self.dropped_characters[language]:
                lost = self.unspelled[language]
                example = printable(lost[0]) if lost else ""
                spell = f"; {len(lost)} clips lose a digit or a symbol that is spoken (such as {example!r}): spell them as they are said" if lost else ""
                kinds = sorted(self.dropped_characters[language].most_common(), key=lambda kind: unicodedata.category(kind[0])[0] in "PZC")  # what may be letters first
                more = f" and {len(kinds) - SHOWN} more kinds" if len(kinds) > SHOWN else ""
                out.append(f"    dropped characters {dict(kinds[:SHOWN])}{more}{spell}")
            for word, counts in (("skipped", self.skipped), ("noted", self.noted)):
                for reason, count in counts[language].items():
                    out.append(f"    {word} {count}: {reason} (such as {printable(self.examples[language, reason])})")
            out += [f"    {line}" for line in [*_second_scripts(mine), *_shared(mine)]]
        return out


def _second_scripts(clips: list[Clip]) -> Iterator[str]:
    """Letters in an alphabet that another script than its main one owns: names left as they were, or letters that look alike."""
    script = main_script(clip.text for clip in clips)
    letters, texts = defaultdict(set), defaultdict(list)
    for clip in clips:
        for other, found in letters_beside(clip.text, script).items():
            letters[other] |= found
            texts[other].append(clip.text)
    for other, found in sorted(letters.items()):
        yield f"letters beside {script}: {other} {''.join(sorted(found))!r} in {len(texts[other])} of {len(clips)} clips (such as {texts[other][0]!r})"


def _shared(clips: list[Clip]) -> Iterator[str]:
    """What a language's splits share: figures on it would flatter. And recordings that are there twice, or of which two texts are said to
    be what is heard.
    """
    of_split = {split: [clip for clip in clips if clip.split == split] for split in ("train", "validation", "test")}
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        held_out, known = of_split[split], {clip.text for clip in of_split[other]}
        texts = [clip.text for clip in held_out if clip.text in known]
        for what, same in (("recordings", copies([c.audio for c in held_out], [c.audio for c in of_split[other]])), ("texts", texts)):
            if same:
                example = printable(same[0]) if what == "recordings" else repr(same[0])
                yield f"WARNING: {len(same)} of {len(held_out)} {split} {what} are also in {other} (such as {example})"
    yield from _said_twice(of_split)
    said: dict[Path, set[str]] = defaultdict(set)
    for clip in clips:
        said[clip.audio].add(clip.text)
    if unsure := [audio for audio, texts in said.items() if len(texts) > 1]:
        yield f"WARNING: {len(unsure)} recordings have several texts (such as {printable(unsure[0])}: {sorted(said[unsure[0]])})"


def _said_twice(of_split: dict[str, list[Clip]]) -> Iterator[str]:
    """Recordings that a split has more than once with the same text; kept: a corpus stays what its figures were measured on."""
    for split, clips in of_split.items():
        by_text = defaultdict(list)
        for clip in clips:
            by_text[clip.text].append(clip.audio)
        duration_s = {clip.audio: clip.duration_s for clip in clips}
        if again := [audio for paths in by_text.values() for audio in repeats(paths)]:
            minutes = sum(duration_s[audio] for audio in again) / 60
            yield (f"WARNING: {len(again)} of {len(clips)} {split} clips are said twice: the same recording with the same text, {minutes:.1f} minutes that count "
                   f"again (such as {printable(again[0])}). Keep one of each")  # fmt: skip
