"""A step of stage 2 against a step of PEFT LoRA: the same encoder, batch and head size, interleaved in one run.

    python -m benchmarks.lora --out benchmarks/results/lora.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.backbone_master_asr import TrueLengthWhisperEncoder
from training.loop.config import LEARNING_RATES
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json

CHECKPOINT = "./checkpoints/master-asr-whisper-base"
CLIPS, FRAMES, LABELS, VOCAB = 6, 400, 40, 36  # 24 s of audio
PRESETS = ("paper", "small", "best")
ATTENTION, ALL = ["q_proj", "k_proj", "v_proj", "out_proj"], ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
BASE = "LoRA r = 8 on attention and feed-forward"
BETA, WINDOWS = 5, 10  # T asks for gradients in one step of BETA, so only whole windows compare


class PlainCTC(nn.Module):
    """The same encoder with a CTC head and no masks, for LoRA."""

    def __init__(self, encoder, hidden: int):
        super().__init__()
        self.encoder, self.lm_head = encoder, nn.Linear(hidden, VOCAB)

    def forward(self, input_features, labels):
        log_probs = self.lm_head(self.encoder(input_features).last_hidden_state).float().log_softmax(-1).transpose(0, 1)
        frames = torch.full((len(labels),), log_probs.shape[0])
        return nn.functional.ctc_loss(log_probs, labels, frames, torch.full((len(labels),), LABELS), zero_infinity=True)


def assembly_step(preset: str):
    """One step of `training/adapt_language.py`."""
    model = MasterASRForCTC.from_pretrained(CHECKPOINT)
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "|", *(chr(0x430 + i) for i in range(VOCAB - 3))])}
    model.add_language("xx", vocab, preset=preset)
    model.freeze_except("xx")
    turns = Turns(model, 10, BETA, 0, LEARNING_RATES, 1000, mapping_gradient="last")
    model.train()

    def step(number, features, labels):
        turns.begin(number)
        model(input_features=features, labels=labels, language="xx").loss.backward()
        turns.step(number)

    return step


def lora_step(names: list[str]):
    config = MasterASRForCTC.from_pretrained(CHECKPOINT).config.backbone_config
    model = PlainCTC(TrueLengthWhisperEncoder(config), config.d_model)
    lora = LoraConfig(r=8, target_modules=names, modules_to_save=["lm_head"])
    model = get_peft_model(model, lora)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    model.train()

    def step(number, features, labels):
        model(features, labels).backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    candidates = {BASE: lora_step(ALL), "LoRA r = 8 on attention alone": lora_step(ATTENTION)}
    candidates |= {f"preset {preset}": assembly_step(preset) for preset in PRESETS}
    features, labels = torch.randn(CLIPS, 80, FRAMES), torch.randint(3, VOCAB, (CLIPS, LABELS))
    windows = {name: [] for name in candidates}
    for window in range(WINDOWS + 1):  # the first one warms up
        for name, step in candidates.items():
            start = time.perf_counter()
            for number in range(BETA * window, BETA * (window + 1)):
                step(number, features, labels)
            windows[name].append((time.perf_counter() - start) / BETA)
    windows = {name: times[1:] for name, times in windows.items()}
    base = windows[BASE]
    rows = {n: {"step_s": statistics.median(t), "ratio": statistics.median(b / a for a, b in zip(base, t))} for n, t in windows.items()}
    write_json(args.out, {**facts_of_run(), "steps": rows})
    for name, row in rows.items():
        print(f"{name}: {row['step_s']:.3f} s a step, {row['ratio']:.3f} of LoRA's")


if __name__ == "__main__":
    main()
