"""Preset best taught by a model of which all weights trained on the same minutes: beside CTC it learns that model's letters, frame by frame.

    python -m benchmarks.full_first ... --out runs/ff0
    python -m benchmarks.distilled --teacher runs/ff0/full/checkpoint-00000600/model.pt (as training.adapt_language)
"""

from __future__ import annotations

import types
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from training.adapt_language import AdaptConfig, add_language, announce, load, trained
from training.loop.config import Positive, as_record, parse
from training.loop.data import Features, drop_impossible, minutes_of
from training.loop.record import facts_of_run, write_json
from training.loop.steps import keep_text, load_splits, measured, opened, tested


@dataclass(frozen=True, kw_only=True)
class DistilledConfig(AdaptConfig):
    """The settings."""

    teacher: Path = HfArg(help="state of the model to learn from, which owns the language with the same parts")
    teacher_weight: Positive = HfArg(default=1.0, help="of the divergence from its letters, beside CTC's loss of 1")


def taught(model, teacher, weight: float) -> None:
    """The model's loss in training is CTC's and the divergence of its letters from the teacher's, over as many letters."""
    plain = type(model).forward

    def forward(self, *args, **batch):
        outputs = plain(self, *args, **batch)
        if self.training and "labels" in batch:
            classes = len(self.config.vocab(batch["language"][0]))  # of a list of codes, logits are -inf past them
            with torch.no_grad():
                goal = teacher(**{name: value for name, value in batch.items() if name != "labels"}).logits[..., :classes].float().log_softmax(-1)
            apart = torch.nn.functional.kl_div(outputs.logits[..., :classes].float().log_softmax(-1), goal, log_target=True, reduction="none").sum(-1)  # (B, T)
            heard = torch.arange(apart.shape[1])[None] < outputs.frames[:, None]
            outputs.loss = outputs.loss + weight * apart[heard].sum() / (batch["labels"] >= 0).sum()
        return outputs

    model.forward = types.MethodType(forward, model)


def main(argv=None) -> None:
    config = parse(DistilledConfig, __doc__, argv)
    with opened(config, "distilled") as accelerator:
        set_seed(config.seed)
        model, processor = load(accelerator, config)
        splits = load_splits(accelerator, config, [config.language], config.minutes)
        features = Features(processor, config.features_cache)
        add_language(model, processor, features, splits.training, config)
        splits.training, dropped = drop_impossible(splits.training, processor, model, speed=1.1)
        result = {**facts_of_run(model), "config": as_record(config), "minutes": minutes_of(splits.training)}
        result |= announce(model, config, splits.training, dropped)
        teacher = deepcopy(model).requires_grad_(False).eval()
        teacher.load_state_dict(torch.load(config.teacher, weights_only=True))
        result["teacher"] = {name: tested(accelerator, teacher, processor, features, getattr(splits, name), greedy=True)["macro"] for name in ("validation", "test")}
        print(result["teacher"])
        taught(model, teacher, config.teacher_weight)
        model, result["log"] = trained(accelerator, config, model, processor, features, splits)
        result["kilobytes"] = round(parameter_kilobytes(model.assemblies[config.language].content_of_file()), 1)
        keep_text(accelerator, model, config.language, splits, config, config.further_sentences())
        result |= measured(accelerator, model, processor, features, splits)
        write_json(config.out / "run.json", result)
    print({name: result[name]["macro"] for name in ("validation", "test")})


if __name__ == "__main__":
    main()
