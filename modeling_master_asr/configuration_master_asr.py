"""MasterASRConfig: the backbone, the module bank's shape and what each language owns. No torch here."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from inspect import signature
from os import PathLike
from typing import Any, Optional, Union

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .files_master_asr import copy_code, is_path

logger = logging.get_logger(__name__)

PAD_TOKEN, UNK_TOKEN, SPACE_TOKEN = "[PAD]", "[UNK]", "|"  # [PAD] is the CTC blank
SPECIAL_TOKENS = (PAD_TOKEN, UNK_TOKEN, SPACE_TOKEN)
ALL_PARTS = ("mapping", "head", "specialist", "delta", "scales", "norms")  # the modules are in assembly_master_asr.PARTS
TARGETS = ("attention", "all")  # what a delta reaches: the Artisan layers, or the feed-forward layers too
PAPER_PARTS = ("mapping", "head")
# Of an alphabet, which may be a stranger's: room for every script (Han and Hangul together), and for what a tokenizer takes seconds to learn
MAX_VOCAB, MAX_CLUSTERS, MAX_TOKEN = 32_768, 4_000, 32  # tokens; those of several characters; characters of one
MAX_TEXT = 1_000_000  # characters of a language's sentences: its n-grams are counted anew in every process that reads it
# Combinations that were measured (RESULTS.md): what a language owns beside its head, from bits to a megabyte.
PRESETS = {
    "paper": {"parts": PAPER_PARTS, "rank": 8, "targets": "attention"},
    "small": {"parts": ("mapping", "head", "delta"), "rank": 1, "targets": "all"},
    "best": {"parts": ("mapping", "head", "delta", "norms"), "rank": 16, "targets": "all"},
}
DEFAULT_PRESET = "best"  # DEVIATION: equation 5 trains a row of T and a head alone, the preset `paper`; these make half of its errors
PIPELINE_TASK = "automatic-speech-recognition"


def check_vocab(vocab: dict[str, int], language: str) -> dict[str, int]:
    """Returns `vocab` if it is `{token: id}` with ids 0..V-1 without gaps and the three special tokens.

    Raises:
        ValueError: naming the language and what is wrong.
    """
    if not isinstance(vocab, dict):
        raise ValueError(f"The vocab of '{language}' must be {{token: id}}; got {type(vocab).__name__}.")
    wrong = {token: i for token, i in vocab.items() if not isinstance(token, str) or not token or type(i) is not int}
    if wrong:
        raise ValueError(f"The vocab of '{language}' must give each token, a text, a whole number; got {dict(list(wrong.items())[:5])}.")
    clusters, longest = sum(len(token) > 1 for token in vocab), max(map(len, vocab), default=0)
    if len(vocab) > MAX_VOCAB or clusters > MAX_CLUSTERS or longest > MAX_TOKEN:
        raise ValueError(
            f"The vocab of '{language}' has {len(vocab):,} tokens, {clusters:,} of them of several characters, the longest of {longest:,}; allowed: "
            f"{MAX_VOCAB:,}, {MAX_CLUSTERS:,} and {MAX_TOKEN}. CTC writes letters or syllables: spell words with these."
        )
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise ValueError(f"The vocab of '{language}' lacks {missing}. It needs {list(SPECIAL_TOKENS)}: blank, unknown, space.")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(
            f"The ids of the vocab of '{language}' must be 0..{len(vocab) - 1}, each once; got {shortened(sorted(vocab.values()))}."
        )
    return dict(vocab)


def check_text(text: str, language: str, vocab: dict[str, int]) -> str:
    """Returns a language's `text` if it is one that a config can hold and the alphabet spells.

    Raises:
        ValueError: for what is no text, longer than `MAX_TEXT`, or has other characters than the tokens of `vocab`, the space and ends of lines.
    """
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        got = f"{len(text):,} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise ValueError(f"The sentences of {language!r} are a text of at most {MAX_TEXT:,} characters, which every copy of its config holds; got {got}.")
    foreign = set(text).difference(" \n", *(token for token in vocab if token not in SPECIAL_TOKENS))
    if foreign:
        raise ValueError(f"The sentences of {language!r} hold {shortened(sorted(foreign))}, which its alphabet lacks. Give them with model.set_text, which leaves such ones out.")
    return text


def vocab_digest(vocab: dict[str, int]) -> str:
    """SHA-256 of an alphabet, tokens in the order of their ids: kept beside what was trained with it, so that a permuted one is seen."""
    return hashlib.sha256(json.dumps(sorted(vocab, key=vocab.get), ensure_ascii=False).encode()).hexdigest()


def bank_digest(bank: list[str]) -> str:
    """`vocab_digest` of a character bank: its rows belong to its characters by their order alone."""
    return vocab_digest({token: row for row, token in enumerate(bank)})


def check_bank(bank: Optional[list[str]], assemblies: dict[str, dict], bank_sha256: Optional[str]) -> Optional[list[str]]:
    """Returns a character bank if the heads that share it find their rows in it.

    Args:
        assemblies: `{language: entry}` of the config.
        bank_sha256: of the bank as it was saved, `bank_digest`; None: nobody says, as in older files.

    Raises:
        ValueError: naming what is wrong with it, or if it is not the one that was saved.
    """
    sharing = {code: entry["vocab"] for code, entry in assemblies.items() if entry["shares_bank"]}
    if bank is None and not sharing and bank_sha256 is None:
        return None
    if not isinstance(bank, (list, tuple)):
        words = "None" if bank is None else f"a {type(bank).__name__}"
        raise ValueError(f"character_bank is {words}; a list of characters, each once, is wanted. The heads of {list(sharing)} are rows of it.")
    if others := [token for token in bank if not isinstance(token, str)]:
        raise ValueError(f"character_bank holds {shortened(others)}, which are no text.")
    if twice := [token for token, count in Counter(bank).items() if count > 1]:
        raise ValueError(f"character_bank holds {shortened(twice)} more than once.")
    known = set(bank)
    for code, vocab in sharing.items():
        if lacking := [token for token in vocab if token not in known]:
            raise ValueError(f"character_bank lacks {shortened(lacking)}, which the head of {code!r} takes from it.")
    if bank_sha256 not in (None, bank_digest(bank)):
        raise ValueError(
            "The character_bank in config.json is not the one that its rows were saved with: they would be taken for other characters'. "
            "Download or save config.json again."
        )
    return list(bank)


def shortened(items: list) -> str:
    """A list in words, without the middle of a long one."""
    return str(items) if len(items) <= 20 else f"[{', '.join(map(str, items[:10]))}, ..., {', '.join(map(str, items[-10:]))}]"


def check_reduction(name: str) -> str:
    """Refuses a `ctc_loss_reduction` that would be ignored.

    Raises:
        ValueError: for any but "mean".
    """
    if name != "mean":
        raise ValueError(f"ctc_loss_reduction is {name!r}; allowed: 'mean', over clips, of each clip's loss over its labels.")
    return name


def check_numbers(sparsity: float, num_specialists: int) -> None:
    """Refuses a t or a K that cannot be.

    Raises:
        ValueError: naming it.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the fraction of weights masked out, 0 <= sparsity < 1; got {sparsity!r}.")
    if type(num_specialists) is not int or num_specialists < 1:
        raise ValueError(f"num_specialists must be a whole number, at least 1; got {num_specialists!r}.")


