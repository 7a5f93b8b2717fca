"""Whether a voice that nobody heard is read better through several throats: the mean of what the model reads with its formants moved.

    python -m benchmarks.throats --model ./runs/model --data data/voices_one_others.jsonl --languages cs --more_text cs=data/fortunes/cs.txt --out result.json

Every clip is heard through nine throats (`training.loop.augment.other_throat`), in the same frames; the mean of their log-probabilities is read.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tqdm import tqdm

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.text_master_asr import normalize
from modeling_master_asr.trainer_utils import error_rates, macro
from training.evaluate import read_with_more, text_of
from training.loop.augment import other_throat
from training.loop.data import Features, bucket, select
from training.loop.metrics import BATCH_S
from training.loop.models import processor_of
from training.loop.record import facts_of_run, write_json
from training.loop.sources import Clip, read_data

NINE = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
FACTORS = {"1": (1.0,), "3": (0.9, 1.0, 1.1), "5": (0.9, 0.95, 1.0, 1.05, 1.1), "9": NINE}  # what formants are divided by


@torch.no_grad()
def hear(model, processor, clips: list[Clip]) -> list[tuple[Clip, torch.Tensor]]:
    """Each clip with its log-probabilities through every throat of `NINE`, `(9, T, V)`."""
    features, filters, heard = Features(processor), processor.feature_extractor.mel_filters, []
    for batch in tqdm(bucket(clips, BATCH_S, random.Random(0)), desc="hearing"):
        code, plain, through = batch[0].language, [features(clip) for clip in batch], []
        for factor in NINE:
            moved = [feature if factor == 1 else other_throat(feature, filters, factor) for feature in plain]
            outputs = model(**processor.pad(moved), language=code)
            through.append(outputs.logits[..., : len(model.config.vocab(code))].log_softmax(-1))
        heard += [(clip, log_probs[:, : int(frames)]) for clip, log_probs, frames in zip(batch, torch.stack(through, 1), outputs.frames)]
    return heard


def rates_through(model, processor, heard, throats: tuple[float, ...], greedy: bool) -> dict:
    """`{"languages", "macro"}` of CER and WER, of the mean over these throats."""
    chosen, of_language = [NINE.index(factor) for factor in throats], {}
    for clip, log_probs in heard:
        code, mean = clip.language, log_probs[chosen].mean(0, keepdim=True)
        text = processor.batch_decode(model.paths(mean, code, greedy=greedy), code, frames=[mean.shape[1]], skip_special_tokens=True)[0]
        read, said = of_language.setdefault(code, ([], []))
        read.append(normalize(text, language=code, raw=False))
        said.append(clip.text)
    rates = {code: error_rates(*pair) for code, pair in of_language.items()}
    return {"languages": rates, "macro": macro(rates)}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--languages", required=True, nargs="+")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--more_text", type=text_of, nargs="*", default=[], metavar="LANGUAGE=FILE")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    model = MasterASRForCTC.from_pretrained(args.model)
    processor = processor_of(model, args.model)
    clips, _ = read_data(args.data, args.out.parent / "recordings")
    added = read_with_more(model, args.more_text, clips)
    heard = hear(model, processor, select(clips, args.split, args.languages))
    result = {**facts_of_run(model), "split": args.split, "more_text": added}
    for name, greedy in (("greedy", True), ("with_text", False)):
        result[name] = {count: rates_through(model, processor, heard, throats, greedy) for count, throats in tqdm(FACTORS.items(), desc=name)}
        for count, rates in result[name].items():
            print(f"{name}, {count} throats\tCER {rates['macro']['cer']:.2f}\tWER {rates['macro']['wer']:.2f}")
    write_json(args.out, result)


if __name__ == "__main__":
    main()
