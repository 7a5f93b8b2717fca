"""The demo: Spanish from 10 minutes of recordings, on a laptop, without disturbing the other languages.

    make demo
    python -m demo.run --preset paper              # the paper's own parts
    python -m demo.run --steps 6 --test_minutes 0.3  # a glance (CI)
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import pipeline
from transformers.hf_argparser import HfArg

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes, text_kilobytes
from modeling_master_asr.configuration_master_asr import DEFAULT_PRESET
from training.adapt_language import AdaptConfig, add_language, announce, train_language
from training.loop import checkpoints
from training.loop.config import Count, Positive, Settings, parse
from training.loop.data import Features, select
from training.loop.folder import locked, traces
from training.loop.metrics import evaluate_clips
from training.loop.record import facts_of_run, write_json
from training.loop.sources import read_manifest
from training.loop.splits import Splits

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "checkpoints" / "master-asr-whisper-base"
DATA = HERE / "manifest.jsonl"
LANGUAGE = "es"
DEFAULT_OUT = Path("runs/demo")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """The settings of the demo."""

    preset: Literal["paper", "small", "best"] = HfArg(default=DEFAULT_PRESET, help="what Spanish owns")
    steps: Count = HfArg(default=350, help="updates of what Spanish owns")
    test_minutes: Positive = HfArg(default=10.0, help="of held-out clips to score")
    out: Path = HfArg(default=DEFAULT_OUT, help="folder of this demo alone; the default is written anew each time")

    def stage_2(self, preset: str) -> AdaptConfig:
        """The settings of the training of a preset: as in stage 2, but so few steps do better with less SpecAugment."""
        return AdaptConfig(
            model=str(CHECKPOINT), data=[str(DATA)], language=LANGUAGE, out=self.out / preset, preset=preset, steps=self.steps,
            evaluate_every=self.steps, spec_masks=1,
        )  # fmt: skip


@torch.no_grad()
def logits_of_others(model, processor, clips) -> dict[str, torch.Tensor]:
    """The logits of one clip of every language but Spanish."""
    model.eval()
    features = Features(processor)
    first = {clip.language: clip for clip in reversed(clips) if clip.language != LANGUAGE}
    return {code: model(**processor.pad([features(clip)]), language=code).logits for code, clip in first.items()}


def adapt(model, processor, features, clips, config: AdaptConfig, test_minutes: float) -> dict:
    """Adds Spanish and trains its assembly; returns CER before and after, greedy and with its sentences in mind, and its size."""
    set_seed(config.seed)
    checkpoints.clear(config.out)
    training, test = select(clips, "train", [LANGUAGE], config.minutes), select(clips, "test", [LANGUAGE], test_minutes)
    splits = Splits(training, select(clips, "validation", [LANGUAGE], test_minutes), test)
    add_language(model, processor, features, training, config)
    before = evaluate_clips(model, processor, features, test)["macro"]["cer"]
    announce(model, config, training, [])
    train_language(Accelerator(cpu=True), config, model, processor, features, splits)
    kilobytes = parameter_kilobytes(model.assemblies[LANGUAGE].content_of_file())
    greedy = evaluate_clips(model, processor, features, test)["macro"]["cer"]
    model.set_text(LANGUAGE, (clip.text for clip in training), raw=False)
    after = evaluate_clips(model, processor, features, test)["macro"]["cer"]
    return {"before": before, "greedy": greedy, "after": after, "kilobytes": kilobytes, "text_kilobytes": text_kilobytes(model.config.text(LANGUAGE))}


def transcribe(folder: Path, clips) -> None:
    """One test clip a language through the stock `pipeline` call, from the exported folder's own code."""
    asr = pipeline("automatic-speech-recognition", model=str(folder), trust_remote_code=True)
    first = {clip.language: clip for clip in reversed(clips) if clip.split == "test" and clip.duration_s > 3}
    for code, clip in first.items():
        print(f"  {code}  heard: {asr(str(clip.audio), language=code)['text']}\n      said:  {clip.text}")


def compare(model, processor, clips, demo: DemoConfig) -> dict[str, dict]:
    """The paper's own parts first, then the chosen preset, which the model keeps: `{preset: what adapt returns}`."""
    results, features = {}, Features(processor)
    for preset in dict.fromkeys(("paper", demo.preset)):
        if LANGUAGE in model.languages:
            model.remove_language(LANGUAGE)
            processor.remove_language(LANGUAGE)
        results[preset] = adapt(model, processor, features, clips, demo.stage_2(preset), demo.test_minutes)
    return results


def report(results: dict[str, dict], demo: DemoConfig) -> None:
    """Before, and after with each preset."""
    print(f"\nSpanish, CER on held-out clips: {results['paper']['before']:.1f} % before any training; after {demo.steps} steps:")
    for preset, result in results.items():
        print(f"  preset {preset:6} {result['greedy']:5.1f} %   {result['kilobytes']:.0f} KB;   read with its training sentences in mind: {result['after']:.1f} %, {result['text_kilobytes']:.0f} KB more")


@contextmanager
def own_folder(demo: DemoConfig) -> Iterator[None]:
    """The demo's folder, its own as long as the context lasts; only the default one is ever cleaned.

    Raises:
        RuntimeError: if another run is at work there.
        FileExistsError: if it is another folder and holds a run already.
    """
    with locked(demo.out):
        there = [name for folder in (demo.out, demo.out / "paper", demo.out / demo.preset) for name in traces(folder)]
        if there and demo.out.resolve() != DEFAULT_OUT.resolve():
            raise FileExistsError(f"{demo.out} holds a run already: {sorted(set(there))}. Choose another --out, or leave it out: {DEFAULT_OUT} is written anew.")
        yield


def run(demo: DemoConfig) -> None:
    """Trains and compares the presets, writes assembly, model and figures, reports, and transcribes with what was written.

    Raises:
        SystemExit: if another language's logits have changed.
    """
    start_s = time.time()
    clips = read_manifest(DATA)
    model = MasterASRForCTC.from_pretrained(CHECKPOINT)
    processor = MasterASRProcessor.from_pretrained(CHECKPOINT)
    facts = facts_of_run(model)  # now: the code may change while it runs
    others = logits_of_others(model, processor, clips)
    results = compare(model, processor, clips, demo)
    same = all(torch.equal(logits, others[code]) for code, logits in logits_of_others(model, processor, clips).items())
    model.save_assembly(LANGUAGE, demo.out / "assembly")
    model.save_pretrained(demo.out / "model")
    processor.save_pretrained(demo.out / "model")
    write_json(demo.out / "run.json", {**facts, "steps": demo.steps, "minutes": (time.time() - start_s) / 60, "others_bit_equal": same, "presets": results})
    report(results, demo)
    print(f"The assembly: {demo.out / 'assembly'}. Logits of {sorted(others)} bit-equal to before: {same}")
    transcribe(demo.out / "model", clips)
    print(f"\nDone in {(time.time() - start_s) / 60:.1f} minutes.")
    python = ".venv/bin/python" if Path(sys.prefix).resolve() == (HERE.parent / ".venv").resolve() else "python"
    print(f"Next: {python} -m training.transcribe YOUR.mp3 --model {shlex.quote(str(demo.out / 'model'))} --language es --json")
    if not same:
        raise SystemExit("Another language's logits changed: this is a bug, please report it.")


def main(argv=None) -> None:
    demo = parse(DemoConfig, __doc__, argv)
    with own_folder(demo):
        run(demo)


if __name__ == "__main__":
    main()
