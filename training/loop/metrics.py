"""Texts of clips, and their CER and WER; those of a run's splits, once it has trained."""

from __future__ import annotations

import random
from typing import Optional

import jiwer
import torch
from accelerate.utils import gather_object

from modeling_master_asr.assembly_master_asr import text_kilobytes
from modeling_master_asr.text_master_asr import normalize
from modeling_master_asr.trainer_utils import error_rates, macro
from training.loop.agreement import check_alike
from training.loop.data import Collator, bucket, to_device
from training.loop.sources import Clip
from training.loop.splits import Splits
from training.loop.text import said_in

BATCH_S = 60.0  # of audio, with its padding


@torch.no_grad()
def transcribe_clips(
    model, processor, collator: Collator, clips: list[Clip], encoded_as: Optional[str] = None, accelerator=None, *, greedy: bool,
) -> list[Optional[str]]:  # fmt: skip
    """Text of each clip, in order, normalised as the clips' own texts are; None for one that cannot be read.

    Args:
        encoded_as: the language whose assembly, but for the head, encodes them all; None: their own.
        accelerator: shares the work among its processes, all of which have to call this and get the whole list.
        greedy: whether a language's sentences are to have no say.
    """
    model.eval()
    if accelerator:
        check_alike([(clip.audio.name, clip.text) for clip in clips], "clips to read")
    position = {id(clip): i for i, clip in enumerate(clips)}
    batches = bucket(clips, BATCH_S, random.Random(0))
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    found = {}
    for first in range(0, len(batches), world):
        # every process runs as many batches, since sharded weights are gathered by all of them at once
        batch = batches[min(first + rank, len(batches) - 1)]
        inputs = to_device(collator(batch), model.device)
        inputs.pop("labels", None)
        codes = inputs.pop("language")
        if encoded_as is None:
            logits = model(**inputs, language=codes[0]).logits
        else:
            logits = model.assemblies[codes[0]].head(model.master_asr(**inputs, language=encoded_as).last_hidden_state)
        frames = model.master_asr.frame_counts(inputs[model.main_input_name], inputs["attention_mask"])
        ids = model.paths(logits, codes[0], frames, greedy)
        texts = processor.batch_decode(ids, codes[0], frames=frames, skip_special_tokens=True)
        for clip, text in zip(batch, texts):
            found[position[id(clip)]] = None if clip.audio in collator.broken else normalize(text, language=codes[0], raw=False)
    for share in gather_object([found]) if world > 1 else []:
        found |= share
    return [found[i] for i in range(len(clips))]


def edits_of(text: str, reference: str) -> tuple[int, int]:
    """One clip's edits and its reference's characters: what a corpus CER adds up."""
    found = jiwer.process_characters(reference, text)
    return found.substitutions + found.deletions + found.insertions, len(reference)


def evaluate_clips(model, processor, features, clips: list[Clip], accelerator=None, by_clip: bool = False, greedy: bool = False) -> dict:
    """`{"languages": {code: {"cer", "wer"}}, "macro": {...}}` in %; and where there are any, "left_out", clips that cannot be read,
    "unscored", languages that have no others, and "known", `{code: how many}` clips say a sentence that their language is read with, or three words and more of one.

    Args:
        accelerator, greedy: see `transcribe_clips`.
        by_clip: each language also has "edits", "2/31 ...": those of its clips and their characters, in their order, so that runs can be compared clip by clip.

    Raises:
        ValueError: if not one clip can be scored.
    """
    texts = transcribe_clips(model, processor, Collator(features, processor), clips, accelerator=accelerator, greedy=greedy)
    rates, unscored, known = {}, [], {}
    for language in dict.fromkeys(clip.language for clip in clips):
        pairs = [(text, clip.text) for text, clip in zip(texts, clips) if clip.language == language and text is not None]
        if pairs:
            rates[language] = error_rates([p for p, _ in pairs], [r for _, r in pairs])
            sentences = [] if greedy else [normalize(line, language=language, raw=False) for line in model.config.text(language).splitlines()]
            if said := sum(said_in((reference for _, reference in pairs), sentences)):
                known[language] = said
            if by_clip:
                rates[language]["edits"] = " ".join("{}/{}".format(*edits_of(*pair)) for pair in pairs)
        else:
            unscored.append(language)
    left_out = [str(clip.audio) for text, clip in zip(texts, clips) if text is None]
    if not rates:
        raise ValueError(f"No clips to score: {f'none of {left_out} can be read' if left_out else 'the split is empty'}.")
    remarks = {"left_out": left_out, "unscored": unscored, "known": known}
    return {"languages": rates, "macro": macro(rates), **{name: of for name, of in remarks.items() if of}}


def flattered(rates: dict) -> list[str]:
    """A warning for each language whose figures its own sentences flatter."""
    return [f"WARNING: {count} of the {code!r} clips say a sentence that it is read with, or a part of one: its figures flatter." for code, count in rates.get("known", {}).items()]


def tested(accelerator, model, processor, features, clips: list[Clip], greedy: bool) -> Optional[dict]:
    """CER and WER on test clips, and each clip's edits; None where there is nothing to score, with the reason said: what was trained is
    saved already."""
    if not clips:  # as `load_splits` has said
        return None
    try:
        rates = evaluate_clips(model, processor, features, clips, accelerator, by_clip=True, greedy=greedy)
        for line in flattered(rates):
            accelerator.print(line)
        return rates
    except ValueError as error:
        accelerator.print(f"Not tested: {error}")
        return None


def measured(accelerator, model, processor, features, splits: Splits) -> dict:
    """`{"validation", "test"}`, greedy, and "with_text" the same with the languages' sentences in mind."""

    def both(greedy: bool) -> dict:
        return {name: tested(accelerator, model, processor, features, getattr(splits, name), greedy) for name in ("validation", "test")}

    kilobytes = {code: text_kilobytes(text) for code in model.languages if (text := model.config.text(code))}
    greedy = both(greedy=True)
    return {**greedy, "with_text": {"kilobytes": kilobytes, **(both(greedy=False) if kilobytes else greedy)}}
