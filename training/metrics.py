"""CER and WER as `evaluate.Metric`s over jiwer, usable without a network."""

from __future__ import annotations

import datasets
import evaluate
import jiwer


class ErrorRates(evaluate.Metric):
    """Corpus CER and WER in %: all edits over all reference characters (words)."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Character and word error rates in %, over the whole corpus.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions, references):
        return {"cer": 100 * jiwer.cer(references, predictions), "wer": 100 * jiwer.wer(references, predictions)}


def error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    """`{"cer": %, "wer": %}` of one language.

    Raises:
        ValueError: if there is nothing to score.
    """
    if not references:
        raise ValueError("No clips to score: the split is empty for this language.")
    return ErrorRates().compute(predictions=predictions, references=references)


def macro(per_language: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean over languages, each counting once."""
    return {name: sum(r[name] for r in per_language.values()) / len(per_language) for name in ("cer", "wer")}
