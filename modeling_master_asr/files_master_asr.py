"""Files and folders of this machine: what names one, and how one is written. Neither torch nor Transformers here."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Union
from uuid import uuid4


def is_path(name: str) -> bool:
    """Whether a model's name is a folder of this machine (or of another), and no hub id."""
    return bool(name) and (name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or Path(name).is_dir())


def check_folder(name: str) -> str:
    """Returns the name of a model or an assembly, which is a folder that is there, or may be a hub id.

    Raises:
        FileNotFoundError: for what can only be a folder, and is none: no hub is asked for it.
    """
    if is_path(name) and not Path(name).is_dir():
        raise FileNotFoundError(f"No folder at {name} (seen from {Path.cwd().name or '/'}). The path of a folder or a hub id, owner/name, is wanted.")
    return name


def replace_files(writes: dict[Path, Callable[[Path], object]]) -> None:
    """Writes files beside and then renames them, one after the other once all are whole: a stopped or failed write leaves the old files or the new
    ones, also when several processes write them at once, and no link of a folder that came from elsewhere is followed.

    Args:
        writes: `{file: what writes to the path that it is given}`.
    """
    parts = {path: path.with_name(f"{path.name}.{uuid4().hex}.part") for path in writes}
    try:
        for path, write in writes.items():
            part = parts[path]
            part.touch()
            mode = part.stat().st_mode  # as this process makes files; safetensors' nobody else can read
            write(part)
            part.chmod(mode)
        for path, part in parts.items():
            os.replace(part, path)
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """`replace_files` with one."""
    replace_files({path: write})


def text_writer(text: str) -> Callable[[Path], object]:
    """What writes a text as UTF-8, for `replace_files`."""
    return lambda part: part.write_text(text, encoding="utf-8")


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with a text."""
    replace_file(path, text_writer(text))


def copy_code(folder: Union[str, Path], links_only: bool = False) -> None:
    """Copies every file that `trust_remote_code` needs into `folder`, also from a model that was itself loaded remotely.

    Args:
        links_only: only in the places of links: before Transformers copies code by itself, into the clone that links lead to.
    """
    for source in Path(__file__).parent.glob("*_master_asr.py"):
        target = Path(folder) / source.name
        if target.resolve() != source.resolve() and (target.is_symlink() or not links_only):
            replace_file(target, partial(copyfile, source))
