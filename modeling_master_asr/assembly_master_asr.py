"""A language is one module, LanguageAssembly with its table of parts, and one file. Never imports modeling, asks no hub."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional
from urllib.parse import quote, unquote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import initialization as init

from .configuration_master_asr import PAPER_PARTS, MasterASRConfig, vocab_digest
from .files_master_asr import replace_files, text_writer
from .packing_master_asr import misfits, packed, rounded, shapes_in_file, unpacked

ASSEMBLY_CONFIG_NAME = "assembly_config.json"
FORMAT_VERSION = "2.0"  # of assembly_config.json: a reader refuses a later major, and ignores what it does not know
FACTS = ("vocab", "parts", "rank", "num_specialists", "sparsity", "base", "fingerprint")  # what every assembly says of itself
MAPPING_STD = 0.01  # CHOICE: rows of T start undecided, close to the gates' threshold, half of the gates open


# A forward reads every parameter here by calling the module that holds it: tools that keep parameters elsewhere (accelerate's
# offload) bring them for a call and take them away after it.


class CharacterBank(nn.Module):
    """The rows that heads share, `weight` `[characters, hidden]` and `bias`. No `nn.Linear`, which PEFT could adapt."""

    def __init__(self, hidden: int, characters: int):
        super().__init__()
        # What languages own stays float32 when the model is made in half precision: T moves by less than bfloat16 can say.
        linear = nn.Linear(hidden, characters, dtype=torch.float32)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `[V, hidden]` and bias `[V]` of a head that owns these `rows`."""
        return self.weight[rows], self.bias[rows]


class BankHead(nn.Module):
    """A CTC head made of its alphabet's rows of the shared character bank, where its values lie: what is written to its `weight` and `bias`,
    which are gathered anew for each who asks, is lost.
    """

    def __init__(self, model: nn.Module, rows: list[int]):
        super().__init__()
        # The bank is the model's, not the language's: in a tuple, so not a submodule, and looked up, because PEFT may replace it.
        self._model = (model,)
        self._row_ids = list(rows)
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.long))
        self._at_hand = (torch.tensor(rows, dtype=torch.long),)  # no buffer, which averages of models would average

    def __deepcopy__(self, memo: dict) -> BankHead:
        """A copied model's heads read its bank; a language that is copied alone reads the bank that it read, which is not copied."""
        copied, (model,) = type(self).__new__(type(self)), self._model
        memo[id(self)], is_alone = copied, id(model) not in memo
        if is_alone:
            memo[id(model)] = model
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if is_alone:
            del memo[id(model)]
        return copied

    def _of_bank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias, of the one call that a forward makes: an adapter that PEFT puts around the bank answers it, and what is written is what is read."""
        if self._at_hand[0].device != self.rows.device:
            with torch.inference_mode(False):  # a tensor of that mode could take no part in a training
                self._at_hand = (torch.tensor(self._row_ids, device=self.rows.device),)
        return self._model[0].character_bank(self._at_hand[0])

    @property
    def weight(self) -> torch.Tensor:
        return self._of_bank()[0]

    @property
    def bias(self) -> torch.Tensor:
        return self._of_bank()[1]

    def reset_rows(self) -> None:
        init.copy_(self.rows, torch.tensor(self._row_ids, device=self.rows.device))

    def stands_as_built(self) -> bool:
        """Whether its rows, which a file may have brought, are still those of its alphabet."""
        return self.rows.tolist() == self._row_ids

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        rows = state_dict.get(f"{prefix}rows")
        if rows is not None and not rows.is_meta and rows.cpu().double().round().tolist() != self._row_ids:  # means of models are nearly whole
            error_msgs.append(
                f"{prefix}rows are other rows of the character bank than this model's character_bank and alphabet give: its letters would be taken "
                "for other characters'. Build the model from the config that was saved with these values; a mean of models is of values alone, not of rows, which are places."
            )
            return
        if rows is not None and rows.is_floating_point():
            state_dict[f"{prefix}rows"] = rows.round().long()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        if not self.rows.is_meta and not self.stands_as_built():  # averaged in place
            self.rows.copy_(torch.tensor(self._row_ids))
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden)` -> `(B, T, V)`."""
        return nn.functional.linear(hidden_states, *self._of_bank())


