"""Publishing and fetching: a model with all it needs in one commit, and single languages as small repos of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional, Union

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from .assembly_master_asr import (
    ASSEMBLY_CARD_NAME,
    ASSEMBLY_CONFIG_NAME,
    check_base,
    languages_in,
    read_assembly,
    write_assembly,
)
from .configuration_master_asr import PIPELINE_TASK
from .processing_master_asr import MasterASRProcessor

HUB_KWARGS = ("token", "cache_dir", "local_files_only")


def default_card(config) -> str:
    """A model card that says what is known from the config alone; `training.model_card` writes the full one."""
    base = config.base_model if config.base_model and not Path(config.base_model).is_dir() else None
    data = ModelCardData(
        library_name="transformers", pipeline_tag=PIPELINE_TASK, language=[code.split("-")[0] for code in config.languages],
        base_model=base, tags=["master-asr", "ctc", "multilingual"],
    )  # fmt: skip
    listed = ", ".join(f"`{code}`" for code in config.languages)
    body = (
        f"# Master-ASR\n\nLanguages: {listed}. K = {config.num_specialists} specialists, sparsity {config.sparsity}.\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        'asr = pipeline("automatic-speech-recognition", model="THIS_REPO", trust_remote_code=True)\n'
        f'asr("clip.wav", language="{next(iter(config.languages), "xx")}")\n```\n'
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


class HubVerbs:
    """The verbs of `MasterASRForCTC` that write or read folders and hub repos."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, assemblies=(), **kwargs):
        """As in Transformers; `assemblies` names folders or hub ids whose languages are loaded on top.

        Args:
            assemblies: ids or paths; of a repo with several languages, all of them.
        """
        model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        target = model[0] if isinstance(model, tuple) else model
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        for source in assemblies:
            for language in languages_in(source, **hub_kwargs):
                target.load_assembly(source, language, **hub_kwargs)
        return model

    # ------------------------------------------------------------------ languages

    def _assembly_facts(self, language: str, facts: dict) -> dict:
        entry = self.config.assemblies[self.config.check_language(language)]
        stored = self.master_asr.stored_fingerprint()
        if stored is None:
            raise ValueError(
                "The base (W and M) was never saved, or has been trained since: an assembly saved now would fit no base. "
                "Save it first: model.save_pretrained(folder)."
            )
        base = self.config.name_or_path or self.config.base_model or ""
        return {
            "language": language, "vocab": entry["vocab"], "parts": entry["parts"], "rank": entry["rank"], "targets": entry["targets"],
            "num_specialists": self.config.num_specialists, "sparsity": self.config.sparsity,
            "base": Path(base).name if Path(base).is_dir() else base,  # a published file names no folder of this machine
            "base_revision": getattr(self.config, "_commit_hash", None), "fingerprint": stored, **facts,
        }  # fmt: skip

    def save_assembly(self, language: str, folder: Union[str, Path], **facts) -> Path:
        """Writes one language into `folder`: its tensors, `assembly_config.json` with the base it belongs to, and a card.

        Args:
            facts: anything JSON-able worth keeping beside it (training data, budgets, CER).

        Raises:
            KeyError: if it is not loaded.
            ValueError: if the base was trained since it was saved, or never saved: nobody could load the file.
        """
        facts = self._assembly_facts(language, facts)
        return write_assembly(folder, language, self.assemblies[language].complete_state_dict(), facts)

    def load_assembly(self, id_or_path: Union[str, Path], language: Optional[str] = None, **hub_kwargs) -> str:
        """Adds a language from a folder or hub repo and returns its code.

        Args:
            language: which one, where the repo holds several.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            OSError: for a repo, revision or file that is not there, or that this token may not see.
            ValueError: for another base, K or sparsity, a damaged file, or a language already there.
        """
        language, state, facts = read_assembly(id_or_path, language, **hub_kwargs)
        if language in self.config.assemblies:
            raise ValueError(f"Language {language!r} is already there. Remove it first: model.remove_language({language!r}).")
        check_base(facts, self.config, f"{id_or_path} ({language})")
        assembly = self.add_language(language, facts["vocab"], parts=facts["parts"], rank=facts["rank"], targets=facts.get("targets", "attention"))
        try:
            assembly.load_state_dict(state)
        except RuntimeError as error:
            self.remove_language(language)
            raise ValueError(f"{id_or_path} ({language}) does not fit its own assembly_config.json: {error}") from error
        return language

    def push_assembly_to_hub(
        self,
        language: str,
        repo_id: str,
        private: Optional[bool] = None,
        token: Union[str, bool, None] = None,
        commit_message: Optional[str] = None,
        **facts,
    ) -> CommitInfo:
        """Uploads one language in one commit; languages that the repo already holds stay.

        Args:
            facts: as in `save_assembly`.

        Raises:
            ValueError, KeyError: as `save_assembly`.
            HfHubHTTPError: if the upload fails, or somebody else pushed meanwhile; the repo is then as it was.
        """
        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self._assembly_facts(language, facts)  # refuse before anything is created
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            head = api.model_info(repo_id).sha
            try:  # so that its other languages stay listed
                api.hf_hub_download(repo_id, ASSEMBLY_CONFIG_NAME, revision=head, local_dir=folder)
            except (EntryNotFoundError, RevisionNotFoundError):
                pass
            path = self.save_assembly(language, folder, **facts)
            card = path.with_name(ASSEMBLY_CARD_NAME)
            card.write_text(card.read_text(encoding="utf-8").replace("THIS_REPO", repo_id), encoding="utf-8")
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message or f"Assembly of {language}",
                parent_commit=head, allow_patterns=[path.name, ASSEMBLY_CONFIG_NAME, ASSEMBLY_CARD_NAME],
            )  # fmt: skip

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
        **save_kwargs,
    ) -> CommitInfo:
        """Uploads weights, config, processor, card and every file remote loading needs, in one commit.

        Args:
            processor: None: the model's own, `MasterASRProcessor.from_model(model)`.
            card: text of README.md, or its path (the pictures beside it go along); None keeps the repo's, or writes a short one.
            save_kwargs: of `save_pretrained`, such as `max_shard_size`.

        Raises:
            HfHubHTTPError: if the upload fails; the repo is then as it was.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        processor = processor or MasterASRProcessor.from_model(self)
        processor.check_model(self)
        if card is None and not api.file_exists(repo_id, "README.md", revision=revision):
            card = default_card(self.config)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_kwargs)
            processor.save_pretrained(folder)
            if isinstance(card, Path):
                for picture in card.parent.glob("*.png"):
                    shutil.copy(picture, folder)
                card = card.read_text(encoding="utf-8")
            if card is not None:
                ModelCard(card.replace("THIS_REPO", repo_id), ignore_metadata_errors=True).save(Path(folder) / "README.md")
            info = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, create_pr=create_pr,
                commit_message=commit_message or f"Master-ASR with {', '.join(self.config.languages)}",
            )  # fmt: skip
        self.config.name_or_path = repo_id  # assemblies saved from now on name the published base
        return info
