"""Exports one language as an ONNX file, checked against PyTorch: no PyTorch, no custom code where it is served.

    python -m training.export_onnx --model ./runs/stage1/model --language fr --out fr.onnx

One clip of any length goes in, Whisper's up to 30 s: `(1, samples)`, or the features of the model's own processor. For another
exporter, `model.materialize(language)` is a plain module that `torch.export` takes as it is. Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

import numpy as np
import torch
from torch import nn

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.backbone_master_asr import family_of
from modeling_master_asr.files_master_asr import replace_file
from training.loop.launch import run
from training.loop.models import model_argument

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit
EXAMPLE_S, OTHER_S = 1.0, 1.7  # exported at the first length, checked at the second


class _Logits(nn.Module):
    """A plain CTC model as a function of one tensor."""

    def __init__(self, plain):
        super().__init__()
        self.plain = plain

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.plain(inputs).logits


def example_of(plain, length_s: float) -> torch.Tensor:
    """Noise as the model's input for one clip, `(1, ...)`."""
    shape = family_of(plain.config).input_shape(plain.config, length_s)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def export(model: MasterASRForCTC, language: str, path: Path) -> float:
    """Writes `path` and returns the largest difference from PyTorch, relative to the largest logit.

    Raises:
        KeyError: if the language is not loaded.
        ImportError: without the extra `onnx`.
        RuntimeError: if the exported model answers otherwise than PyTorch; what was at `path` stays then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('Exporting needs onnx, onnxscript and onnxruntime: pip install -e ".[onnx]" in a clone of the project.') from error

    plain = model.materialize(language)
    plain.set_attn_implementation("eager")
    wrapped = _Logits(plain).eval()
    example = example_of(plain, EXAMPLE_S)
    time_axis = {example.ndim + family_of(plain.config).time_axis: torch.export.Dim.DYNAMIC}
    differences = []

    def write(part: Path) -> None:
        torch.onnx.export(
            wrapped, (example,), str(part), input_names=["inputs"], output_names=["logits"], dynamo=True,
            dynamic_shapes={"inputs": time_axis}, external_data=False, verbose=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        other = example_of(plain, OTHER_S)
        expected = wrapped(other).numpy()
        found = session.run(None, {"inputs": other.numpy()})[0]
        differences.append(float(np.abs(found - expected).max() / np.abs(expected).max()) if found.shape == expected.shape else float("inf"))
        if not differences[0] < TOLERANCE:
            raise RuntimeError(f"The ONNX model differs from PyTorch by {differences[0]:.2g} of the largest logit (allowed: {TOLERANCE}).")

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), write)
    return differences[0]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_argument, required=True, help="folder or hub id")
    parser.add_argument("--language", required=True)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    if args.out.is_dir():
        parser.error(f"--out {args.out} is a folder. Name a file, such as {args.out / f'{args.language}.onnx'}.")
    model = MasterASRForCTC.from_pretrained(args.model)
    if args.language not in model.languages:
        parser.error(f"--language: got {args.language!r}; allowed: one of {model.languages}.")
    difference = export(model, args.language, args.out)
    print(f"Wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MB); differs from PyTorch by {difference:.1g} of the largest logit.")


if __name__ == "__main__":
    run(main)
