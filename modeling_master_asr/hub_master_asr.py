"""Publishing and fetching: a model with all it needs in one commit, and single languages as small repos of their own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional, Union

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file, logging

from .assembly_master_asr import (
    ASSEMBLY_CONFIG_NAME,
    LanguageAssembly,
    file_name,
    is_adapted,
    read_listed,
    read_tensors,
    write_assembly,
)
from .base_master_asr import HUB_KWARGS, StoredBase, check_base
from .configuration_master_asr import PIPELINE_TASK
from .files_master_asr import check_folder, is_path, replace_text
from .processing_master_asr import MasterASRProcessor
from .upload_master_asr import open_repo, upload

logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
BEGIN, END = "<!-- master-asr assemblies: written anew by every save, write outside of it -->", "<!-- /master-asr assemblies -->"
PICTURE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img[^>]*?\ssrc=[\"']([^\"']+)", re.IGNORECASE)
SIZES = {"gate_bits": "?", "head_kilobytes": "?", "text_kilobytes": 0, "kilobytes": "?"}  # of an assembly's facts, and what stands for an older file's
OF_A_PUSH = {"push_to_hub", "repo_id", "revision", "create_pr", "commit_message", "commit_description", "private", "token"}
NEEDS = 'Needs `pip install "transformers>=5.23,<6" soundfile soxr` and torch 2.10 or newer.'  # of who reads a card: what pyproject.toml says
PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".svg", ".webp", ".gif")

Source = Union[str, Path]


# ---------------------------------------------------------------------- fetching


def id_and_revision(source: Source, revision: Optional[str] = None) -> tuple[str, Optional[str]]:
    """`me/x@v1` -> `("me/x", "v1")`; a folder keeps its name, whatever is in it.

    Raises:
        ValueError: if `revision` names another one.
    """
    source = str(source)
    if "@" not in source or Path(source).exists():
        return source, revision
    name, found = source.rsplit("@", 1)
    if revision not in (None, found):
        raise ValueError(f"{source!r} names the revision {found!r}, revision={revision!r} another. Name one.")
    return name, found


def fetch(source: str, name: str, **hub_kwargs) -> Path:
    """One file of a folder or hub repo.

    Raises:
        OSError: saying what is missing and what the repo should hold.
    """
    try:
        return Path(cached_file(check_folder(source), name, **hub_kwargs))
    except OSError as error:  # FileNotFoundError: no such folder
        if "does not appear to have a file named" not in str(error):
            raise  # no such repo or revision, no access, no connection: Transformers' own words
        raise OSError(
            f"{source} holds no {name}, so it is no Master-ASR assembly: one is made by model.save_assembly(...) or "
            "push_assembly_to_hub(...). A whole model loads with from_pretrained, a PEFT adapter with PeftModel.from_pretrained."
        ) from error


def languages_in(source: Source, **hub_kwargs) -> list[str]:
    """Codes of the assemblies in a folder or hub repo."""
    source, hub_kwargs["revision"] = id_and_revision(source, hub_kwargs.get("revision"))
    return list(read_listed(fetch(source, ASSEMBLY_CONFIG_NAME, **hub_kwargs)))


def fetch_assembly(source: Source, language: Optional[str], **hub_kwargs) -> tuple[str, dict, Path]:
    """`(language, its facts, its file)` of a folder or hub repo; no tensor is read yet.

    Args:
        language: which one, or None where there is a single language.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: if the repo or a file is not there.
        ValueError: if `language` is needed or not there.
    """
    source, hub_kwargs["revision"] = id_and_revision(source, hub_kwargs.get("revision"))
    listed = read_listed(fetch(source, ASSEMBLY_CONFIG_NAME, **hub_kwargs))
    if language is None and len(listed) != 1:
        raise ValueError(f"{source} holds the languages {sorted(listed)}; name one: load_assembly(..., language=...).")
    language = language or next(iter(listed))
    if language not in listed:
        raise ValueError(f"{source} has no language {language!r}. It holds {sorted(listed)}.")
    return language, listed[language], fetch(source, file_name(language), **hub_kwargs)


# ---------------------------------------------------------------------- cards


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


def default_card(config) -> str:
    """A model card that says what is known from the config alone; `training.model_card` writes the full one."""
    data = card_data(config.languages, base_model=hub_id_of(config.base_model), tags=["master-asr", "ctc", "multilingual"])
    listed = ", ".join(code_span(code) for code in config.languages)
    body = (
        f"# Master-ASR\n\nLanguages: {listed}. K = {config.num_specialists} specialists, sparsity {config.sparsity}.\n\n"
        f"{NEEDS}\n\n```python\nfrom transformers import pipeline\n\n"
        'asr = pipeline("automatic-speech-recognition", model="THIS_REPO", trust_remote_code=True)\n'
        f'asr("clip.wav", language={json.dumps(next(iter(config.languages), "xx"))})\n```\n'
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def said_of(config, facts: dict) -> dict:
    """What was said of a language when its file, which may be another's, was written (figures, minutes), beside what the file says of itself."""
    own = {*config.entry_of(facts), *SIZES, *OF_A_PUSH, "language", "num_specialists", "sparsity", "base", "base_revision", "fingerprint"}
    return {name: value for name, value in facts.items() if name not in own}


