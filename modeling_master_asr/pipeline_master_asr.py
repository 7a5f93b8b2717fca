"""MasterASRPipeline: `pipeline("automatic-speech-recognition")` with a language a call, exact trimming, own resampling."""

from __future__ import annotations

from typing import Optional, Union
from urllib.request import urlopen

import numpy as np
import torch
from transformers import AutomaticSpeechRecognitionPipeline

from .processing_master_asr import MasterASRProcessor, check_audio, decode_audio, resample


class MasterASRPipeline(AutomaticSpeechRecognitionPipeline):
    """Speech to text in the language that the call names.

        asr("clip.mp3", language="fr", return_timestamps="word", chunk_length_s=30)

    The stock CTC pipeline ignores `language=`, decodes the padding of shorter clips, needs the ffmpeg command and returns
    NumPy time stamps; this one does not.
    """

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self._kept_processor: Optional[tuple[list, MasterASRProcessor]] = None
        vocab = getattr(self.tokenizer, "vocab", None)
        if isinstance(vocab, dict) and any(isinstance(v, dict) for v in vocab.values()):
            given = MasterASRProcessor(self.feature_extractor, self.tokenizer)
            given.check_model(self.model, [code for code in self.model.config.languages if code in given.languages])

    @property
    def _processor(self) -> MasterASRProcessor:
        """The alphabets of the model as it is now: languages come and go while a pipeline lives."""
        config = self.model.config
        alphabets = [(code, config.vocab(code)) for code in config.languages]
        kept = self._kept_processor
        if kept is None or len(kept[0]) != len(alphabets) or any(a[0] != b[0] or a[1] is not b[1] for a, b in zip(kept[0], alphabets)):
            self._kept_processor = kept = alphabets, MasterASRProcessor.from_config(config, self.feature_extractor)
        return kept[1]

    def __call__(self, inputs, language: Union[str, list[str], None] = None, **kwargs):
        """Transcribes one input or a list.

        Args:
            inputs: a path, URL, bytes, `(samples,)` array at the model's rate, or
                `{"raw" or "array": samples, "sampling_rate": Hz, "language": code}`; or a list of these.
            language: one code, or one for each input of a list.
            return_timestamps: "word" or "char" adds `chunks` with `timestamp` (start_s, end_s).
            chunk_length_s, stride_length_s: cut long audio into overlapping chunks.

        Returns:
            `{"text": ..., "chunks": [...]}`, or a list of them.

        Raises:
            ValueError, KeyError: for a missing or unknown language, unusable audio.
        """
        if isinstance(language, (list, tuple)):
            if not isinstance(inputs, (list, tuple)) or len(inputs) != len(language):
                raise ValueError(f"language has {len(language)} codes; pass a list of as many inputs, or one code.")
            inputs = [self._with_language(item, code) for item, code in zip(inputs, language)]
            language = None
        if language is not None:
            kwargs["language"] = language
        return super().__call__(inputs, **kwargs)

    @staticmethod
    def _with_language(item, code: str) -> dict:
        return {**item, "language": code} if isinstance(item, dict) else {"source": item, "language": code}

    def _sanitize_parameters(
        self,
        language: Optional[str] = None,
        chunk_length_s: Optional[float] = None,
        stride_length_s=None,
        return_timestamps: Union[str, bool, None] = None,
        generate_kwargs: Optional[dict] = None,
        **unknown,
    ):
        language = language or (generate_kwargs or {}).get("language")
        if unknown:
            raise TypeError(f"Unknown arguments {sorted(unknown)}. A CTC model takes language, chunk_length_s, stride_length_s and return_timestamps.")
        if return_timestamps not in (None, False, "word", "char"):
            raise ValueError(f"return_timestamps must be 'word' or 'char' for a CTC model; got {return_timestamps!r}.")
        preprocess = {"language": language, "chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s}
        return ({k: v for k, v in preprocess.items() if v is not None}, {},
                {} if return_timestamps is None else {"return_timestamps": return_timestamps})  # fmt: skip

    def _samples(self, source) -> np.ndarray:
        """Float mono samples at the model's rate."""
        wanted_hz = self._processor.sampling_rate_hz
        if isinstance(source, dict):
            if "source" in source:
                return self._samples(source["source"])
            raw = source.get("raw", source.get("array"))
            if raw is None or "sampling_rate" not in source:
                raise ValueError(f'A dict needs "raw" (or "array") and "sampling_rate"; got {sorted(source)}.')
            samples = np.asarray(raw)
            if source["sampling_rate"] != wanted_hz and samples.ndim == 1:
                samples = resample(samples.astype(np.float32), source["sampling_rate"], wanted_hz)
            return check_audio(samples, None, wanted_hz)
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            with urlopen(source) as response:
                source = response.read()
        if isinstance(source, (str, bytes)) or hasattr(source, "__fspath__"):
            name = "the audio bytes" if isinstance(source, bytes) else str(source)
            return check_audio(decode_audio(source, wanted_hz), None, wanted_hz, name)
        return check_audio(source, None, wanted_hz)

    def preprocess(self, inputs, language=None, chunk_length_s=None, stride_length_s=None):
        if isinstance(inputs, dict):
            language = inputs.get("language", language)
        code = self.model.master_asr.resolve_languages(language, 1)[0]
        samples = self._samples(inputs)
        for start, end, left, right in self._chunks(len(samples), chunk_length_s, stride_length_s):
            # lists, so the stock collator hands them on unpadded; `_forward` pads with the true lengths
            yield {
                "is_last": end >= len(samples), "features": [self._processor.features(samples[start:end])],
                "language": code, "stride": (left, right),
            }  # fmt: skip

    def _chunks(self, total: int, chunk_length_s, stride_length_s):
        """`(start, end, left, right)` of each chunk in samples, multiples of a frame; left and right are context only."""
        if not chunk_length_s:
            return [(0, total, 0, 0)]
        stride_length_s = chunk_length_s / 6 if stride_length_s is None else stride_length_s
        sides = [stride_length_s] * 2 if isinstance(stride_length_s, (int, float)) else list(stride_length_s)
        frame = self.model.config.inputs_to_logits_ratio
        length, left, right = (
            int(round(seconds * self._processor.sampling_rate_hz / frame)) * frame for seconds in (chunk_length_s, *sides)
        )
        if length <= left + right:
            raise ValueError(f"chunk_length_s={chunk_length_s} must be longer than its strides {sides} together.")
        chunks = []
        for start in range(0, total, length - left - right):
            end = min(start + length, total)
            is_last = end >= total
            chunks.append((start, end, left if start else 0, 0 if is_last else right))
            if is_last:
                return chunks
        return chunks

    def _forward(self, model_inputs):
        is_batch = isinstance(model_inputs["is_last"], list)
        features = [f[0] for f in model_inputs["features"]] if is_batch else model_inputs["features"]
        languages = model_inputs["language"] if is_batch else [model_inputs["language"]]
        batch = self._processor.pad(features).to(self.device)
        name = self.model.main_input_name
        batch[name] = batch[name].to(self.model.dtype)
        logits = self.model(**batch, language=languages).logits
        frames = self.model.master_asr.frame_counts(batch[name], batch["attention_mask"])
        return {
            "tokens": logits.argmax(-1), "frames": frames, "stride": model_inputs["stride"],
            "language": model_inputs["language"], "is_last": model_inputs["is_last"],
        }  # fmt: skip

    def postprocess(self, model_outputs, return_timestamps=None):
        frame = self.model.config.inputs_to_logits_ratio
        pieces = []
        for output in model_outputs:
            left, right = (int(side) // frame for side in output["stride"])
            frames = int(output["frames"])
            pieces.append(output["tokens"][0, left : frames - right].cpu())
        language = model_outputs[0]["language"]
        tokens = torch.cat(pieces)
        if not return_timestamps:
            return {"text": self._processor.decode(tokens, language)}
        decoded = self._processor.decode(tokens, language, output_char_offsets=True, output_word_offsets=True)
        offsets = decoded[f"{return_timestamps}_offsets"]
        second = frame / self._processor.sampling_rate_hz  # seconds a frame
        chunks = [
            {"text": o[return_timestamps], "timestamp": (float(o["start_offset"] * second), float(o["end_offset"] * second))}
            for o in offsets
        ]
        return {"text": decoded["text"], "chunks": chunks}
