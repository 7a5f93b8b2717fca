"""What repos say of themselves: the card of a model, made of its config, and that of assemblies, made of what their files say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Optional, Union

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .assembly_master_asr import ASSEMBLY_CONFIG_NAME, read_listed
from .configuration_master_asr import PIPELINE_TASK
from .files_master_asr import is_path, replace_text

logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
BEGIN, END = "<!-- master-asr assemblies: written anew by every save, write outside of it -->", "<!-- /master-asr assemblies -->"
MODEL_BEGIN, MODEL_END = "<!-- master-asr model: written anew by every push, write outside of it -->", "<!-- /master-asr model -->"
PICTURE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img[^>]*?\ssrc=[\"']([^\"']+)", re.IGNORECASE)
SIZES = {"gate_bits": "?", "head_kilobytes": "?", "text_kilobytes": 0, "kilobytes": "?"}  # of an assembly's facts, and what stands for an older file's
OF_A_PUSH = {"push_to_hub", "repo_id", "revision", "create_pr", "commit_message", "commit_description", "private", "token"}
NEEDS = 'Needs `pip install "transformers>=5.23,<6" soundfile soxr` and torch 2.10 or newer.'  # of who reads a card: what pyproject.toml says
PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".svg", ".webp", ".gif")


def code_span(text: object) -> str:
    """A text from anywhere as Markdown code, in a table too: nothing in it is read as Markdown, HTML or another line."""
    return f"`{' '.join(str(text).replace('`', chr(39)).replace('|', '/').split()) or '?'}`"


def figure(value: object) -> str:
    """A number with one digit; of `{source: minutes}` the sum; else a question mark."""
    value = sum(value.values()) if isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values()) else value
    with suppress(OverflowError):  # an integer that no float holds
        return f"{value:.1f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "?"
    return "?"


def size(value: object) -> str:
    """A number as it is; what should have been one as code."""
    return str(value) if isinstance(value, (int, float)) else code_span(value)


def hub_id_of(name: Optional[str]) -> Optional[str]:
    """`name` if it is a hub id of the form owner/name, else None."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return None
    return name if "/" in name and not is_path(name) else None


def hub_codes(languages: Iterable[str]) -> list[str]:
    """The languages of a card's metadata: without regions and scripts, in small letters, each once."""
    return list(dict.fromkeys(re.split("[-_]", code)[0].lower() for code in languages))


def card_data(languages: Iterable[str], library_name: str = "transformers", **facts) -> ModelCardData:
    """The metadata of a card: what all of ours say, and `facts`."""
    return ModelCardData(library_name=library_name, pipeline_tag=PIPELINE_TASK, language=hub_codes(languages), **facts)


def with_tags(card: str, tags: list[str]) -> str:
    """A card with further tags."""
    card = ModelCard(card, ignore_metadata_errors=True)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    return str(card)


def default_card(config, before: Optional[str] = None) -> Optional[str]:
    """A model card that says what is known from the config alone; `training.model_card` writes the full one.

    Args:
        before: the card that is there, of which our part is written anew; None is returned where it has none.
    """
    data = card_data(config.languages, base_model=hub_id_of(config.base_model), tags=["master-asr", "ctc", "multilingual"])
    listed = ", ".join(code_span(code) for code in config.languages)
    part = (
        f"{MODEL_BEGIN}\nLanguages: {listed}. K = {config.num_specialists} specialists, sparsity {config.sparsity}.\n\n"
        f"{NEEDS}\n\n```python\nfrom transformers import pipeline\n\n"
        'asr = pipeline("automatic-speech-recognition", model="THIS_REPO", trust_remote_code=True)\n'
        f'asr("clip.wav", language={json.dumps(next(iter(config.languages), "xx"))})\n```\n{MODEL_END}'
    )
    return f"---\n{data.to_yaml()}\n---\n# Master-ASR\n\n{part}\n" if before is None else renewed(before, part, MODEL_BEGIN, MODEL_END, language=data.language)


def renewed(before: str, part: str, begin: str, end: str, **data) -> Optional[str]:
    """A card with what stands between two lines, these included, written anew, and entries of its metadata; None where it has no such lines."""
    if begin not in before or end not in before:
        return None
    card = ModelCard(before[: before.index(begin)] + part + before[before.rindex(end) + len(end) :], ignore_metadata_errors=True)
    for name, value in data.items():
        setattr(card.data, name, value)
    return str(card)


def said_of(config, facts: dict) -> dict:
    """What was said of a language when its file, which may be another's, was written (figures, minutes), beside what the file says of itself."""
    own = {*config.entry_of(facts), *SIZES, *OF_A_PUSH, "language", "num_specialists", "sparsity", "base", "base_revision", "fingerprint"}
    return {name: value for name, value in facts.items() if name not in own}


