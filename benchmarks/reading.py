r"""What sentences are worth where a language is read: its own, those of another subject, both; and by which settings they weigh in.

    python -m benchmarks.reading --model ./checkpoints/master-asr-whisper-base --assembly runs/es/assembly --data data/manifest.jsonl \
        --other_text es=data/fortunes/es.txt cs=data/fortunes/cs.txt --out benchmarks/results/reading.json

Every clip is heard once; only how its logits are read differs. Own sentences are the transcripts of the minutes that a language trained
on, which it keeps; those of another subject, `--other_text`, a line each.
"""

from __future__ import annotations

import argparse
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr import ngrams_master_asr as ngrams
from modeling_master_asr.assembly_master_asr import text_kilobytes
from modeling_master_asr.ngrams_master_asr import forget_ngrams
from modeling_master_asr.text_master_asr import normalize
from modeling_master_asr.trainer_utils import error_rates, macro
from training.evaluate import check_languages, text_of
from training.loop.data import Collator, Features, select, to_device
from training.loop.models import processor_of
from training.loop.record import facts_of_run, write_json
from training.loop.sources import Clip, read_data
from training.loop.text import beginning, without

SPLITS = ("validation", "test")
TRIED = [  # none, then one of them changed at a time
    {}, {"ORDER": 4}, {"ORDER": 5}, {"ORDER": 8}, {"WEIGHT": 0.4}, {"WEIGHT": 1.0}, {"BONUS": 0.0}, {"BONUS": 1.0}, {"BONUS": 2.0}, {"BEAM": 2}, {"BEAM": 4},
    {"BEAM": 16}, {"FLOOR": -5.0}, {"PAUSE": 5}, {"PAUSE": 10}, {"PAUSE": 25},
]  # fmt: skip
SETTINGS = ("ORDER", "WEIGHT", "BONUS", "BEAM", "FLOOR", "PAUSE")
OTHER_TEXT = 200_000  # characters of another subject, at most
Heard = dict[str, dict[str, list[tuple[torch.Tensor, str]]]]  # language -> split -> (logits (T, V), what was said) of each clip


@torch.no_grad()
def hear(model, processor, clips) -> Heard:
    """The logits of every clip of the model's languages."""
    collator, heard = Collator(Features(processor), processor), {}
    for code in tqdm(model.languages, desc="hearing"):
        of_language = heard[code] = {}
        for split in SPLITS:
            of_language[split] = []
            for clip in select(clips, split, [code]):
                inputs = to_device(collator([clip]), model.device)
                outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", "language")}, language=code)
                of_language[split].append((outputs.logits[0, : int(outputs.frames[0])], clip.text))
    return heard


def rates(model, processor, heard: Heard, split: str, greedy: bool = False) -> dict:
    """`{"languages", "macro"}` of CER and WER, and the milliseconds that reading a second of speech took."""
    of_languages, frames, start_s = {}, 0, time.process_time()
    for code, splits in heard.items():
        read = [processor.decode(model.paths(logits[None], code, greedy=greedy)[0], code, skip_special_tokens=True) for logits, _ in splits[split]]
        of_languages[code] = error_rates([normalize(text, language=code, raw=False) for text in read], [said for _, said in splits[split]])
        frames += sum(len(logits) for logits, _ in splits[split])
    seconds = frames * model.config.inputs_to_logits_ratio / processor.sampling_rate_hz
    return {"languages": of_languages, "macro": macro(of_languages), "ms_a_second": round(1000 * (time.process_time() - start_s) / seconds, 2)}


@contextmanager
def settings(changed: dict):
    """The reader's settings, one of them changed, as long as the context lasts."""
    before = {name: getattr(ngrams, name) for name in changed}
    for name, value in changed.items():
        setattr(ngrams, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(ngrams, name, value)


def with_sentences(model, processor, heard: Heard, sentences: dict[str, list[str]]) -> dict:
    """CER and WER of the languages that have such sentences, with these in mind, on both splits."""
    for code, own in sentences.items():
        model.set_text(code, own)
    kilobytes = {code: text_kilobytes(model.config.text(code)) for code in sentences}
    found = {code: heard[code] for code in sentences}
    return {"kilobytes": kilobytes, **{split: rates(model, processor, found, split) for split in SPLITS}}


def of_another_subject(given: dict[str, list[str]], clips: list[Clip]) -> dict[str, list[str]]:
    """The first sentences of each file but those that held-out clips say, as `training.evaluate --more_text` has them."""
    said = {code: [clip.text for clip in clips if clip.split in SPLITS and clip.language == code] for code in given}
    return {code: beginning(without(lines, said[code], code), OTHER_TEXT) for code, lines in given.items()}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--assembly", nargs="*", default=[])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--other_text", type=text_of, nargs="*", default=[], metavar="LANGUAGE=FILE", help="a sentence a line")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    if len(dict(args.other_text)) < len(args.other_text):
        parser.error(f"--other_text: got {[code for code, _ in args.other_text]}; allowed: a language once. Join its files.")
    model = MasterASRForCTC.from_pretrained(args.model, assemblies=args.assembly).eval()
    check_languages(list(dict(args.other_text)), model, args.model)
    processor = processor_of(model, args.model)
    clips, _ = read_data(args.data, args.out.parent / "recordings")
    other = of_another_subject(dict(args.other_text), clips)
    heard, own = hear(model, processor, clips), {code: model.config.text(code).splitlines() for code in model.languages}
    result = {**facts_of_run(model), "sentences": {"none": {split: rates(model, processor, heard, split, greedy=True) for split in SPLITS}}, "settings": []}
    for changed in tqdm(TRIED, desc="settings"):
        forget_ngrams()
        with settings(changed):
            result["settings"].append({"changed": changed or {name: getattr(ngrams, name) for name in SETTINGS}, "validation": rates(model, processor, heard, "validation")})
    forget_ngrams()
    half = {code: beginning(of, sum(map(len, of)) // 2) for code, of in own.items()}
    whole = {code: [clip.text for clip in select(clips, "train", [code])] for code in model.languages}
    for name, sentences in {
        "half of its own": half, "its own": own, "of all training clips": whole, "of another subject": other,
        "both": {code: [*own[code], *of] for code, of in other.items()},
    }.items():  # fmt: skip
        result["sentences"][name] = with_sentences(model, processor, heard, sentences)
        print(name, *(f"{split} {result['sentences'][name][split]['macro']['cer']:.2f}" for split in SPLITS))
    write_json(args.out, result)
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
