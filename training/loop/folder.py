"""An output folder belongs to one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from filelock import FileLock, Timeout

from training.loop import checkpoints

RESULTS = ("model", "assembly", "run.json")  # what a run that ended leaves, beside its checkpoints
ON_THE_WAY = ("best", "teacher", "finetune")


def traces(out: Path) -> list[str]:
    """Names of what a run of ours left in a folder."""
    return [path.name for path in checkpoints.listed(out)] + [name for name in (*ON_THE_WAY, *RESULTS) if (out / name).exists()]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """A folder that no other run works in as long as the context lasts.

    Raises:
        FileExistsError: if it is no folder.
        RuntimeError: if another run is at work there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FileExistsError(f"--out: got {out}, which is a file or lies below one; allowed: a folder of this run alone. Name another.") from error
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(f"Another run is at work in {out}. Wait until it has ended, or choose another --out.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(out: Path, resume: Optional[str]) -> Iterator[None]:
    """A folder that is this run's alone as long as the context lasts; a killed run's claim ends with its process.

    Args:
        resume: which checkpoint the run goes on from; None: it is a fresh one.

    Raises:
        RuntimeError: if another run is at work there.
        FileExistsError: if another run was there, and this one would mix with it.
        FileNotFoundError: if the checkpoint is not there; said before anything is read, or a teacher trained.
    """
    with locked(out):
        there = traces(out)
        if there and resume is None:
            raise FileExistsError(f"{out} holds a run already: {there}. Go on with it by --resume, or choose another --out.")
        if not checkpoints.listed(out) and set(there) & set(RESULTS):
            raise FileExistsError(f"{out} holds {there} but no checkpoint to resume from. Choose another --out, or move them away.")
        if resume not in (None, "newest"):
            checkpoints.named(out, resume)
        yield