class Matrices(nn.ParameterList):
    """An `nn.ParameterList` that can be called: all its matrices.

    Args:
        shapes: theirs.
        std: of their first values; 0: zeros.
    """

    __call__ = nn.Module.__call__

    def __init__(self, shapes: list[tuple[int, int]], std: float):
        super().__init__([torch.zeros(shape) for shape in shapes])
        self.std = std

    def forward(self) -> list[torch.Tensor]:
        return list(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for matrix in self:
            init.normal_(matrix, std=self.std) if self.std else init.zeros_(matrix)


class LowRank(nn.Module):
    """One product `up_i down_i` of rank r for each layer that the part reaches.

    up starts at 0 and down at random: the product is zero, so a fresh part changes no logit, and both halves can learn.
    """

    def __init__(self, shapes: list[tuple[int, int]], rank: int, down_std: float):
        super().__init__()
        smallest = min(min(shape) for shape in shapes)
        if rank > smallest:  # said before any memory is taken
            raise ValueError(f"rank is {rank}; the smallest matrix it is for has {smallest} rows or columns, so it is 1 to {smallest}.")
        # first values are theirs to give: Transformers passes over modules without parameters of their own
        self.up = Matrices([(rows, rank) for rows, _ in shapes], std=0.0)
        self.down = Matrices([(rank, columns) for _, columns in shapes], std=down_std)

    def forward(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`(up, down)` of every layer."""
        return list(zip(self.up(), self.down()))

    @torch.no_grad()
    def start_from(self, other: LowRank) -> None:
        """Takes another's products, of the same layers: exactly with as much rank or more, else the nearest of this rank.

        Where the other's have less rank than that, the directions left over start as of a fresh part, and can learn.
        """
        for (up, down), (other_up, other_down) in zip(self(), other()):
            rank, fresh = min(up.shape[1], other_up.shape[1]), down.clone()
            if rank < other_up.shape[1]:
                other_up, other_down = _truncated(other_up, other_down, rank)
            up[:, :rank], down[:rank] = other_up, other_down
            dead = ~(up[:, :rank].any(0) | down[:rank].any(1))
            down[:rank][dead] = fresh[:rank][dead]


def _truncated(up: torch.Tensor, down: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the product of rank `rank` that is nearest to `up down` (Eckart-Young), each with half of its scale."""
    left, of_up = torch.linalg.qr(up)
    right, of_down = torch.linalg.qr(down.T)
    u, scale, v = torch.linalg.svd(of_up @ of_down.T)  # (R, R): up down = left (of_up of_down') right'
    scale[scale < scale[0] * len(scale) * torch.finfo(scale.dtype).eps] = 0  # what rounding left of nothing
    half = scale[:rank].sqrt()
    return left @ u[:, :rank] * half, half[:, None] * (v[:rank] @ right.T)


class Vectors(nn.Module):
    """Vectors of several sizes in one parameter `values`, zero at the start, so that a fresh part changes no logit."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(sum(sizes)))
        self._ends = list(itertools.accumulate(sizes, initial=0))

    def forward(self) -> list[torch.Tensor]:
        """The vectors."""
        return [self.values[start:end] for start, end in itertools.pairwise(self._ends)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.values)


class Norms(Vectors):
    """What a language adds to the layer norms' weights and biases, and to the biases of the assembled linear layers."""

    def __init__(self, layout):
        pairs = [size for norm in layout.norms for size in (*norm.normalized_shape, *norm.normalized_shape)]
        super().__init__(pairs + [layer.out_features if layer._parameters["bias"] is not None else 0 for layer in layout.linear])
        self._num_norms = len(layout.norms)

    def forward(self) -> dict[tuple[bool, int, str], torch.Tensor]:
        """`{(whether of a norm, its place in the layout's norms or linear, "weight" or "bias"): what is added}`."""
        vectors, ends = super().forward(), 2 * self._num_norms
        of_norms = {(True, i // 2, ("weight", "bias")[i % 2]): vector for i, vector in enumerate(vectors[:ends])}
        return of_norms | {(False, i, "bias"): vector for i, vector in enumerate(vectors[ends:])}


def shapes_of(layout, targets: str) -> list[tuple[int, int]]:
    """`(out, in)` of the layers that low-rank parts reach."""
    return [(layer.out_features, layer.in_features) for layer in (layout.artisan if targets == "attention" else layout.linear)]


# A part of an assembly: how its module (or parameter) is made from the backbone's layout and the assembly's entry in the
# config. A new kind of part is a line here and its use in `weights_master_asr`.
PARTS = {
    "mapping": lambda layout, entry, config: nn.Parameter(torch.zeros(len(layout.artisan), config.num_specialists)),
    "specialist": lambda layout, entry, config: LowRank(shapes_of(layout, "attention"), entry["rank"], down_std=0.3),
    "delta": lambda layout, entry, config: LowRank(shapes_of(layout, entry["targets"]), entry["rank"], down_std=0.02),
    "scales": lambda layout, entry, config: Vectors([layer.out_features for layer in layout.linear]),
    "norms": lambda layout, entry, config: Norms(layout),
}


@dataclass(frozen=True)
class OwnTensors:
    """What a language owns of the encoder, as a forward reads it; None for parts that it has not.

    Attributes:
        mapping: `[num_artisan_layers, K]`.
        specialist, delta: `(up, down)` of each layer that the part reaches.
        scales: a vector for each linear layer.
        norms: see `Norms.forward`.
        targets: which layers `delta` reaches.
    """

    mapping: torch.Tensor
    specialist: Optional[list[tuple[torch.Tensor, torch.Tensor]]]
    delta: Optional[list[tuple[torch.Tensor, torch.Tensor]]]
    scales: Optional[list[torch.Tensor]]
    norms: Optional[dict[tuple[bool, int, str], torch.Tensor]]
    targets: str

    def tensors(self) -> list[torch.Tensor]:
        """All of them."""
        pairs = [*(self.specialist or ()), *(self.delta or ())]
        return [self.mapping, *(half for pair in pairs for half in pair), *(self.scales or ()), *(self.norms or {}).values()]

    def own_specialist(self, row: int) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """`(u, v)` of the language's own scores u v for the Artisan layer of mapping row `row`, or None."""
        return None if self.specialist is None else self.specialist[row]

    def delta_of(self, place: int, row: Optional[int]) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """`(up, down)` of the language's own weight change, or None.

        Args:
            place, row: the layer's in the layout's `linear` and `artisan` (None where it is not Artisan).
        """
        index = row if self.targets == "attention" else place
        return None if self.delta is None or index is None else self.delta[index]


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has put an adapter around a layer of it."""
    return any(hasattr(part, "base_layer") for part in module.modules())


class LanguageAssembly(nn.Module):
    """All that a language owns; what its file holds: `content_of_file`.

    Attributes:
        mapping: its row of every T, `[num_artisan_layers, K]`; row i is the i-th `ArtisanLinear` of `model.modules()`.
        head: the CTC head, `(B, T, hidden)` -> `(B, T, V)`: an `nn.Linear`, or rows of the shared bank.
        specialist, delta, scales, norms: optional parts, see `PARTS`.
    """

    def __init__(self, config: MasterASRConfig, language: str, layout, hidden: int, model):
        super().__init__()
        entry = config.assemblies[language]
        self._language, self._vocab_sha256 = language, vocab_digest(entry["vocab"])
        self.parts, self.targets = tuple(entry["parts"]), entry["targets"]
        for part in self.parts:
            if part in PARTS:
                setattr(self, part, PARTS[part](layout, entry, config))
        if entry["shares_bank"]:
            row_of = {token: row for row, token in enumerate(config.character_bank)}
            tokens = sorted(entry["vocab"], key=entry["vocab"].get)
            self.head = BankHead(model, [row_of[token] for token in tokens])
        else:
            self.head = nn.Linear(hidden, len(entry["vocab"]))

    def is_of(self, entry: dict) -> bool:
        """Whether it was made for an entry of the config: the same alphabet and parts."""
        return self._vocab_sha256 == vocab_digest(entry["vocab"]) and self.parts == tuple(entry["parts"])

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # no key of its own: what a language owns stays what its parts hold
            destination._metadata[prefix[:-1]]["vocab_sha256"] = self._vocab_sha256

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        is_of_another = local_metadata.get("vocab_sha256", self._vocab_sha256) != self._vocab_sha256  # of the same size, so that the shapes fit
        if is_of_another and not isinstance(self.head, BankHead):  # which looks at its rows
            error_msgs.append(
                f"{prefix[:-1]}: the values are of another alphabet of {self._language!r} than this model's: its letters would come out as others. Give the language "
                "the alphabet that they were trained with, or start without these values."
            )
            state_dict.update(self.state_dict(prefix=prefix))  # PyTorch hands them on, and raises at the end: what is there stays
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def forward(self) -> OwnTensors:
        """What the language owns of the encoder."""
        owned = {part: getattr(self, part)() if part in self.parts else None for part in ("specialist", "delta", "scales", "norms")}
        return OwnTensors(mapping=self.mapping, targets=self.targets, **owned)

    @torch.no_grad()
    def start_from(self, other: LanguageAssembly) -> None:
        """The mapping, and the parts that both own of the same layers, start from the other's; the rest changes nothing yet."""
        self.mapping.copy_(other.mapping)
        for part in (part for part in self.parts if part in other.parts and part not in PAPER_PARTS):
            mine, theirs = getattr(self, part), getattr(other, part)
            if not isinstance(mine, LowRank):
                mine.values.copy_(theirs.values)
            elif part != "delta" or self.targets == other.targets:
                mine.start_from(theirs)

    @torch.no_grad()
    def reset_mapping(self) -> None:
        """A first row of T; the other parts have first values of their own."""
        init.normal_(self.mapping, std=MAPPING_STD)

    def content_of_file(self) -> dict[str, torch.Tensor]:
        """What a file of this language alone holds: its state dict with the head's rows gathered, each tensor in the smallest type
        that loses nothing.

        Raises:
            ValueError: while a PEFT adapter is on a part of it.
        """
        if is_adapted(self):
            raise ValueError("A PEFT adapter is on this language's head, and its file has no place for it. Take it off first: peft_model.unload().")
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("head.")}
        state |= {"head.weight": self.head.weight.detach(), "head.bias": self.head.bias.detach()}
        return packed({name: value.detach().cpu().contiguous() for name, value in state.items()})

    @torch.no_grad()
    def round_values(self) -> None:
        """Rounds all that the language owns to values that its file holds in few bits."""
        for name, parameter in self.named_parameters():
            parameter.copy_(rounded(name, parameter))


class Assemblies(nn.ModuleDict):
    """`{language: LanguageAssembly}` under any legal code: `to`, `pop` and dots, which ModuleDict refuses, are escaped."""

    @staticmethod
    @torch.compiler.assume_constant_result  # the tracer cannot follow `quote`
    def _key(language: str) -> str:
        return "lang_" + quote(language, safe="").replace(".", "%2E")

    def __getitem__(self, language: str) -> LanguageAssembly:
        if language not in self:
            raise KeyError(f"No assembly for language {language!r}. Loaded: {list(self)}.")
        return super().__getitem__(self._key(language))

    def with_values(self, language: str) -> LanguageAssembly:
        """The assembly, to be saved or baked in: one of PEFT's may have been made for a file whose values never came."""
        return self[language]

    def __setitem__(self, language: str, assembly: nn.Module) -> None:
        super().__setitem__(self._key(language), assembly)

    def __delitem__(self, language: str) -> None:
        super().__delitem__(self._key(language))

    def __contains__(self, language: object) -> bool:
        return isinstance(language, str) and super().__contains__(self._key(language))

    def __iter__(self) -> Iterator[str]:
        return iter([unquote(key.removeprefix("lang_")) for key in list(self._modules)])  # of now: other threads may change languages meanwhile

    def keys(self):
        return list(self)

    def items(self):
        return [(unquote(key.removeprefix("lang_")), assembly) for key, assembly in list(self._modules.items())]


def file_name(language: str) -> str:
    """The name of a language's file, whatever signs its code has."""
    return f"assembly.{quote(language, safe='')}.safetensors"


def read_listed(path: Path) -> dict[str, dict]:
    """`{language: facts}` of an `assembly_config.json`; fields that this version does not know stay as they are.

    Raises:
        ValueError: if it is no such file, lacks facts, or was written by a later version of the format.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        listed, version = whole["assemblies"], str(whole.get("format_version", "1.0"))
        major = int(version.split(".")[0])
        lacking = {code: missing for code, facts in listed.items() if (missing := [name for name in FACTS if name not in facts])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole {ASSEMBLY_CONFIG_NAME} ({error!r}). Download or save it again.") from error
    if major > int(FORMAT_VERSION.split(".")[0]):
        raise ValueError(
            f"{path} has format version {version}; this release of modeling-master-asr reads up to {FORMAT_VERSION}. Update it: "
            "git pull, in its clone."
        )
    if lacking or not listed:
        raise ValueError(f"{path} lacks {lacking or 'any language'}. Save the assembly again with model.save_assembly(...).")
    return listed


def write_assembly(folder: str | Path, language: str, state: dict[str, torch.Tensor], facts: dict) -> Path:
    """Writes `assembly.{lang}.safetensors` and its entry in `assembly_config.json`, both beside and then renamed.

    Raises:
        ValueError: if the folder holds other languages of another base.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, config_path = folder / file_name(language), folder / ASSEMBLY_CONFIG_NAME
    listed = read_listed(config_path) if config_path.exists() else {}
    foreign = {code: other["base"] for code, other in listed.items() if code != language and other["fingerprint"] != facts["fingerprint"]}
    if foreign:
        raise ValueError(
            f"{folder} holds languages of another base, {foreign}; {language!r} was made for {facts['base']!r} (fingerprint "
            f"{facts['fingerprint'][:12]}). One folder or repo serves one base: name another."
        )
    listed[language] = {**facts, **sizes(state, facts.get("text", ""))}
    text = json.dumps({"format_version": FORMAT_VERSION, "assemblies": listed}, indent=2, ensure_ascii=False, default=_plain)
    metadata = {"format": "pt", "vocab_sha256": vocab_digest(facts["vocab"]), "fingerprint": facts["fingerprint"]}
    replace_files({path: lambda part: save_file(state, part, metadata=metadata), config_path: text_writer(text)})
    return path


def _plain(value):
    """A number of NumPy's or torch's as Python's.

    Raises:
        TypeError: for what JSON has no form of.
    """
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"{value!r} is no fact that JSON holds; numbers, texts, lists and dicts are. Nothing was written.")


def sizes(state: dict[str, torch.Tensor], text: str) -> dict[str, float]:
    """What an assembly weighs: the gates it chooses, in bits, the head, its sentences and the whole, in KB."""
    head = {name: value for name, value in state.items() if name.startswith("head.")}
    return {
        "gate_bits": state["mapping"].numel(),
        "head_kilobytes": round(parameter_kilobytes(head), 1),
        **({"text_kilobytes": text_kilobytes(text)} if text else {}),
        "kilobytes": round(parameter_kilobytes(state) + text_kilobytes(text), 1),
    }


def differences(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    """Where tensors, `{name: shape}`, are not the wanted ones, in words; "" where they are."""
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    listed = "; ".join(f"{name}: {found.get(name, 'missing')}, not {wanted.get(name, 'wanted')}" for name in differing[:3])
    return f"in {len(differing)} tensors: {listed}" if differing else ""


def read_tensors(path: Path, wanted: dict[str, tuple[int, ...]], facts: dict, source: str) -> dict[str, torch.Tensor]:
    """The tensors of one language, once the file's header has said that they are the wanted ones.

    Args:
        wanted: `{name: shape}` by the language's facts and its base.
        facts: what its `assembly_config.json` says of it.
        source: what the messages call it.

    Raises:
        ValueError: if the file is damaged, pickled, of other names, shapes or types, not finite, or of another alphabet.
    """
    try:
        with safe_open(path, "pt") as opened:
            headers = {name: opened.get_slice(name) for name in opened.keys()}
            found = {name: tuple(header.get_shape()) for name, header in headers.items()}
            wanted = shapes_in_file(wanted, found)
            if differing := differences(found, wanted):
                raise ValueError(f"{source} does not fit its own {ASSEMBLY_CONFIG_NAME} on this model, {differing}. Download or save it again.")
            said = opened.metadata() or {}  # files of earlier versions say less
            if said.get("fingerprint", facts["fingerprint"]) != facts["fingerprint"]:
                raise ValueError(
                    f"{source} was saved for another base than its {ASSEMBLY_CONFIG_NAME} says (fingerprints {said['fingerprint'][:12]} and "
                    f"{facts['fingerprint'][:12]}): one of the two files is of another time. Download or save both again."
                )
            if said.get("vocab_sha256", digest := vocab_digest(facts["vocab"])) != digest:
                raise ValueError(
                    f"The alphabet of {source} in {ASSEMBLY_CONFIG_NAME} is not the one its head was saved with: its letters would come out as "
                    "others. Download or save both files again."
                )
            state = {name: opened.get_tensor(name).clone() for name in found}  # not a map of the file, which may be written anew
    except (SafetensorError, OSError) as error:
        with path.open("rb") as opened:
            pickled = opened.read(2) in (b"PK", b"\x80\x02")
        raise ValueError(
            f"{path} is {'a pickle, which can run code and is refused' if pickled else 'not a whole safetensors file'} ({error}). "
            "Download or save it again: model.save_assembly(...) writes safetensors."
        ) from error
    broken = misfits(state)
    if broken:
        raise ValueError(f"{source} holds values that are NaN, infinite or of no type that belongs there in {broken}. Train or save it again.")
    state = {name: value.to(torch.float32) for name, value in unpacked(state).items()}
    endless = [name for name, value in state.items() if not value.isfinite().all()]  # of a scale near the largest float, say
    if endless:
        raise ValueError(f"{source} holds values that are infinite in {endless}. Train or save it again.")
    return state


def text_kilobytes(text: str) -> float:
    """Size of a language's sentences in KB (1,024 bytes)."""
    return round(len(text.encode()) / 1024, 1)


def parameter_kilobytes(state: dict[str, torch.Tensor]) -> float:
    """Size of tensors in KB (1,024 bytes)."""
    return sum(math.prod(t.shape) * t.element_size() for t in state.values()) / 1024
