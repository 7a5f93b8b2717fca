r"""What a user has today: stock Whisper with its own decoder, zero-shot, told the right language and to transcribe.

Greedy, as Transformers' pipeline reads; `--thorough`: as OpenAI's own command does, five beams, and again at higher temperatures where what
came out repeats itself or is improbable.

    python -m benchmarks.zero_shot --model ../shared/models/whisper-base --data data/manifest.jsonl \
        --languages es en fr it ru cs nl --out benchmarks/results/zero_shot.json

What Whisper wrote stays in `--heard`, a line a clip, and a stopped run goes on from there. It is scored as this project's own
texts are: digits spelled as `training.prepare_speech` spells them in transcripts, then `normalize`, then the same CER and WER.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Optional

import torch
from num2words import num2words
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS_MULTI
from transformers.utils import logging

from modeling_master_asr.audio_master_asr import decode_audio
from modeling_master_asr.backbone_master_asr import SAMPLING_RATE_HZ
from modeling_master_asr.text_master_asr import normalize
from modeling_master_asr.trainer_utils import error_rates, macro
from training.loop.data import minutes_of, select
from training.loop.metrics import edits_of
from training.loop.record import facts_of_run, read_jsonl, write_json
from training.loop.sources import Clip, read_data
from training.prepare_speech import spell_digits

MAX_NEW_TOKENS = 200  # 20 s of speech are at most about 120 tokens; what comes later is a loop
THOROUGH = {  # OpenAI's own thresholds; the ratio is counted over tokens here, for which Transformers' documentation names this one
    "num_beams": 5, "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "compression_ratio_threshold": 1.35, "logprob_threshold": -1.0,
}  # fmt: skip
LONGEST_NUMBER = 6  # digits that are read as one number; longer rows, and those that begin with 0, are read digit by digit
ORDINALS = {"en": "st|nd|rd|th", "fr": "er|ère|ème|eme|e", "nl": "de|ste|e", "es": "[.]?[ºª]", "it": "[°ºª]", "ru": "-[ыио]?й"}


def spell_numbers(text: str, language: str) -> str:
    """A text without digits: lone ones as `prepare_speech` spells them, ordinals, and longer numbers, which no transcript holds."""
    if language in ORDINALS:
        ordinal = rf"(?<!\d)(\d{{1,3}})(?:{ORDINALS[language]})(?!\w)"
        text = re.sub(ordinal, lambda found: num2words(int(found[1]), lang=language, to="ordinal"), text)
    text = re.sub(r"(?<=\d)[.,](?=\d{3}(?!\d))", "", spell_digits(text, language))

    def spelled(digits: re.Match) -> str:
        row = digits[0]
        numbers = row if len(row) > LONGEST_NUMBER or row[0] == "0" else [row]
        return " " + " ".join(num2words(int(number), lang=language) for number in numbers) + " "

    return re.sub(r"[0-9]+", spelled, text)


def load(folder: str, languages: list[str]) -> tuple:
    """Model, feature extractor and tokenizer; the latter says how to generate, since a folder's own file may lack the languages."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token = tokenizer.convert_tokens_to_ids
    end = token("<|endoftext|>")
    model.generation_config = GenerationConfig(
        is_multilingual=True, lang_to_id={f"<|{code}|>": token(f"<|{code}|>") for code in languages},
        task_to_id={"transcribe": token("<|transcribe|>")}, no_timestamps_token_id=token("<|notimestamps|>"),
        decoder_start_token_id=token("<|startoftranscript|>"), eos_token_id=end, pad_token_id=end,
        suppress_tokens=NON_SPEECH_TOKENS_MULTI, max_initial_timestamp_index=50, begin_suppress_tokens=[token("Ġ"), end],
        do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS,
    )  # fmt: skip
    return model, WhisperFeatureExtractor.from_pretrained(folder), tokenizer


@torch.no_grad()
def transcribe(model, extractor, tokenizer, clip: Clip, timestamps: bool = False, thorough: bool = False) -> dict:
    """What Whisper writes for one clip, its tokens and the seconds of processor time from samples to text."""
    samples = decode_audio(clip.audio, SAMPLING_RATE_HZ)
    start = time.process_time()
    inputs = extractor(samples, sampling_rate=SAMPLING_RATE_HZ, return_tensors="pt", return_attention_mask=True)
    torch.manual_seed(0)  # of what is drawn at higher temperatures
    ids = model.generate(**inputs, language=clip.language, task="transcribe", return_timestamps=timestamps, **(THOROUGH if thorough else {}))[0]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    seconds = round(time.process_time() - start, 3)
    return {"audio": clip.audio.name, "language": clip.language, "text": text, "tokens": len(ids), "cpu_s": seconds}


