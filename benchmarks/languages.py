"""Cost does not grow with the number of languages: time and memory of a step with 6, 51 and 1,000 of them.

    python -m benchmarks.languages --out benchmarks/results/languages.json

Steps of the three models are interleaved in one process for the times; memory is the peak of a process of its own each.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Wav2Vec2Config

from modeling_master_asr import MasterASRConfig, MasterASRForCTC
from training.loop import checkpoints
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json

COUNTS = (6, 51, 1000)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STEPS = 30


def build(count: int) -> tuple[MasterASRForCTC, Turns]:
    """A wav2vec 2.0 of 6 layers, 384 wide, with `count` languages of 29 tokens each."""
    torch.manual_seed(0)
    backbone = Wav2Vec2Config(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, conv_dim=(128, 128, 128),
        conv_stride=(5, 8, 8), conv_kernel=(10, 8, 8), feat_extract_norm="layer", layerdrop=0.0, mask_time_prob=0.0,
    )  # fmt: skip
    tokens = ["[PAD]", "[UNK]", "|", *LETTERS]
    vocab = {token: i for i, token in enumerate(tokens)}
    assemblies = {f"x{i}": {"vocab": vocab, "shares_bank": True} for i in range(count)}
    config = MasterASRConfig(backbone_config=backbone, num_specialists=4, sparsity=0.3, assemblies=assemblies, character_bank=tokens)
    model = MasterASRForCTC(config)
    rates = dict.fromkeys(("W", "M", "T", "head"), 1e-4)
    return model, Turns(model, alpha=10, beta=5, gamma=10, learning_rates=rates, num_steps=1000)


def one_step(model, turns, step: int) -> float:
    """Seconds of a training step on 4 clips of 3 s of one of six languages."""
    generator = torch.Generator().manual_seed(step)
    clips = torch.randn(4, 48_000, generator=generator)
    labels = torch.randint(3, 29, (4, 20), generator=generator)
    start = time.perf_counter()
    model.train()
    turns.begin(step)
    model(clips, labels=labels, language=f"x{step % 6}").loss.backward()
    turns.step(step)
    return time.perf_counter() - start


def memory_of(count: int) -> dict:
    """In a process of its own: peak MB before the first step and after the steps, and the languages' own parameters."""
    code = f"from benchmarks.languages import report_memory; report_memory({count})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_mb() -> float:
    """The most memory that this process has held. Not `ru_maxrss`, which a program inherits from the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def report_memory(count: int) -> None:
    torch.set_num_threads(2)
    started = time.perf_counter()
    model, turns = build(count)
    start_s = time.perf_counter() - started
    for step in range(10):
        one_step(model, turns, step)
    peak = peak_mb()
    own = sum(p.numel() * 4 for a in model.assemblies.values() for p in a.parameters()) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        checkpoints.save(Path(folder), 1, {"model": model.state_dict(), "turns": turns.state_dict()}, {})
        save_s = time.perf_counter() - started
    print(json.dumps({"peak_mb": peak, "own_mb": own, "start_s": start_s, "save_s": save_s}))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(2)
    built = {count: build(count) for count in COUNTS}
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for step in range(STEPS + 4):
        for count, (model, turns) in built.items():
            seconds = one_step(model, turns, step)
            if step >= 4:  # warm
                times[count].append(seconds)
    del built
    memory = {count: memory_of(count) for count in COUNTS}
    first = COUNTS[0]
    rows = {}
    for count in COUNTS:
        rows[str(count)] = {
            "step_s": statistics.median(times[count]), "time_ratio": statistics.median(times[count]) / statistics.median(times[first]),
            "memory_ratio": (memory[count]["peak_mb"] - memory[count]["own_mb"]) / memory[first]["peak_mb"], **memory[count],
        }  # fmt: skip
    write_json(args.out, {**facts_of_run(), "languages": rows})
    for count, row in rows.items():
        print(f"{count} languages: step {row['step_s']:.3f} s (x {row['time_ratio']:.3f}), peak {row['peak_mb']:.0f} MB (x {row['memory_ratio']:.3f} without their own {row['own_mb']:.2f} MB), start {row['start_s']:.1f} s, checkpoint {row['save_s']:.2f} s")


if __name__ == "__main__":
    main()