def assembly_part(listed: dict[str, dict], repo_id: str) -> str:
    """The part of an assembly repo's card that its `assembly_config.json` says."""
    code, first = next(iter(listed.items()))
    lines = [f"Languages for the base model {code_span(first['base'])}:", ""]
    lines += ["| language | parts | test CER, % | minutes, last training | mapping, bits | head, KB | sentences, KB | whole, KB |", "|---|---|---|---|---|---|---|---|"]
    for language, facts in listed.items():
        cells = [code_span(language), code_span(" ".join(map(str, facts["parts"]))), *(figure(facts.get(name)) for name in ("cer", "minutes"))]
        cells[2] += "*" * bool(facts.get("known"))
        if "untranscribed_minutes" in facts:
            cells[3] += f" + {figure(facts['untranscribed_minutes'])}†"
        lines += [f"| {' | '.join([*cells, *(size(facts.get(name, unsaid)) for name, unsaid in SIZES.items())])} |"]
    if any(facts.get("text_kilobytes") and facts.get("greedy") is False for facts in listed.values()):
        lines += ["", "A language that holds sentences was read with these in mind."]
    if any(facts.get("known") for facts in listed.values()):
        lines += ["", "\\* Some of its test clips say one of these sentences, or a part of one: the figure flatters."]
    if any("untranscribed_minutes" in facts for facts in listed.values()):
        lines += ["", "† Minutes that nobody transcribed: the language wrote them down itself, and trained on with them."]
    revision = f", revision={json.dumps(first['base_revision'])}" if first.get("base_revision") else ""
    lines += [
        "", NEEDS, "", "```python", "from transformers import AutoModelForCTC", "",
        f"model = AutoModelForCTC.from_pretrained({json.dumps(first['base'])}{revision}, trust_remote_code=True)",
        f"model.load_assembly({json.dumps(repo_id)}, language={json.dumps(code)}, replace=True)  # in the place of the base's own, if it has it", "```", "",
        f"They fit that base alone (fingerprint {code_span(first['fingerprint'][:12])}): any other refuses them.",
    ]  # fmt: skip
    return "\n".join(lines)


def assembly_card(listed: dict[str, dict], repo_id: str, before: Optional[str] = None) -> Optional[str]:
    """The card of an assembly repo: new, or `before` with our part written anew; None where `before` has no such part.

    The metadata of an older card stay, but for the languages and the base.
    """
    part = f"{BEGIN}\n{assembly_part(listed, repo_id)}\n{END}"
    base = hub_id_of(next(iter(listed.values()))["base"])
    of_base = {"base_model": base, "base_model_relation": "adapter" if base else None}
    if before is not None:
        return renewed(before, part, BEGIN, END, language=hub_codes(listed), **of_base)
    data = card_data(listed, library_name="modeling-master-asr", tags=["master-asr", "assembly"], **of_base)
    return f"---\n{data.to_yaml()}\n---\n# Master-ASR assemblies\n\n{part}\n"


def write_assembly_card(folder: Path, repo_id: str) -> None:
    """Writes or renews the card beside `assembly_config.json`; one that people wrote without our part stays as it is."""
    path = folder / CARD_NAME
    before = path.read_text(encoding="utf-8") if path.exists() else None
    card = assembly_card(read_listed(folder / ASSEMBLY_CONFIG_NAME), repo_id, before)
    if card is None:
        logger.warning(f"{CARD_NAME} of {repo_id} stays as it is: it is not ours. To have our table in it, add the lines\n{BEGIN}\n{END}")
    else:
        replace_text(path, card)


def card_given(card: Union[str, Path, None]) -> Union[str, Path, None]:
    """What is given as a card: its text as it is, or its path, also one in a str.

    Raises:
        FileNotFoundError: for a path where no file is.
    """
    is_path_of_one = isinstance(card, str) and "\n" not in card and card.endswith(".md")
    card = Path(card) if is_path_of_one else card
    if isinstance(card, Path) and not card.is_file():
        raise FileNotFoundError(f"No card at {card}. Pass the path of a README.md, or its text.")
    return card


def pictures_of(card: str, beside: Path) -> dict[str, Path]:
    """`{name: file}` of the pictures that a card shows and that lie beside it, or in a folder below."""
    names = {a or b for a, b in PICTURE.findall(card)}
    files = {name: beside / name for name in names if "://" not in name and Path(name).suffix.lower() in PICTURE_TYPES}
    return {n: f for n, f in files.items() if f.is_file() and f.resolve().is_relative_to(beside.resolve())}
