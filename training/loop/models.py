"""`--model` as it is meant: a folder is looked at before any hub is asked, and what is no Master-ASR model is said to be none."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from modeling_master_asr import MasterASRProcessor
from modeling_master_asr.files_master_asr import check_folder

OUR_FOLDERS = ("checkpoints", "runs")  # what the documented commands write to: never the name of an owner on a hub
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
TIMEOUT_S = 10.0


def resolve_model(id_or_path: str) -> str:
    """Returns a Master-ASR model's folder or hub id, as `from_pretrained` takes it; a hub is asked once, for at most 10 s.

    Raises:
        FileNotFoundError: for a folder or hub id that is not there.
        ConnectionError: if no hub answers.
        ValueError: for a model of another kind.
    """
    check_there(id_or_path)
    folder = Path(id_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            held = sorted(path.name for path in folder.iterdir())[:8]
            raise FileNotFoundError(f"The folder {folder} holds no config.json, so it is no saved model. It holds {held or 'nothing'}.")
        config, found = folder / "config.json", str(folder)
    else:
        config, found = _hub_config(id_or_path), id_or_path
    kind = json.loads(Path(config).read_text(encoding="utf-8")).get("model_type")
    if kind != "master_asr":
        raise ValueError(
            f"{id_or_path} is a plain {kind!r} model, not a Master-ASR one. Make one on top of it: "
            f"python -m training.train_multilingual --backbone {shlex.quote(id_or_path)} ..., or MasterASRForCTC.from_backbone({id_or_path!r}, languages=...)."
        )
    return found


def processor_of(model, id_or_path: str) -> MasterASRProcessor:
    """A model's processor: the feature extractor of its folder or repo, and the alphabets that the model has now, those of further assemblies among them."""
    try:
        own = MasterASRProcessor.from_pretrained(id_or_path).feature_extractor
    except OSError:  # model.save_pretrained alone writes no processor, and says in the config how its base hears
        if model.config.feature_extractor is None:
            raise
        own = None
    return MasterASRProcessor.from_model(model, own)


def check_there(id_or_path: str) -> None:
    """Checks that it is a folder that is there, or may be a hub id.

    Raises:
        FileNotFoundError: if it can be neither.
    """
    if Path(id_or_path).expanduser().is_dir():
        return
    check_folder(id_or_path)
    first = Path(id_or_path).parts[:1]
    if not HUB_ID.fullmatch(id_or_path) or first[0] in OUR_FOLDERS or ("/" in id_or_path and Path(first[0]).is_dir()):
        raise FileNotFoundError(f"No folder at {id_or_path} (seen from {Path.cwd().name or '/'}). A folder or a hub id, owner/name, is wanted.")


def folder_or_id(name: str) -> str:
    """The `type=` of a command line's `--assembly`: a folder that is there, or `owner/name[@revision]`, as `load_assembly` takes it."""
    try:
        if Path(name).expanduser().is_dir():
            return str(Path(name).expanduser())
        check_there(name.partition("@")[0])
        return name
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def model_argument(id_or_path: str) -> str:
    """`resolve_model` as the `type=` of a command line's `--model`."""
    try:
        return resolve_model(id_or_path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _hub_config(repo_id: str) -> str:
    """Path of a repo's config.json, from the cache if it is there."""
    cached = try_to_load_from_cache(repo_id, "config.json")
    if isinstance(cached, str):
        return cached
    try:
        HfApi().model_info(repo_id, timeout=TIMEOUT_S)
        return hf_hub_download(repo_id, "config.json")
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"No folder at {repo_id}, and the hub has no model of that name (or hides it from this token).") from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"No folder at {repo_id}, and the hub answers: {str(error).splitlines()[0]}") from error
    except (httpx.HTTPError, OSError) as error:
        raise ConnectionError(f"No folder at {repo_id}, and no hub answers ({type(error).__name__}). Is the name right, and the network there?") from error
