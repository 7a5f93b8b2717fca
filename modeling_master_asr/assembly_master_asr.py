"""A language is one module: LanguageAssembly, the table of its parts, and its file format. Never imports modeling."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional
from urllib.parse import quote, unquote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import initialization as init
from transformers.utils import cached_file

from .configuration_master_asr import MasterASRConfig

ASSEMBLY_CONFIG_NAME = "assembly_config.json"
ASSEMBLY_CARD_NAME = "README.md"
FACTS = ("vocab", "parts", "rank", "num_specialists", "sparsity", "base", "fingerprint")  # what every assembly says of itself
MAPPING_STD = 0.01  # CHOICE: rows of T start undecided, close to the gates' threshold, half of the gates open


class CharacterBank(nn.Module):
    """The rows that heads share, `weight` `[characters, hidden]` and `bias`. Never called, so no `nn.Linear` that PEFT could adapt."""

    def __init__(self, hidden: int, characters: int):
        super().__init__()
        linear = nn.Linear(hidden, characters)
        self.weight, self.bias = linear.weight, linear.bias


class BankHead(nn.Module):
    """A CTC head made of its alphabet's rows of the shared character bank."""

    def __init__(self, model: nn.Module, rows: list[int]):
        super().__init__()
        # The bank is the model's, not the language's: in a tuple, so not a submodule, and looked up, because PEFT may replace it.
        self._model = (model,)
        self._row_ids = list(rows)
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.long))

    @property
    def weight(self) -> torch.Tensor:
        return self._model[0].character_bank.weight[self.rows]

    @property
    def bias(self) -> torch.Tensor:
        return self._model[0].character_bank.bias[self.rows]

    def reset_rows(self) -> None:
        init.copy_(self.rows, torch.tensor(self._row_ids, device=self.rows.device))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden)` -> `(B, T, V)`."""
        return nn.functional.linear(hidden_states, self.weight, self.bias)


class LowRank(nn.Module):
    """One product `up_i down_i` of rank r for each Artisan layer."""

    def __init__(self, shapes: list[tuple[int, int]], rank: int, down_std: float):
        super().__init__()
        self.down_std = down_std
        self.up = nn.ParameterList([torch.zeros(rows, rank) for rows, _ in shapes])
        self.down = nn.ParameterList([torch.zeros(rank, columns) for _, columns in shapes])

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.up[layer], self.down[layer]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """up = 0 and down random: the product is zero, so a fresh part changes no logit, and both halves can learn."""
        for up in self.up:
            init.zeros_(up)
        for down in self.down:
            init.normal_(down, std=self.down_std)


class Vectors(nn.Module):
    """Vectors of several sizes in one parameter `values`, zero at the start, so that a fresh part changes no logit."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(sum(sizes)))
        self._ends = list(itertools.accumulate(sizes, initial=0))

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.values[self._ends[place] : self._ends[place + 1]]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.values)


class Norms(Vectors):
    """What a language adds to the layer norms' weights and biases, and to the biases of the assembled linear layers."""

    def __init__(self, layout):
        pairs = [size for norm in layout.norms for size in (*norm.normalized_shape, *norm.normalized_shape)]
        super().__init__(pairs + [layer.out_features if layer._parameters["bias"] is not None else 0 for layer in layout.linear])
        self._num_norms = len(layout.norms)

    def offset(self, place: int, module: nn.Module, name: str) -> torch.Tensor:
        """Added to `module.weight` or `module.bias`; `place` is the module's in the layout's `norms` or `linear`."""
        if isinstance(module, nn.LayerNorm):
            return self[2 * place + (name == "bias")]
        return self[2 * self._num_norms + place]


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


class LanguageAssembly(nn.Module):
    """All that a language owns. Its `state_dict()` is the assembly file.

    Attributes:
        mapping: its row of every T, `[num_artisan_layers, K]`; row i is the i-th `ArtisanLinear` of `model.modules()`.
        head: the CTC head, `(B, T, hidden)` -> `(B, T, V)`: an `nn.Linear`, or rows of the shared bank.
        specialist, delta, scales, norms: optional parts, see `PARTS`.
    """

    def __init__(self, config: MasterASRConfig, language: str, layout, hidden: int, model=None):
        super().__init__()
        entry = config.assemblies[language]
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

    def own_specialist(self, row: int) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """`(u, v)` of the language's own scores u v for the Artisan layer of mapping row `row`, or None."""
        return self.specialist[row] if "specialist" in self.parts else None

    def delta_of(self, place: int, row: Optional[int]) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """`(up, down)` of the language's own weight change, or None.

        Args:
            place, row: the layer's in the layout's `linear` and `artisan` (None where it is not Artisan).
        """
        index = row if self.targets == "attention" else place
        return self.delta[index] if "delta" in self.parts and index is not None else None

    @torch.no_grad()
    def reset_mapping(self) -> None:
        """A first row of T; the other parts have first values of their own."""
        init.normal_(self.mapping, std=MAPPING_STD)

    def complete_state_dict(self) -> dict[str, torch.Tensor]:
        """The state dict with the head's rows gathered: what a file of this language alone must hold, in half precision where that
        loses nothing.
        """
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("head.")}
        state |= {"head.weight": self.head.weight.detach(), "head.bias": self.head.bias.detach()}
        return {name: _halved(value.detach().cpu().contiguous()) for name, value in state.items()}


def _halved(value: torch.Tensor) -> torch.Tensor:
    half = value.half() if value.dtype == torch.float32 else value
    return half if torch.equal(half.to(value.dtype), value) else value


class Assemblies(nn.ModuleDict):
    """`{language: LanguageAssembly}` under any legal code: `to`, `pop` and dots, which ModuleDict refuses, are escaped."""

    @staticmethod
    def _key(language: str) -> str:
        return "lang_" + quote(language, safe="").replace(".", "%2E")

    def __getitem__(self, language: str) -> LanguageAssembly:
        if language not in self:
            raise KeyError(f"No assembly for language {language!r}. Loaded: {list(self)}.")
        return super().__getitem__(self._key(language))

    def __setitem__(self, language: str, assembly: nn.Module) -> None:
        super().__setitem__(self._key(language), assembly)

    def __delitem__(self, language: str) -> None:
        super().__delitem__(self._key(language))

    def __contains__(self, language: object) -> bool:
        return isinstance(language, str) and super().__contains__(self._key(language))

    def __iter__(self) -> Iterator[str]:
        return (unquote(key.removeprefix("lang_")) for key in self._modules)

    def keys(self):
        return list(self)

    def items(self):
        return [(language, self[language]) for language in self]


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, so a lossless cast on load (fp16 -> fp32) keeps it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def file_name(language: str) -> str:
    return f"assembly.{quote(language, safe='')}.safetensors"


def write_assembly(folder: str | Path, language: str, state: dict[str, torch.Tensor], facts: dict) -> Path:
    """Writes `assembly.{lang}.safetensors`, its entry in `assembly_config.json` and the card, each beside and then renamed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(language)
    part = path.with_name(path.name + ".part")
    save_file(state, part, metadata={"format": "pt"})
    os.replace(part, path)
    config_path = folder / ASSEMBLY_CONFIG_NAME
    listed = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {"assemblies": {}}
    listed["assemblies"][language] = {**facts, **sizes(state)}
    texts = {config_path: json.dumps(listed, indent=2, ensure_ascii=False), folder / ASSEMBLY_CARD_NAME: assembly_card(listed["assemblies"])}
    for target, text in texts.items():
        part = target.with_name(target.name + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, target)
    return path


def sizes(state: dict[str, torch.Tensor]) -> dict[str, float]:
    """What an assembly weighs: the gates it chooses, in bits, the head and the whole, in KB."""
    head = {name: value for name, value in state.items() if name.startswith("head.")}
    return {
        "gate_bits": state["mapping"].numel(),
        "head_kilobytes": round(parameter_kilobytes(head), 1),
        "kilobytes": round(parameter_kilobytes(state), 1),
    }


def assembly_card(listed: dict[str, dict]) -> str:
    """The card of an assembly repo, from its `assembly_config.json`."""
    first = next(iter(listed.values()))
    lines = ["---", "library_name: transformers", "pipeline_tag: automatic-speech-recognition", "tags: [master-asr, assembly]"]
    lines += [f"language: {json.dumps([code.split('-')[0] for code in listed])}"]
    if "/" in first["base"]:
        lines += [f"base_model: {first['base']}", "base_model_relation: adapter"]
    lines += ["---", "# Master-ASR assemblies", "", f"Languages for the base model `{first['base']}`:", ""]
    lines += ["| language | parts | test CER, % | minutes | mapping, bits | head, KB | whole, KB |", "|---|---|---|---|---|---|---|"]
    for code, facts in listed.items():
        cer = facts.get("cer")
        minutes = facts.get("minutes")
        minutes = sum(minutes.values()) if isinstance(minutes, dict) else minutes
        lines += [
            f"| `{code}` | {' '.join(facts['parts'])} | {'?' if cer is None else f'{cer:.1f}'} | "
            f"{'?' if minutes is None else f'{minutes:.1f}'} | {facts['gate_bits']} | {facts['head_kilobytes']} | {facts['kilobytes']} |"
        ]
    code = next(iter(listed))
    lines += [
        "", "```python", "from transformers import AutoModelForCTC", "",
        f'model = AutoModelForCTC.from_pretrained("{first["base"]}", trust_remote_code=True)',
        f'model.load_assembly("THIS_REPO", language="{code}")', "```", "",
        f"They fit that base alone (fingerprint `{first['fingerprint'][:12]}`): any other refuses them.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _fetch(id_or_path: str | Path, name: str, **hub_kwargs) -> Path:
    """One file of a folder or hub repo.

    Raises:
        OSError: saying what is missing and what the repo should hold.
    """
    try:
        return Path(cached_file(str(id_or_path), name, **hub_kwargs))
    except OSError as error:
        if "does not appear to have a file named" not in str(error):
            raise  # no such repo or revision, no access, no connection: Transformers' own words
        raise OSError(
            f"{id_or_path} holds no {name}, so it is no Master-ASR assembly: one is made by model.save_assembly(...) or "
            "push_assembly_to_hub(...). A whole model loads with from_pretrained, a PEFT adapter with PeftModel.from_pretrained."
        ) from error


