"""A run's clips: which of `--data` train, validate and test, and what is said of those that are left out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from accelerate.utils import broadcast_object_list

from training.loop.agreement import check_alike
from training.loop.config import LoopConfig
from training.loop.data import NO_CLIP, having, minutes_of, select
from training.loop.sources import Clip, Report, read_data


@dataclass
class Splits:
    """A run's clips."""

    training: list[Clip]
    validation: list[Clip]
    test: list[Clip]
    left_out: list[Clip] = field(default_factory=list)  # of validation and test, by --held_out_minutes


def read(config: LoopConfig, minutes: Optional[float] = None, splits: Optional[Collection[str]] = None) -> tuple[list[Clip], Report]:
    """`training.loop.sources.read_data` as a run's settings say."""
    return read_data(
        config.data, config.out / "recordings", minutes, config.min_s, config.max_s, config.allow_outside, config.max_download_gb,
        config.download_timeout_s, splits,
    )  # fmt: skip


def read_by_first(accelerator, read: Callable[[], tuple[list[Clip], Report]]) -> list[Clip]:
    """Clips as the first process reads them, with a report of what it left out: recordings are opened once, a hub is asked once."""
    clips = None
    if accelerator.is_main_process:
        clips, report = read()
        print("\n".join(report.lines(clips)))
    return broadcast_object_list([clips])[0]


def check_recordings(clips: list[Clip]) -> None:
    """Checks that every process finds these recordings where the first one does, each with as many bytes; all of them have to call it.

    Raises:
        RuntimeError: in all processes, naming those that do not.
    """
    check_alike([_bytes_of(clip.audio) for clip in clips], "recordings")


def _bytes_of(path: Path) -> Optional[int]:
    try:
        return path.stat().st_size
    except OSError:
        return None


def load_splits(accelerator, config: LoopConfig, languages: Optional[list[str]], minutes: float) -> Splits:
    """Clips of `--data`, with the report of what was read and what was left out.

    Args:
        languages: those that train. None: all that have clips to train on.

    Raises:
        ValueError: if a language has no clips to train on, or none to validate with.
        RuntimeError: if processes, which train on their own machines, do not find the recordings.
    """
    clips = read_by_first(accelerator, lambda: read(config, minutes))
    if not clips:
        raise ValueError(NO_CLIP)
    if languages is None:
        there = list(dict.fromkeys(clip.language for clip in clips))
        languages = having(clips, "train", there) or there  # of none: `select` says what is missing
        if len(languages) < len(there):
            accelerator.print(f"No clips to train on, so no training, of {[code for code in there if code not in languages]}.")
    testable = having(clips, "test", languages)
    if len(testable) < len(languages):
        accelerator.print(f"No test clips of {[code for code in languages if code not in testable]}: there will be no test figures of them.")
    held_out = [select(clips, split, codes, config.held_out_minutes) for split, codes in (("validation", languages), ("test", testable))]
    kept = {id(clip) for part in held_out for clip in part}
    left = [clip for clip in clips if clip.split != "train" and clip.language in languages and id(clip) not in kept]
    for code, minutes_left in minutes_of(left).items():
        accelerator.print(f"{code}: {minutes_left} minutes of validation and test are left out (--held_out_minutes).")
    training = select(clips, "train", languages, minutes, config.seed)
    check_recordings([*training, *held_out[0], *held_out[1]])
    say_what_is_left(accelerator, training, [clip for clip in clips if clip.split == "train" and clip.language in languages])
    return Splits(training, *held_out, left)


def say_what_is_left(accelerator, training: list[Clip], there: list[Clip]) -> None:
    """Names the minutes that `--minutes` leaves out, and the letters that nobody trains then."""
    chosen = {id(clip) for clip in training}
    left = [clip for clip in there if id(clip) not in chosen]
    for code, minutes_left in minutes_of(left).items():
        letters = [{letter for clip in of if clip.language == code for letter in clip.text} for of in (left, training)]
        lost = f" Letters that they alone hold: {''.join(sorted(letters[0] - letters[1]))}" if letters[0] - letters[1] else ""
        accelerator.print(f"{code}: {minutes_left} minutes of training clips are left out (--minutes, --minutes_per_language).{lost}")
