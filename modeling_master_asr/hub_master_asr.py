"""Publishing and fetching: a model with all it needs in one commit, and single languages as small repos of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional, Union

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
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
from .base_master_asr import HUB_KWARGS, StoredBase, check_base, check_unwrapped, write_as_stored
from .cards_master_asr import CARD_NAME, OF_A_PUSH, card_given, default_card, hub_id_of, pictures_of, with_tags, write_assembly_card
from .files_master_asr import check_folder
from .processing_master_asr import MasterASRProcessor
from .upload_master_asr import open_repo, upload

logger = logging.get_logger(__name__)


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


def _warn_of_lost_figures(listed: Path, language: str, facts: dict) -> None:
    """Says which figures of a repo's language a push leaves out: it may have been trained since, and nobody here knows."""
    before = read_listed(listed).get(language, {}) if listed.is_file() else {}
    if lost := [name for name in ("cer", "minutes") if before.get(name) is not None and name not in facts]:
        logger.warning(f"The repo says {', '.join(lost)} of {language!r}, and this push does not: its card will have question marks. Pass what holds: push_assembly_to_hub(..., {lost[0]}=...).")


# ---------------------------------------------------------------------- the model's methods


class HubMixin:
    """The methods of `MasterASRForCTC` that write or read folders and hub repos."""

    loaded_languages: frozenset[str] = frozenset()  # from assemblies: the base's folder holds other alphabets of theirs, or none

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
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        loaded: set[str] = set()
        for source in [assemblies] if isinstance(assemblies, (str, Path)) else assemblies:
            for language in languages_in(source, **hub_kwargs):
                if language in loaded:
                    raise ValueError(f"{source} holds {language!r}, and so does one of the assemblies before it. Name one of the two.")
                if language in target.assemblies:
                    logger.warning(f"{source} takes the place of the model's own {language!r}. Only one of its languages: model.load_assembly({str(source)!r}, language).")
                target.load_assembly(source, language, replace=True, **hub_kwargs)
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
        self.loaded_languages |= {language}
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
            _warn_of_lost_figures(Path(folder) / ASSEMBLY_CONFIG_NAME, language, facts)
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
        card = self._card_beside(api, repo_id, head, tags) if card is None else card
        stored, fingerprint = self.master_asr.stored, self.config.fingerprint
        with TemporaryDirectory() as folder:
            try:
                written = self._write_repo(Path(folder), repo_id, processor, card, tags, **save_kwargs)
                message = commit_message or f"Master-ASR with {', '.join(self.config.languages)}"
                info = upload(api, folder, repo_id, message, parent=head, revision=revision, create_pr=create_pr, description=commit_description)
            except BaseException:
                self.master_asr.remember(stored)
                self.config.fingerprint = fingerprint
                raise
        self.config.fingerprint = written
        self.master_asr.remember(StoredBase(repo_id, info.oid, written, on_hub=True))  # assemblies saved from now on name it
        self.config.name_or_path = repo_id
        return info

    def _card_beside(self, api: HfApi, repo_id: str, head: str, tags: list[str]) -> Optional[str]:
        """The card of a push that is given none: a short one, or the repo's with our part written anew, or with further tags; None leaves it as it is."""
        if not api.file_exists(repo_id, CARD_NAME, revision=head):
            return default_card(self.config)
        try:
            before = Path(api.hf_hub_download(repo_id, CARD_NAME, revision=head)).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            logger.warning(f"{CARD_NAME} of {repo_id} is not UTF-8, so it stays as it is.")
            return None
        return default_card(self.config, before) or (before if tags else None)

    def _check_push(self, save_kwargs: dict) -> None:
        """Refuses, before anything is created, what `push_to_hub` would ignore or leave out.

        Raises:
            TypeError: for a keyword that nothing reads.
            ValueError: while an adapter of Transformers' own, or PEFT's, is on.
        """
        if unknown := sorted(set(save_kwargs) - {"max_shard_size", "variant"}):
            raise TypeError(f"push_to_hub: got {unknown}; allowed: what its docstring names, and max_shard_size and variant, which save_pretrained takes.")
        if getattr(self, "_hf_peft_config_loaded", False):
            raise ValueError(
                "Transformers' own adapter is on, and would be written alone, without this model. Write it with save_pretrained(folder) and upload the folder, or "
                "delete_adapter(name) first."
            )
        check_unwrapped(self.state_dict())

    def _write_repo(
        self, folder: Path, repo_id: str, processor: MasterASRProcessor, card: Union[str, Path, None], tags: list[str], **save_kwargs
    ) -> str:  # fmt: skip
        """Writes all that `push_to_hub` uploads, and returns the fingerprint in it."""
        self.save_pretrained(folder, **save_kwargs)
        write_as_stored(folder, self.master_asr._types)
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
