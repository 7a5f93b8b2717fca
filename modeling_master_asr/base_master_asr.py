"""The base that assemblies are made for: W and M, their fingerprint, and where others find them.

A fingerprint is always taken from the values, never from a counter or a file's word for it: what is written for others hashes
them again; what is read is compared with a hash that is kept only while a `Stamp` of the values holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Optional, Union

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import resolve_revision

from .configuration_master_asr import check_unquantized
from .files_master_asr import check_folder, replace_file
from .masks_master_asr import BITS, Stamp
from .upload_master_asr import UploadMixin, one_file_of

logger = logging.get_logger(__name__)

WEIGHTS = re.compile(r"model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.safetensors")  # with a variant before or behind the shard
SMALL = {"F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # by safetensors' names
HUB_KWARGS = ("token", "cache_dir", "local_files_only")
SAVES = 3  # of a model whose languages other threads change, before it is given up
BACKBONE = "backbone."  # the names of W and M in a state dict begin with this, or with `master_asr.` and this


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, so a lossless cast on load (fp16 -> fp32) keeps it.

    Raises:
        ValueError: for tensors without values.
    """
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError(
            "W and M have no values here: they are offloaded (accelerate), or were never loaded. Save, and load or save assemblies, before "
            "the offload, or after accelerate.hooks.remove_hook_from_submodules(model)."
        )
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # sharded (FSDP2)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def base_part(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W and M of a model's whole state dict, by their names in the backbone."""
    found = {name.removeprefix("master_asr."): value for name, value in state.items()}
    return {name.removeprefix(BACKBONE): value for name, value in found.items() if name.startswith(BACKBONE)}


@dataclass(frozen=True)
class StoredBase:
    """Where a base is stored.

    Attributes:
        name: hub id, or folder.
        revision: the commit; None for a folder.
        fingerprint: of what is stored; None where an old config.json names none.
        on_hub: whether others can find it.
        loaded: whether this model was read from there, and not written there by itself.
    """

    name: str
    revision: Optional[str]
    fingerprint: Optional[str]
    on_hub: bool
    loaded: bool = False


class Kept:
    """A fingerprint, and the stamp and checksums of values under which it holds; a copy of the model, or a pickle, starts without."""

    def __init__(self, tensors: Iterable[torch.Tensor] = (), stamp: Optional[Stamp] = None, value: Optional[str] = None):
        self.stamp, self.value, self.sums = stamp, value, [_checksum(tensor) for tensor in tensors]

    def holds(self, tensors: list[torch.Tensor]) -> bool:
        """Whether the values stand still; a stamp alone would miss a few that somebody wrote through `.data`."""
        return self.stamp is not None and self.stamp.holds(tensors) and self.sums == [_checksum(tensor) for tensor in tensors]

    def __reduce__(self):
        return Kept, ()


def _checksum(tensor: torch.Tensor) -> Optional[tuple[int, ...]]:
    """Sums of a tensor's bits along its rows and along its columns, weighted by their places; none without values."""
    if tensor.is_meta or not tensor.numel():
        return None
    bits = tensor.detach().view(BITS[tensor.element_size()])
    table = bits.reshape(len(bits), -1) if bits.dim() else bits.reshape(1, 1)
    sums = [table.sum(axis, dtype=torch.int64) for axis in (0, 1)]
    return tuple(int((values * torch.arange(1, len(values) + 1, device=values.device)).sum()) for values in sums)


