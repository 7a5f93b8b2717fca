"""CER and WER as an `evaluate.Metric` over jiwer, usable without a network. Needs the extra `train`; `trainer_utils` asks for it."""

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