def _listed(id_or_path: str | Path, **hub_kwargs) -> dict[str, dict]:
    path = _fetch(id_or_path, ASSEMBLY_CONFIG_NAME, **hub_kwargs)
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["assemblies"]
        lacking = {code: missing for code, facts in listed.items() if (missing := [name for name in FACTS if name not in facts])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole {ASSEMBLY_CONFIG_NAME} ({error}). Download or save it again.") from error
    if lacking:
        raise ValueError(f"{path} lacks {lacking}. Save the assembly again with model.save_assembly(...).")
    return listed


def languages_in(id_or_path: str | Path, **hub_kwargs) -> list[str]:
    """Codes of the assemblies in a folder or hub repo."""
    return list(_listed(id_or_path, **hub_kwargs))


def read_assembly(id_or_path: str | Path, language: Optional[str], **hub_kwargs) -> tuple[str, dict[str, torch.Tensor], dict]:
    """Reads one language's tensors and facts from a folder or a hub repo.

    Args:
        language: which one, or None where the repo holds a single language.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: if the repo or a file is not there.
        ValueError: if `language` is needed or not there, or the file is damaged, pickled or not finite.
    """
    listed = _listed(id_or_path, **hub_kwargs)
    if language is None and len(listed) != 1:
        raise ValueError(f"{id_or_path} holds the languages {sorted(listed)}; name one: load_assembly(..., language=...).")
    language = language or next(iter(listed))
    if language not in listed:
        raise ValueError(f"{id_or_path} has no language {language!r}. It holds {sorted(listed)}.")
    path = _fetch(id_or_path, file_name(language), **hub_kwargs)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as opened:
            pickled = opened.read(2) in (b"PK", b"\x80\x02")
        raise ValueError(
            f"{path} is {'a pickle, which can run code and is refused' if pickled else 'not a whole safetensors file'} ({error}). "
            "Download or save it again: model.save_assembly(...) writes safetensors."
        ) from error
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds values that are NaN or infinite in {broken}. Train or save it again.")
    return language, state, listed[language]


def check_base(facts: dict, config: MasterASRConfig, source: str) -> None:
    """Refuses an assembly made for another base.

    Raises:
        ValueError: saying what was found, what was wanted and what to do.
    """
    for name, found in (("num_specialists", config.num_specialists), ("sparsity", config.sparsity)):
        if facts[name] != found:
            raise ValueError(
                f"{source} was made with {name}={facts[name]}, this model has {name}={found}. Load it into its own base: "
                f"{facts['base']!r}."
            )
    if facts["fingerprint"] != config.fingerprint:
        raise ValueError(
            f"{source} was made for the base {facts['base']!r} (fingerprint {facts['fingerprint'][:12]}); this model is "
            f"{config.name_or_path or config.base_model!r} (fingerprint {str(config.fingerprint)[:12]}). "
            "Load that base, or train the language again on this one."
        )


def parameter_kilobytes(state: dict[str, torch.Tensor]) -> float:
    """Size of tensors in KB (1,024 bytes)."""
    return sum(math.prod(t.shape) * t.element_size() for t in state.values()) / 1024
