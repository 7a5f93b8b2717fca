"""Recordings that nobody transcribed: a language that has trained writes them down, and trains on with what it wrote (self-training)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from modeling_master_asr.base_master_asr import fingerprint
from modeling_master_asr.text_master_asr import normalize
from training.loop import checkpoints
from training.loop.agreement import check_alike
from training.loop.data import Collator, has_frames
from training.loop.launch import STEPS_BEGUN
from training.loop.metrics import edits_of, transcribe_clips
from training.loop.record import read_jsonl, write_jsonl
from training.loop.recordings import SUFFIXES, LeftOut, copies, identity_of, printable, repeats, seconds_of
from training.loop.sources import Clip, below

FILE = "untranscribed.jsonl"  # of a run's folder: a manifest of what was written
BEGUN = "untranscribed.begun.jsonl"  # what was read so far, by whom: a run that was killed before its first checkpoint reads nothing again
# CHOICE: the fifth that is read least alike with the language's sentences in mind and without has the most errors, and is left out.
TRUSTED_SHARE = 0.8
# CHOICE: what people transcribed is heard again until there is half as much of it: else many errors outvote few minutes.
SHARE_OF_WRITTEN = 0.5
AT_A_TIME = 100  # clips between two moves of the bar; what a kill loses


@dataclass(frozen=True)
class Written:
    """A clip with the text that the model wrote, and its distance from what it reads without sentences in mind, in edits a letter."""

    clip: Clip
    disagreement: float


def recordings(sources: list[str], transcribed: list[Clip], language: str, min_s: float, max_s: float) -> tuple[list[Clip], Counter]:
    """Clips without text of the recordings in files and folders, and how many were left out, by the reason: those that have the bytes of a
    clip in `transcribed` or of another among them, last too short or too long, or cannot be read.

    Raises:
        ValueError: if a source is not there, or none holds a recording that can be used.
    """
    paths, left = [], Counter()
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"--untranscribed: {source} is not there; allowed: recordings, and folders of them.")
        paths += [path for path in below(source, "*") if path.suffix.lower() in SUFFIXES] if source.is_dir() else [source]
    paths = list(dict.fromkeys(paths))
    named, paths = len(paths), [path for path in paths if path.is_file() and os.access(path, os.R_OK)]  # no links to nothing
    left["cannot be read"] = named - len(paths)
    reasons = dict.fromkeys(repeats(paths), "are there twice") | dict.fromkeys(copies(paths, [clip.audio for clip in transcribed]), "are transcribed in --data")
    found = []
    for path in tqdm(paths, desc="untranscribed", unit=" recordings", disable=None, leave=False):
        try:
            if path in reasons:
                raise LeftOut(reasons[path])
            if not is_unicode(path):  # no manifest could name it
                raise LeftOut("have names that are not UTF-8")
            if not min_s <= (duration_s := seconds_of(path)) <= max_s:
                raise LeftOut(f"do not last {min_s} to {max_s} s")
            found.append(Clip(path, language, "", duration_s, "train"))
        except LeftOut as error:
            left[error.reason] += 1
    left = +left
    if not found:
        raise ValueError(f"--untranscribed: none of the {named} recordings in {printable(', '.join(sources))} can be used: {dict(left)}. Names that end in "
                         f"{', '.join(SUFFIXES)} are looked for; cut long recordings at pauses.")  # fmt: skip
    return found, left


def is_unicode(path: Path) -> bool:
    """Whether a path can be written into a text file."""
    try:
        return bool(os.path.abspath(path).encode())
    except UnicodeEncodeError:
        return False


def write_down(accelerator, model, processor, features, clips: list[Clip], begun: Path) -> list[Written]:
    """What the model reads in clips of one language, in their order, without those in which it reads nothing; all processes have to call it.

    Args:
        begun: a file that keeps what is read, so that a run that was killed goes on: this reader reads no clip twice.
    """
    check_alike([clip.audio.name for clip in clips], "recordings")
    collator, written = Collator(features, processor), []
    read, reader = read_before(accelerator, begun), reader_of(model, clips)
    parts = [clips[start : start + AT_A_TIME] for start in range(0, len(clips), AT_A_TIME)]
    keys = [hashlib.sha256(f"{reader} {[identity_of(clip.audio) for clip in part]}".encode()).hexdigest() for part in parts]
    keys = broadcast_object_list([keys])[0]  # the first process decides for all: where a recording lies, and when it was written, differs between machines
    STEPS_BEGUN.set()  # hours may follow, and an error in them is no setting's
    for key, part in tqdm(list(zip(keys, parts)), desc="writing down", unit=f"x {AT_A_TIME} clips", disable=not accelerator.is_main_process, leave=False):
        if key not in read:
            read[key] = [transcribe_clips(model, processor, collator, part, accelerator=accelerator, greedy=greedy) for greedy in (False, True)]
            if accelerator.is_main_process:
                with begun.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps([key, read[key]]))  # on a line of its own, also behind one that was cut
        written += [Written(replace(clip, text=text), edits_of(other, text)[0] / len(text)) for clip, text, other in zip(part, *read[key]) if (text or "").strip("' ")]
    return written


def reader_of(model, clips: list[Clip]) -> str:
    """A digest of all that decides what a model reads in these clips: its values, its config, the sentences in it too."""
    read_with = f"{fingerprint(model.state_dict())} {clips[0].language} {model.config.to_json_string(use_diff=False)}"
    return hashlib.sha256(read_with.encode()).hexdigest()


def read_before(accelerator, begun: Path) -> dict[str, list]:
    """`{digest of reader and clips: [texts with sentences in mind, texts without]}` of a run that was killed, the same in all processes."""
    lines = begun.read_text(encoding="utf-8").splitlines() if accelerator.is_main_process and begun.is_file() else []
    read = {}
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):  # the first, which is empty, and one that was cut where the run was
            key, texts = json.loads(line)
            read[key] = texts
    return broadcast_object_list([read])[0]


def trusted(written: list[Written], processor, model) -> list[Clip]:
    """The four fifths, or more where that many are as sure, that are read most alike with sentences in mind and without."""
    limit = sorted(one.disagreement for one in written)[int(TRUSTED_SHARE * (len(written) - 1))] if written else 0.0
    return [one.clip for one in written if one.disagreement <= limit and has_frames(one.clip, processor, model)]


def save(path: Path, written: list[Written], trained: list[Clip]) -> None:
    """A manifest of what was written: to be looked at, and where people mend it to be trained on, `--data` beside the others."""
    kept = {id(clip) for clip in trained}
    rows = [
        {"audio": os.path.abspath(one.clip.audio), "language": one.clip.language, **_as_data(one.clip), "duration_s": one.clip.duration_s, "split": "train",
         "disagreement": round(one.disagreement, 3), "trained": id(one.clip) in kept}
        for one in written
    ]  # fmt: skip
    write_jsonl(path, rows)


def _as_data(clip: Clip) -> dict:
    """A clip's text as `--data` will read it: where an apostrophe would be taken for a quotation mark, by one that never is, and as the language wrote it."""
    if normalize(clip.text, language=clip.language) == clip.text:
        return {"text": clip.text}
    return {"text": clip.text.replace("'", "\u02bc"), "written": clip.text}


