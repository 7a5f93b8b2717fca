"""What leaves this machine: one commit a push, complete with its code, on a named parent, without paths or tokens."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Optional, Union

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from .files_master_asr import copy_code

TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
TEXT_FILES = (".json", ".md", ".txt", ".yaml", ".yml", ".jinja")
MAX_TEXT_BYTES = 50_000_000


def check_publishable(files: dict[str, Path]) -> None:
    """Refuses texts that hold an access token or a path of this machine.

    Args:
        files: `{name in the repo: file}`.

    Raises:
        ValueError: naming the file and what was found in it (of a token only its start).
    """
    places = [Path(place) for place in (Path.home(), Path.cwd(), tempfile.gettempdir())]
    places = {str(path) for place in places for path in (place, place.resolve())} - {"/"}
    path = re.compile("|".join(rf"(?<![\w/.~-]){re.escape(place)}(?:[/\\][^\s\"'`)]*)?(?![\w-])" for place in sorted(places, reverse=True)))
    for name, file in files.items():
        if file.suffix not in TEXT_FILES or file.stat().st_size > MAX_TEXT_BYTES:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if found := TOKEN.search(text):
            raise ValueError(f"{name} holds an access token ({found[0][:6]}...). Take it out, and revoke it: it may have been read already.")
        if places and (found := path.search(text)):
            raise ValueError(f"{name} holds a path of this machine, {found[0]!r}, which nobody else can use. Take it out, or name a hub id in its place.")


def one_file_of(names: Iterable[str]) -> list[str]:
    """The weights in one file in whose place shards have come, if their index is among the names: Transformers would read the old file."""
    indices = (re.fullmatch(r"(.*)\.safetensors\.index(\.[^.]+)?\.json", name) for name in names)
    return [f"{index[1]}{index[2] or ''}.safetensors" for index in indices if index]


def open_repo(api: HfApi, repo_id: str, private: Optional[bool], revision: Optional[str]) -> tuple[str, str]:
    """The full id of a repo, made if it is not there, and the newest commit of its branch, see `open_branch`.

    Raises:
        ValueError: if `private` is asked for and the repo is there already, and public.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # with its owner: of a name alone nobody could say what is there
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"{repo_id} is there already, and public: private=True would not change that. Push to another repo, or make it private "
            f"first: huggingface_hub.HfApi().update_repo_settings({repo_id!r}, private=True)."
        )
    return repo_id, open_branch(api, repo_id, revision)


def open_branch(api: HfApi, repo_id: str, revision: Optional[str]) -> str:
    """The newest commit of a branch, which is made if it is not there; no branch is made for a reference, such as a proposal's."""
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.model_info(repo_id, revision=revision).sha


def upload(
    api: HfApi,
    folder: Union[str, Path],
    repo_id: str,
    message: str,
    names: Optional[list[str]] = None,
    parent: Optional[str] = None,
    *,
    revision: Optional[str],
    description: Optional[str],
    create_pr: bool,
) -> CommitInfo:
    """Uploads the files of a folder in one commit, which takes away the one file of weights that shards replace.

    Args:
        names: only these; None: all.
        parent: the commit that they were made for; None: the newest of a branch that is made if it is not there.

    Raises:
        ValueError: as `check_publishable`; nothing is uploaded then.
        HfHubHTTPError: if the upload fails, or the branch has moved past its parent; the repo is then as it was.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if names is None or name in names}
    check_publishable(files)
    parent = parent or open_branch(api, repo_id, revision)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in sorted(files.items())]
    operations += [CommitOperationDelete(path_in_repo=name) for name in one_file_of(files) if api.file_exists(repo_id, name, revision=parent)]
    return api.create_commit(
        repo_id, operations, commit_message=message, commit_description=description, revision=revision, create_pr=create_pr, parent_commit=parent
    )


class UploadMixin:
    """`save_pretrained(push_to_hub=True)` and `push_to_hub` of models and processors: Transformers uploads in here."""

    def save_pretrained(self, save_directory: Union[str, Path], *args, **kwargs):
        """As in Transformers, which copies the code of what was loaded remotely: never into the places that links lead to."""
        copy_code(save_directory, links_only=True)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(
        self,
        working_dir,
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: Optional[str] = None,
        token: Union[str, bool, None] = None,
        create_pr: bool = False,
        revision: Optional[str] = None,
        commit_description: Optional[str] = None,
    ) -> CommitInfo:
        """Uploads what `working_dir` got since `files_timestamps`, and every code file that remote loading needs."""
        copy_code(working_dir)
        names = []
        for entry in Path(working_dir).iterdir():
            is_code = entry.name.endswith("_master_asr.py")
            if is_code or entry.name not in files_timestamps or (entry.is_file() and entry.stat().st_mtime > files_timestamps[entry.name]):
                names += [path.relative_to(working_dir).as_posix() for path in ([entry] if entry.is_file() else entry.rglob("*"))]
        return upload(
            HfApi(token=token), working_dir, repo_id, commit_message or f"Upload {type(self).__name__}", names,
            revision=revision, create_pr=create_pr, description=commit_description,
        )  # fmt: skip
