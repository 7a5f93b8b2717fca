"""One language's parameters during one forward: W * B, what the language adds to it, its own norms and biases."""

from __future__ import annotations

from functools import cached_property
from typing import Optional

import torch
from torch import nn

from .artisan_master_asr import (
    ArtisanLinear,
    AssembledLayerNorm,
    AssembledLinear,
    DTensor,
    mask_frozen_weight,
    mask_weight,
    open_gates_of_layers,
    select_mask,
    specialist_scores,
)
from .assembly_master_asr import OwnTensors
from .masks_master_asr import MaskStore, gradient_is_asked_for


class Layout:
    """The backbone's layers that read as a language's, in the order of `modules()`.

    Attributes:
        artisan: the `ArtisanLinear`s; row i of a mapping belongs to the i-th.
        linear: all assembled linear layers, Artisan or not.
        norms: the layer norms.
        row: a layer's place in `artisan`; place: in `linear` or `norms`.
    """

    def __init__(self, backbone: nn.Module):
        modules = list(backbone.modules())
        self.artisan = [m for m in modules if isinstance(m, ArtisanLinear)]
        self.linear = [m for m in modules if isinstance(m, AssembledLinear)]
        self.norms = [m for m in modules if isinstance(m, AssembledLayerNorm)]
        self.row = {layer: row for row, layer in enumerate(self.artisan)}
        self.place = {layer: place for layers in (self.linear, self.norms) for place, layer in enumerate(layers)}

    def specialists(self) -> list[torch.Tensor]:
        """M of every Artisan layer, as it is now."""
        return [layer._parameters["specialists"] for layer in self.artisan]

    def elsewhere(self) -> Optional[str]:
        """Where W and M lie if not in their layers: "shards" (FSDP2), or "offload" (accelerate's, between the calls); else None."""
        for specialists in self.specialists():
            if isinstance(specialists, DTensor):
                return "shards"
            if specialists.is_meta:
                return "offload"
        return None

    def sources(self, assembly, own: OwnTensors) -> list[torch.Tensor]:
        """All that the parameters of a language are made of: what it holds, and what hooks, pruning or parametrizations make of that for a call."""
        held = list(assembly.parameters())
        known = set(map(id, held))
        tensors = [*held, *(value for value in own.tensors() if id(value) not in known), *self.specialists()]
        only_masked = not {"norms", "scales"} & set(assembly.parts) and assembly.targets == "attention"
        layers = self.artisan if only_masked else [*self.linear, *self.norms]
        names = ("weight",) if only_masked else ("weight", "bias")
        return tensors + [p for layer in layers for name in names if (p := layer._parameters[name]) is not None]


