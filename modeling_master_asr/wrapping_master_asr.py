"""What others (PEFT) may put around our modules. What would be silently wrong later is refused when it is tried.

PEFT keeps the layer it adapts as `base_layer` of a wrapper, a module that is trained as a whole as `original_module`, and the
whole model as `model`; PyTorch tells of every module that becomes part of another.

Why a hook of the whole process: a layer is not told that another module takes it in, and PEFT asks it nothing before it merges or
copies; anything nearer would be a patch of PEFT's classes. The hook looks at these three names and at nothing else.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from .artisan_master_asr import ArtisanLinear, AssembledLayerNorm, AssembledLinear, assembled_as
from .assembly_master_asr import BankHead, LanguageAssembly

INSTEAD = (
    "A low-rank change that one language owns, and that is merged when its weight is assembled, is a part of ours: "
    'parts=("mapping", "head", "delta"). Or take model.materialize(language) first and adapt that plain model.'
)
REWRITES_W = ("pissa_init", "corda_init", "olora_init", "loftq_init", "lora_ga_init")  # first values that PEFT takes out of W


def _refuse_merge(*args, **kwargs) -> None:
    raise NotImplementedError(
        "An adapter on Artisan layers cannot be merged: every language masks W, and (W + BA) * B is not W * B + BA. "
        f"Leave it unmerged: forward, training, saving and loading are right. {INSTEAD}"
    )


def _check_merge_allowed(tuner: nn.Module) -> None:
    """Before the first layer is merged: a refusal half way would leave half of the adapter in the base."""
    configs = [module.config for module in tuner.model.modules() if hasattr(getattr(module, "config", None), "assemblies")]
    entries = configs[0].assemblies.items() if configs else ()
    wrappers = [module for module in tuner.model.modules() if isinstance(getattr(module, "get_base_layer", lambda: None)(), AssembledLinear)]
    if any(isinstance(wrapper.get_base_layer(), ArtisanLinear) for wrapper in wrappers):
        _refuse_merge()
    scaled = [code for code, entry in entries if "scales" in entry["parts"]]
    if wrappers and scaled:
        raise NotImplementedError(
            f"The languages {scaled} scale the rows of these layers, and s * (W + BA) is not s * W + BA. Leave the adapter unmerged, "
            f"or remove these languages first. {INSTEAD}"
        )
    reading_other = {
        "weight": [code for code, entry in entries if "delta" in entry["parts"] and entry["targets"] == "all"],
        "bias": [code for code, entry in entries if "norms" in entry["parts"]],
    } if configs else dict.fromkeys(("weight", "bias"), "of the model around this encoder")  # which it does not know  # fmt: skip
    for kind, codes in reading_other.items():
        found = [name for wrapper in wrappers for name in wrapper._get_available_adapters() if not _adds(wrapper, name, kind)] if codes else []
        if found:
            raise NotImplementedError(
                f"{tuner.peft_config[found[0]].peft_type.value} changes a {kind} by what it is, and the languages {codes} read another one than is merged into: they "
                "would be read with another change than now. Leave the adapter unmerged: forward, training, saving and loading are right; or first delete it, where another is "
                f"to be merged, delete_adapter({found[0]!r}), or these languages, model.remove_language(language). {INSTEAD}"
            )
    type(tuner)._check_merge_allowed(tuner)


@torch.no_grad()
def _adds(wrapper: nn.Module, adapter: str, kind: str) -> bool:
    """Whether an adapter changes a layer's answers by the same, whatever its weight or bias (`kind`) is: what is merged then serves every language.

    Tried on random input, since PEFT says it of no method and has new ones in every release.
    """
    probe = deepcopy(wrapper).eval()  # no dropout; and what is off or merged is as it would be merged
    probe._active_adapter, probe._disable_adapters, probe.merged_adapters = [adapter], False, []
    if not probe.get_base_layer()._parameters["weight"].is_meta:  # offloaded: its hook moves them
        probe = probe.float()  # half precision would round small changes away
    weight = probe.get_base_layer()._parameters["weight"]
    inputs = torch.randn(4, probe.get_base_layer().in_features, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device=None if weight.is_meta else weight.device, dtype=weight.dtype)

    def another(module: nn.Module, name: str):
        plain = module._parameters[name]
        return plain if plain is None or name != kind else 2 * plain.flip(0) + 1  # of another norm, direction and order

    changes, largest = [], 0.0
    for read in (lambda module, name: module._parameters[name], another):
        with assembled_as(SimpleNamespace(parameter=read, factors=lambda layer: None)):
            without, answers = probe.base_layer(inputs), probe(inputs)
        if not answers.isfinite().all():  # of no use to anybody, merged or not
            return True
        changes.append(answers - without)
        largest = max(largest, float(answers.abs().max()), float(without.abs().max()))
    rounding = max(1e-5, 8 * torch.finfo(weight.dtype).eps)
    return float((changes[1] - changes[0]).abs().max()) <= rounding * largest


def _refuse_rewrite(*args, **kwargs) -> None:
    raise NotImplementedError(
        "This init_lora_weights takes a part out of W, which every language masks: the adapter would not put it back. "
        f"Use init_lora_weights=True. {INSTEAD}"
    )


def _check_variant(resolve, wrapper: nn.Module, **kwargs):
    if kwargs.get("use_dora") or getattr(kwargs.get("config"), "use_dora", False):
        raise NotImplementedError(
            "DoRA takes its magnitudes from the plain W, and every language reads another weight here: before any training it would change what "
            f"each of them hears. Use LoRA: use_dora=False. {INSTEAD}"
        )
    return resolve(wrapper, **kwargs)


def _refuse_copy(module: nn.Module) -> None:
    what = {
        AssembledLinear: "What languages own of this layer (masks, deltas, scales) belongs to the layer itself, not to a copy. "
        "Adapt it with target_modules, or train it in place: requires_grad_ on its weight.",
        BankHead: 'A head that shares the character bank has no weights of its own. Train the bank: modules_to_save=["character_bank"]; '
        'or one language\'s own head: modules_to_save=["lang_es.head"].',
        LanguageAssembly: "A language is an adapter already: get_peft_model(model, AssemblyConfig(language=..., vocab=...)), "
        "or model.freeze_except(language) and model.save_assembly(...).",
    }
    for kind, words in what.items():
        if isinstance(module, kind):
            raise ValueError(f"modules_to_save cannot copy a {type(module).__name__}. {words}")


def _refuse_loss(layer: nn.Module, instead) -> None:
    if isinstance(instead, type(layer)) and instead is not layer:
        raise NotImplementedError(
            f"A copy in the place of an {type(layer).__name__} would be no language's: what languages own belongs to the layer itself. Give it the copy's "
            "values: layer.load_state_dict(copy.state_dict()). PEFT's LNTuning merges by copies: leave it unmerged, or give one language norms of its own: "
            'parts=("mapping", "head", "norms").'
        )
    if isinstance(instead, nn.Module) and not any(module is layer for module in instead.modules()):
        raise NotImplementedError(
            f"A {type(instead).__name__} in place of an {type(layer).__name__} would read one dense weight for every language. Quantize or replace "
            "the layers of one language's plain model: model.materialize(language)."
        )


def may_wrap(wrapper: nn.Module, name: str, module) -> None:
    """Called before `module` becomes `wrapper.name`, for every module of the process.

    Raises:
        ValueError, NotImplementedError: for what would train nothing, be ignored, or read one weight for every language.
    """
    # a model of this code: a remote copy of it in the same process has a hook of its own, and knows no layers but its own
    if name == "model" and hasattr(type(wrapper), "_check_merge_allowed") and any(isinstance(layer, AssembledLinear) for layer in module.modules()):
        wrapper._check_merge_allowed = partial(_check_merge_allowed, wrapper)
    elif name == "original_module":
        _refuse_copy(module)
    elif isinstance(wrapper._modules.get(name), (AssembledLinear, AssembledLayerNorm)):
        _refuse_loss(wrapper._modules[name], module)
    elif name == "base_layer" and getattr(module, "is_never_called", False):
        raise ValueError(
            "WavLM's attention reads the weights of q_proj, k_proj, v_proj and out_proj and never calls these layers: an adapter "
            'on them would be silently ignored. Name others, e.g. target_modules=["intermediate_dense", "output_dense"], or '
            f'exclude_modules=["q_proj", "k_proj", "v_proj", "out_proj"] with "all-linear". {INSTEAD}'
        )
    elif name == "base_layer" and isinstance(module, AssembledLinear) and type(wrapper).__module__.startswith("peft.tuners.frod."):
        raise NotImplementedError(f"FRoD puts a weight of its own in the place of W, and every language would read the same. Use LoRA. {INSTEAD}")
    elif name == "base_layer" and isinstance(module, AssembledLinear):
        if hasattr(type(wrapper), "resolve_lora_variant"):
            wrapper.resolve_lora_variant = partial(_check_variant, type(wrapper).resolve_lora_variant, wrapper)
        if not isinstance(module, ArtisanLinear):
            return
        for name in ("merge", *REWRITES_W):
            if hasattr(type(wrapper), name):
                setattr(wrapper, name, _refuse_merge if name == "merge" else _refuse_rewrite)
