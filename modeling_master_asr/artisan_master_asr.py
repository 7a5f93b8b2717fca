"""The equations of Master-ASR (arXiv 2306.15686): scores -> mask -> assembled weight, straight-through.

Plain tensors and numbers: nothing here knows a config, a language or an encoder family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Optional

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import initialization as init

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor
else:  # some builds for small machines: nothing is sharded there
    DTensor = ()

# The first masks follow |W|; the noise is what lets specialists, and so languages, diverge. 1.0 was far worse: RESULTS.md.
SPECIALIST_SCALE = 0.5
SPECIALIST_NOISE = 0.3
SAMPLE = 16_384  # scores looked at to bracket a mask's threshold


def open_gates(mapping_row: torch.Tensor) -> tuple[bool, ...]:
    """Which specialists a row of T selects: 1[sigmoid(T_k) > 0.5], the indicator of eq. 1, as T_k > 0.

    Args:
        mapping_row: `[K]`.
    """
    return open_gates_of_layers(mapping_row[None])[0]


def open_gates_of_layers(mapping: torch.Tensor) -> list[tuple[bool, ...]]:
    """`open_gates` of every layer's row, `[layers, K]`: one wait for the device, not one a layer."""
    rows = mapping.detach().float().cpu()
    gates = (rows > 0).tolist()
    for row, of_layer in enumerate(gates):
        if not any(of_layer):
            # CHOICE: a row that selects nothing has no scores and so no mask; its largest entry stands in.
            of_layer[int(rows[row].argmax())] = True
    return [tuple(of_layer) for of_layer in gates]


def specialist_scores(
    specialists: torch.Tensor, gates: tuple[bool, ...], low_rank: Optional[tuple[torch.Tensor, torch.Tensor]] = None
) -> torch.Tensor:
    """S_l = sum_k gate_k M_k (eq. 1), plus u_l v_l where the language has a specialist of its own.

    Args:
        specialists: M, `[K, out, in]`.
        gates: K booleans.
        low_rank: `(u [out, r], v [r, in])`.

    Returns:
        `[out, in]`, float32: masks are selected in float32 whatever the weights are stored in.
    """
    active = [specialists[k].float() for k, is_open in enumerate(gates) if is_open]
    scores = active[0].clone() if len(active) == 1 else active[0] + active[1]
    for specialist in active[2:]:
        scores += specialist
    if low_rank is not None:
        with torch.autocast(scores.device.type, enabled=False):  # which would add in half precision, and select other masks
            scores = torch.addmm(scores, low_rank[0].float(), low_rank[1].float())
    return scores


