"""The assembly as a PEFT method: an adapter is a language. Needs `peft`; the package imports it where that is installed.

    from modeling_master_asr.peft_assembly import AssemblyConfig
    model = get_peft_model(model, AssemblyConfig(language="sr", vocab=vocab))
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Optional, Union

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import nn
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging

from .assembly_master_asr import Assemblies, LanguageAssembly, differences, read_tensors
from .base_master_asr import check_base
from .configuration_master_asr import DEFAULT_PRESET, check_text, from_preset
from .hub_master_asr import fetch_assembly
from .packing_master_asr import misfits
from .text_master_asr import spell_sentences


def _extend_peft_type(name: str) -> PeftType:
    """Adds a member to PEFT's enum of methods, which `register_peft_method` asks for and offers no other way to."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_, member._value_, member.__objclass__, member._sort_order_ = name, name, PeftType, len(PeftType)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


logger = logging.get_logger(__name__)
ASSEMBLY = _extend_peft_type("ASSEMBLY")
TARGETS = ["assemblies"]  # the one module that an adapter is put around


@dataclass
class AssemblyConfig(PeftConfig):
    """What `adapter_config.json` holds: the language and the base it belongs to.

    Args:
        language: its code.
        vocab: `{token: id}`, so an adapter is complete by itself.
        preset: what it owns, as in `add_language`; parts, rank and targets override it.
        parts: "mapping" and "head", and optionally "specialist", "delta", "scales" and "norms".
        rank: r of the low-rank parts.
        targets: what a delta reaches: "attention", the Artisan layers, or "all", the feed-forward layers too.
        init: where it starts: "random" or a loaded language's code, as in `add_language`.
        sentences: see `set_text` of the model.
        num_specialists, sparsity, fingerprint: of the base; filled in, and checked when the adapter is loaded.
    """

    language: Optional[str] = None
    vocab: Optional[dict] = None
    preset: str = DEFAULT_PRESET
    parts: Optional[list[str]] = None
    rank: Optional[int] = None
    targets: Optional[str] = None
    init: str = "random"
    sentences: Optional[list[str]] = None
    num_specialists: Optional[int] = None
    sparsity: Optional[float] = None
    fingerprint: Optional[str] = None
    target_modules: Optional[Union[list[str], str]] = field(default_factory=lambda: list(TARGETS))
    exclude_modules: Optional[Union[list[str], str]] = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ASSEMBLY
        if not self.language or not self.vocab:
            raise ValueError('AssemblyConfig needs language="xx" and its vocab={token: id}; text_master_asr.build_vocab makes one.')
        check_targets(self)
        own = from_preset(self.preset, self.parts, self.rank, self.targets)
        self.parts, self.rank, self.targets = list(own["parts"]), own["rank"], own["targets"]

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """As in PEFT; says once that sentences are in the file, which PEFT's own `push_to_hub` writes and publishes."""
        if self.sentences:
            logger.warning_once(f"adapter_config.json holds the {len(self.sentences)} sentences that {self.language!r} is read with: whoever publishes it publishes them.")
        super().save_pretrained(save_directory, **kwargs)


def check_targets(config: AssemblyConfig) -> None:
    """Refuses a config that would have PEFT put a language around anything else, before anything of the model has changed.

    Raises:
        ValueError: for other target modules.
    """
    named = config.target_modules
    if named is not None and not (isinstance(named, (list, tuple, set)) and list(named) == TARGETS):  # a text is a pattern to PEFT
        raise ValueError(
            f"target_modules: got {named!r}. Allowed: {TARGETS}, which it is where nobody names any: a language lies beside the shared layers and around "
            "none of them. Leave it out of AssemblyConfig(...), or download or save the adapter again; what a delta reaches is said by targets."
        )


