"""What a figure needs beside it, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import accelerate
import torch
import transformers

from modeling_master_asr.base_master_asr import fingerprint
from modeling_master_asr.configuration_master_asr import vocab_digest
from modeling_master_asr.files_master_asr import replace_file


def facts_of_run(model=None) -> dict:
    """Command, commit ("-dirty" where files differ from it) and versions: what a figure needs beside it.

    Args:
        model: whose base the run starts from; a folder's name says nothing of its values, so its fingerprint is kept too.
    """
    started_by, *arguments = sys.argv
    is_a_command = "kernel_launcher" not in Path(started_by).name  # a notebook's own arguments say nothing of a run
    versions = {m.__name__: m.__version__ for m in (torch, transformers, accelerate)}
    return {
        "command": " ".join([Path(started_by).name, *arguments]) if is_a_command else "in a notebook",
        "commit": commit_of_clone() or "unknown",
        "versions": {**versions, "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        **({} if model is None else {"base": model.master_asr.base_fingerprint()[:12]}),
    }


def commit_of_clone() -> str:
    """The commit of this clone, "-dirty" where files differ from it; "" for a copy without one, which may lie in somebody else's."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root).stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        return git("describe", "--always", "--dirty", "--exclude=*") if top and Path(top).resolve() == root else ""
    except OSError:  # no git here
        return ""


def digests_of(model, languages, with_text: bool) -> dict[str, str]:
    """`{language: the beginning of a SHA-256}` of what each is read with: its assembly's values, and the sentences that it has in mind."""
    digests = {}
    for code in languages:
        values, letters = fingerprint(model.assemblies[code].content_of_file()), vocab_digest(model.config.vocab(code))
        digests[code] = hashlib.sha256(f"{values} {letters} {model.config.text(code) if with_text else ''}".encode()).hexdigest()[:12]
    return digests


def write_json(path: str | Path, content: dict) -> None:
    """See `write_whole`."""
    write_whole(Path(path), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """See `write_whole`; a row a line."""
    write_whole(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of `write_jsonl`."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028, U+0085 and others are legal inside a string
    return [json.loads(line) for line in lines if line]


def write_whole(path: Path, content: bytes) -> None:
    """`replace_file` with bytes, in a folder that is made if it is not there.

    Raises:
        OSError: if it cannot be written; nothing half is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_bytes(content))
