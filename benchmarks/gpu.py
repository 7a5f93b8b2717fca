"""What masks and assembled weights cost on a GPU, each as a ratio of times in one run, on the demo's recordings.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json

A time is a wall clock's between two waits for the device; a ratio is the median over rounds, the functions of a round timed in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import serving, timing
from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.artisan_master_asr import select_mask
from modeling_master_asr.audio_master_asr import decode_audio
from training.loop.data import Collator, Features, select, to_device
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json
from training.loop.sources import read_manifest

ROUNDS, WARM_UP, SPARSITY = 20, 3, 0.3
LEARNING_RATES = dict.fromkeys(("W", "M", "T", "head", "specialist", "delta", "scales", "norms"), 1e-4)


def compared(functions: dict[str, Callable[[], object]]) -> dict[str, dict]:
    """`{name: {"ms", "ratio"}}`: the medians, and those of the ratios to the first function's time in the same round."""
    times = timing.in_turn(functions, ROUNDS, WARM_UP, wait=torch.cuda.synchronize)
    first = next(iter(times.values()))
    return {name: {"ms": round(1000 * statistics.median(own), 3), "ratio": round(timing.ratio(own, first), 2)} for name, own in times.items()}


def selection() -> dict[str, dict]:
    """Exact selection over the bare comparison S > r, at the width of Whisper-base's layers and of wav2vec2-large's."""
    result = {}
    for size in (512, 1024):
        scores = torch.randn(size, size, device="cuda")
        threshold = scores.flatten().kthvalue(int(SPARSITY * scores.numel())).values
        result[f"{size} x {size}"] = compared({"S > r": lambda s=scores, r=threshold: s > r, "select_mask": lambda s=scores: select_mask(s, SPARSITY)})
    return result


@torch.inference_mode()
def requests() -> dict[str, dict]:
    """A clip a request, languages interleaved, from features on the CPU to text; see benchmarks.serving."""
    processor = MasterASRProcessor.from_pretrained(serving.CHECKPOINT)
    clips = serving.requests()
    read = [processor.pad([processor.features(decode_audio(clip.audio, processor.sampling_rate_hz))])["input_features"] for clip in clips]
    models = {
        serving.PLAIN: serving.plain("cuda"), "preset paper": serving.master_asr("paper", device="cuda"),
        "preset best": serving.master_asr("best", device="cuda"),
        "preset best, weights assembled for every request": serving.master_asr("best", keep=False, device="cuda"),
        "PEFT LoRA r = 8, set_adapter": serving.lora("cuda"),
    }  # fmt: skip

    def serve(forward):
        for clip, features in zip(clips, read):
            processor.batch_decode(forward(features.cuda(), clip.language).argmax(-1), language="en")

    rows = compared({name: lambda f=forward: serve(f) for name, (forward, _) in models.items()})
    return {name: {"ms": round(row["ms"] / len(clips), 2), "ratio": row["ratio"]} for name, row in rows.items()}


def training() -> dict[str, dict]:
    """A step of stage 1 in bf16, on a batch as the loop makes them, over that of a dense model; W's turn and M's."""
    processor = MasterASRProcessor.from_pretrained(serving.CHECKPOINT)
    clips = [clip for clip in select(read_manifest(serving.MANIFEST), "test", ["en"]) for _ in range(2)]
    batch = to_device(Collator(Features(processor), processor)(clips), "cuda")

    def stepping(sparsity: float, gamma: int, first_step: int) -> Callable[[], None]:
        model = MasterASRForCTC.from_pretrained(serving.CHECKPOINT).cuda().train()
        model.config.sparsity = sparsity
        model.freeze_idle_masks()
        turns = Turns(model, alpha=10, beta=5, gamma=gamma, learning_rates=LEARNING_RATES, num_steps=1000)
        counter = iter(range(first_step, 10**9))

        def step() -> None:
            number = next(counter)
            turns.begin(number)
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            turns.step(number)

        return step

    rows = compared({"dense": stepping(0.0, 0, 0), "Master-ASR, W's turn": stepping(SPARSITY, 150, 0), "Master-ASR, M's turn": stepping(SPARSITY, 150, 150)})
    return {"batch_s": round(sum(clip.duration_s for clip in clips), 1), "clips": len(clips), **rows}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    result = {**facts_of_run(), "device": torch.cuda.get_device_name(), "selection": selection(), "requests": requests(), "training": training()}
    write_json(args.out, result)
    for what in ("selection", "requests", "training"):
        print(what, *(f"{name}: {row}" for name, row in result[what].items()), sep="\n    ")


if __name__ == "__main__":
    main()