def read_heard(path: Path, by: Optional[dict] = None) -> dict[tuple[str, str], dict]:
    """The lines of an earlier run by language and file name.

    Raises:
        ValueError: if another model wrote them than `by` says, or with other options.
    """
    lines = read_jsonl(path) if path.exists() else []
    for line in lines:
        if by and line.get("by") != by:
            raise ValueError(f"{path} was heard by {line.get('by', 'a model that it does not name')}, not by {by}. Name another file with --heard, or delete it.")
    return {(line["language"], line["audio"]): line for line in lines}


def by_name(clips: list[Clip]) -> dict[tuple[str, str], Clip]:
    """The clips by language and file name, as what was heard is kept.

    Raises:
        ValueError: for two of one language and name.
    """
    named: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        other = named.setdefault((clip.language, clip.audio.name), clip)
        if other is not clip:
            raise ValueError(f"--data: got {other.audio} and {clip.audio}, both of {clip.language!r}; allowed: a file name once in a language, since what was heard is kept by it.")
    return named


def transcribe_all(folder: str, clips: list[Clip], path: Path, timestamps: bool = False, thorough: bool = False) -> list[dict]:
    """A line a clip, in order, of which those that are in the file already are not heard again."""
    by_name(clips)
    by = {"model": folder, "timestamps": timestamps, **({"thorough": True} if thorough else {})}
    heard = read_heard(path, by)
    missing = [clip for clip in clips if (clip.language, clip.audio.name) not in heard]
    if missing:
        parts = load(folder, list(dict.fromkeys(clip.language for clip in missing)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for clip in tqdm(missing, desc="clips"):
                heard[clip.language, clip.audio.name] = line = {**transcribe(*parts, clip, timestamps, thorough), "by": by}
                print(json.dumps(line, ensure_ascii=False), file=file, flush=True)
    return [heard[clip.language, clip.audio.name] for clip in clips]


def capped(texts: list[str], references: list[str]) -> float:
    """CER in % where a clip's edits count as its letters at most: a decoder that runs away writes more wrong than was said."""
    edits = [edits_of(text, reference) for text, reference in zip(texts, references)]
    return 100 * sum(min(found, letters) for found, letters in edits) / sum(letters for _, letters in edits)


def score(clips: list[Clip], heard: list[dict]) -> dict:
    """`{"languages": {code: {"cer", "wer", ...}}, "macro": {...}}` in %."""
    rates = {}
    for code in dict.fromkeys(clip.language for clip in clips):
        pairs = [(clip, line) for clip, line in zip(clips, heard) if clip.language == code]
        references = [clip.text for clip, _ in pairs]
        timed = [line["cpu_s"] for _, line in pairs if "cpu_s" in line]
        texts = [normalize(spell_numbers(line["text"], code), language=code) for _, line in pairs]
        rates[code] = {
            **error_rates(texts, references), "cer_capped": capped(texts, references),
            "clips": len(pairs), "cpu_s_a_clip": round(sum(timed) / max(len(timed), 1), 2),
            "clips_cut_off": sum(line["tokens"] >= MAX_NEW_TOKENS for _, line in pairs),
            "edits": " ".join("{}/{}".format(*edits_of(*pair)) for pair in zip(texts, references)),  # as `evaluate_clips` keeps them
        }  # fmt: skip
    return {"languages": rates, "macro": macro(rates)}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a stock Whisper")
    parser.add_argument("--data", required=True, nargs="+", help="as in training")
    parser.add_argument("--languages", required=True, nargs="+", help="in the order in which they are read")
    parser.add_argument("--timestamps", action="store_true", help="times, too: it goes on after pauses at which it may stop")
    parser.add_argument("--thorough", action="store_true", help="five beams, and higher temperatures where that fails, as OpenAI's command reads")
    parser.add_argument("--heard", type=Path, help="what Whisper wrote; default: heard[_timestamps][_thorough].jsonl in runs/zero_shot")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    options = "".join(f"_{name}" for name in ("timestamps", "thorough") if getattr(args, name))
    args.heard = args.heard or Path(f"runs/zero_shot/heard{options}.jsonl")
    logging.set_verbosity_error()  # a warning a clip: both limits of length are set
    facts = facts_of_run()
    clips = select(read_data(args.data, args.heard.parent / "recordings")[0], "test", args.languages)
    rates = score(clips, transcribe_all(args.model, clips, args.heard, args.timestamps, args.thorough))
    conditions = {"threads": torch.get_num_threads(), "max_new_tokens": MAX_NEW_TOKENS, "minutes": minutes_of(clips)}
    write_json(args.out, {**facts, **conditions, "test": rates})
    for code, rate in rates["languages"].items():
        print(f"{code}\tCER {rate['cer']:.2f}\tWER {rate['wer']:.2f}\t{rate['cpu_s_a_clip']} s a clip")
    print(f"Wrote {args.out}; what was heard is in {args.heard}.")


if __name__ == "__main__":
    main()