class BaseMixin:
    """What `MasterASRModel` knows of itself as a base.

    Attributes:
        stored: the base that was last loaded or saved, or None; a copy of one that was loaded, or lies on a hub, keeps its name.
    """

    stored: Optional[StoredBase] = None
    _kept = Kept()
    _files: tuple[Path, ...] = ()  # that this model was loaded from
    _types: Mapping[str, torch.dtype] = MappingProxyType({})  # of the tensors in them, where they are small
    _cast_on_load = False  # loaded in a smaller type than float32, it is still the base of the files

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """W and M by name: what assemblies are made for."""
        return dict(self.backbone.state_dict())

    def keep_fixed_parts(self) -> None:
        """What the backbone itself keeps fixed stands still (Whisper's sinusoid positions)."""
        for name in self.family.fixed:
            getattr(self.backbone, name).requires_grad_(False)

    def remember(self, stored: StoredBase) -> None:
        """What this model is stored as from now on."""
        self.stored, self._files, self._cast_on_load = stored, (), False
        self.forget_fingerprint()

    def forget_fingerprint(self) -> None:
        """To be called by whatever may write to W or M: the next question hashes the values again."""
        self._kept = Kept()

    def base_fingerprint(self) -> str:
        """The fingerprint of the base that this model is; hashed once, then kept while the values stand still.

        Loaded in a smaller type (`dtype=torch.bfloat16`), it is still the base it was loaded from: the files are hashed.
        """
        tensors = self.base_tensors()
        own = [value.to_local() if hasattr(value, "to_local") else value for value in tensors.values()]  # this process's share (FSDP2)
        if not self._kept.holds(own):
            stamp, found = Stamp(own), fingerprint(tensors)
            before = self._fingerprint_before_cast(tensors, found) if self._cast_on_load else None
            self._kept = Kept(own, stamp, before or found)
        return self._kept.value

    def stored_fingerprint(self) -> Optional[str]:
        """The fingerprint of the stored base that this model still is, from the values; None: never saved, or changed since."""
        self.forget_fingerprint()
        if self.stored is None or self.stored.fingerprint is None or self.base_fingerprint() != self.stored.fingerprint:
            return None
        return self.stored.fingerprint

    def _fingerprint_before_cast(self, tensors: dict[str, torch.Tensor], found: str) -> Optional[str]:
        """That of the files this model was loaded from, if `tensors` (fingerprint `found`) are theirs in another type."""
        if not self._files or not all(path.is_file() for path in self._files):
            return None
        in_files: dict[str, torch.Tensor] = {}
        for path in self._files:
            with safe_open(path, "pt") as opened:
                names = [name for name in opened.keys() if name.removeprefix("master_asr.").startswith(BACKBONE)]
                in_files |= base_part({name: opened.get_tensor(name) for name in names})
        if set(in_files) != set(tensors) or fingerprint({name: v.to(tensors[name].dtype) for name, v in in_files.items()}) != found:
            return None
        return fingerprint(in_files)


def check_base(facts: dict, base, source: str) -> None:
    """Refuses an assembly made for another base.

    Args:
        facts: what the assembly says of its base.
        base: the `MasterASRModel` it is to be added to.

    Raises:
        ValueError: saying what was found, what was wanted and what to do.
    """
    config = base.config
    for name, found in (("num_specialists", config.num_specialists), ("sparsity", config.sparsity)):
        if facts[name] != found:
            raise ValueError(
                f"{source} was made with {name}={facts[name]!r}, this model has {name}={found!r}. Load it into its own base: "
                f"{facts['base']!r}."
            )
    if any(".base_layer." in name for name in base.base_tensors()):
        raise ValueError(
            f"{source}: a PEFT adapter lies on this model, so that nothing tells whether it is the base {facts['base']!r}. Load the language first and "
            "adapt the model then; or unload the adapter: peft_model.unload()."
        )
    wanted = facts["fingerprint"]
    if not isinstance(wanted, str) or not wanted:
        raise ValueError(
            f"{source} names no base (fingerprint: {wanted!r}), so it may belong to any. Save it again from its own model, "
            "saved before: model.save_pretrained(folder), then model.save_assembly(...)."
        )
    found, said = base.base_fingerprint(), base.stored and base.stored.fingerprint
    if wanted != found and base._fingerprint_before_cast(base.base_tensors(), found) == wanted:
        return  # cast since it was loaded: what is saved from it now would be another base's, what was made for it fits
    if said and found != said:
        logger.warning(
            f"W and M of this model have the fingerprint {found[:12]}, its config.json says {said[:12]}: they were changed since they were "
            "saved, or lie beside a config.json that is not theirs. The values count."
        )
    if wanted != found:
        revision = f" at {str(facts['base_revision'])[:12]}" if facts.get("base_revision") else ""
        raise ValueError(
            f"{source} was made for the base {facts['base']!r}{revision} (fingerprint {wanted[:12]}); this model is "
            f"{(base.stored and base.stored.name) or config.base_model or 'never saved'!r} (fingerprint {found[:12]}). "
            "Load that base, or train the language again on this one."
        )


def check_unwrapped(names: Iterable[str]) -> None:
    """Refuses to write a model on which a PEFT adapter is.

    Raises:
        ValueError: naming what was found.
    """
    wrapped = [name for name in names if ".base_layer." in name or ".assembly_adapter." in name]
    if wrapped:
        raise ValueError(
            f"A PEFT adapter is on ({wrapped[0]}), and the file would load with first values in its place. peft_model.save_pretrained writes "
            "the adapter, peft_model.unload().save_pretrained the model without it."
        )


def types_in(files: Iterable[Path]) -> dict[str, torch.dtype]:
    """`{name: type}` of the tensors in files, where it is one of `SMALL`."""
    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= {name: SMALL[kind] for name in opened.keys() if (kind := opened.get_slice(name).get_dtype()) in SMALL}
    return found