def read_trained(path: Path) -> list[Clip]:
    """Those of a file of `save` that trained."""
    return [Clip(Path(row["audio"]), row["language"], row.get("written", row["text"]), row["duration_s"], row["split"]) for row in read_jsonl(path) if row["trained"]]


def beside(transcribed: list[Clip], written: list[Clip]) -> list[Clip]:
    """Both, what people transcribed as often as it takes to be about half as long."""
    if not (transcribed and written):
        return transcribed
    seconds = [sum(clip.duration_s for clip in clips) for clips in (transcribed, written)]
    return transcribed * max(1, round(SHARE_OF_WRITTEN * seconds[1] / seconds[0])) + written


def transcribe_recordings(accelerator, config, model, processor, features, splits) -> tuple[list[Clip], dict]:
    """What a language trains on of the recordings in `--untranscribed`, as the model reads it before it trains on, and what stands of them in
    the result.

    Raises:
        ValueError: see `recordings`.
        ValueError: if the language has no sentences.
    """
    if not model.config.text(config.language):
        raise ValueError(f"--untranscribed: {config.language!r} has no sentences in mind to write with: by them it is known which texts are sure. Pass --more_text, or leave --text none out.")
    transcribed = [*splits.training, *splits.validation, *splits.test, *splits.left_out]
    clips, left = recordings(config.untranscribed, transcribed, config.language, config.min_s, config.max_s)
    for reason, count in left.items():
        accelerator.print(f"untranscribed: {count} recordings are left out: they {reason}.")
    there = checkpoints.listed(config.out) or checkpoints.listed(config.out / "teacher")  # which compare their settings with these
    if config.resume and there and (config.out / FILE).is_file():  # as the steps before had them
        kept = read_trained(config.out / FILE)
    else:
        written = write_down(accelerator, model, processor, features, clips, config.out / BEGUN)
        kept = trusted(written, processor, model)
        if accelerator.is_main_process:
            save(config.out / FILE, written, kept)
    minutes, of_kept = (round(sum(clip.duration_s for clip in some) / 60, 1) for some in (clips, kept))
    accelerator.print(f"untranscribed: {len(clips)} recordings, {minutes} minutes, are written down in {config.out / FILE}; the {len(kept)}, {of_kept} minutes, of which "
                      "the texts are surest train too.")  # fmt: skip
    return kept, {"untranscribed": {"recordings": len(clips), "minutes": minutes, "left_out": dict(left), "trained": len(kept), "trained_minutes": of_kept}}