def _base_of(model) -> nn.Module:
    """The `MasterASRForCTC` that PEFT hands over, bare or inside a `PeftModel`.

    Raises:
        ValueError: for anything else.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not hasattr(base, "add_language"):
        raise ValueError(f"AssemblyConfig adds a language to a MasterASRForCTC; got a {type(base).__name__}.")
    return base


def usable_name(name: str) -> str:
    """`name`, or with lang_ in front where PyTorch cannot name a module so (`to`, `training`, `zh.Hant`)."""
    return name if name and "." not in name and not hasattr(nn.ModuleDict(), name) else f"lang_{name.replace('.', '_')}"


def check_adapter_name(name: str) -> None:
    """Refuses an adapter's name before anything of the model has changed.

    Raises:
        ValueError: for what PyTorch cannot name a module.
    """
    if usable_name(name) != name:
        raise ValueError(f"adapter_name: got {name!r}, which PyTorch cannot name a module. Allowed: any other without a dot, such as {usable_name(name)!r}.")


def _facts_of(model, claimed: Optional[str]) -> dict:
    """What an adapter of `model` says of its base.

    Args:
        claimed: the fingerprint that an adapter from a file names, None: of a new one. Transformers loads the base and then the
            adapter, and only then says where the base came from.
    """
    stored = model.master_asr.stored_fingerprint()
    if stored is None and claimed is not None and model.master_asr.base_fingerprint() == claimed:
        stored = claimed
    if stored is None:
        raise ValueError("The base was never saved, or has been trained or cast since. Save it first: model.save_pretrained(folder).")
    return {"num_specialists": model.config.num_specialists, "sparsity": model.config.sparsity, "fingerprint": stored}


class AssemblyAdapters(nn.Module, BaseTunerLayer):
    """The model's `assemblies`, with those that PEFT owns beside the base's own; reads like `Assemblies`."""

    adapter_layer_names = ("assembly_adapter",)
    other_param_names = ("language_of", "entry_of", "awaiting")

    def __init__(self, base_layer: Assemblies, config, encoder: nn.Module, parent: nn.Module, hook):
        super().__init__()
        self.base_layer = base_layer
        self._of_encoder, self._parent = (next(encoder.parameters()),), (parent,)  # in tuples: no parameter, no module of this one's
        self.hook = hook
        self.assembly_adapter = nn.ModuleDict()  # adapter name -> LanguageAssembly
        self.language_of: dict[str, str] = {}  # adapter name -> code; several adapters may be of one language
        self.entry_of: dict[str, dict] = {}  # adapter name -> its entry in `config.assemblies`
        self.awaiting: dict[str, tuple] = {}  # adapter name -> what undoes it, while the values of its file have not come
        self._config, self._base_default = config, config.default_language
        self._named: Optional[tuple] = None  # the default language that the user named beside these adapters, until one is chosen
        self._is_chosen_by_user = True
        self._active_adapter, self._disable_adapters, self.merged_adapters = [], False, []

    def adopt(self, adapter_name: str, language: str, inference_mode: bool) -> None:
        """Takes `language`, just added to the base's assemblies, over as an adapter."""
        assembly = self.base_layer[language]
        self.assembly_adapter[adapter_name] = assembly
        del self.base_layer[language]
        self.language_of[adapter_name], self.entry_of[adapter_name] = language, self._config.assemblies[language]
        self.set_adapter(self._active_adapter or [adapter_name], inference_mode=inference_mode)

    def await_values(self, adapter_name: str, trained: list[nn.Parameter]) -> None:
        """Says that an adapter was made for a file, whose values follow.

        Args:
            trained: the model's parameters that did before the adapter came.
        """
        assembly = self.assembly_adapter[adapter_name]
        hook = assembly.head.register_forward_pre_hook(partial(self._refuse_empty, adapter_name))
        self.awaiting[adapter_name] = [parameter.detach().clone() for parameter in assembly.parameters()], trained, hook

    def has_come(self, adapter_name: str) -> None:
        """Says that the values of a file are there, or about to be."""
        if adapter_name in self.awaiting:
            *_, hook = self.awaiting.pop(adapter_name)
            hook.remove()

    def with_values(self, language: str) -> LanguageAssembly:
        """As `Assemblies.with_values`; ValueError for an adapter that holds chance."""
        if (adapter := self._adapter_of(language)) is not None:
            self._refuse_empty(adapter)
        return self[language]

    def _refuse_empty(self, adapter_name: str, *_) -> None:
        """Nobody is read with a head that is chance: the file may have been missing or cut, which PEFT says once, where it is loaded.

        Raises:
            ValueError: for an adapter without values that nobody trains either.
        """
        if self.is_still_empty(adapter_name) and not any(parameter.requires_grad for parameter in self.assembly_adapter[adapter_name].parameters()):
            raise ValueError(
                f"The adapter {adapter_name!r} of {self.language_of[adapter_name]!r} was made for a file whose values never came: it would read by chance. Allowed: "
                f"values, or training. delete_adapter({adapter_name!r}) and load it again, from a folder that holds adapter_model.safetensors, whole."
            )

    def is_still_empty(self, adapter_name: str) -> bool:
        """Whether an adapter that was made for a file holds nothing yet: no values of a file, and no training either."""
        if adapter_name not in self.awaiting:
            return False
        pairs = zip(self.awaiting[adapter_name][0], self.assembly_adapter[adapter_name].parameters(), strict=True)
        return all(now.is_meta or (not first.is_meta and torch.equal(first.to(now), now)) for first, now in pairs)

    def step_out(self) -> Assemblies:
        """The base's own assemblies, the config as it was before the first adapter."""
        self.hook.remove()
        for language in self.language_of.values():
            self._config.assemblies.pop(language, None)
        self._config.default_language = self._base_default if self._base_default in self._config.assemblies else None  # removed meanwhile
        return self.base_layer

    def check_files(self, model, files: list, state: Optional[dict]) -> None:
        """Looks at what Transformers' own `load_adapter` is about to load, as PEFT has it looked at; other methods' adapters are not ours to judge.

        Raises:
            ValueError: see `_check_values`; the model is then as it was.
        """
        adapter_name = list(model.peft_config)[-1]  # the one that was just added: Transformers loads into no other
        if adapter_name not in self.awaiting:
            return
        try:
            state = dict(state or {})
            for file in files or []:
                state |= load_state_dict(file)
        except BaseException:
            _withdraw(model, adapter_name)
            raise
        AssemblyModel._remap_adapter_state_dict_for_load(model, model.peft_config[adapter_name], adapter_name, state)

    def set_base_default(self, language: Optional[str]) -> None:
        """The default language that is there without adapters, and beside them until one is chosen: what the user named while there were some."""
        self._base_default = language
        if not self.disable_adapters:
            self._named = (language,)

    # ------------------------------------------------------------------ as PEFT sees it

    def set_adapter(self, adapter_names, inference_mode: bool = False) -> None:
        """Makes one adapter's language the one of calls that name none.

        Raises:
            ValueError: for several adapters.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise ValueError(f"A call has one default language; got the adapters {names}. Pass language=[...] for a mixed batch.")
        super().set_adapter(names, inference_mode=inference_mode)
        if self._is_chosen_by_user:
            self._named = None
        self._follow()

    @contextmanager
    def default_kept(self):
        """PEFT sets the active adapter once more whenever it adds or deletes one, or switches them on: no choice of the user's."""
        before, self._is_chosen_by_user = self._is_chosen_by_user, False
        try:
            yield
        finally:
            self._is_chosen_by_user = before

    def enable_adapters(self, enabled: bool) -> None:
        with self.default_kept():
            super().enable_adapters(enabled)
        self._follow()

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name not in self.language_of:  # of another method beside it: Transformers asks every layer
            return
        language = self.language_of[adapter_name]
        with self.default_kept():
            super().delete_adapter(adapter_name)
        if self._adapter_of(language) is None:
            del self._config.assemblies[language]
            self._forget(language)
        self._follow()
        if not self.language_of:
            self._parent[0].assemblies = self.step_out()

    def unload_and_optionally_merge_module(self, **_) -> AssemblyAdapters:
        """Called by the tuner of another method beside it, such as LoRA's, that leaves or merges: a language stays. `AssemblyModel` has its own way."""
        return self

    def _forget(self, language: str) -> None:
        """A language that is gone is nobody's default, nor once another of its code comes."""
        self._base_default = None if self._base_default == language else self._base_default
        self._named = None if self._named == (language,) else self._named

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Optional[torch.device] = None) -> None:
        """Called by PEFT, which loads values to a GPU if it sees one: a language lies where its encoder does, in float32."""
        assembly = self.assembly_adapter[adapter_name] if adapter_name in self.assembly_adapter else nn.Module()
        device = self._of_encoder[0].device if device is None else device
        if torch.device(device).type != "meta" and not any(parameter.is_meta for parameter in assembly.parameters()):  # an offloaded encoder is on meta
            assembly.to(device)

    def _follow(self) -> None:
        """The config says what the active adapter says: its language by default, and its alphabet and parts."""
        for language in set(self.language_of.values()):
            self._config.assemblies[language] = self.entry_of[self._adapter_of(language)]
        active = [name for name in self.active_adapters if name in self.language_of]
        if not active or self.disable_adapters:
            self._config.default_language = self._base_default
        else:
            self._config.default_language = self.language_of[active[0]] if self._named is None else self._named[0]

    # ------------------------------------------------------------------ as the model sees it

    def _adapter_of(self, language: object) -> Optional[str]:
        """The adapter that serves `language`: the active one, else the first."""
        names = [name for name, code in self.language_of.items() if code == language]
        return next((name for name in names if name in self.active_adapters), names[0] if names else None)

    def __getitem__(self, language: str) -> LanguageAssembly:
        adapter = self._adapter_of(language)
        return self.base_layer[language] if adapter is None else self.assembly_adapter[adapter]

    def __setitem__(self, language: str, assembly: nn.Module) -> None:
        self.base_layer[language] = assembly

    def __delitem__(self, language: str) -> None:
        if self._adapter_of(language) is not None:
            raise ValueError(f"{language!r} is a PEFT adapter: remove it with delete_adapter({self._adapter_of(language)!r}).")
        del self.base_layer[language]
        self._forget(language)

    def __contains__(self, language: object) -> bool:
        return self._adapter_of(language) is not None or language in self.base_layer

    def __iter__(self):
        return iter(dict.fromkeys([*self.base_layer, *self.language_of.values()]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def keys(self) -> list[str]:
        return list(self)

    def values(self) -> list[LanguageAssembly]:
        return [self[language] for language in self]

    def items(self) -> list[tuple[str, LanguageAssembly]]:
        return [(language, self[language]) for language in self]


# A context variable, as the assembled language is one: threads that share a model each name their own adapters.
_NAMED: ContextVar = ContextVar("master_asr_named_adapters", default=None)


def _in_named_languages(module: nn.Module, args: tuple, kwargs: dict) -> Optional[tuple[tuple, dict]]:
    """A forward pre-hook: `adapter_names=[...]` of the call around it becomes its `language`."""
    if _NAMED.get() is None:
        return None
    return args, {**{name: value for name, value in kwargs.items() if name != "adapter_names"}, "language": _NAMED.get()}


def _withdraw(model, adapter_name: str) -> None:
    """The model as it was before an adapter whose values are refused.

    Args:
        model: the `PeftModel`, or the model itself where the adapter is Transformers' own.
    """
    base = _base_of(model)
    layer = base.assemblies
    trained = layer.awaiting[adapter_name][1]
    if isinstance(model, PeftModel):
        model.delete_adapter(adapter_name)
    else:
        layer.delete_adapter(adapter_name)
        base.peft_config.pop(adapter_name, None)
    if not getattr(base, "peft_config", True):
        del base.peft_config
        base._hf_peft_config_loaded = False
    base.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def _check_values(model, adapter_name: str, state: dict[str, torch.Tensor]) -> None:
    """Refuses what is not the values of one adapter, all of them, finite.

    Args:
        state: as it would be loaded, by the model's names.

    Raises:
        ValueError: for names of anything else, tensors that lack, other shapes, and values that are no finite numbers.
    """
    language = _base_of(model).assemblies.language_of[adapter_name]
    own = f".assembly_adapter.{adapter_name}."
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if own in name}
    found = {name: tuple(value.shape) for name, value in state.items()}
    source = f"What is to be loaded as the adapter {adapter_name!r} of {language!r}"
    again = "Nothing has changed. Download or save the adapter again: peft_model.save_pretrained(folder)."
    if differing := differences(found, wanted):
        raise ValueError(f"{source} is not what its adapter_config.json asks for on this model, {differing}. Allowed: the language's own tensors, all of them. {again}")
    if broken := misfits(state):
        raise ValueError(
            f"{source} holds values that are NaN, infinite or of no type that belongs there in {broken[:3]}, {len(broken)} tensors in all. Allowed: finite "
            f"floating-point numbers. {again}"
        )


class AssemblyModel(BaseTuner):
    """Adds languages as adapters; everything else of the model stays frozen."""

    prefix = "assembly_"
    tuner_layer_cls = AssemblyAdapters
    target_module_mapping = {"master_asr": ["assemblies"]}

    def _add_language(self, peft_config, model) -> None:
        own = _facts_of(model, peft_config.fingerprint)
        if peft_config.fingerprint is not None:
            found = {name: getattr(peft_config, name) for name in own}
            check_base({**found, "base": peft_config.base_model_name_or_path}, model.master_asr, f"The adapter of {peft_config.language!r}")
        language, init, entries = peft_config.language, peft_config.init, model.config.assemblies
        if peft_config.fingerprint is not None and init not in entries:
            init = "random"  # an adapter from a file: its values follow
        sentences = spell_sentences(peft_config.sentences or [], language, peft_config.vocab, raw=peft_config.fingerprint is None)  # a file's are spelled
        text = check_text("\n".join(sentences), language, peft_config.vocab)  # refused before anything has changed
        served = isinstance(model.assemblies, AssemblyAdapters) and model.assemblies._adapter_of(language) is not None
        before = dict(entries)
        if served:
            del entries[language]
        try:
            own_parts = {"parts": peft_config.parts, "rank": peft_config.rank, "targets": peft_config.targets}
            model.add_language(language, peft_config.vocab, init=init, **own_parts)
            model.config.set_text(language, text)
        except Exception:
            entries.clear()
            entries.update(before)  # in their order
            raise
        peft_config.sentences = sentences or None  # those that are kept, and no others, lie in its file
        for name, value in own.items():
            setattr(peft_config, name, value)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key=None, **kwargs) -> None:
        model = _base_of(self.model)
        check_adapter_name(adapter_name)
        is_of_file, trained = peft_config.fingerprint is not None, [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._add_language(peft_config, model)
        if not isinstance(target, AssemblyAdapters):
            hook = model.register_forward_pre_hook(_in_named_languages, with_kwargs=True)
            target = AssemblyAdapters(target, model.config, model.master_asr.backbone, parent, hook)
            setattr(parent, target_name, target)
        target.adopt(adapter_name, peft_config.language, inference_mode=peft_config.inference_mode)
        if is_of_file:
            target.await_values(adapter_name, trained)

    def inject_adapter(self, model, *args, **kwargs) -> None:
        layer = _base_of(model).assemblies
        with layer.default_kept() if isinstance(layer, AssemblyAdapters) else nullcontext():
            super().inject_adapter(model, *args, **kwargs)

    def _check_new_adapter_config(self, config) -> None:
        """Called by PEFT before it changes anything: targets can be written into a config that was made."""
        check_targets(config)
        super()._check_new_adapter_config(config)

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name: str, state_dict: dict) -> dict:
        """Called by PEFT between reading a file and loading it, not strictly, into the whole model: where a stranger's values are looked at.

        Raises:
            ValueError: see `_check_values`; the model is then as it was, without an adapter that was made for this file.
        """
        renamed = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        layer = _base_of(model).assemblies
        try:
            _check_values(model, adapter_name, renamed)
        except ValueError:
            if layer.is_still_empty(adapter_name):
                _withdraw(model, adapter_name)
            raise
        layer.has_come(adapter_name)
        return renamed

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """A file does not say under which name its adapter was trained: PEFT looks for it at a key's end, ours are deeper."""
        return key.replace(f".assembly_adapter.{adapter_name}.", ".assembly_adapter.", 1)

    def _replace_module(self, parent, child_name, new_module, child) -> None:
        if isinstance(child, AssemblyAdapters):  # else another method's, which stays
            setattr(parent, child_name, child.step_out())

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "An assembly is one language's way of reading weights that all languages share, so it has no weights to merge into "
            "them. peft_model.get_base_model().materialize(language) gives a plain model of one language with its weights baked "
            "in; unload() gives the base without its adapters."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        """`adapter_names=[...]`, one for each clip ("__base__": the base's default), becomes the call's `language`."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        layer = next(m for m in self.model.modules() if isinstance(m, AssemblyAdapters))
        unknown = sorted(set(names) - set(layer.language_of) - {"__base__"})
        if unknown:
            raise ValueError(f"No adapters {unknown}. Loaded: {list(layer.language_of)}.")
        if "__base__" in names and layer._base_default is None:
            raise ValueError('"__base__" names no language: model.set_language(...) before get_peft_model, or pass language=[...].')
        languages = [layer.language_of.get(name, layer._base_default) for name in names]
        hidden = sorted({name for name in names if name != "__base__" and layer._adapter_of(layer.language_of[name]) != name})
        if hidden:
            raise ValueError(f"The adapters {hidden} are of a language that another adapter serves: set_adapter(...) tells which one does.")
        token = _NAMED.set(languages)
        try:
            yield
        finally:
            _NAMED.reset(token)


for kept in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
    kept.pop(PeftType.ASSEMBLY, None)  # of an earlier import, which a notebook has reloaded
register_peft_method(name="assembly", config_cls=AssemblyConfig, model_cls=AssemblyModel)


@torch.no_grad()
def peft_from_assembly(model, id_or_path: str, language: Optional[str] = None, adapter_name: Optional[str] = None, **hub_kwargs) -> PeftModel:
    """A native assembly (folder or hub id) as a PEFT adapter of `model`, bit for bit.

    The other way is the model's own method: `peft_model.get_base_model().save_assembly(language, folder)`.

    Args:
        model: a `MasterASRForCTC`, or a `PeftModel` of one, which then gets one adapter more.
        language: which one, where the repo holds several.
        adapter_name: None: "default" for the first adapter, as in PEFT, and the language's code for further ones, with lang_ in front
            where PyTorch has the code for itself (`to`, `pop`).

    Raises:
        OSError, ValueError: as `load_assembly`; the model is then as it was.
    """
    language, facts, path = fetch_assembly(id_or_path, language, **hub_kwargs)
    base = _base_of(model)
    source = f"{id_or_path} ({language})"
    check_base(facts, base.master_asr, source)
    config = AssemblyConfig(
        language=language, vocab=facts["vocab"], parts=facts["parts"], rank=facts["rank"], targets=facts.get("targets", "attention"),
        sentences=facts.get("text", "").splitlines(), num_specialists=facts["num_specialists"], sparsity=facts["sparsity"], fingerprint=facts["fingerprint"],
    )  # fmt: skip
    if isinstance(model, PeftModel):
        adapter_name = adapter_name or usable_name(language)
        model.add_adapter(adapter_name, config)
    else:
        adapter_name = adapter_name or "default"
        model = get_peft_model(model, config, adapter_name=adapter_name)
    try:
        assembly = base.assemblies.assembly_adapter[adapter_name]  # another of the same language may be the one that serves it
        wanted = {name: tuple(value.shape) for name, value in assembly.state_dict().items()}
        assembly.load_state_dict(read_tensors(path, wanted, facts, source))
        base.assemblies.has_come(adapter_name)
    except BaseException:  # nobody shall be read with what was not loaded
        _withdraw(model, adapter_name)
        raise
    return model
