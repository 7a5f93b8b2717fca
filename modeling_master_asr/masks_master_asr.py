"""What was selected and assembled before, and the one rule by which it is used again.

1. Nothing is kept that is made of a tensor whose gradient is being asked for.
2. Everything is dropped by what may write: `train()` or `eval()` that changes the mode, `_apply` (`to`, `half`, ...),
   `load_state_dict`, and a step of any torch optimizer that holds a gradient of something it is made of.
3. What is kept carries a `Stamp` of its sources and is used only while that holds, so a write through `.data` is seen too.

A version counter alone proves nothing: fused optimizers and `.data` writes leave it as it was.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Optional

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .artisan_master_asr import pack_mask, unpack_mask

SAMPLE = 64  # values of each tensor that a stamp looks at
DENSE_LANGUAGES = 2  # how many languages keep dense assembled weights in evaluation; the others keep packed masks
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # values are compared as bits: NaN equals itself


class Stamp:
    """How tensors were: their places, versions, types and a strided sample of their values.

    Args:
        tensors: its views of them keep their memory alive, so that no other tensor can come to lie in the same place.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]):
        tensors = list(tensors)
        self._marks = [_mark(tensor) for tensor in tensors]
        groups: dict[tuple, list[torch.Tensor]] = defaultdict(list)
        for tensor in tensors:
            groups[tensor.device, tensor.dtype].append(_sample(tensor))
        self._samples = list(groups.values())
        self._values = None if any(tensor.is_meta for tensor in tensors) else self._read()

    def holds(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether `tensors` are the stamp's own, in its order, and as they were; never for tensors without values (meta)."""
        if self._values is None or [_mark(tensor) for tensor in tensors] != self._marks:
            return False
        return all(torch.equal(then, now) for then, now in zip(self._values, self._read()))

    def _read(self) -> list[torch.Tensor]:
        return [torch.cat([sample.reshape(-1) for sample in group]) for group in self._samples]


def _mark(tensor: torch.Tensor) -> tuple:
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.shape, version


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Every n-th value, as bits, in the tensor's own memory; all of them where they do not lie in a row."""
    bits = tensor.detach().view(_BITS[tensor.element_size()])
    return bits.view(-1)[:: max(tensor.numel() // SAMPLE, 1)] if tensor.is_contiguous() else bits


def gradient_is_asked_for(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether autograd records what is made of `tensors` now."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class MaskStore:
    """What a model keeps by the rule above: packed masks, products W * B in training, dense weights in evaluation.

    A mask is a function of its layer's specialists, the gate bits and the language's own specialist. Languages with the same
    gates share it, so a layer keeps at most 2^K of them, and never more than there are languages.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.forget()
        _STORES.add(self)

    def __reduce__(self):
        return MaskStore, ()  # a copy, or a pickle, starts with nothing kept

    def forget(self) -> None:
        """Drops everything."""
        with self._lock:
            self._masks: dict[int, OrderedDict] = defaultdict(OrderedDict)  # layer -> {(gates, language): (stamp, packed)}
            self._products: dict[int, tuple] = {}  # layer -> (gates, stamp, W * B)
            self._dense: OrderedDict[str, tuple] = OrderedDict()  # language -> (gates, stamp, {(module, name): tensor})
            self._sources: set[int] = set()

    def forget_made_of(self, ids: set[int]) -> None:
        """Drops everything if one of the tensors with these `id`s is part of it."""
        if not self._sources.isdisjoint(ids):
            self.forget()

    def mask(self, layer: int, key: tuple, sources: list[torch.Tensor], shape: torch.Size, languages: int, select) -> torch.Tensor:
        """B of a layer, boolean `shape`: kept from before, or `select()`.

        Args:
            key: the gate bits, and the language where it has a specialist of its own.
            sources: all tensors that B is made of.
            languages: how many the model has, and so how many masks of this layer are worth keeping.
        """
        if gradient_is_asked_for(sources):
            with self._lock:
                self._masks.pop(layer, None)
            return select()
        with self._lock:
            kept = self._masks[layer].get(key)
        if kept is not None and kept[0].holds(sources):
            with self._lock:
                if key in self._masks[layer]:
                    self._masks[layer].move_to_end(key)
            return unpack_mask(kept[1], shape)
        stamp, mask = Stamp(sources), select()
        with self._lock:
            of_layer = self._masks[layer]
            of_layer[key] = stamp, pack_mask(mask)
            of_layer.move_to_end(key)
            while len(of_layer) > max(languages, 1):
                of_layer.popitem(last=False)
            self._sources.update(map(id, sources))
        return mask

    def product(self, layer: int, gates: tuple, sources: list[torch.Tensor], multiply) -> torch.Tensor:
        """W * B of a layer whose W and M stand still: the last one, or `multiply()`."""
        if gradient_is_asked_for(sources):
            return multiply()
        with self._lock:
            kept = self._products.get(layer)
        if kept is not None and kept[0] == gates and kept[1].holds(sources):
            return kept[2]
        stamp, product = Stamp(sources), multiply()
        with self._lock:
            self._products[layer] = gates, stamp, product
            self._sources.update(map(id, sources))
        return product

    def dense(self, language: str, gates: list[tuple], sources: list[torch.Tensor]) -> Optional[dict]:
        """In evaluation: the dict in which a language's assembled parameters are kept, filled by whoever makes them."""
        with self._lock:
            kept = self._dense.get(language)
        if kept is None or kept[0] != gates or not kept[1].holds(sources):
            kept = gates, Stamp(sources), {}
        with self._lock:
            self._dense[language] = kept
            self._dense.move_to_end(language)
            while len(self._dense) > DENSE_LANGUAGES:
                self._dense.popitem(last=False)
            self._sources.update(map(id, sources))
        return kept[2]


_STORES: weakref.WeakSet[MaskStore] = weakref.WeakSet()


def _after_a_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    """What had a gradient when any optimizer of this process made a step has moved."""
    stores = [store for store in list(_STORES) if store._sources]
    if stores:
        moved = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        for store in stores:
            store.forget_made_of(moved)


register_optimizer_step_post_hook(_after_a_step)
