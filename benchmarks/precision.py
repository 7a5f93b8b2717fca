"""What rounding costs: one trained language as it was trained, in half precision, and with its matrices in 8 bits.

    python -m benchmarks.precision --run runs/es --data data/manifest.jsonl --out benchmarks/results/precision.json

`--run` is the folder of a finished `training.adapt_language`, whose last checkpoint holds the language before it was rounded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from training.loop import checkpoints
from training.loop.data import Features, having, select
from training.loop.metrics import evaluate_clips
from training.loop.record import facts_of_run, write_json
from training.loop.sources import read_data


def load(run: Path) -> tuple[MasterASRForCTC, MasterASRProcessor, str]:
    """Model, processor and code of the language, as the run's last checkpoint has them."""
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    model, processor, language = MasterASRForCTC.from_pretrained(config["model"]), MasterASRProcessor.from_pretrained(config["model"]), config["language"]
    model.load_assembly(run / "assembly")
    processor.add_language(language, model.config.vocab(language))
    model.load_state_dict(torch.load(checkpoints.listed(run)[-1] / "model.pt", weights_only=True))
    return model, processor, language


@torch.no_grad()
def halve(model, language: str) -> None:
    for parameter in model.assemblies[language].parameters():
        parameter.copy_(parameter.half())


ROUNDINGS = {"float32": lambda model, language: None, "half precision": halve, "8 bits": lambda model, language: model.round_assembly(language)}


def measure(model, processor, language: str, clips) -> dict[str, dict]:
    """`{type: {"kilobytes", "validation", "test"}}`, each from the values as they were trained."""
    trained = {name: value.clone() for name, value in model.assemblies[language].state_dict().items()}
    features, result = Features(processor), {}
    for name, rounding in ROUNDINGS.items():
        model.assemblies[language].load_state_dict(trained)
        rounding(model, language)
        rates = {split: evaluate_clips(model, processor, features, select(clips, split, having(clips, split, [language])), greedy=True)["macro"]
                 for split in ("validation", "test")}  # fmt: skip
        result[name] = {"kilobytes": round(parameter_kilobytes(model.assemblies[language].content_of_file()), 1), **rates}
        print(name, result[name])
    return result


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    model, processor, language = load(args.run)
    clips, _ = read_data(args.data, args.run / "recordings")
    write_json(args.out, {**facts_of_run(), "types": measure(model, processor, language, clips)})


if __name__ == "__main__":
    main()