def write_as_stored(folder: Path, types: dict[str, torch.dtype]) -> None:
    """Writes the weights in `folder` anew, each in its type of `types`, where that holds it exactly: a small checkpoint that was loaded in float32 is
    published as it was stored.
    """
    total = 0
    for written in sorted(folder.glob("*.safetensors")):
        tensors = load_file(written)
        for name, value in tensors.items():
            smaller = value.to(types.get(name, value.dtype))
            if smaller.dtype.itemsize < value.dtype.itemsize and torch.equal(smaller.to(value.dtype), value):
                tensors[name] = smaller
        replace_file(written, partial(save_file, tensors, metadata={"format": "pt"}))
        total += sum(value.nbytes for value in tensors.values())
    for index in folder.glob("*.safetensors.index*.json"):
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = total
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class StoredMixin(UploadMixin):
    """`from_pretrained` and `save_pretrained` of the models, which know where their base is stored."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, dtype=None, **kwargs):
        """As in Transformers, but float32 unless a dtype is asked for, so a checkpoint stored in fp16 runs on any CPU.

        Args:
            dtype: of W and M, "auto": as its config.json says; what languages own stays float32.

        Raises:
            FileNotFoundError: for a folder that is not there.
            TypeError: for `assemblies` on the encoder alone.
            NotImplementedError: for a `quantization_config`.
            ValueError: also if config.json and the weights disagree on which row belongs to which character, if what a language owns is
                no number, for a weight file that was cut short.
        """
        if "assemblies" in kwargs:
            raise TypeError(
                f"assemblies= is a keyword of MasterASRForCTC.from_pretrained (AutoModelForCTC), not of {cls.__name__}'s. For the encoder alone with "
                "further languages: AutoModelForCTC.from_pretrained(..., assemblies=...).master_asr."
            )
        check_unquantized(kwargs.get("quantization_config"))
        dtype = dtype or kwargs.pop("torch_dtype", None) or torch.float32
        if pretrained_model_name_or_path is None:  # a config and a state_dict given in memory
            loaded = super().from_pretrained(None, *args, dtype=dtype, **kwargs)
            (loaded[0] if isinstance(loaded, tuple) else loaded).base_model.keep_fixed_parts()
            return loaded
        name = check_folder(str(pretrained_model_name_or_path))
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if kwargs.get(key) is not None}
        revision = resolve_revision(name, kwargs.pop("revision", None), **hub_kwargs)
        kwargs |= {} if revision is None else {"revision": revision}
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(name, *args, dtype=dtype, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"The weights of {name} are not a whole safetensors file ({error}). Download or save them again.") from error
        base, on_hub = model.base_model, not Path(name).exists()
        base.remember(StoredBase(name, getattr(revision, "resolved", None) if on_hub else None, model.config.fingerprint, on_hub, loaded=True))
        base._cast_on_load = dtype not in (torch.float32, "float32")
        base._files = _weight_files(name, kwargs.get("subfolder", ""), kwargs.get("variant"), revision=revision, **hub_kwargs)
        base._types = types_in(base._files)
        base.keep_fixed_parts()  # Transformers makes anew what it loads, and lets it train
        _check_owned(name, base)
        _warn_of_missing(name, info["missing_keys"])
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory, is_main_process: bool = True, state_dict: Optional[dict] = None, *args, **kwargs) -> None:
        """As in Transformers, plus the written base's fingerprint in the config and every code file remote loading needs.

        Raises:
            ValueError: while a PEFT adapter is on: its wrappers' names would be written, which no `from_pretrained` reads; and where the config
                names languages that this model lacks, or one by default.
            NotADirectoryError: for a file's name.
            RuntimeError: if other threads go on changing languages while it is written, which is tried anew.
        """
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"save_directory: got {str(save_directory)!r}, which is a file; allowed: a folder, which is made if it is not there.")
        if getattr(self, "_hf_peft_config_loaded", False):  # Transformers' own `add_adapter`: it writes the adapter alone, and no base
            super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
            return
        check_unwrapped(self.state_dict() if state_dict is None else state_dict)
        base, before = self.base_model, self.config.fingerprint
        self.config.check_default()
        lacking = sorted(set(self.config.languages) - set(base.assemblies))
        if lacking:
            raise ValueError(
                f"config.assemblies names {lacking}, and this model has no values of them: the entries were written into its config alone. Take them out, and "
                "add languages with add_language or load_assembly."
            )
        there = _indices_of_shards(save_directory)
        written = base.base_tensors() if state_dict is None else base_part(state_dict)
        self.config.fingerprint = fingerprint(written) if set(written) >= set(base.base_tensors()) else None
        try:
            for _ in range(SAVES):
                languages = _as_they_are(self)
                super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
                if _as_they_are(self) == languages or state_dict is not None:
                    break
            else:
                raise RuntimeError(f"Languages came, went or were replaced while {save_directory} was written, {SAVES} times: it may hold the alphabet of one and the values of another. Save it again.")
        except BaseException:
            self.config.fingerprint = before
            raise
        if is_main_process:
            _let_others_read(Path(save_directory))
        for name in one_file_of(name for name, _ in _indices_of_shards(save_directory).items() - there.items()):
            Path(save_directory, name).unlink(missing_ok=True)
        stored = base.stored
        as_stored = stored is not None and stored.loaded and stored.fingerprint is not None and stored.fingerprint == self.config.fingerprint
        may_keep = stored is not None and (stored.on_hub or base._cast_on_load)  # rounded while it was loaded, it is the base of those files yet
        if as_stored or (may_keep and base.stored_fingerprint() is not None):
            self.config.fingerprint = stored.fingerprint  # a copy, or a checkpoint, of a base that has a name already
        else:
            base.remember(StoredBase(str(save_directory), None, self.config.fingerprint, on_hub=False))

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs):
        """Transformers' step from files to values, which its own `load_adapter` takes for an adapter's: a language's is looked at before.

        Raises:
            ValueError: for an adapter whose file is not its language's values, whole and finite.
        """
        if hasattr(adapters := getattr(model.base_model, "assemblies", None), "check_files") and getattr(model, "peft_config", None):
            adapters.check_files(model, checkpoint_files, state_dict)
        return super(StoredMixin, type(model))._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id: str, *args, **kwargs):
        if getattr(self, "_hf_peft_config_loaded", False):  # the adapter alone is in there, and says of its sentences itself
            return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        self.config.warn_of_sentences(self.config.languages)
        info = super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        self.base_model.remember(StoredBase(repo_id, info.oid, self.config.fingerprint, on_hub=True))
        return info


def _indices_of_shards(folder: Union[str, Path]) -> dict[str, tuple[int, ...]]:
    """`{name: what tells this writing of it from another}`."""
    stats = {path.name: path.stat() for path in Path(folder).glob("*.safetensors.index*.json")}
    return {name: (stat.st_mtime_ns, stat.st_ino, stat.st_size) for name, stat in stats.items()}


def _as_they_are(model) -> tuple[list, list]:
    """The languages of the config and their modules: those of a moment ago are others where one came, went or was replaced."""
    return list(model.config.assemblies.items()), list(model.base_model.assemblies.items())


def _weight_files(name: str, subfolder: str, variant: Optional[str], **hub_kwargs) -> tuple[Path, ...]:
    """The safetensors files of a folder or repo, by absolute paths: the process may go elsewhere. All of them are in the cache by now."""

    def there(file_name: str) -> Optional[str]:
        *start, end = file_name.split(".")
        varied = file_name if variant is None else ".".join([*start, variant, end])  # model.fp16.safetensors
        return cached_file(name, varied, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    found = there(SAFE_WEIGHTS_NAME)
    index = None if found else there(SAFE_WEIGHTS_INDEX_NAME)
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()) if index else ()
    files = (Path(found),) if found else tuple(Path(index).parent / shard for shard in sorted(shards))
    return tuple(file.absolute() for file in files)  # not resolved: a cache's shards are links beside their index


def _let_others_read(folder: Path) -> None:
    """Whoever may read `config.json` may read the weights beside it, which safetensors lets nobody else read."""
    for weights in folder.glob("model*.safetensors"):
        if WEIGHTS.fullmatch(weights.name) and weights.is_file() and not weights.is_symlink():
            with suppress(OSError):  # in a shared folder, somebody else's of another save
                weights.chmod((folder / "config.json").stat().st_mode)


def _check_owned(name: str, base) -> None:
    """Refuses languages of which a value is no number, and heads whose rows of the character bank, as stored, are not those of their
    alphabets by config.json.

    Raises:
        ValueError: naming the languages.
    """
    owned = {code: [value for value in assembly.parameters() if not value.is_meta] for code, assembly in base.assemblies.items()}
    broken = [code for code, values in owned.items() if not all(value.isfinite().all() for value in values)]
    if broken:
        raise ValueError(f"{name} holds values that are NaN or infinite in what {broken} own. Train or save it again.")
    heads = {code: assembly.head for code, assembly in base.assemblies.items() if hasattr(assembly.head, "rows") and not assembly.head.rows.is_meta}
    differing = [code for code, head in heads.items() if not head.stands_as_built()]
    if differing:
        raise ValueError(
            f"{name}: the heads of {differing} were saved with other rows of the character bank than the character_bank and the alphabets in "
            "config.json give them: rows would be taken for other characters'. Download or save config.json and the weights again."
        )


def _warn_of_missing(name: str, missing) -> None:
    ours = sorted(key for key in missing if key.endswith(".specialists") or any(f".{part}." in f".{key}" for part in ("assemblies", "character_bank")))
    if ours:
        logger.warning(
            f"{name} lacks {len(ours)} tensors that its config.json promises, {', '.join(ours[:3])}{' ...' if len(ours) > 3 else ''}. They "
            "hold first values now, which know nothing of any language: train them, or download the file again."
        )
