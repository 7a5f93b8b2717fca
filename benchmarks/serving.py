"""What a request costs where seven languages are served: one clip each, the languages in random order, interleaved in one run.

    python -m benchmarks.serving --whisper openai/whisper-base --out benchmarks/results/serving.json

From samples to text, in processor time of one thread, over a plain encoder with one language's weights, the least that this encoder can
cost; and what is kept of weights beside one encoder. Values are untrained where a language was made for this; that moves no time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks import timing, zero_shot
from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.audio_master_asr import decode_audio
from training.loop.record import facts_of_run, write_json
from training.loop.sources import Clip, read_manifest

CHECKPOINT, MANIFEST = "./checkpoints/master-asr-whisper-base", "demo/manifest.jsonl"
LANGUAGES = ["en", "fr", "it", "ru", "cs", "nl", "es"]
PLAIN = "plain encoder, one language"
CLIPS_A_LANGUAGE, ROUNDS = 3, 5
Forward = Callable[[torch.Tensor, str], torch.Tensor]  # features and language -> logits
Kept = Callable[[], int]  # bytes of weights beside those of one encoder, now
Served = Callable[[Clip], object]  # one request, from the recording to its text


def requests() -> list[Clip]:
    """Test clips of seven languages, as many of each, in random order."""
    clips = [clip for clip in read_manifest(MANIFEST) if clip.split == "test"]
    chosen = [clip for code in LANGUAGES for clip in [c for c in clips if c.language == code][:CLIPS_A_LANGUAGE]]
    random.Random(0).shuffle(chosen)
    return chosen


def base(device: str = "cpu") -> MasterASRForCTC:
    return MasterASRForCTC.from_pretrained(CHECKPOINT).to(device).eval()


def greedy(forward: Forward, processor: MasterASRProcessor) -> Served:
    """Requests to a model that gives logits."""

    def serve(clip: Clip) -> str:
        features = processor.features(decode_audio(clip.audio, processor.sampling_rate_hz))
        ids = forward(processor.pad([features])["input_features"], clip.language).argmax(-1)
        return processor.batch_decode(ids, language="en")[0]

    return serve


def plain(device: str = "cpu") -> tuple[Forward, Kept]:
    encoder = base(device).materialize("en")
    return lambda features, language: encoder(input_features=features).logits, lambda: 0


def master_asr(preset: str, keep: bool = True, device: str = "cpu") -> tuple[Forward, Kept]:
    """Seven more languages, each with all that a preset owns.

    Args:
        keep: assembled weights are kept from request to request; else made for each, as where languages are too many to be kept.
    """
    model = base(device)
    for code in LANGUAGES:
        model.add_language(f"{code}-new", model.config.vocab("en"), preset=preset)
        for parameter in model.assemblies[f"{code}-new"].parameters():
            nn.init.normal_(parameter, std=0.02)
    model.eval()
    store = model.master_asr.masks

    def forward(features, language):
        if not keep:
            store._dense.clear()
        return model(input_features=features, language=f"{language}-new").logits

    return forward, lambda: sum(tensor.nbytes for _, made, _ in store._dense.values() for tensor in made.values())


def lora(device: str = "cpu") -> tuple[Forward, Kept]:
    """An adapter and a head a language, r = 8 on attention and feed-forward; not merged, since the next request would undo it."""
    model = base(device)
    family = model.master_asr.family
    config = LoraConfig(r=8, target_modules=[*family.targets, *family.feed_forward], modules_to_save=["lm_head"])
    adapted = get_peft_model(model.materialize("en"), config, adapter_name=LANGUAGES[0])
    for code in LANGUAGES[1:]:
        adapted.add_adapter(code, config)
    adapted.eval()

    def forward(features, language):
        adapted.set_adapter(language, inference_mode=True)
        return adapted(input_features=features).logits

    return forward, lambda: sum(p.nbytes for name, p in adapted.named_parameters() if "lora_" in name)


def lora_merged() -> tuple[Forward, Kept]:
    """A whole encoder a language, its adapter merged into it."""
    model = base()
    names = [*model.master_asr.family.targets, *model.master_asr.family.feed_forward]
    encoders = {code: get_peft_model(model.materialize("en"), LoraConfig(r=8, target_modules=names)).merge_and_unload().eval() for code in LANGUAGES}
    sizes = [sum(p.nbytes for p in encoder.parameters()) for encoder in encoders.values()]
    return lambda features, language: encoders[language](input_features=features).logits, lambda: sum(sizes[1:])


def whisper(folder: str) -> Served:
    """Stock Whisper with its decoder: greedy, told the language, with timestamps."""
    parts = zero_shot.load(folder, LANGUAGES)
    return lambda clip: zero_shot.transcribe(*parts, clip, timestamps=True)


@torch.inference_mode()
def timed(candidates: dict[str, Served], clips: list[Clip]) -> dict[str, dict]:
    """`{name: {"ms", "ratio"}}`: the median request, and the median over rounds of a round's time over the plain encoder's."""
    asked = {(name, i): partial(serve, clip) for name, serve in candidates.items() for i, clip in enumerate(clips)}
    spent_s = timing.in_turn(asked, ROUNDS, warm_up=1, clock=time.process_time)
    rounds = {name: list(zip(*(spent_s[name, i] for i in range(len(clips))))) for name in candidates}  # each of them a time a clip
    whole_s = {name: [sum(times) for times in every] for name, every in rounds.items()}
    return {
        name: {
            "ms": round(1000 * statistics.median(t for times in every for t in times), 1),
            "ratio": round(timing.ratio(whole_s[name], whole_s[PLAIN]), 2),
        }
        for name, every in rounds.items()
    }  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", help="folder or hub id of a stock Whisper; left out: not measured")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processor = MasterASRProcessor.from_pretrained(CHECKPOINT)
    models = {
        PLAIN: plain(), "preset paper": master_asr("paper"), "preset best": master_asr("best"),
        "preset best, weights assembled for every request": master_asr("best", keep=False),
        "PEFT LoRA r = 8, set_adapter": lora(), "PEFT LoRA r = 8, merged into an encoder for each language": lora_merged(),
    }  # fmt: skip
    candidates = {name: greedy(forward, processor) for name, (forward, _) in models.items()}
    if args.whisper:
        candidates["Whisper-base with its decoder"] = whisper(args.whisper)
    clips = requests()
    rows = timed(candidates, clips)
    for name, (_, kept) in models.items():
        rows[name]["kept_mb"] = round(kept() / 2**20)
    write_json(args.out, {**facts_of_run(), "clips": len(clips), "audio_s": round(sum(clip.duration_s for clip in clips), 1), "requests": rows})
    for name, row in rows.items():
        print(f"{name}: {row['ms']:.0f} ms a request, {row['ratio']:.2f} relative to the plain encoder")


if __name__ == "__main__":
    main()