def assembly_part(listed: dict[str, dict], repo_id: str) -> str:
    """The part of an assembly repo's card that its `assembly_config.json` says."""
    code, first = next(iter(listed.items()))
    lines = [f"Languages for the base model {code_span(first['base'])}:", ""]
    lines += ["| language | parts | test CER, % | minutes | mapping, bits | head, KB | sentences, KB | whole, KB |", "|---|---|---|---|---|---|---|---|"]
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
        f"model.load_assembly({json.dumps(repo_id)}, language={json.dumps(code)})", "```", "",
        f"They fit that base alone (fingerprint {code_span(first['fingerprint'][:12])}): any other refuses them.",
    ]  # fmt: skip
    return "\n".join(lines)


def assembly_card(listed: dict[str, dict], repo_id: str, before: Optional[str] = None) -> Optional[str]:
    """The card of an assembly repo: new, or `before` with our part written anew; None where `before` has no such part.

    The metadata of an older card stay, but for the list of languages.
    """
    part = f"{BEGIN}\n{assembly_part(listed, repo_id)}\n{END}"
    if before is None:
        base = hub_id_of(next(iter(listed.values()))["base"])
        data = card_data(listed, library_name="modeling-master-asr", tags=["master-asr", "assembly"], base_model=base, base_model_relation="adapter" if base else None)
        return f"---\n{data.to_yaml()}\n---\n# Master-ASR assemblies\n\n{part}\n"
    if BEGIN not in before or END not in before:
        return None
    start, end = before.index(BEGIN), before.rindex(END) + len(END)
    card = ModelCard(before[:start] + part + before[end:], ignore_metadata_errors=True)
    card.data.language = hub_codes(listed)
    return str(card)


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


# ---------------------------------------------------------------------- the model's methods


