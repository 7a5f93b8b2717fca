"""What a step of stage 2 costs with each method: the same encoder, batch and head size, interleaved in one run.

    python -m benchmarks.steps --out benchmarks/results/steps.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from benchmarks import timing
from benchmarks.methods import add_bottlenecks, train_mask
from modeling_master_asr import MasterASRConfig, MasterASRForCTC
from modeling_master_asr.configuration_master_asr import PRESETS
from modeling_master_asr.whisper_master_asr import TrueLengthWhisperEncoder
from training.loop.config import LEARNING_RATES
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json
from training.loop.teacher import divergence

CHECKPOINT = "./checkpoints/master-asr-whisper-base"
CLIPS, FRAMES, LABELS, VOCAB = 6, 400, 40, 36  # 24 s of audio
ATTENTION, ALL = ["q_proj", "k_proj", "v_proj", "out_proj"], ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
BASE = "lora_all"
TAUGHT = ("small", "best")
BETA, WINDOWS = 5, 10  # T asks for gradients in one step of BETA, so only whole windows compare


class PlainCTC(nn.Module):
    """The same encoder with a CTC head and no masks, for what others do."""

    def __init__(self):
        super().__init__()
        config = MasterASRConfig.from_pretrained(CHECKPOINT).backbone_config
        self.encoder, self.lm_head = TrueLengthWhisperEncoder(config), nn.Linear(config.d_model, VOCAB)

    def forward(self, input_features, labels):
        log_probs = self.lm_head(self.encoder(input_features).last_hidden_state).float().log_softmax(-1).transpose(0, 1)
        frames = torch.full((len(labels),), log_probs.shape[0])
        return nn.functional.ctc_loss(log_probs, labels, frames, torch.full((len(labels),), LABELS), zero_infinity=True)


def with_a_language(preset: str, model=None) -> MasterASRForCTC:
    model = model or MasterASRForCTC.from_pretrained(CHECKPOINT)
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "|", *(chr(0x430 + i) for i in range(VOCAB - 3))])}
    model.add_language("xx", vocab, preset=preset)
    model.freeze_except("xx")
    return model


def step_in_turns(model: MasterASRForCTC, teacher: MasterASRForCTC | None = None):
    """One step of `training/adapt_language.py`."""
    turns = Turns(model, 10, BETA, 0, {**LEARNING_RATES, "M": 1e-3}, 1000, mapping_gradient="last")
    model.train()

    def step(number, features, labels):
        turns.begin(number)
        batch = {"input_features": features, "labels": labels, "language": ["xx"] * len(labels)}
        outputs = model(**batch)
        loss = outputs.loss if teacher is None else outputs.loss + divergence(teacher, batch, outputs.logits, outputs.frames)
        loss.backward()
        turns.step(number)

    return step


def assembly_step(preset: str):
    return step_in_turns(with_a_language(preset))


def taught_step(preset: str):
    model = with_a_language(preset)
    return step_in_turns(model, deepcopy(model).requires_grad_(False).eval())


def mask_step():
    """Masks that are the language's own, of one bank of scores, as the dense model has it."""
    config = MasterASRConfig.from_pretrained(CHECKPOINT)
    config.num_specialists = 1
    model = with_a_language("paper", MasterASRForCTC(config))
    train_mask(model, SimpleNamespace(language="xx"))
    return step_in_turns(model)


def plain_step(prepare):
    """A step of a plain encoder and head.

    Args:
        prepare: changes the encoder, of which nothing trains, so that what the method trains does.
    """
    model = PlainCTC()
    model.encoder.requires_grad_(False)
    prepare(model.encoder)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    model.train()

    def step(number, features, labels):
        model(features, labels).backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def lora_step(names: list[str]):
    return plain_step(lambda encoder: inject_adapter_in_model(LoraConfig(r=8, target_modules=names), encoder))


def train_all(encoder) -> None:
    """As `benchmarks.methods` does: but the convolutions and the positions."""
    encoder.layers.requires_grad_(True)
    encoder.layer_norm.requires_grad_(True)


def candidates() -> dict:
    """`{method, as `benchmarks.methods` and the presets name it: its step}`."""
    return {
        **{f"assembly_{preset}": assembly_step(preset) for preset in PRESETS}, **{f"assembly_{preset}_taught": taught_step(preset) for preset in TAUGHT}, "head": plain_step(lambda encoder: None), "lora": lora_step(ATTENTION),
        "lora_all": lora_step(ALL), "bottleneck": plain_step(lambda encoder: add_bottlenecks(encoder.layers, encoder.config.d_model)),
        "mask": mask_step(), "full": plain_step(train_all),
    }  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    steps = candidates()
    features, labels = torch.randn(CLIPS, 80, FRAMES), torch.randint(3, VOCAB, (CLIPS, LABELS))

    def window_of(step):
        numbers = itertools.count()

        def window() -> None:
            for _ in range(BETA):
                step(next(numbers), features, labels)

        return window

    windows = timing.in_turn({name: window_of(step) for name, step in steps.items()}, WINDOWS, warm_up=1)
    rows = {name: {"step_s": statistics.median(times) / BETA, "ratio": timing.ratio(times, windows[BASE])} for name, times in windows.items()}
    write_json(args.out, {**facts_of_run(), "steps": rows})
    for name, row in rows.items():
        print(f"{name}: {row['step_s']:.3f} s a step, {row['ratio']:.3f} of LoRA's")


if __name__ == "__main__":
    main()
