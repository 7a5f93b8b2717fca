"""How values of an assembly lie in its file: each tensor in the smallest type that holds it exactly, 8 bits with scales, 16 or 32.

    training ends -> `rounded`: values that few bits hold -> what is tested -> `packed` -> the file -> `unpacked`: the same values

Nothing is lost between the test and the file, and no flag says how a file was written: its tensors' types do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

LARGEST = 127  # of 8 bits, the same on both sides of zero
EIGHT_BIT_PARTS = ("head.weight", "delta.", "specialist.")  # matrices; vectors, gates and biases are too few to matter
MAPPING, SMALLEST = "mapping", 2.0**-24  # the smallest number above zero of 16 bits
SCALES = ".scales"  # name of a tensor's scales, after its own


def rounded(name: str, value: torch.Tensor) -> torch.Tensor:
    """The values nearest to `value` that its file can hold in few bits; as they are where half precision overflows.

    Args:
        name: the tensor's in its assembly.
        value: of any shape; matrices `[rows, columns]` of `EIGHT_BIT_PARTS` are rounded to 8 bits, the rest to 16. Above zero T stays above it:
            there a gate is open (Eq. 1). Where none is, the largest of a row stays the only largest: it stands in.
    """
    if _is_for_eight_bits(name, value):
        return _times(*_steps_and_scales(value))
    half = value.half()
    if name == MAPPING:
        half = half.where((half > 0) == (value > 0), SMALLEST)
        largest = value.argmax(-1, keepdim=True)
        beside = (half == half.gather(-1, largest)).scatter(-1, largest, False) & (value <= 0).all(-1, keepdim=True)
        below = (half.view(torch.int16) + 1).view(torch.float16).where(half < 0, -SMALLEST)  # the next number down
        half = half.where(~beside, below)
    half = half.to(value.dtype)
    return half if bool(half.isfinite().all()) else value


def packed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a file holds of a state dict: the same values, exactly, in the smallest type each; 8 bits have `[shorter side]` scales beside."""
    content = {}
    for name, value in state.items():
        if _is_for_eight_bits(name, value):
            steps, scales = _steps_and_scales(value)
            if torch.equal(_times(steps, scales), value):
                content |= {name: steps.to(torch.int8), name + SCALES: scales}
                continue
        half = value.half() if value.dtype == torch.float32 else value
        content[name] = half if torch.equal(half.to(value.dtype), value) else value
    return content


def unpacked(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `packed`."""
    return {
        name: _times(value, content[name + SCALES]) if name + SCALES in content else value
        for name, value in content.items() if not name.endswith(SCALES)
    }  # fmt: skip


def shapes_in_file(shapes: dict[str, tuple[int, ...]], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`{name: shape}` of a file with these names, for tensors of `shapes`: those, and the scales that are among the names."""
    return shapes | {name + SCALES: (min(shape),) for name, shape in shapes.items() if name + SCALES in names and len(shape) == 2}


def misfits(content: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are no finite numbers, or 8 bits without scales, or scales without 8 bits."""
    wrong = [name for name, value in content.items() if value.is_floating_point() and not value.float().isfinite().all()]
    wrong += [name for name, value in content.items() if not value.is_floating_point() and not (value.dtype == torch.int8 and name + SCALES in content)]
    return wrong + [name for name in content if name.endswith(SCALES) and content[name.removesuffix(SCALES)].dtype != torch.int8]


def _is_for_eight_bits(name: str, value: torch.Tensor) -> bool:
    is_matrix = value.ndim == 2 and value.dtype == torch.float32 and name.startswith(EIGHT_BIT_PARTS)
    return is_matrix and bool(value.isfinite().all())


def _steps_and_scales(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers of -127 to 127, of `value`'s shape, and one scale for each index of its shorter side.

    A scale is a float32 of 16 bits of precision: 127 times it is exact, so it is found again from the values that were rounded with it.
    """
    axis = _longer(value)
    scales = value.abs().amax(dim=axis) / LARGEST
    scales = scales.view(torch.int32).bitwise_and(-256).view(torch.float32)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (value / scales.unsqueeze(axis)).round().clamp(-LARGEST, LARGEST), scales


def _times(steps: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return steps.float() * scales.unsqueeze(_longer(steps))


def _longer(value: torch.Tensor) -> int:
    return 0 if value.shape[0] > value.shape[1] else 1
