"""The equations of Master-ASR (arXiv 2306.15686): scores -> mask -> assembled weight, straight-through.

Plain tensors and numbers: nothing here knows a config, a language or an encoder family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Optional

import numpy as np
import torch
from torch import nn
from transformers import initialization as init

# The first masks follow |W|; the noise is what lets specialists, and so languages, come apart. 1.0 was far worse: RESULTS.md.
SPECIALIST_SCALE = 0.5
SPECIALIST_NOISE = 0.3
SAMPLE = 16_384  # scores looked at to bracket a mask's threshold


def open_gates(mapping_row: torch.Tensor) -> tuple[bool, ...]:
    """Which specialists a row of T selects: 1[sigmoid(T_k) > 0.5], the indicator of eq. 1, as T_k > 0.

    Args:
        mapping_row: `[K]`.
    """
    row = mapping_row.detach().float().cpu()
    gates = (row > 0).tolist()
    if not any(gates):
        # CHOICE: a row that selects nothing has no scores and so no mask; its largest entry stands in.
        gates[int(row.argmax())] = True
    return tuple(gates)


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
    mask, num_kept, threshold = find(flat, num_masked)
    surplus = num_kept - (flat.numel() - num_masked)
    if surplus < 0:
        raise ValueError(
            f"Specialist Scores hold NaN ({int(flat.isnan().sum())} of {flat.numel()} entries), so no mask can be "
            "selected. Reload the last good checkpoint and lower the learning rate."
        )
    if surplus > 0:
        mask[(flat == threshold).nonzero()[-surplus:, 0]] = False
    return mask.view(scores.shape)


def _kept_by_numpy(flat: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, int, torch.Tensor]:
    """`(S >= threshold, how many, threshold)` on a CPU: NumPy selects, compares and counts fastest, see benchmarks/heart.py."""
    values = flat.numpy()
    threshold = _of_rank(values, num_masked)
    kept = values >= threshold
    return torch.from_numpy(kept), int(np.count_nonzero(kept)), torch.tensor(threshold)


def _of_rank(values: np.ndarray, rank: int) -> np.float32:
    """`np.sort(values)[rank]`: a sample brackets it, and only what lies in between is put in order."""
    sample = values[:: max(values.size // SAMPLE, 1)]
    share = rank / values.size
    spread = 4 * math.sqrt(share * (1 - share) * sample.size) + 1  # ranks: 4 standard deviations
    ends = [max(int(share * sample.size - spread), 0), min(int(share * sample.size + spread), sample.size - 1)]
    low, high = np.partition(sample, ends)[ends]
    between = values.take(np.flatnonzero((values >= low) & (values <= high)))
    rank_between = rank - np.count_nonzero(values < low)
    if 0 <= rank_between < between.size:
        return np.partition(between, rank_between)[rank_between]
    return np.partition(values, rank)[rank]  # the sample misled, as with NaN or periodic scores


def _kept_by_torch(flat: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, int, torch.Tensor]:
    """The same on any device, without leaving it."""
    threshold = flat.kthvalue(num_masked + 1).values
    kept = flat >= threshold
    return kept, int(kept.sum()), threshold


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


def versions(tensors) -> tuple:
    """What changes when a tensor does: its version counter (and place, for tensors made under inference mode)."""
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


class MaskStore:
    """Masks already selected, bit-packed, so that one is selected again only when what it depends on has moved.

    A mask is a function of the layer's specialists, the gate bits and the language's own specialist: languages with the
    same gates share it, so a layer keeps at most 2^K of them however many languages there are. While W stands still too
    (stage 2), the layer's last product W * B is kept beside them.
    """

    def __init__(self):
        self._kept: dict[tuple, tuple] = {}
        self._products: dict[int, tuple] = {}

    def clear(self) -> None:
        self._kept.clear()
        self._products.clear()

    def let_products_go(self) -> None:
        self._products.clear()

    def product(self, layer_index: int, weight, specialists, gates, sparsity: float) -> torch.Tensor:
        """W * B of a frozen layer for row `gates`, without a gradient."""
        stamp = gates, versions((weight, specialists))
        kept = self._products.get(layer_index)
        if kept is None or kept[0] != stamp:
            product = weight.detach() * self.mask(layer_index, specialists, gates, sparsity)
            self._products[layer_index] = kept = (stamp, product)
        return kept[1]

    def mask(self, layer_index: int, specialists, gates, sparsity: float, own=None, owner: str = "") -> torch.Tensor:
        """B, boolean `[out, in]`, for row `gates`; `own` `(u, v)` is the specialist of language `owner`, if it has one."""
        key = (layer_index, gates, owner if own is not None else None)
        stamp = versions((specialists, *(own or ())))
        kept = self._kept.get(key)
        if kept is not None and kept[0] == stamp:
            return unpack_mask(kept[1], specialists.shape[1:])
        with torch.no_grad():
            mask = select_mask(specialist_scores(specialists, gates, own), sparsity)
        self._kept[key] = (stamp, pack_mask(mask))
        return mask


class _StraightThrough(torch.autograd.Function):
    """W_l = W * B(S_l) (eq. 3). The indicators' gradients are taken straight through:

    dW = dW_l * B;  dS = dW_l * W;  dM_k = gate_k dS;  dT_k = <dS, M_k> sigmoid'(T_k);  du = dS v';  dv = u' dS.
    """

    @staticmethod
    def forward(ctx, weight, specialists, mapping_row, u, v, mask, gates):
        ctx.save_for_backward(weight, specialists, mapping_row, u, v, mask)
        ctx.gates = gates
        # a frozen W comes with its product made; only the gradient of W asks for the mask
        return weight * mask if mask.dtype == torch.bool else mask.detach()

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
            inner = torch.mv(specialists.flatten(1), grad_scores.to(specialists.dtype).flatten())  # (K, out*in) -> (K)
            gate = torch.sigmoid(mapping_row)
            grad_mapping = inner.to(mapping_row.dtype) * gate * (1 - gate)
        if need_u:
            grad_u = (grad_scores.to(v.dtype) @ v.T).to(u.dtype)
        if need_v:
            grad_v = (u.T @ grad_scores.to(u.dtype)).to(v.dtype)
        return grad_weight, grad_specialists, grad_mapping, grad_u, grad_v, None, None


def assemble_weight(weight, specialists, mapping_row, mask, gates, low_rank=None, delta=None) -> torch.Tensor:
    """W_l = W * B(S_l) (+ up_l down_l), differentiable in everything it is made of.

    Args:
        weight: W, `[out, in]`.
        specialists: M, `[K, out, in]`.
        mapping_row: the language's row of T for this layer, `[K]`.
        mask: B, boolean `[out, in]`, already selected for `gates` (and `low_rank`); or, if W needs no gradient, W * B itself.
        gates: which specialists the row selects.
        low_rank: the language's own specialist `(u [out, r], v [r, in])`, or None.
        delta: the language's own weight change `(up [out, r], down [r, in])`, or None.
    """
    u, v = low_rank if low_rank is not None else (None, None)
    assembled = _StraightThrough.apply(weight, specialists, mapping_row, u, v, mask, gates)
    if delta is not None:
        up, down = delta
        with torch.autocast(weight.device.type, enabled=False):
            assembled = torch.addmm(assembled, up.to(weight.dtype), down.to(weight.dtype))
    return assembled


class Assembled:
    """The weights of one language during one forward, each made when its layer first asks for it.

    A layer asks inside its own forward, so sharded parameters (FSDP) are whole by then and activation checkpointing
    recomputes the mask's product rather than keeping it.

    Args:
        weight_of: W_l of a layer.
        apart_of: in training, `(W * B, up, down)` of a layer whose language has a delta, else None.
    """

    def __init__(self, weight_of: Callable[[ArtisanLinear], torch.Tensor], apart_of: Optional[Callable] = None):
        self._weight_of, self._apart_of = weight_of, apart_of
        self._made: dict[ArtisanLinear, torch.Tensor] = {}

    def weight(self, layer: ArtisanLinear) -> torch.Tensor:
        if layer not in self._made:
            self._made[layer] = self._weight_of(layer)
        return self._made[layer]

    def apart(self, layer: ArtisanLinear) -> Optional[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """`(W * B, up, down)` where the two terms of W_l are better applied one by one, else None."""
        return self._apart_of(layer) if self._apart_of is not None else None

    def afresh(self) -> Assembled:
        """The same language with nothing made yet: what a recomputation has to start from."""
        return Assembled(self._weight_of, self._apart_of)


# A context variable, not an attribute: every thread, and every recomputation, sees the language of its own call.
_ASSEMBLED: ContextVar[Optional[Assembled]] = ContextVar("master_asr_assembled", default=None)


@contextmanager
def assembled_as(assembled: Optional[Assembled]) -> Iterator[None]:
    """Inside, every `ArtisanLinear.weight` reads as the assembled W_l of `assembled` (None: the plain W)."""
    token = _ASSEMBLED.set(assembled)
    try:
        yield
    finally:
        _ASSEMBLED.reset(token)


def checkpoint_contexts():
    """`context_fn` for `torch.utils.checkpoint`: the recomputation runs in the language of the forward it repeats."""
    current = _ASSEMBLED.get()
    return assembled_as(current), assembled_as(current.afresh() if current is not None else None)


class ArtisanLinear(nn.Linear):
    """An `nn.Linear` with K Specialist Scores `specialists` `[K, out, in]` beside its weight.

    `weight` is W, under its own name, so a vanilla checkpoint loads by name. During an assembled forward it reads as W_l:
    at the attribute, because some attention layers (WavLM) read `q_proj.weight` and never call the layer.
    """

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

    @property
    def weight(self) -> torch.Tensor:
        assembled = _ASSEMBLED.get()
        if assembled is not None:
            return assembled.weight(self)
        try:
            return self._parameters["weight"]
        except KeyError as error:  # nn.Module asks `hasattr` before it registers a parameter
            raise AttributeError("weight") from error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in)` -> `(..., out)`: x W_l', and in training with a delta x (W * B)' + (x down') up', the same for less work."""
        assembled = _ASSEMBLED.get()
        apart = assembled.apart(self) if assembled is not None else None
        if apart is None:
            return super().forward(x)
        masked, up, down = apart
        rows = x.flatten(0, -2)  # (B, T, in) -> (B * T, in): the second product is then added in place
        out = nn.functional.linear(rows, masked, self.bias)
        out.addmm_(nn.functional.linear(rows, down.to(masked.dtype)).to(out.dtype), up.to(out.dtype).T)
        return out.unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def reset_specialists(self, generator: Optional[torch.Generator] = None, noise: float = SPECIALIST_NOISE) -> None:
        """M_k = 0.5 |W| (1 + noise n_k), n_k ~ N(0, 1). Keeps what a checkpoint has already given."""
        if self.specialists.device.type == "meta" or getattr(self.specialists, "_is_hf_initialized", False):
            return
        # CHOICE: the first masks drop the least important weights; random scores would wreck a pretrained encoder.
        normal = torch.empty_like(self.specialists, dtype=torch.float32).normal_(generator=generator)
        magnitude = self._parameters["weight"].detach().float().abs()
        init.copy_(self.specialists, (SPECIALIST_SCALE * magnitude * (1 + noise * normal)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_specialists={self.specialists.shape[0]}"