def select_mask(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """B = 1[S > r] (eq. 2), with exactly `floor(sparsity * numel)` entries masked out.

    DEVIATION: eq. 2 read strictly masks one entry more; so t = 0 is the dense layer.
    CHOICE: among equal scores at the threshold the entries that come last in memory order are masked out.

    Args:
        scores: S, any shape.
        sparsity: t, the fraction masked out, 0 <= t < 1.

    Returns:
        Boolean mask of S's shape, True where the weight is kept.

    Raises:
        ValueError: if the scores hold NaN, which have no order.
    """
    flat = scores.detach().float().reshape(-1)
    num_masked = math.floor(sparsity * flat.numel())
    if num_masked == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    find = _kept_by_numpy if flat.device.type == "cpu" else _kept_by_torch
    mask, num_kept, threshold, equals = find(flat, num_masked)
    surplus = num_kept - (flat.numel() - num_masked)
    if surplus != equals:  # NaN is never kept
        raise ValueError(
            f"Specialist Scores hold NaN ({int(flat.isnan().sum())} of {flat.numel()} entries), so no mask can be "
            "selected. Reload the last good checkpoint and lower the learning rate."
        )
    if surplus > 0:
        mask[(flat == threshold).nonzero()[-surplus:, 0]] = False
    return mask.view(scores.shape)


def _kept_by_numpy(flat: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, int, torch.Tensor, int]:
    """`(S >= threshold, how many, threshold, how many of its equals have a lower rank)` on a CPU: NumPy selects, compares and counts
    fastest, see benchmarks/masks.py."""
    values = flat.numpy()
    threshold, equals = _kth_smallest(values, num_masked)
    kept = values >= threshold
    return torch.from_numpy(kept), int(np.count_nonzero(kept)), torch.tensor(threshold), equals


def _kth_smallest(values: np.ndarray, rank: int) -> tuple[np.float32, int]:
    """`np.sort(values)[rank]`, and how many equal ones lie before it there: a sample brackets it, and only what lies in between is put in order."""
    sample = values[:: max(values.size // SAMPLE, 1)]
    share = rank / values.size
    spread = 4 * math.sqrt(share * (1 - share) * sample.size) + 1  # ranks: 4 standard deviations
    ends = [max(int(share * sample.size - spread), 0), min(int(share * sample.size + spread), sample.size - 1)]
    low, high = np.partition(sample, ends)[ends]
    between = values.take(np.flatnonzero((values >= low) & (values <= high)))
    rank_between = rank - np.count_nonzero(values < low)
    if not 0 <= rank_between < between.size:  # the sample misled, as with NaN or periodic scores
        between, rank_between = values, rank
    found = np.partition(between, rank_between)[rank_between]
    return found, int(rank_between - np.count_nonzero(between < found))


def _kept_by_torch(flat: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, int, torch.Tensor, int]:
    """The same on any device, without leaving it. A GPU sorts in a tenth of the time of `kthvalue`, whose one block reads alone."""
    threshold = flat.sort().values[num_masked]
    kept = flat >= threshold
    num_kept, lower = torch.stack((kept.sum(), (flat < threshold).sum())).tolist()  # one wait for the device
    return kept, num_kept, threshold, num_masked - lower


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """A boolean mask at 1 bit a weight, on its device: uint8 of `ceil(numel / 8)`, the first weight in the highest bit."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.detach().numpy()))
    return _pack_by_torch(mask)


def unpack_mask(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `pack_mask`: a boolean mask of `shape`."""
    if packed.device.type == "cpu":
        bits = np.unpackbits(packed.numpy(), count=math.prod(shape))
        return torch.from_numpy(bits).view(torch.bool).view(shape)
    return _unpack_by_torch(packed, shape)


def _pack_by_torch(mask: torch.Tensor) -> torch.Tensor:
    bits = nn.functional.pad(mask.detach().reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def _unpack_by_torch(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    bits = (packed[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)) & 1  # (bytes) -> (bytes, 8)
    return bits.view(-1)[: math.prod(shape)].to(torch.bool).view(shape)


class _StraightThrough(torch.autograd.Function):
    """W_l = W * B(S_l) (eq. 3). The indicators' gradients are taken straight through:

    dW = dW_l * B;  dS = dW_l * W;  dM_k = gate_k dS;  dT_k = <dS, M_k> sigmoid'(T_k);  du = dS v';  dv = u' dS.
    """

    @staticmethod
    def forward(ctx, weight, specialists, mapping_row, u, v, mask, gates):
        ctx.save_for_backward(weight, specialists, mapping_row, u, v, mask)
        ctx.gates = gates
        return weight * mask

    @staticmethod
    def backward(ctx, grad_assembled):
        weight, specialists, mapping_row, u, v, mask = ctx.saved_tensors
        need_weight, need_specialists, need_mapping, need_u, need_v = ctx.needs_input_grad[:5]
        grad_weight = grad_assembled * mask if need_weight else None
        grad_specialists = grad_mapping = grad_u = grad_v = None
        if need_specialists or need_mapping or need_u or need_v:
            grad_scores = grad_assembled * weight
        if need_specialists:
            # Only the rows of selected specialists are computed; no [K, out, in] product is ever made.
            grad_specialists = torch.empty_like(specialists)
            for k, is_open in enumerate(ctx.gates):
                grad_specialists[k].copy_(grad_scores) if is_open else grad_specialists[k].zero_()
        if need_mapping:
            grad_mapping = _mapping_gradient(grad_scores, specialists, mapping_row)
        if need_u:
            grad_u = (grad_scores.to(v.dtype) @ v.T).to(u.dtype)
        if need_v:
            grad_v = (u.T @ grad_scores.to(u.dtype)).to(v.dtype)
        return grad_weight, grad_specialists, grad_mapping, grad_u, grad_v, None, None


class _StraightThroughMapping(torch.autograd.Function):
    """The same where W and M stand still, W * B is made already and T alone may train."""

    @staticmethod
    def forward(ctx, mapping_row, masked_weight, weight, specialists):
        ctx.save_for_backward(weight, specialists, mapping_row)
        return masked_weight.detach()

    @staticmethod
    def backward(ctx, grad_assembled):
        weight, specialists, mapping_row = ctx.saved_tensors
        return _mapping_gradient(grad_assembled * weight, specialists, mapping_row), None, None, None


def _mapping_gradient(grad_scores, specialists, mapping_row) -> torch.Tensor:
    """dT_k = <dS, M_k> sigmoid'(T_k), `[K]`."""
    inner = torch.mv(specialists.flatten(1), grad_scores.to(specialists.dtype).flatten())  # (K, out*in) -> (K)
    gate = torch.sigmoid(mapping_row)
    return inner.to(mapping_row.dtype) * gate * (1 - gate)


def mask_weight(weight, specialists, mapping_row, mask, gates, low_rank=None) -> torch.Tensor:
    """W * B(S_l), differentiable in everything it is made of.

    Args:
        weight: W, `[out, in]`.
        specialists: M, `[K, out, in]`.
        mapping_row: the language's row of T for this layer, `[K]`.
        mask: B, boolean `[out, in]`, already selected for `gates` (and `low_rank`).
        gates: which specialists the row selects.
        low_rank: the language's own specialist `(u [out, r], v [r, in])`, or None.

    Raises:
        TypeError: if `mask` is not boolean: a float there would be a wrong gradient of W.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be the boolean B that select_mask returns; got {mask.dtype}. For W * B itself: mask_frozen_weight.")
    u, v = low_rank if low_rank is not None else (None, None)
    return _StraightThrough.apply(weight, specialists, mapping_row, u, v, mask, gates)


def mask_frozen_weight(masked_weight, weight, specialists, mapping_row) -> torch.Tensor:
    """`masked_weight`, W * B made before, differentiable in `mapping_row` alone.

    Raises:
        ValueError: if W or M asks for a gradient, which it would not get.
    """
    if torch.is_grad_enabled() and (weight.requires_grad or specialists.requires_grad):
        raise ValueError("W or M asks for a gradient here and would get none: use mask_weight with the boolean mask.")
    return _StraightThroughMapping.apply(mapping_row, masked_weight, weight, specialists)


# A context variable, not an attribute: every thread, and every recomputation, sees the language of its own call.
_ASSEMBLED: ContextVar = ContextVar("master_asr_assembled", default=None)
_graph_task_id = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # -1 outside of a backward pass; torch has no public name for it
_RECOMPUTED: ContextVar = ContextVar("master_asr_recomputed", default=False)  # whether `checkpoint_contexts` says what is read now


def is_compiled_here() -> bool:
    """Whether this thread compiles: `torch.compiler.is_compiling` is true in all threads while one of them does."""
    if torch.compiler.is_dynamo_compiling():  # in what is traced
        return True
    return torch.compiler.is_compiling() and torch._guards.CompileContext.try_get() is not None  # in what Python runs meanwhile, looking at the module


_IN_THEIR_PLACES = False  # whether the graph that is traced now has a language's weights in their layers' own places


@contextmanager
def weights_in_their_places() -> Iterator[None]:
    """Around `functional_call` with a language's weights in a forward that is compiled, where context variables are not seen."""
    global _IN_THEIR_PLACES
    _IN_THEIR_PLACES = True
    try:
        yield
    finally:
        _IN_THEIR_PLACES = False


def _current():
    """The language of this call; None where the weights lie in their layers' own places.

    Raises:
        RuntimeError: while a part of the model is compiled by itself, which would read the same W for every language. Such a part
            then runs as it is, unless it was to be one whole graph.
    """
    if not is_compiled_here():
        return _ASSEMBLED.get()
    if not _IN_THEIR_PLACES:
        raise RuntimeError("A layer compiled by itself cannot hear which language is spoken. Compile the whole model: torch.compile(model).")
    return None


@contextmanager
def assembled_as(assembled) -> Iterator[None]:
    """Inside, the parameters of assembled layers read as the language's.

    Args:
        assembled: a `weights_master_asr.AssembledWeights`; None: the plain W.
    """
    token = _ASSEMBLED.set(assembled)
    try:
        yield
    finally:
        _ASSEMBLED.reset(token)


def checkpoint_contexts():
    """`context_fn` for `torch.utils.checkpoint`: the recomputation runs in the language of the forward it repeats."""
    current = _ASSEMBLED.get()
    return assembled_as(current), _recomputed_as(None if current is None else current.with_nothing_made())


@contextmanager
def _recomputed_as(assembled) -> Iterator[None]:
    token = _RECOMPUTED.set(True)
    try:
        with assembled_as(assembled):
            yield
    finally:
        _RECOMPUTED.reset(token)


def _assembled_parameter(name: str) -> property:
    """A parameter that reads as the language's own during an assembled forward: at the attribute, because some attention
    layers (WavLM) read `q_proj.weight` and never call the layer.

    Raises:
        RuntimeError: on reading, where a layer is computed again during backward and nobody says in which language.
    """

    def read(module: nn.Module) -> Optional[torch.Tensor]:
        assembled = _current()
        if assembled is not None:
            return assembled.parameter(module, name)
        # a recomputation runs with gradients on; hooks, which may look at weights, with gradients off
        if not is_compiled_here() and _graph_task_id() != -1 and torch.is_grad_enabled() and not _RECOMPUTED.get():
            raise RuntimeError(
                "A layer is computed again during backward, and nobody says in which language: its gradients would be those of the plain W. "
                "Activation checkpointing, of the encoder alone too, is switched on by the model itself: model.activation_checkpointing_enable()."
            )
        try:
            return module._parameters[name]
        except KeyError as error:  # nn.Module asks `hasattr` before it registers a parameter
            raise AttributeError(name) from error

    return property(read)


class _Assembled:
    """A layer whose weight and bias keep their names, so a vanilla checkpoint loads, and read as the language's meanwhile."""

    weight = _assembled_parameter("weight")
    bias = _assembled_parameter("bias")
    _names = ("weight", "bias", "specialists")

    def register_parameter(self, name: str, param: Optional[nn.Parameter]) -> None:
        if name not in self._names:  # prune's weight_orig, weight_norm's weight_g
            self._refuse_computed()
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        if name in self._names:  # torch's parametrizations begin with this
            self._refuse_computed()
        super().__delattr__(name)

    def _refuse_computed(self) -> None:
        raise NotImplementedError(
            f"The parameters of {type(self).__name__} cannot be computed from others (torch.nn.utils.prune, parametrize, weight_norm): every "
            "language makes its own weight of them. Take one language out first: model.materialize(language), and prune that plain model."
        )


class AssembledLinear(_Assembled, nn.Linear):
    """An `nn.Linear` that reads as W_l and b_l during an assembled forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in)` -> `(..., out)`: x W_l' + b_l; in training with a delta x (W * B)' + (x down') up' + b_l, the same for less work."""
        assembled = _current()
        factors = assembled.factors(self) if assembled is not None else None
        if factors is None:
            return super().forward(x)
        weight, up, down = factors
        rows = x.flatten(0, -2)  # (B, T, in) -> (B * T, in): the second product is then added in place
        out = nn.functional.linear(rows, weight, self.bias)
        out.addmm_(nn.functional.linear(rows, down.to(weight.dtype)).to(out.dtype), up.to(out.dtype).T)
        return out.unflatten(0, x.shape[:-1])


class AssembledLayerNorm(_Assembled, nn.LayerNorm):
    """An `nn.LayerNorm` whose weight and bias read as the language's during an assembled forward."""


def as_assembled(module: nn.Module) -> nn.Module:
    """The same layer, sharing its parameters, as `AssembledLinear` or `AssembledLayerNorm`."""
    if isinstance(module, nn.Linear):
        made = AssembledLinear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    else:
        made = AssembledLayerNorm(module.normalized_shape, eps=module.eps, bias=module.bias is not None, device="meta")
    made.weight, made.bias = module.weight, module.bias
    made._is_hf_initialized = getattr(module, "_is_hf_initialized", False)  # else Transformers would draw its values again
    return made.train(module.training)


class ArtisanLinear(AssembledLinear):
    """A linear layer with K Specialist Scores `specialists` `[K, out, in]` beside its weight W."""

    def __init__(self, in_features: int, out_features: int, num_specialists: int, bias: bool = True, **factory):
        super().__init__(in_features, out_features, bias=bias, **factory)
        self.specialists = nn.Parameter(torch.empty(num_specialists, out_features, in_features, **factory))
        self.reset_specialists()

    @classmethod
    def from_linear(cls, linear: nn.Linear, num_specialists: int) -> ArtisanLinear:
        """The same layer, sharing `linear`'s parameters, with specialists."""
        layer = cls(
            linear.in_features, linear.out_features, num_specialists, bias=linear.bias is not None,
            device=linear.weight.device, dtype=linear.weight.dtype,
        )  # fmt: skip
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.reset_specialists()
        return layer

    def register_parameter(self, name: str, param: Optional[nn.Parameter]) -> None:
        if is_traceable_wrapper_subclass(param) and not isinstance(param, DTensor):
            raise NotImplementedError(
                f"{name} of an ArtisanLinear cannot be of type {type(param).__name__}: every language masks its weight, and the specialists beside it "
                "are larger than what quantization saves. Quantize one language: quantize_(model.materialize(language), ...); or leave these "
                'layers out: filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and not hasattr(module, "specialists").'
            )
        super().register_parameter(name, param)

    has_specialists = False  # whether M has been given its values

    @torch.no_grad()
    def reset_specialists(self, noise: float = SPECIALIST_NOISE) -> None:
        """M_k = 0.5 |W| (1 + noise n_k), n_k ~ N(0, 1). Keeps what a checkpoint has already given."""
        if self.specialists.device.type == "meta" or getattr(self.specialists, "_is_hf_initialized", False):
            return
        # CHOICE: the first masks drop the least important weights; random scores would wreck a pretrained encoder.
        normal = torch.empty_like(self.specialists, dtype=torch.float32).normal_()
        magnitude = self._parameters["weight"].detach().float().abs()
        init.copy_(self.specialists, (SPECIALIST_SCALE * magnitude * (1 + noise * normal)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_specialists={self.specialists.shape[0]}"
