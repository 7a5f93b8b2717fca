"""Checkpoints that survive a SIGKILL: written beside, synced, renamed, with a manifest of sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from training.loop.config import differences

MANIFEST = "manifest.json"
OTHER_FACTS = "{checkpoint} was made from other data or settings ({changed}). Restore them, or start a new run in another --out."
KEEP = 2  # so that a damaged newest one leaves another to go on from


def name_of(step: int) -> str:
    """The checkpoint of a step."""
    return f"checkpoint-{step:08d}"


def save(out: Path, step: int, parts: dict[str, object], facts: dict, keep: int = KEEP) -> Path:
    """Writes `checkpoint-STEP/` with a file a part and the manifest; a kill at any moment leaves it whole or absent.

    Args:
        parts: `{name: tensors and plain Python values}`.
        facts: JSON-able, kept in the manifest and compared on load.
        keep: how many checkpoints stay, this one included; later ones, made before the run went back to an earlier one, do not.

    Raises:
        OSError: if the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    out = Path(out)
    target = out / name_of(step)
    part = out / f".{target.name}.part"
    try:
        if target.exists():
            _check_is_ours(target)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        files = {f"{name}.pt": _write_part(part / f"{name}.pt", content) for name, content in parts.items()}
        with (part / MANIFEST).open("w", encoding="utf-8") as opened:
            json.dump({"step": step, "facts": facts, "files": files}, opened, indent=1)
            _sync(opened)
        _sync_folder(part)
        # one that is there was made before the run that is repeated now was killed: the same values, and there until these are whole
        before = _moved_aside(target) if target.exists() else None
        os.replace(part, target)
        _sync_folder(out)
        if before:
            shutil.rmtree(before, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError in the words of torch.save
        shutil.rmtree(part, ignore_errors=True)
        whole = [path.name for path in listed(out)]
        raise OSError(
            f"Cannot write {target} ({_of_the_disk(error)}; {_free_megabytes(out)} MB free). Free or open the disk and --resume; "
            f"still there: {whole or 'none'}."
        ) from error
    others = [path for path in listed(out) if path != target]
    older = [path for path in others if path.name < target.name]
    for path in others:
        if path not in older[len(older) - (keep - 1) :]:
            _set_aside(path)
    return target


def _write_part(path: Path, content: object) -> dict:
    """One part's file, synced; its size and hash."""
    with path.open("wb") as opened:
        torch.save(content, opened)
        _sync(opened)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _of_the_disk(error: BaseException) -> BaseException:
    """The system's own error behind another library's, if there is one."""
    cause: Optional[BaseException] = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _free_megabytes(folder: Path) -> int:
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path("."))
    return shutil.disk_usage(there).free >> 20


def clear(out: Path) -> None:
    """Deletes the checkpoints of an older run, and its best one."""
    for checkpoint in [*listed(out), *listed(Path(out) / "best")]:
        _set_aside(checkpoint)


def _check_is_ours(checkpoint: Path) -> None:
    """Refuses to touch what we did not write.

    Raises:
        FileExistsError: for a folder without our manifest.
    """
    if not (checkpoint / MANIFEST).is_file():
        raise FileExistsError(f"{checkpoint} is in the way, and no checkpoint of ours: it has no {MANIFEST}. Move it, or choose another --out")


def _set_aside(checkpoint: Path) -> None:
    """Deletes a checkpoint of ours; renamed first, so that a kill in between leaves no half one under its name.

    Raises:
        FileExistsError: see `_check_is_ours`.
    """
    shutil.rmtree(_moved_aside(checkpoint), ignore_errors=True)


def _moved_aside(checkpoint: Path) -> Path:
    """The new place of a checkpoint of ours, under a name that is no checkpoint's.

    Raises:
        FileExistsError: see `_check_is_ours`.
    """
    _check_is_ours(checkpoint)
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    return aside


def _sync(opened) -> None:
    opened.flush()
    os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders; a rename is on its disk without this
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def listed(out: Path) -> list[Path]:
    """Our checkpoints by step, oldest first; neither what was being written when a run was killed, nor anybody else's folders."""
    return sorted(path for path in Path(out).glob("checkpoint-" + "[0-9]" * 8) if (path / MANIFEST).is_file())


def damage(checkpoint: Path) -> Optional[str]:
    """What is wrong with a checkpoint, in words, or None if it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is missing or broken ({type(error).__name__})"
    for name, wanted in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {wanted['size']}"
        if _sha256(path) != wanted["sha256"]:
            return f"{name} has another SHA-256 than it was written with"
    return None


def named(out: Path, name: str) -> Path:
    """The folder of a checkpoint.

    Args:
        name: of the checkpoint in `out`, or "newest".

    Raises:
        FileNotFoundError: if there is none.
    """
    there = listed(out)
    if not there or (name != "newest" and Path(out) / name not in there):
        raise FileNotFoundError(f"No {'checkpoint' if name == 'newest' else name} in {out} to resume from. There: {[p.name for p in there] or 'none'}.")
    return there[-1] if name == "newest" else Path(out) / name


def check_settings(out: Path, name: str, config: dict) -> None:
    """Refuses to go on with other settings, before anything is read or trained for it; a damaged checkpoint is left to `load`.

    Raises:
        ValueError: naming what differs.
    """
    try:
        checkpoint = named(out, name)
        then = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["facts"]["config"]
    except (OSError, ValueError, KeyError):
        return
    if changed := differences({"config": then}, {"config": config}):
        raise ValueError(OTHER_FACTS.format(checkpoint=checkpoint, changed="; ".join(changed)))


def load(out: Path, name: str, facts: dict) -> tuple[int, dict[str, object]]:
    """`(step, {part: content})` of a checkpoint.

    Args:
        name: see `named`.
        facts: what has to be as it was; see `save`.

    Raises:
        FileNotFoundError: see `named`.
        ValueError: if it is damaged (naming the part, and the one before it that is whole), or made from other data.
    """
    checkpoint = named(out, name)
    wrong = damage(checkpoint)
    if wrong:
        there = listed(out)
        older = next((p.name for p in reversed(there[: there.index(checkpoint)]) if damage(p) is None), None)
        advice = f"The one before it, {older}, is whole" if older else "No older one is whole; the steps begin anew"
        raise ValueError(f"{checkpoint} is damaged: {wrong}. {advice}: delete this one and --resume.")
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    changed = differences(manifest["facts"], facts)
    if changed:
        raise ValueError(OTHER_FACTS.format(checkpoint=checkpoint, changed="; ".join(changed)))
    parts = {Path(n).stem: torch.load(checkpoint / n, map_location="cpu", weights_only=True) for n in manifest["files"]}
    return manifest["step"], parts


def random_state() -> dict:
    """The state of every random generator of this process."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": [kind, keys.tolist(), *rest], "python": random.getstate()}


def set_random_state(state: dict) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer devices now
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
