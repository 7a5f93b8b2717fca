"""What a figure needs beside it, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import torch
import transformers


def facts_of_run() -> dict:
    """Command, commit and versions: what a figure needs beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, accelerate)}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "unknown",
        "versions": {**versions, "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
    }


def write_json(path: str | Path, content: dict) -> None:
    """Writes beside and renames, so a stopped run leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
