"""Cuts a trained model to a small file that can still be adapted: W in fp16, its feed-forward part and the specialists in 8-bit floats.

    python -m training.compact_checkpoint --model ./runs/stage1/model --out ./checkpoints/master-asr-whisper-base

A score only has to keep its order, so 8 bits serve; two thirds of W lie in the feed-forward layers, which bear them as well. Loaded again,
all is of the type asked for. Measure the loss with training.evaluate on both folders.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

import torch

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import ArtisanLinear
from training.loop.launch import run
from training.loop.models import model_argument, processor_of

LARGEST_ERROR = 0.04  # |W - W in 8 bits| / |W|, Frobenius; Whisper base's feed-forward layers have 0.03


@torch.no_grad()
def compact(model: MasterASRForCTC) -> None:
    """Casts the model in place: everything that languages share to fp16, specialists to float8_e5m2 (their range needs no scale), the weights of the linear layers
    that no language masks to float8_e4m3fn, where that loses at most `LARGEST_ERROR`.
    """
    own = deepcopy(model.assemblies.state_dict())  # in float32, as they were rounded to 8 bits and tested
    layout = model.half().master_asr.layout
    model.assemblies.float().load_state_dict(own)
    for layer in layout.artisan:
        layer.specialists = torch.nn.Parameter(layer.specialists.to(torch.float8_e5m2), requires_grad=False)
    for layer in layout.linear:
        if not isinstance(layer, ArtisanLinear):
            whole, cut = layer.weight.float(), layer.weight.to(torch.float8_e4m3fn)
            if (whole - cut.float()).norm() <= LARGEST_ERROR * whole.norm():  # false as well where a value is beyond its range: NaN
                layer.weight = torch.nn.Parameter(cut, requires_grad=False)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_argument, required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--base_model", help="hub id to name as the backbone's origin, e.g. openai/whisper-base")
    args = parser.parse_args(argv)
    if Path(args.model).exists() and args.out.resolve() == Path(args.model).resolve():
        parser.error(f"--out {args.out} is --model itself: its weights would be replaced by a lossy copy. Name another folder.")
    if args.out.is_file():
        parser.error(f"--out {args.out} is a file. Name a folder.")
    if (args.out / "config.json").exists():
        parser.error(f"--out {args.out} holds a model, which would be replaced. Name another folder, or remove it.")
    model = MasterASRForCTC.from_pretrained(args.model)
    processor = processor_of(model, args.model)
    compact(model)
    if args.base_model:
        model.config.base_model = model.config.backbone_config._name_or_path = args.base_model
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out) as part:  # a full disk leaves nothing that looks like a model
        model.save_pretrained(part)
        model.config.dtype = "float32"  # what `dtype="auto"`, a pipeline's default, loads it as: it is tested so, and four times as slow in fp16 on a CPU
        model.config.save_pretrained(part)
        processor.save_pretrained(part)
        for file in sorted(Path(part).iterdir(), key=lambda file: file.name == "config.json"):  # that one last, by which a model is known
            file.replace(args.out / file.name)
    size = (args.out / "model.safetensors").stat().st_size / 1e6
    print(f"Wrote {args.out}, {size:.1f} MB. Next: python -m training.evaluate --model {shlex.quote(str(args.out))} --data data/manifest.jsonl --out result.json")


if __name__ == "__main__":
    run(main)