class HubMixin:
    """The methods of `MasterASRForCTC` that write or read folders and hub repos."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, assemblies: Union[Source, Iterable[Source]] = (), **kwargs):
        """As in Transformers; `assemblies` names folders or hub ids whose languages are loaded on top, in the place of the model's own where it has them.

        Args:
            assemblies: ids (`me/x`, or `me/x@revision`) or paths, or one of them; of a repo with several languages, all of them.

        Raises:
            ValueError: also where two of them hold the same language.
        """
        model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        target = model[0] if isinstance(model, tuple) else model
        target.keep_fixed_parts()  # Transformers makes anew what it loads, and lets it train
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        loaded: set[str] = set()
        for source in [assemblies] if isinstance(assemblies, (str, Path)) else assemblies:
            for language in languages_in(source, **hub_kwargs):
                if language in target.assemblies and language not in loaded:
                    logger.warning(f"{source} takes the place of the model's own {language!r}. Only one of its languages: model.load_assembly({str(source)!r}, language).")
                target.load_assembly(source, language, replace=language not in loaded, **hub_kwargs)
                loaded.add(language)
        return model

    # ------------------------------------------------------------------ languages

    def _assembly_facts(self, language: str, facts: dict) -> dict:
        """What an assembly's file says of itself and of its base.

        Raises:
            ValueError: if the values of W and M are not those of a stored base; for facts named as what the file says of itself.
        """
        entry = self.config.assemblies[self.config.check_language(language)]
        fingerprint = self.master_asr.stored_fingerprint()
        if is_adapted(self.master_asr.backbone):
            raise ValueError("A PEFT adapter is on the encoder, and an assembly fits a base without it. Take it off first: model = peft_model.unload().")
        if fingerprint is None:
            raise ValueError(
                "The base (W and M) was never saved, or has been trained or cast since: an assembly saved now would fit no base. "
                "Save it first: model.save_pretrained(folder)."
            )
        base = self.master_asr.stored
        own = {
            **{name: value for name, value in entry.items() if name != "shares_bank"},
            "language": language, "num_specialists": self.config.num_specialists, "sparsity": self.config.sparsity,
            "base": base.name if base.on_hub else Path(base.name).resolve().name,  # a file for others names no folder of this machine
            "base_revision": base.revision, "fingerprint": fingerprint,
        }  # fmt: skip
        if taken := sorted({*own, "text"} & set(facts)):
            raise ValueError(f"facts: got {taken}, by which the file says what the language is; allowed: other names.")
        if taken := sorted(OF_A_PUSH & set(facts)):
            raise ValueError(f"facts: got {taken}, which say how something is pushed; allowed: other names. To push it: push_assembly_to_hub.")
        return {**own, **facts}

    def _described(self, language: str, facts: dict) -> tuple[LanguageAssembly, dict]:
        """A language's assembly and `_assembly_facts` of it, looked up together: hashing the base takes seconds, in which another may take its place.

        Raises:
            KeyError: if it is not loaded.
            ValueError: as `_assembly_facts`; if it is being replaced.
        """
        assembly = self.assemblies.with_values(self.config.check_language(language))
        facts = self._assembly_facts(language, facts)
        if not assembly.is_of(facts):
            raise ValueError(f"{language!r} was replaced while it was being saved: the file would hold the letters of one and the values of another. Save it again.")
        return assembly, facts

    def save_assembly(self, language: str, folder: Source, **facts) -> Path:
        """Writes one language into `folder`: its tensors, `assembly_config.json` with the base it belongs to, and a card.

        Args:
            facts: anything JSON-able worth keeping beside it (training data, budgets, CER).

        Raises:
            KeyError: if it is not loaded.
            ValueError: if the base was trained since it was saved, or never saved: nobody could load the file; if the folder
                holds languages of another base.
        """
        assembly, facts = self._described(language, facts)
        path = write_assembly(Path(folder), language, assembly.content_of_file(), facts)
        write_assembly_card(Path(folder), "THIS_REPO")
        return path

    def load_assembly(self, id_or_path: Source, language: Optional[str] = None, replace: bool = False, **hub_kwargs) -> str:
        """Adds a language from a folder or hub repo and returns its code; if anything is wrong, nothing is added.

        Args:
            id_or_path: `me/x`, `me/x@revision`, or a folder.
            language: which one, where the repo holds several.
            replace: whether it takes the place of the same language, if that is loaded. Processors and logits made before are of the old one then, whose
                alphabet may be another of the same size: make them anew. The pipeline sees to it itself.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            OSError: for a repo, revision or file that is not there, or that this token may not see.
            ValueError: for another base, K or sparsity, a damaged file, or, without `replace`, a language already there; in the place of a PEFT adapter.
        """
        language, facts, path = fetch_assembly(id_or_path, language, **hub_kwargs)
        source = f"{id_or_path} ({language})"
        replaces = replace and language in self.assemblies
        if replaces:
            self.check_is_own(language, "makes place as one: peft_model.delete_adapter(name)")
        config = self.config.with_assembly(language, self.config.entry_of(facts), source, replaces)
        with torch.device("meta"):  # names and shapes alone, no memory
            assembly = self.master_asr.new_assembly(language, config)
        wanted = {name: tuple(value.shape) for name, value in assembly.state_dict().items()}
        check_base(facts, self.master_asr, source)
        assembly.load_state_dict(read_tensors(path, wanted, facts, source), assign=True)
        self._register(language, assembly.to(device=self.device, dtype=torch.float32), config)
        if replaces:
            self.master_asr.masks.forget_language(language)
        return language

    def push_assembly_to_hub(
        self,
        language: str,
        repo_id: str,
        private: Optional[bool] = None,
        token: Union[str, bool, None] = None,
        commit_message: Optional[str] = None,
        base: Optional[str] = None,
        revision: Optional[str] = None,
        create_pr: bool = False,
        commit_description: Optional[str] = None,
        **facts,
    ) -> CommitInfo:
        """Uploads one language in one commit; languages that the repo already holds stay, and so does what people wrote in its card.

        Args:
            base: hub id of the base that it was made for, where the model was loaded from a folder; `owner/name@revision` too.
            revision: a branch, made if it is not there.
            create_pr: whether to propose the commit in place of making it.
            facts: as in `save_assembly`.

        Raises:
            ValueError: as `save_assembly`; if the base is in a folder of this machine alone, or not the one named; if the repo
                holds languages of another base, or is public while `private` is asked for.
            KeyError: if the language is not loaded.
            HfHubHTTPError: if the upload fails, or somebody else pushed meanwhile; the repo is then as it was.
        """
        assembly, facts = self._described(language, facts)  # refuse before anything is created
        self.config.warn_of_sentences([language])
        facts |= self._base_for_others(facts["fingerprint"], base, token)
        api = HfApi(token=token)
        repo_id, head = open_repo(api, repo_id, private, revision)
        with TemporaryDirectory() as folder:
            for name in (ASSEMBLY_CONFIG_NAME, CARD_NAME):  # so that its other languages stay listed
                try:
                    api.hf_hub_download(repo_id, name, revision=head, local_dir=folder)
                except (EntryNotFoundError, RevisionNotFoundError):
                    pass
            path = write_assembly(Path(folder), language, assembly.content_of_file(), facts)
            write_assembly_card(Path(folder), repo_id)
            names = [path.name, ASSEMBLY_CONFIG_NAME, CARD_NAME]
            message = commit_message or f"Assembly of {language}"
            return upload(api, folder, repo_id, message, names, parent=head, revision=revision, description=commit_description, create_pr=create_pr)

    def _base_for_others(self, fingerprint: str, base: Optional[str], token) -> dict:
        """`base` and `base_revision` of an assembly that is published.

        Raises:
            ValueError: if nobody else could find it, or if what lies there has another fingerprint.
        """
        stored = self.master_asr.stored
        if base is None and stored.on_hub:
            return {"base": stored.name, "base_revision": stored.revision}
        if base is None:
            raise ValueError(
                f"The base of this model is the folder {Path(stored.name).name!r}, which nobody else can find. Push it first, "
                "model.push_to_hub('owner/name'), or say where it lies: push_assembly_to_hub(..., base='owner/name'), on the command line "
                "--base owner/name."
            )
        base, revision = id_and_revision(base)
        if hub_id_of(base) is None:
            raise ValueError(f"base must be a hub id such as 'owner/name', which others can find; got {base!r}.")
        try:
            path = hf_hub_download(base, "config.json", revision=revision, token=token)
            found = json.loads(Path(path).read_text(encoding="utf-8")).get("fingerprint")
        except (OSError, HfHubHTTPError, ValueError, AttributeError) as error:
            logger.warning(f"The base {base!r} could not be looked at ({type(error).__name__}), so it is recorded as you name it.")
            return {"base": base, "base_revision": revision}
        if found != fingerprint:
            raise ValueError(
                f"The base {base!r} has the fingerprint {str(found)[:12]}, this model's is {fingerprint[:12]}: the assembly would not load "
                "there. Name the base it was made for, or push that one: model.push_to_hub('owner/name')."
            )
        return {"base": base, "base_revision": Path(path).parent.name}  # files lie under their commit in the cache

    # ------------------------------------------------------------------ the whole model

    def push_to_hub(
        self,
        repo_id: str,
        processor: Optional[MasterASRProcessor] = None,
        card: Union[str, Path, None] = None,
        private: Optional[bool] = None,
        token: Union[str, bool, None] = None,
        revision: Optional[str] = None,
        commit_message: Optional[str] = None,
        create_pr: bool = False,
        commit_description: Optional[str] = None,
        tags: Optional[list[str]] = None,
        **save_kwargs,
    ) -> CommitInfo:
        """Uploads weights, config, processor, card and every file remote loading needs, in one commit.

        Args:
            processor: None: the model's own, `MasterASRProcessor.from_model(model)`.
            card: text of README.md, or the path of a .md (the pictures that it shows go along); None keeps the repo's, or writes a short one.
            revision: a branch, made if it is not there.
            create_pr: whether to propose the commit in place of making it.
            tags: further ones of the card, beside those of `add_model_tags`.
            save_kwargs: of `save_pretrained`: `max_shard_size`, `variant`.

        Raises:
            TypeError: for a keyword that nothing reads.
            FileNotFoundError: for the path of a card that is not there.
            ValueError: if what would be uploaded holds a token or a path of this machine, or for `private` on a public repo; while an adapter
                of Transformers' own is on.
            HfHubHTTPError: if the upload fails, or somebody else pushed meanwhile; the repo is then as it was.
        """
        self._check_push(save_kwargs)
        tags = [*(tags or []), *(self.model_tags or [])]
        card = card_given(card)
        processor = processor or MasterASRProcessor.from_model(self)
        processor.check_model(self)
        self.config.warn_of_sentences(self.languages)
        api = HfApi(token=token)
        repo_id, head = open_repo(api, repo_id, private, revision)
        if card is None and not api.file_exists(repo_id, CARD_NAME, revision=head):
            card = default_card(self.config)
        elif card is None and tags:
            card = Path(api.hf_hub_download(repo_id, CARD_NAME, revision=head)).read_text(encoding="utf-8")
        before = self.master_asr.stored, self.config.fingerprint
        with TemporaryDirectory() as folder:
            try:
                written = self._write_repo(Path(folder), repo_id, processor, card, tags, **save_kwargs)
                message = commit_message or f"Master-ASR with {', '.join(self.config.languages)}"
                info = upload(api, folder, repo_id, message, parent=head, revision=revision, create_pr=create_pr, description=commit_description)
            except BaseException:
                self.master_asr.remember(before[0])
                self.config.fingerprint = before[1]
                raise
        self.config.fingerprint = written
        self.master_asr.remember(StoredBase(repo_id, info.oid, written, on_hub=True))  # assemblies saved from now on name it
        self.config.name_or_path = repo_id
        return info

    def _check_push(self, save_kwargs: dict) -> None:
        """Refuses, before anything is created, what `push_to_hub` would ignore or leave out.

        Raises:
            TypeError: for a keyword that nothing reads.
            ValueError: while an adapter of Transformers' own is on.
        """
        if unknown := sorted(set(save_kwargs) - {"max_shard_size", "variant"}):
            raise TypeError(f"push_to_hub: got {unknown}; allowed: what its docstring names, and max_shard_size and variant, which save_pretrained takes.")
        if getattr(self, "_hf_peft_config_loaded", False):
            raise ValueError(
                "Transformers' own adapter is on, and would be written alone, without this model. Write it with save_pretrained(folder) and upload the folder, or "
                "delete_adapter(name) first."
            )

    def _write_repo(
        self, folder: Path, repo_id: str, processor: MasterASRProcessor, card: Union[str, Path, None], tags: list[str], **save_kwargs
    ) -> str:  # fmt: skip
        """Writes all that `push_to_hub` uploads, and returns the fingerprint in it."""
        self.save_pretrained(folder, **save_kwargs)
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))["fingerprint"]
        processor.save_pretrained(folder)
        if isinstance(card, Path):
            beside, card = card.parent, card.read_text(encoding="utf-8")
            for name, picture in pictures_of(card, beside).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, folder / name)
        if card is not None and tags:
            card = with_tags(card, tags)
        if card is not None:
            ModelCard(card.replace("THIS_REPO", repo_id), ignore_metadata_errors=True).save(folder / CARD_NAME)
        return written
