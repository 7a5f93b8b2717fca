"""What a plain `transformers.Trainer` needs for a language: the collator, the metrics. Installed with the package, not shipped to the Hub."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Union

import numpy as np
import torch

from .audio_master_asr import is_recording, read_audio
from .configuration_master_asr import PAD_TOKEN, SPACE_TOKEN, UNK_TOKEN
from .ngrams_master_asr import with_gaps

METRICS_HINT = 'CER and WER need evaluate and jiwer: pip install -e ".[train]" in a clone of the project.'


class ClipCollator:
    """A plain Trainer's `data_collator`: `{"audio", "text", "language"}` -> a batch.

    `audio` is a path, bytes, a row of a `datasets` Audio column, or samples, at the model's rate where no column `sampling_rate` says another.
    Texts are normalised by the processor.

    Args:
        processor: a `MasterASRProcessor`.
        model: the one that trains, whose alphabets are compared with the processor's: labels of another would be learnt without a word.
        raw: False for texts that `normalize` has seen already, as those of `read_manifest`: their apostrophes are all letters.
    """

    def __init__(self, processor, model=None, raw: bool = True):
        self.processor, self.raw = processor, raw
        # of the model what is compared: the workers that load the data get a copy of this
        self.model = None if model is None else SimpleNamespace(config=model.config, main_input_name=model.main_input_name)

    def __call__(self, examples: list[dict]) -> dict:
        """The batch: the model's inputs, `labels` `(B, L)`, -100 where padded, and each clip's `language`.

        Raises:
            KeyError: for an example without one of the three, as Trainer leaves it by default.
            ValueError: where processor and model have other alphabets.
        """
        for example in examples:
            if missing := {"audio", "text", "language"} - set(example):
                raise KeyError(
                    f"An example has no {sorted(missing)}; it has {sorted(example)}. Give the data set that column. If it has it, Trainer dropped it, as all "
                    "that forward() does not name: pass TrainingArguments(..., remove_unused_columns=False)."
                )
        languages = [example["language"] for example in examples]
        if self.model is not None:
            self.processor.check_model(self.model, [code for code in dict.fromkeys(languages) if code in self.model.config.languages])  # else refused by the model
        clips = [self.processor.features(read_audio(_with_rate(example), self.processor.sampling_rate_hz)) for example in examples]
        labels = self.processor.encode([example["text"] for example in examples], languages, self.raw)
        return {**self.processor.pad(clips), "labels": labels, "language": languages}


def _with_rate(example: dict):
    """The audio of an example; of samples with the rate that a column beside them says."""
    audio, rate_hz = example["audio"], example.get("sampling_rate")
    return audio if rate_hz is None or is_recording(audio) else {"array": audio, "sampling_rate": rate_hz}


def greedy_ids(outputs, labels) -> torch.Tensor:
    """A plain Trainer's `preprocess_logits_for_metrics`: ids of the best tokens `(B, T)`, so that no logits are kept."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs  # beside hidden states, where the config asks for them
    return logits.argmax(-1)


def ctc_metrics(processor, language: Union[str, list[str]]):
    """A plain Trainer's `compute_metrics`: CER and WER in %, each clip in its own alphabet, as `greedy_ids` read them: sentences have no say.

    Args:
        language: of all clips, or one for each clip of the evaluation set, in its order: not with
            `train_sampling_strategy="group_by_length"`, by which Trainer shuffles the evaluation set too, nor of a streamed set that
            several workers read, whose batches come in turn. Another set has a list of its own.

    Raises:
        ValueError: of the metrics, for logits in the place of ids, and another number of codes than of clips.
    """
    _metric()  # said before the first step, not after the first evaluation

    def compute(prediction) -> dict[str, float]:
        ids = prediction.predictions
        if isinstance(ids, tuple) or np.ndim(ids) == 3:
            raise ValueError("compute_metrics got logits in the place of ids. Give the Trainer preprocess_logits_for_metrics=greedy_ids, too: it keeps no logits.")
        codes = [language] * len(ids) if isinstance(language, str) else list(language)
        if len(codes) != len(ids):
            raise ValueError(
                f"language has {len(codes)} codes for {len(ids)} clips; pass one code, or one for each clip of the set that is read. Before another set "
                "(one of a dict of them, or predict's): trainer.compute_metrics = ctc_metrics(processor, its_codes)."
            )
        heard = [heard_in(processor, row, code) for row, code in zip(ids, codes)]
        said = [spell(processor, row, code) for row, code in zip(prediction.label_ids, codes)]
        rates = {}
        for code in dict.fromkeys(codes):
            of_code = [i for i, c in enumerate(codes) if c == code]
            rates[code] = error_rates([heard[i] for i in of_code], [said[i] for i in of_code])
        whole = macro(rates)
        return {"cer": whole["cer"], "wer": whole["wer"], **{f"cer_{code}": rate["cer"] for code, rate in rates.items()}}

    return compute


def heard_in(processor, ids: np.ndarray, language: str) -> str:
    """The text of a clip's best tokens as `model.paths` and training.evaluate read it: with a space in a long pause, and none twice."""
    vocab = processor.vocabs[language]
    path = with_gaps(np.maximum(ids, -1), [-1, vocab[PAD_TOKEN], vocab[UNK_TOKEN]], vocab[SPACE_TOKEN])
    return processor.decode(path, language, skip_special_tokens=True)


def spell(processor, label_ids: np.ndarray, language: str) -> str:
    """The text of label ids, repeats kept; [UNK] is one character that nobody can have heard.

    Raises:
        ValueError: for an id that the language's alphabet has not.
    """
    token_of = {i: token for token, i in processor.vocabs[language].items()}
    foreign = sorted({int(i) for i in label_ids if i >= len(token_of)})
    if foreign:
        raise ValueError(
            f"Labels hold {foreign}, and {language!r} has {len(token_of)} tokens: predictions do not come in the order of the languages given. "
            'Trainer shuffles the evaluation set with train_sampling_strategy="group_by_length": leave that out.'
        )
    token_of[processor.vocabs[language][UNK_TOKEN]] = "\ufffd"
    return "".join(token_of[int(i)] for i in label_ids if i >= 0).replace(SPACE_TOKEN, " ")


def error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    """`{"cer": %, "wer": %}` of one language, over the whole corpus: all edits over all reference characters (words).

    Raises:
        ValueError: if there is nothing to score.
        ImportError: without evaluate or jiwer.
    """
    if not references:
        raise ValueError("No clips to score: the split is empty for this language.")
    return _metric()().compute(predictions=predictions, references=references)


def macro(per_language: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean over languages, each counting once."""
    return {name: sum(r[name] for r in per_language.values()) / len(per_language) for name in ("cer", "wer")}


def _metric():
    try:
        from .error_rates import ErrorRates
    except ImportError as error:
        raise ImportError(METRICS_HINT) from error
    return ErrorRates