class AssembledWeights:
    """The parameters of one language, each made when its layer first asks for it.

    A layer asks inside its own forward, so sharded or offloaded parameters are there by then and activation checkpointing
    recomputes the mask's product rather than keeping it.

    Args:
        layout: of the backbone.
        assembly: the `LanguageAssembly`.
        language: its code.
        sparsity: t.
        store: what was selected and assembled before; None where nothing may be kept: sharded weights are gathered into the same
            memory under the same version (nothing tells that they moved), and offloaded ones are to take no memory.
        num_languages: of the model.
        training: the backbone's mode: a delta is then applied as a product of its own beside W * B.
        own: what the assembly gave to this call before, which may be drawn anew each time (dropout by a hook); None: it is asked.
    """

    def __init__(
        self, layout: Layout, assembly, language: str, sparsity: float, store: Optional[MaskStore], num_languages: int, training: bool,
        own: Optional[OwnTensors] = None,
    ):  # fmt: skip
        self._layout, self._assembly, self._language, self._sparsity = layout, assembly, language, sparsity
        self._store, self._num_languages, self._training = store, num_languages, training
        self._parts, self._own = assembly.parts, assembly() if own is None else own
        self._made: dict[tuple[nn.Module, str], torch.Tensor] = {}
        if store is not None and not training:
            sources = layout.sources(assembly, self._own)
            if not gradient_is_asked_for(sources):
                self._made = store.dense(language, sparsity, self._own.mapping, sources, self._num_bytes)

    @cached_property
    def _gates(self) -> list[tuple[bool, ...]]:
        """Of every Artisan layer; not asked for where all that is read was made before."""
        return open_gates_of_layers(self._own.mapping)

    def with_nothing_made(self) -> AssembledWeights:
        """The same call of the language from the start: what a recomputation needs."""
        return AssembledWeights(self._layout, self._assembly, self._language, self._sparsity, self._store, self._num_languages, self._training, self._own)

    def parameter(self, module: nn.Module, name: str) -> Optional[torch.Tensor]:
        """What `module.weight` or `module.bias` is for this language."""
        plain = module._parameters[name]
        if plain is None or plain.is_meta or not self._is_own(module, name):  # meta: the layer is not called yet, accelerate asks
            return plain
        made = self._made.get((module, name))
        if made is None:
            if self._store is None:  # what other layers read is let go
                self._made = {key: value for key, value in self._made.items() if key[0] is module}
            made = self._made[module, name] = self._make(module, name, plain)
        return made

    def factors(self, layer: AssembledLinear) -> Optional[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """In training, `(W * B, up, down)` of a layer with a delta, which are cheaper applied one after the other; else None."""
        delta = self._delta(layer)
        if not self._training or delta is None:
            return None
        return self._scaled(layer, self._masked_weight(layer)), *delta

    def _is_own(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, ArtisanLinear) and name == "weight":
            return True
        parts = self._parts
        if name == "weight" and isinstance(module, AssembledLinear):
            return "scales" in parts or self._delta(module) is not None
        return "norms" in parts

    def _num_bytes(self) -> int:
        """Of all that is made for the language."""
        of_layers = ((layer, name) for layer in [*self._layout.linear, *self._layout.norms] for name in ("weight", "bias"))
        return sum(plain.nbytes for layer, name in of_layers if (plain := layer._parameters[name]) is not None and self._is_own(layer, name))

    def _make(self, module: nn.Module, name: str, plain: torch.Tensor) -> torch.Tensor:
        if isinstance(module, AssembledLayerNorm) or name == "bias":
            key = isinstance(module, AssembledLayerNorm), self._place(module), name
            return plain + self._own.norms[key].to(plain.dtype)
        weight = self._scaled(module, self._masked_weight(module))
        delta = self._delta(module)
        if delta is None:
            return weight
        up, down = delta
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, up.to(weight.dtype), down.to(weight.dtype))

    def _delta(self, layer: AssembledLinear) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        return self._own.delta_of(self._place(layer), self._layout.row.get(layer))

    def _place(self, layer: nn.Module) -> int:
        """A layer's place in the layout.

        Raises:
            NotImplementedError: for a copy of one, which no language knows.
        """
        if layer not in self._layout.place:
            raise NotImplementedError(
                f"The language {self._language!r} owns changes of the layer itself, and this {type(layer).__name__} is a copy, which would be read without them: PEFT's LNTuning "
                'trains copies of layer norms. Give the language norms of its own in their stead, parts=("mapping", "head", "norms"), or adapt its plain model: '
                "model.materialize(language)."
            )
        return self._layout.place[layer]

    def _scaled(self, layer: AssembledLinear, weight: torch.Tensor) -> torch.Tensor:
        """W_l's rows, each times 1 + its scale, `[out, in]`."""
        if "scales" not in self._parts:
            return weight
        return weight * (1 + self._own.scales[self._place(layer)]).to(weight.dtype)[:, None]

    def _masked_weight(self, layer: AssembledLinear) -> torch.Tensor:
        """W * B of an Artisan layer, W of another."""
        weight = layer._parameters["weight"]
        if not isinstance(layer, ArtisanLinear):
            return weight
        row, specialists, store = self._layout.row[layer], layer.specialists, self._store
        gates, own, mapping_row = self._gates[row], self._own.own_specialist(row), self._own.mapping[row]

        @torch.no_grad()
        def select() -> torch.Tensor:
            return select_mask(specialist_scores(specialists, gates, own), self._sparsity)

        def mask() -> torch.Tensor:
            key = self._sparsity, gates, (self._language if own is not None else None)
            return store.mask(row, key, [specialists, *(own or ())], specialists.shape[1:], self._num_languages, select)

        if store is None:
            return mask_weight(weight, specialists, mapping_row, select(), gates, own)
        if self._training and own is None and not gradient_is_asked_for((weight, specialists)):
            product = store.product(row, (self._sparsity, gates), [weight, specialists], lambda: weight.detach() * mask())
            return mask_frozen_weight(product, weight, specialists, mapping_row)
        return mask_weight(weight, specialists, mapping_row, mask(), gates, own)
