"""The settings of a run: one frozen dataclass a stage, of which its command line, its checks and its record are made."""

from __future__ import annotations

import argparse
import math
import operator
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, get_args, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from modeling_master_asr.audio_master_asr import DOWNLOAD_TIMEOUT_S
from modeling_master_asr.configuration_master_asr import ALL_PARTS, DEFAULT_PRESET, PAPER_PARTS, from_preset
from training.loop.recordings import MAX_DOWNLOAD_GB


@dataclass(frozen=True)
class Range:
    """What a number has to be; finite in any case."""

    above: Optional[float] = None
    at_least: Optional[float] = None
    below: Optional[float] = None

    def allows(self, value: float) -> bool:
        rules = ((self.above, operator.gt), (self.at_least, operator.ge), (self.below, operator.lt))
        return math.isfinite(value) and all(holds(value, limit) for limit, holds in rules if limit is not None)

    def __str__(self) -> str:
        rules = {"above": self.above, "at least": self.at_least, "below": self.below}
        return " and ".join(f"{words} {limit:g}" for words, limit in rules.items() if limit is not None)


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, below=1)]
Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]  # 0 stands for "not at all"

EVALUATE_EVERY = "steps between evaluations, and between checkpoints"

# What may differ between a run and its `--resume`, and why. Everything else has to be as it was.
MAY_LACK = ("model_languages", "starting_base")  # checkpoints from before these were kept, and sharded models, which are hashed by nobody
MAY_CHANGE = {
    "out": "the folder may have been moved",
    "data": "so may the recordings: the clips themselves are compared",
    "resume": "it is what differs",
    "max_minutes": "when to stop is no part of the result",
    "log_with": "nor is who is told",
    "allow_outside": "the clips themselves are compared",
    "max_download_gb": "so they are here",
    "download_timeout_s": "and here",
    "features_cache": "nor where features are kept",
    "gradient_checkpointing": "it changes memory, not gradients",
    "shard": "a checkpoint is whole, however the weights were divided",
    "gradient_accumulation": "processes x accumulation are compared",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that are what their types and ranges say.

    Raises:
        ValueError: for the first that is not, by its name on the command line.
    """

    def __post_init__(self):
        types = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            check_value(field.name, getattr(self, field.name), types[field.name], field.metadata.get("choices"))


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Settings):
    """The settings of the data and the loop, alike in both stages."""

    out: Path = HfArg(help="folder of this run alone: checkpoints, logs and what was trained")
    data: list[str] = HfArg(help="manifests, Common Voice folders, audiofolders, parquet files, hub:owner/name; "
                            "with a language in front where they name none: sr=PATH (training/loop/sources.py)")  # fmt: skip
    steps: Count
    evaluate_every: Count = HfArg(help=EVALUATE_EVERY)
    min_s: NotNegative = HfArg(default=0.2, help="shorter clips are skipped")
    max_s: Positive = HfArg(default=30.0, help="longer clips are skipped")
    allow_outside: bool = HfArg(default=False, help="manifests may name recordings that do not lie below their folder")
    max_download_gb: Positive = HfArg(default=MAX_DOWNLOAD_GB, help="of recordings, from one data set of the Hub")
    download_timeout_s: Positive = HfArg(default=DOWNLOAD_TIMEOUT_S, help="in which each row or file of a data set of the Hub has to arrive")
    held_out_minutes: Positive = HfArg(default=60.0, help="of validation and of test audio a language, at most; the paper validates on an hour")
    temperature: Positive = HfArg(default=1.0, help="of sampling languages; above 1, small ones are heard more often")
    features_cache: Optional[Path] = HfArg(default=None, help="folder of computed features; else they are kept in memory")
    batch_s: Positive = HfArg(default=24.0, help="seconds of audio a batch of one process, padding included")
    gradient_accumulation: Count = HfArg(default=1, help="batches a process and step")
    beta2: Share = HfArg(default=0.999, help="Adam's, for the squares of the gradients")
    spec_masks: Count = HfArg(default=1, help="bands of mels, and times in every 2 s, that SpecAugment masks in log-mel features")
    vtlp: Share = HfArg(default=0.0, help="share of the augmented clips whose formants are moved, as by another throat; of log-mel features")
    mixed_precision: Optional[Literal["no", "bf16"]] = HfArg(default=None, help="else what accelerate launch says, or no")
    gradient_checkpointing: bool = HfArg(default=False, help="recompute activations: less memory, slower")
    shard: bool = HfArg(default=False, help="divide weights and optimizer among the processes (FSDP2): for big backbones")
    patience: CountOrZero = HfArg(default=0, help="stop after so many evaluations without a better macro CER, and return to "
                                  "the best; 0: never")  # fmt: skip
    max_minutes: Optional[Positive] = HfArg(default=None, help="save and stop cleanly after so long")
    log_with: str = HfArg(default="tensorboard", help="any of Accelerate's trackers")
    seed: CountOrZero = HfArg(default=0, help="of the weights that start at random, the choice of clips and their order")
    resume: Optional[str] = HfArg(default=None, help="go on from the newest checkpoint in --out, or from a named one",
                                  metadata={"nargs": "?", "const": "newest"})  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.min_s > self.max_s:
            raise ValueError(f"--min_s: got {self.min_s}; allowed: at most --max_s, which is {self.max_s}.")


# Of T and the head in stage 2, of parts in both, but for its delta and norms (training.adapt_language): chosen for es on validation; what was tried is in RESULTS.md.
LEARNING_RATES = {"T": 1e-3, "head": 5e-3, "specialist": 3e-3, "delta": 1e-3, "scales": 2e-3, "norms": 2e-3}
OWN_PARTS = [part for part in LEARNING_RATES if part not in ("T", "head")]


@dataclass(frozen=True, kw_only=True)
class PartsConfig(LoopConfig):
    """The settings of what languages own beside their heads, alike in both stages."""

    preset: Literal["paper", "small", "best"] = HfArg(default=DEFAULT_PRESET, help="what a language owns")
    parts: Optional[list[str]] = HfArg(default=None, help="instead of the preset's", metadata={"choices": ALL_PARTS})
    rank: Optional[Count] = HfArg(default=None, help="of specialist and delta, instead of the preset's")
    targets: Optional[Literal["attention", "all"]] = HfArg(default=None, help="what a delta reaches, instead of the preset's")
    text: Literal["transcripts", "none"] = HfArg(
        default="transcripts", help="sentences that a language keeps, so that it is read with them in mind: those that it trained on, or none"
    )
    specialist_learning_rate: Positive = HfArg(default=LEARNING_RATES["specialist"], help="of the part, if there is one")
    delta_learning_rate: Positive = HfArg(default=LEARNING_RATES["delta"], help="of the part, if there is one")
    scales_learning_rate: Positive = HfArg(default=LEARNING_RATES["scales"], help="of the part, if there is one")
    norms_learning_rate: Positive = HfArg(default=LEARNING_RATES["norms"], help="of the part, if there is one")

    def __post_init__(self):
        super().__post_init__()
        if self.parts is not None and not set(PAPER_PARTS) <= set(self.parts):
            raise ValueError(f"--parts: got {self.parts}; allowed: {list(PAPER_PARTS)} and any of {[p for p in ALL_PARTS if p not in PAPER_PARTS]}.")
        parts = from_preset(**self.owned())["parts"]
        for name, of in (("rank", ("specialist", "delta")), ("targets", ("delta",))):
            if getattr(self, name) is not None and not set(of) & set(parts):
                raise ValueError(f"--{name}: got {getattr(self, name)!r}; allowed: none beside the parts {list(parts)}, since it is of {' and '.join(of)}.")

    def rates_of_parts(self) -> dict[str, float]:
        """`{part: learning rate}` of the parts beside mapping and head."""
        return {part: getattr(self, f"{part}_learning_rate") for part in OWN_PARTS}

    def owned(self) -> dict[str, Any]:
        """What a language owns, as `add_language` and `from_backbone` take it."""
        return {name: getattr(self, name) for name in ("preset", "parts", "rank", "targets")}


def check_value(name: str, value: Any, kind: Any, choices=None) -> None:
    """Checks one setting.

    Raises:
        ValueError: with its name on the command line, what was received and what is allowed.
    """
    if type(None) in get_args(kind):
        if value is None:
            return
        kind = next(k for k in get_args(kind) if k is not type(None))
    ranges = [extra for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, Range)]
    kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind

    def refuse(allowed: str):
        raise ValueError(f"--{name}: got {value!r}; allowed: {allowed}.")

    if kind in (int, float):
        noun = "a whole number" if kind is int else "a number"
        accepted = int if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted) or not all(limits.allows(value) for limits in ranges):
            refuse(" ".join([noun, *map(str, ranges)]))
    elif getattr(kind, "__origin__", None) is list:
        if not isinstance(value, list) or not value or len(set(value)) < len(value):
            refuse("one or more, none of them twice")
        if choices and not set(value) <= set(choices):
            refuse(f"some of {list(choices)}")
    elif getattr(kind, "__origin__", None) is Literal:
        if value not in get_args(kind):
            refuse(f"one of {list(get_args(kind))}")
    elif not isinstance(value, kind) or value == "":
        refuse(f"a {kind.__name__}")


def positive(text: str) -> float:
    """`Positive` as the `type=` of a command line that has no config.

    Raises:
        ArgumentTypeError: for anything else.
    """
    try:
        if Range(above=0).allows(float(text)):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number above 0.")


Config = TypeVar("Config", bound=Settings)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every default; a switch that turns another off does not repeat its words."""

    def _get_help_string(self, action):
        return f"turns --{action.dest} off" if f"--no_{action.dest}" in action.option_strings else super()._get_help_string(action)


def speak_any_script() -> None:
    """Whatever encoding a redirected console has, letters of other scripts are written, and what cannot be (file names that are not UTF-8) is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has none
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def parse(kind: type[Config], description: str, argv: Optional[list[str]] = None) -> Config:
    """A command line as the config it stands for; one that is refused ends with the reason."""
    speak_any_script()
    parser = HfArgumentParser(kind, description=description, formatter_class=_Help)
    settings = vars(parser.parse_args(argv))
    try:
        return kind(**settings)
    except ValueError as error:
        parser.error(str(error))


def as_record(config: Settings) -> dict[str, Any]:
    """The whole config, JSON-able: what stands beside a result and in every checkpoint."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of a run's facts, its config among them, differs and may not, in words."""
    flat = [{**facts, **facts.get("config", {})} for facts in (before, now)]
    names = [name for name in {**flat[0], **flat[1]} if name != "config" and name not in MAY_CHANGE and (name not in MAY_LACK or all(name in facts for facts in flat))]
    pairs = {name: tuple(facts.get(name, "not there") for facts in flat) for name in names}
    return [f"{name}: {then!r} then, {value!r} now" for name, (then, value) in pairs.items() if then != value]
