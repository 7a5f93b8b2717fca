"""What was selected and assembled before, and the one rule by which it is used again.

1. Nothing is kept that is made of a tensor whose gradient is being asked for.
2. Everything is dropped by what may write: `train()` or `eval()` that changes the mode, `_apply` (`to`, `half`, ...),
   `load_state_dict`, and a step of any torch optimizer that holds a gradient of something it is made of.
3. What is kept carries a `Stamp` of its sources and is used only while that holds, so a write through `.data` is seen too where it
   meets one of the values that a stamp looks at: one that moves a twentieth of a tensor is, one that moves a few values may not be.
   Whoever writes so calls `model.train()` and `model.eval()` after it.

A version counter alone proves nothing: fused optimizers and `.data` writes leave it as it was.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Optional

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .artisan_master_asr import pack_mask, unpack_mask

SAMPLE = 67  # values of each tensor that a stamp looks at, or so: a hundredth of a forward of one second of audio (benchmarks/masks.py, rule)
# In evaluation so many languages keep dense assembled weights whatever their size, and more as long as all of them fit into so many
# bytes (of a store: `dense_bytes`); the others keep packed masks, and a request in one of those first makes its weights again.
DENSE_LANGUAGES, DENSE_BYTES = 2, 512 << 20
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # values are compared as bits: NaN equals itself


class Stamp:
    """How tensors were: their places, versions, types and a strided sample of their values.

    Args:
        tensors: its views of them keep their memory alive, so that no other tensor can come to lie in the same place.
        whole: the one of them of which every value is looked at.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], whole: Optional[torch.Tensor] = None):
        tensors = list(tensors)
        self._marks = _marks(tensors)
        groups: dict[tuple, list] = defaultdict(list)
        for tensor in tensors:
            groups[tensor.device, tensor.dtype].append(_sample(tensor, 1 if tensor is whole or tensor.is_inference() else _step(tensor)))
        self._samples = list(groups.values())
        self._values = None if any(tensor.is_meta for tensor in tensors) else self._read()

    def holds(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether `tensors` are the stamp's own, in its order, and as they were; never for tensors without values (meta)."""
        return self._values is not None and self._marks == _marks(tensors) and self._values == self._read()

    def _read(self) -> list[bytes]:
        return [_joined(group).tobytes() for group in self._samples]


def _marks(tensors: Iterable[torch.Tensor]) -> list[tuple]:
    """Where each tensor lies, how (a transposed square is told by the last mark), in which type and version."""
    return [(t.data_ptr(), t.shape, t.dtype, -1 if t.is_inference() else t._version, t.is_contiguous()) for t in tensors]


def _step(tensor: torch.Tensor) -> int:
    """From one value to the next. In a matrix: whole rows and the golden section of one, so that no run of rows or of columns is left out."""
    width = tensor.shape[-1] if tensor.dim() > 1 else 1
    rows = tensor.numel() // max(width, 1)
    return max(rows // SAMPLE * width + int(0.618 * width), 1)


def _sample(tensor: torch.Tensor, step: int):
    """Every `step`-th value, as bits, in the tensor's own memory; all of them where they do not lie in a row."""
    bits = tensor.detach().view(BITS[tensor.element_size()])
    bits = bits.view(-1)[::step] if tensor.is_contiguous() else bits
    return bits.numpy() if bits.device.type == "cpu" else bits


def _joined(samples: list) -> np.ndarray:
    """All values; on a CPU by NumPy, which joins many short views in a third of torch's time."""
    if isinstance(samples[0], np.ndarray):
        return np.concatenate(samples, axis=None)
    return torch.cat([sample.reshape(-1) for sample in samples]).cpu().numpy()


def gradient_is_asked_for(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether autograd records what is made of `tensors` now."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class MaskStore:
    """What a model keeps by the rule above: packed masks, products W * B in training, dense weights in evaluation.

    A mask is a function of its layer's specialists, the gate bits and the language's own specialist. Languages with the same
    gates share it, so a layer keeps at most 2^K of them, and never more than there are languages.

    Args:
        dense_bytes: of dense weights, in which as many languages are kept as fit, and two in any case; may be set at any time.
    """

    def __init__(self, dense_bytes: int = DENSE_BYTES):
        self.dense_bytes = dense_bytes
        self._lock = threading.Lock()
        self.forget()
        with _LOCK:
            _STORES.add(self)

    def __reduce__(self):
        return MaskStore, (self.dense_bytes,)  # a copy, or a pickle, starts with nothing kept

    def forget(self) -> None:
        """Drops everything."""
        with self._lock:
            self._masks: dict[int, OrderedDict] = defaultdict(OrderedDict)  # layer -> {(sparsity, gates, language): (stamp, packed)}
            self._products: dict[int, tuple] = {}  # layer -> ((sparsity, gates), stamp, W * B)
            self._dense: OrderedDict[tuple, tuple] = OrderedDict()  # (language, sparsity, inference mode) -> (stamp, {(module, name): tensor}, bytes when whole)
            self._sources: set[int] = set()

    def forget_language(self, language: str) -> None:
        """Drops what is one language's alone: the others go on with what they have."""
        with self._lock:
            for key in [key for key in self._dense if key[0] == language]:
                del self._dense[key]
            for of_layer in self._masks.values():
                for key in [key for key in of_layer if key[-1] == language]:
                    del of_layer[key]

    def forget_made_of(self, ids: set[int]) -> None:
        """Drops everything if one of the tensors with these `id`s is part of it."""
        if not self._sources.isdisjoint(ids):
            self.forget()

    def mask(self, layer: int, key: tuple, sources: list[torch.Tensor], shape: torch.Size, num_languages: int, select) -> torch.Tensor:
        """B of a layer, boolean `shape`: kept from before, or `select()`.

        Args:
            key: what else B depends on: t, the gate bits, and the language where it has a specialist of its own.
            sources: all tensors that B is made of.
            num_languages: of the model, and so how many masks of this layer are worth keeping.
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
            while len(of_layer) > max(num_languages, 1):
                of_layer.popitem(last=False)
            self._sources.update(map(id, sources))
        return mask

    def product(self, layer: int, key: tuple, sources: list[torch.Tensor], multiply) -> torch.Tensor:
        """W * B of a layer whose W and M stand still: the last one, or `multiply()`.

        Args:
            key: t and the gate bits.
        """
        if gradient_is_asked_for(sources):
            return multiply()
        key = *key, torch.is_inference_mode_enabled()  # what is made there has no part in a backward
        with self._lock:
            kept = self._products.get(layer)
        if kept is not None and kept[0] == key and kept[1].holds(sources):
            return kept[2]
        stamp, product = Stamp(sources), multiply()
        with self._lock:
            self._products[layer] = key, stamp, product
            self._sources.update(map(id, sources))
        return product

    def dense(self, language: str, sparsity: float, mapping: torch.Tensor, sources: list[torch.Tensor], num_bytes: Callable[[], int]) -> dict:
        """In evaluation: the dict in which a language's assembled parameters are kept, filled by whoever makes them.

        Args:
            sparsity: t, which masks depend on and no tensor holds.
            mapping: its T, looked at whole: one entry that crosses zero is another mask.
            sources: all tensors that the parameters are made of, T too.
            num_bytes: of all of them, which count from the start: of many that are filled at once none is small.
        """
        key = language, sparsity, torch.is_inference_mode_enabled()  # tensors made in inference mode serve there alone
        with self._lock:
            kept = self._dense.get(key)
            if kept is not None:
                self._dense.move_to_end(key)
        if kept is not None and kept[0].holds(sources):
            return kept[1]
        kept = Stamp(sources, whole=mapping), {}, num_bytes()
        with self._lock:
            self._dense[key] = kept
            self._dense.move_to_end(key)
            while len(self._dense) > DENSE_LANGUAGES and sum(size for *_, size in self._dense.values()) > self.dense_bytes:
                self._dense.popitem(last=False)
            self._sources.update(map(id, sources))
        return kept[1]


_STORES: weakref.WeakSet[MaskStore] = weakref.WeakSet()
_LOCK = threading.Lock()  # of _STORES: a model may be built in one thread while another makes a step


def _after_a_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    """What had a gradient when any optimizer of this process made a step has moved."""
    with _LOCK:
        stores = list(_STORES)
    if stores := [store for store in stores if store._sources]:
        moved = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        for store in stores:
            store.forget_made_of(moved)


register_optimizer_step_post_hook(_after_a_step)