def check_parts(parts) -> list[str]:
    """Returns `parts` in their fixed order.

    Raises:
        ValueError: for an unknown part, or when mapping or head is missing.
    """
    listed = list(parts) if isinstance(parts, (list, tuple, set)) else None
    if listed is None or any(part not in ALL_PARTS for part in listed) or not set(PAPER_PARTS) <= set(listed):
        raise ValueError(f"parts must hold 'mapping' and 'head' and may hold {list(ALL_PARTS[2:])}; got {listed or parts!r}.")
    return [part for part in ALL_PARTS if part in parts]


def from_preset(preset: str, parts=None, rank: Optional[int] = None, targets: Optional[str] = None) -> dict[str, Any]:
    """`{"parts", "rank", "targets"}` of a preset, where not said otherwise.

    Raises:
        ValueError: for an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {list(PRESETS)}; got {preset!r}.")
    said = {"parts": parts if parts is None or isinstance(parts, str) else list(parts), "rank": rank, "targets": targets}
    return {name: value if said[name] is None else said[name] for name, value in PRESETS[preset].items()}


def check_unquantized(quantization_config) -> None:
    """Refuses what would quantize the model as it is loaded, a keyword or an entry of a config.json.

    Raises:
        NotImplementedError: if there is any.
    """
    if quantization_config is not None:
        raise NotImplementedError(
            f"quantization_config: got a {type(quantization_config).__name__}; allowed: none. Every language masks the weights that it would quantize "
            "(some quantizers would pass them over and say nothing). Quantize one language: model.materialize(language), saved and loaded as its stock class."
        )


def without_paths(config: dict) -> dict:
    """The dict of a config, sub-configs included, in which no model is named by a folder."""
    names = {k for k in ("base_model", "_name_or_path", "name_or_path") if isinstance(config.get(k), str) and is_path(config[k])}
    return {k: without_paths(v) if isinstance(v, dict) else v for k, v in config.items() if k not in names}


class MasterASRConfig(PreTrainedConfig):
    """Configuration of a Master-ASR model.

    Args:
        backbone_config: config of the speech encoder (a dict or a Transformers config).
        num_specialists: K, Specialist Scores per Artisan layer.
        sparsity: t, the fraction of each Artisan weight that is masked OUT, 0 <= t < 1.
        artisan_targets: names of the linear layers that become Artisan; None: the family's attention projections.
        assemblies: `{language: {"vocab": {token: id}, "parts": [...], "rank": r, "targets": "attention", "shares_bank": bool, "text": sentences}}`, in the order added.
        character_bank: the characters whose head rows stage 1 shares between languages, blank first.
        character_bank_sha256: of the bank as it was saved; written on save, checked where it is there.
        default_language: the language of calls that name none, or None.
        ctc_zero_infinity: clips whose loss is infinite count as zero (and are named in a warning).
        ctc_loss_reduction: "mean", over clips, of each clip's loss over its labels; there is no other.
        fingerprint: SHA-256 of W and M as saved; what an assembly file is checked against.
        base_model: hub id or path of the pretrained backbone; a path is not written to files.
        feature_extractor: settings of the feature extractor that the encoder was trained with; a processor with others is refused. None:
            nobody says, as in older files.
        language_order: codes in the order they were added; written on save.
        inputs_to_logits_ratio: audio samples a logits frame; set by the model from its backbone.
    """

    model_type = "master_asr"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["frames"]  # by a Trainer: its predictions are logits, as of any CTC model
    has_no_defaults_at_init = True

    def __init__(
        self,
        backbone_config: Any = None,
        num_specialists: int = 4,  # CHOICE: K, which the paper varies
        sparsity: float = 0.3,
        artisan_targets: Optional[list[str]] = None,
        assemblies: Optional[dict[str, dict]] = None,
        character_bank: Optional[list[str]] = None,
        default_language: Optional[str] = None,
        ctc_zero_infinity: bool = True,
        ctc_loss_reduction: str = "mean",
        fingerprint: Optional[str] = None,
        base_model: Optional[str] = None,
        feature_extractor: Optional[dict[str, Any]] = None,
        inputs_to_logits_ratio: Optional[int] = None,
        language_order: Optional[list[str]] = None,
        character_bank_sha256: Optional[str] = None,
        **kwargs,
    ):
        if isinstance(backbone_config, dict):
            family = backbone_config.get("model_type", "")
            if family not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config has model_type {family!r}, which this version of transformers does not know.")
            backbone_config = CONFIG_MAPPING[family](**{k: v for k, v in backbone_config.items() if k != "model_type"})
        check_numbers(sparsity, num_specialists)
        check_unquantized(kwargs.get("quantization_config"))
        self.backbone_config = backbone_config
        self.num_specialists = num_specialists
        self.sparsity = sparsity
        self.artisan_targets = artisan_targets
        self.assemblies = {}
        assemblies = self._entries(assemblies or {})
        order = list(language_order or assemblies)
        if sorted(order) != sorted(assemblies):
            raise ValueError(
                f"language_order is {order}, but assemblies holds {sorted(assemblies)}: each language has one place in it. "
                "Write it whole, or leave it out."
            )
        for language in order:
            self.add_assembly(language, **assemblies[language])
        self.character_bank = check_bank(character_bank, self.assemblies, character_bank_sha256)
        self.default_language = default_language
        self.check_default()
        self.ctc_zero_infinity, self.ctc_loss_reduction = ctc_zero_infinity, check_reduction(ctc_loss_reduction)
        self.fingerprint = fingerprint
        self.base_model = base_model
        self.feature_extractor = feature_extractor
        self.inputs_to_logits_ratio = inputs_to_logits_ratio
        kwargs.setdefault("pad_token_id", 0)
        # `auto_map` and `custom_pipelines` make a folder complete for trust_remote_code; files are found by these names.
        kwargs.setdefault("auto_map", {
            "AutoConfig": "configuration_master_asr.MasterASRConfig",
            "AutoModel": "modeling_master_asr.MasterASRModel",
            "AutoModelForCTC": "modeling_master_asr.MasterASRForCTC",
            "AutoProcessor": "processing_master_asr.MasterASRProcessor",
        })  # fmt: skip
        kwargs.setdefault("custom_pipelines", {
            PIPELINE_TASK: {"impl": "pipeline_master_asr.MasterASRPipeline", "pt": ["AutoModelForCTC"]}
        })  # fmt: skip
        super().__init__(**kwargs)

    def _entries(self, assemblies: dict[str, dict]) -> dict[str, dict]:
        """Returns `{language: entry}` if `add_assembly` takes each entry.

        Raises:
            ValueError: naming the language and what its entry is, lacks or holds.
        """
        if not isinstance(assemblies, dict):
            raise ValueError(f'assemblies is a {type(assemblies).__name__}; {{language: {{"vocab": {{token: id}}, "parts": [...], ...}}}} is wanted.')
        known = set(signature(self.add_assembly).parameters) - {"language"}
        for language, entry in assemblies.items():
            if not isinstance(entry, dict):
                raise ValueError(f"The entry of {language!r} in assemblies is a {type(entry).__name__}; a dict with 'vocab' is wanted.")
            if "vocab" not in entry:
                raise ValueError(f"The entry of {language!r} in assemblies lacks ['vocab']. Download or save config.json again.")
            if unknown := sorted(set(entry) - known):
                raise ValueError(
                    f"The entry of {language!r} in assemblies holds {unknown}, which this version does not know; it takes {sorted(known)}. "
                    "Update it: git pull, in its clone."
                )
        return assemblies

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in Transformers, but `assemblies=[...]` is for the model's `from_pretrained` and never replaces the registry."""
        sources = kwargs.pop("assemblies", None)
        returned = super().from_dict(config_dict, **kwargs)
        config = returned[0] if isinstance(returned, tuple) else returned
        check_numbers(config.sparsity, config.num_specialists)  # again: keywords of from_pretrained are set after __init__
        check_reduction(config.ctc_loss_reduction)
        config.check_default()
        if sources is None or not isinstance(returned, tuple):
            return returned
        return config, {**returned[1], "assemblies": sources}

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers, plus the languages' order (JSON files are written with sorted keys) and a digest of each alphabet and
        of the character bank, without paths of this machine.
        """
        assemblies = {code: {**entry, "vocab_sha256": vocab_digest(entry["vocab"])} for code, entry in list(self.assemblies.items())}  # a list: others may come and go meanwhile
        of_bank = {"character_bank_sha256": bank_digest(self.character_bank)} if self.character_bank else {}
        return without_paths({**super().to_dict(), "assemblies": assemblies, "language_order": self.languages, **of_bank})

    @property
    def languages(self) -> list[str]:
        """Language codes, in the order they were added."""
        return list(self.assemblies)

    @property
    def hidden_size(self) -> int:
        """The encoder's own, which DeepSpeed asks for."""
        return self.backbone_config.hidden_size

    def vocab(self, language: str) -> dict[str, int]:
        """The alphabet of `language`, `{token: id}`.

        Raises:
            KeyError: if it is not loaded; lists those that are.
        """
        return self.assemblies[self.check_language(language)]["vocab"]

    def check_default(self) -> None:
        """Refuses a language of calls that name none which is not loaded: a folder that holds such a config would never load.

        Raises:
            ValueError: naming those that are.
        """
        if self.default_language is not None and self.default_language not in self.assemblies:
            raise ValueError(f"default_language is {self.default_language!r}; one of {self.languages} is wanted, or None.")

    def check_language(self, language: str) -> str:
        """Returns `language` if it is loaded.

        Raises:
            KeyError: naming the loaded languages and how to get another.
        """
        if language not in self.assemblies:
            raise KeyError(
                f"No assembly for language {language!r}. Loaded: {self.languages}. "
                "Add it with model.load_assembly(...) or train it with training/adapt_language.py."
            )
        return language

    def text(self, language: str) -> str:
        """A language's sentences, a line each; "" where it has none.

        Raises:
            KeyError: if it is not loaded.
        """
        return self.assemblies[self.check_language(language)].get("text", "")

    def set_text(self, language: str, text: str) -> None:
        """Gives a loaded language sentences in the place of those it had; "": none.

        Raises:
            KeyError: if it is not loaded.
            ValueError: for what is no text, or too long.
        """
        entry = self.assemblies[self.check_language(language)]
        entry["text"] = check_text(text, language, entry["vocab"])
        if not text:
            del entry["text"]

    def warn_of_sentences(self, languages: Iterable[str]) -> None:
        """Says, before anything is published, that transcripts are among it: nobody looks for them in a model."""
        counts = {code: len(text.splitlines()) for code in languages if (text := self.text(code))}
        if counts:
            logger.warning(f"This publishes the sentences that its languages are read with, so many of each: {counts}. model.set_text(code, []) takes them away.")

    def save_pretrained(self, save_directory: Union[str, PathLike], *args, **kwargs):
        """As in Transformers, plus the code files that its `auto_map` names; never into the place that a link leads to."""
        copy_code(save_directory, links_only=True)
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        copy_code(save_directory)
        return saved

    def _upload_modified_files(self, *args, **kwargs):
        self.warn_of_sentences(self.languages)
        return super()._upload_modified_files(*args, **kwargs)

    def add_assembly(
        self, language: str, vocab: dict[str, int], parts=PAPER_PARTS, rank: int = 8, shares_bank: bool = False, targets: str = "attention",
        text: str = "", vocab_sha256: Optional[str] = None,
    ):  # fmt: skip
        """Registers what a language owns.

        Args:
            shares_bank: whether its head is rows of the character bank, in the place of a head of its own.
            text: its sentences, a line each, as its alphabet spells them; their n-grams weigh in where it is read.
            vocab_sha256: of the alphabet as it was saved, `vocab_digest`; None: nobody says, as in older files.

        Raises:
            ValueError: for a language that is already there, a vocab with gaps or other than it was saved, unknown parts or targets, a rank that is no number above 0, a text that is none or too long.
        """
        if targets not in TARGETS:
            raise ValueError(f"targets must be one of {list(TARGETS)}; got {targets!r}.")
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank is a whole number, at least 1; got {rank!r}.")
        if not isinstance(shares_bank, bool):
            raise ValueError(f"shares_bank of {language!r} is true or false; got {shares_bank!r}.")
        if not language or not isinstance(language, str) or not language.isprintable():
            raise ValueError(f"A language is a non-empty code of printable signs such as 'sr' or 'pa-IN'; got {language!r}.")
        if language in self.assemblies:
            raise ValueError(f"Language {language!r} is already there. Remove it first: model.remove_language({language!r}).")
        vocab = check_vocab(vocab, language)
        if vocab_sha256 is not None and vocab_sha256 != vocab_digest(vocab):
            raise ValueError(
                f"The alphabet of {language!r} is not the one that its head was saved with: its letters would come out as others. Download "
                "or save config.json again."
            )
        self.assemblies[language] = {
            "vocab": vocab, "parts": check_parts(parts), "rank": rank, "targets": targets,
            "shares_bank": shares_bank, **({"text": check_text(text, language, vocab)} if text else {}),
        }  # fmt: skip

    def entry_of(self, facts: dict) -> dict[str, Any]:
        """What `add_assembly` takes of the facts of an assembly file."""
        names = set(signature(self.add_assembly).parameters) - {"language", "shares_bank"}
        return {name: facts[name] for name in names if name in facts}

    def with_assembly(self, language: str, entry: dict, source: str = "", replace: bool = False) -> MasterASRConfig:
        """A copy in which a language is registered, perhaps in the place of the one that is there: what can be refused is, before anything changes.

        Args:
            entry: arguments of `add_assembly`.
            source: where they come from, for the message.
            replace: whether the language, if it is there already, makes place; else it is refused.

        Raises:
            ValueError: as `add_assembly`.
        """
        config = copy.copy(self)
        config.assemblies = {code: of for code, of in self.assemblies.items() if not (replace and code == language)}
        try:
            config.add_assembly(language, **entry)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {error}" if source else str(error)) from error
        return config
