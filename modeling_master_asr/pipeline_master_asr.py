"""MasterASRPipeline: `pipeline("automatic-speech-recognition")` with a language a call, exact trimming, own decoding and resampling."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any, Optional, Union

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import AutomaticSpeechRecognitionPipeline

from .audio_master_asr import MIN_SAMPLES, check_rate, read_audio
from .processing_master_asr import MasterASRProcessor, is_nested

LIMITS = ("max_duration_s", "download_timeout_s", "max_download_bytes")  # of audio_master_asr.read_audio
READ_OF_A_ROW = ("raw", "array", "sampling_rate", "bytes", "path", "language", "stride")
NO_EFFECT = ("truncation", "ignore_warning")  # evaluate passes the first to every ASR pipeline, the stock signature names the second
ITEM_ERRORS = (FileNotFoundError, TimeoutError, OSError, KeyError, TypeError, ValueError)  # what one input may be to blame for


@dataclass(frozen=True)
class Item:
    """One input of a call: where it stands in its list (None: alone), and the language named for it."""

    source: Any  # or the error that came in its place
    place: Optional[int] = None
    language: Optional[str] = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What a language is read with: as long as both are the same objects, a text is the work of one assembly alone."""

    vocab: dict[str, int]
    assembly: Any

    @classmethod
    def of(cls, model, language: str) -> Reading:
        """That of a model as it is now.

        Raises:
            KeyError: if the language is not loaded.
        """
        return cls(model.config.vocab(language), model.assemblies[language])

    def stands(self, model, language: str) -> bool:
        """Whether the model would read with the same now; raises as `of`."""
        now = Reading.of(model, language)
        return now.vocab is self.vocab and now.assembly is self.assembly


def _is_stream(inputs) -> bool:
    """Whether inputs come one after the other, without a number or a place: a generator, an iterator, an iterable data set or its column."""
    if isinstance(inputs, IterableDataset):
        return True
    return hasattr(inputs, "__iter__") and not any(hasattr(inputs, name) for name in ("__len__", "read", "get_all_samples"))


class Items(Dataset):
    """A data set whose items know their places."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        if index >= len(self):
            raise IndexError(index)  # by which Transformers knows the end, and which not every data set raises
        try:
            return Item(self.dataset[index], index)
        except ITEM_ERRORS as error:
            return Item(error, index)
        except RuntimeError as error:  # soundfile's, of a file that it cannot read
            return Item(OSError(str(error)), index)


class MasterASRPipeline(AutomaticSpeechRecognitionPipeline):
    """Speech to text in the language that the call names.

        asr("clip.mp3", language="fr", return_timestamps="word", chunk_length_s=10)

    The stock CTC pipeline ignores `language=`, decodes the padding of shorter clips, needs the ffmpeg command and returns
    NumPy time stamps; this one does not.
    """

    def __init__(self, model, feature_extractor=None, tokenizer=None, decoder=None, **kwargs):
        """As in Transformers; what of the processor is not given is the model's own.

        Raises:
            ValueError: for a processor of other alphabets, or that listens otherwise; for a decoder.
        """
        if decoder is not None:
            raise ValueError(f"decoder: got a {type(decoder).__name__}; allowed: None. A language model of characters is made of sentences: model.set_text(code, [...]).")
        if feature_extractor is None or tokenizer is None:
            own = MasterASRProcessor.from_model(model)
            feature_extractor, tokenizer = feature_extractor or own.feature_extractor, tokenizer or own.tokenizer
        super().__init__(model, feature_extractor=feature_extractor, tokenizer=tokenizer, **kwargs)
        self._kept_processor: Optional[tuple[list, MasterASRProcessor]] = None
        self._receptive_field: Optional[int] = None
        self._processor.check_model(self.model)
        self._check_tokenizer(getattr(self.tokenizer, "vocab", None))

    @property
    def _processor(self) -> MasterASRProcessor:
        """The alphabets of the model as it is now: languages come and go while a pipeline lives."""
        config = self.model.config
        entries = list(config.assemblies.items())  # one look: another thread may remove one of them meanwhile
        alphabets = [(code, entry["vocab"]) for code, entry in entries]
        kept = self._kept_processor
        if kept is None or len(kept[0]) != len(alphabets) or any(a[0] != b[0] or a[1] is not b[1] for a, b in zip(kept[0], alphabets)):
            config = copy.copy(config)
            config.assemblies = dict(entries)
            self._kept_processor = kept = alphabets, MasterASRProcessor.from_config(config, self.feature_extractor)
        return kept[1]

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As in Transformers, with the alphabets of the model as it is now."""
        super().save_pretrained(save_directory, **kwargs)
        self._processor.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """As the model's own `push_to_hub`: in one commit, looked through, and saying which sentences are published; a `PeftModel`'s adapter alone."""
        processor = {} if hasattr(self.model, "get_base_model") else {"processor": self._processor}
        return self.model.push_to_hub(repo_id, **processor, **kwargs)

    def _check_tokenizer(self, vocab) -> None:
        config, loaded = self.model.config, self.model.loaded_languages  # these took the place of what a tokenizer of the base's folder knows
        if is_nested(vocab):
            given = MasterASRProcessor(self.feature_extractor, self.tokenizer)
            given.check_model(self.model, [code for code in config.languages if code in given.languages and code not in loaded])
        elif vocab is not None and set(config.languages) - loaded and vocab not in [config.vocab(code) for code in config.languages]:
            raise ValueError(
                f"This tokenizer holds one alphabet of {len(vocab)} tokens, and none of this model's languages {config.languages} has it. "
                "Use the model's own: MasterASRProcessor.from_model(model).tokenizer."
            )

    def __call__(self, inputs, language: Union[str, list[str], None] = None, **kwargs):
        """Transcribes one input, a list, a data set or a generator.

        Args:
            inputs: a path, URL, bytes, binary file, samples `(n,)` at the model's rate, a row of a `datasets` Audio column, or
                `{"raw" or "array": samples, "sampling_rate": Hz, "language": code, "stride": (left, right) samples of mere context}`;
                or a list, a torch data set (`KeyDataset(ds, "audio")`), an iterable one or an iterator of these.
            language: one code, for inputs that name none of their own, or one for each input of a list.
            return_timestamps: "word" or "char" adds `chunks` with `timestamp` (start_s, end_s).
            chunk_length_s, stride_length_s: cut long audio into overlapping chunks, on the model's own frames.
            on_error: "raise", naming the input's place in its list; or "return": `{"text": None, "error": message}` in that place.
            max_duration_s, download_timeout_s, max_download_bytes: limits of what is read.

        Returns:
            `{"text": ..., "chunks": [...]}`, or a list (of a data set or an iterator: an iterator) of them. What else a row holds comes back
            as in the stock pipeline, a list with one value for each chunk read: `ffmpeg_microphone_live`'s `partial`, an id.

        Raises:
            ValueError, KeyError, TypeError, OSError: for a missing or unknown language, unusable audio, an unknown argument.
        """
        inputs, language = (list(given) if _are_several(given) else given for given in (inputs, language))
        if isinstance(inputs, list) and inputs and all(isinstance(value, Number) for value in inputs[:2]):
            inputs = np.asarray(inputs)  # one clip as a plain list of samples
        if isinstance(language, list):
            if not isinstance(inputs, list) or len(inputs) != len(language):
                raise ValueError(f"language has {len(language)} codes; pass a list of as many inputs, or one code.")
            inputs, language = [Item(item, i, code) for i, (item, code) in enumerate(zip(inputs, language))], None
        elif isinstance(inputs, list):
            inputs = [Item(item, i) for i, item in enumerate(inputs)]
        elif _is_stream(inputs):
            inputs = (Item(item, i) for i, item in enumerate(inputs))
        elif isinstance(inputs, Dataset):
            inputs = Items(inputs)
        elif (columns := getattr(inputs, "column_names", getattr(inputs, "columns", None))) is not None:
            raise TypeError(f"A data set of {list(columns)} is no audio; its column is: asr(dataset[\"audio\"]).")
        if language is not None:
            kwargs["language"] = language
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        language: Optional[str] = None,
        chunk_length_s: Optional[float] = None,
        stride_length_s=None,
        return_timestamps: Union[str, bool, None] = None,
        on_error: Optional[str] = None,
        generate_kwargs: Optional[dict] = None,
        **others,
    ):
        if language is None:
            language = (generate_kwargs or {}).get("language")
        if unread := {name: value for name, value in (generate_kwargs or {}).items() if name != "language" and (name, value) != ("task", "transcribe")}:
            raise TypeError(f"generate_kwargs: got {unread}; allowed: language, and task='transcribe'. A CTC model writes what is said, letter by letter, and generates nothing.")
        limits = {name: others.pop(name) for name in LIMITS if name in others}
        unknown = set(others) - set(NO_EFFECT)
        if unknown:
            raise TypeError(
                f"Unknown arguments {sorted(unknown)}. A CTC model takes language, chunk_length_s, stride_length_s, return_timestamps, "
                f"on_error, {', '.join(LIMITS)}."
            )
        if return_timestamps not in (None, False, "word", "char"):
            raise ValueError(f"return_timestamps must be 'word' or 'char' for a CTC model; got {return_timestamps!r}.")
        if on_error not in (None, "raise", "return"):
            raise ValueError(f"on_error must be 'raise' or 'return'; got {on_error!r}.")
        preprocess = {"language": language, "chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s, "on_error": on_error, **limits}
        forward_params = {} if on_error is None else {"on_error": on_error}
        postprocess_params = forward_params if return_timestamps is None else {**forward_params, "return_timestamps": return_timestamps}
        return {k: v for k, v in preprocess.items() if v is not None}, forward_params, postprocess_params

    # ------------------------------------------------------------------ in

    def preprocess(self, inputs, language=None, chunk_length_s=None, stride_length_s=None, on_error="raise", **limits):
        item = inputs if isinstance(inputs, Item) else Item(inputs)
        try:
            yield from self._chunks_of(item, language, chunk_length_s, stride_length_s, limits)
        except ITEM_ERRORS as error:
            yield {"is_last": True, "features": [None], "language": "", "kept": (0, 0), "trim": (0, 0), "place": item.place, "others": _others(item.source),
                   "error": _named(error, item.place, on_error), "duration_s": 0.0}  # fmt: skip

    def _chunks_of(self, item: Item, language, chunk_length_s, stride_length_s, limits: dict) -> Iterator[dict]:
        source, trim = item.source, (0, 0)
        if isinstance(source, Exception):
            raise source
        row = source if isinstance(source, Mapping) else {}
        trim = row.get("stride") or trim
        named = [code for code in (row.get("language"), item.language, language) if code is not None]
        if item.language is not None and named[0] != item.language:
            raise ValueError(f"language: got {item.language!r} for a row whose own is {named[0]!r}; allowed: the same, or one of the two alone.")
        language = named[0] if named else None
        code = self.model.master_asr.resolve_languages(language, 1)[0]
        wanted_hz, ratio = self._processor.sampling_rate_hz, self.model.config.inputs_to_logits_ratio
        samples = read_audio(source, wanted_hz, **limits)
        if not isinstance(trim, (list, tuple)) or len(trim) != 2 or not all(isinstance(side, Number) and math.isfinite(side) for side in trim):
            raise ValueError(f'"stride" is (left, right), two whole numbers of samples; got {trim!r}.')
        if any(trim):
            given_hz = check_rate(row.get("sampling_rate") or wanted_hz)
            if sum(trim) * wanted_hz > len(samples) * given_hz or min(trim) < 0:
                raise ValueError(f'"stride" {tuple(trim)} leaves nothing of {len(samples) * given_hz / wanted_hz:.0f} samples.')
            trim = tuple(round(side * wanted_hz / given_hz / ratio) for side in trim)
        for start, end, first, last in self._chunks(len(samples), chunk_length_s, stride_length_s):
            self.model.master_asr.family.check_length(self.model.config.backbone_config, end - start)
            # lists, so the stock collator hands them on unpadded; `_forward` pads with the true lengths
            yield {
                "is_last": end >= len(samples), "features": [self._processor.features(samples[start:end])], "language": code,
                "kept": (first, last), "trim": trim, "place": item.place, "error": None, "duration_s": len(samples) / wanted_hz,
                "others": _others(source),
            }  # fmt: skip

    def _chunks(self, total: int, chunk_length_s, stride_length_s) -> Iterator[tuple[int, int, int, int]]:
        """`(start, end, first, last)` of each chunk: its samples, and the frames of it that are kept; the others are context.

        Frame i of the clip begins at sample i * ratio and sees `field` samples. A chunk of n frames therefore reaches
        field - ratio samples beyond n * ratio, and every frame of the clip is kept by exactly one chunk.
        """
        ratio, rate_hz = self.model.config.inputs_to_logits_ratio, self._processor.sampling_rate_hz
        if chunk_length_s is None and stride_length_s is not None:
            raise ValueError(f"stride_length_s: got {stride_length_s!r}; allowed: beside chunk_length_s, whose chunks it overlaps.")
        if not chunk_length_s:
            yield 0, total, 0, total
            return
        chunk_length_s, *sides_s = _seconds(chunk_length_s, stride_length_s)
        length, left, right = (int(round(seconds * rate_hz / ratio)) for seconds in (chunk_length_s, *sides_s))
        if length <= left + right or min(left, right) < 0:
            raise ValueError(f"chunk_length_s={chunk_length_s} must be longer than its strides {sides_s} together, and these not negative.")
        if length * ratio < MIN_SAMPLES:
            raise ValueError(f"chunk_length_s={chunk_length_s} is shorter than the {MIN_SAMPLES} samples that a frame needs.")
        field = self._field()
        frames = (total - field) // ratio + 1
        for start in range(0, max(frames, 1), length - left - right):
            is_last = start + length >= frames
            begin = max(frames - length, 0) if is_last else start  # the last chunk is as long as the others: a tail is too short to read
            end = total if is_last else (start + length) * ratio + max(field - ratio, 0)
            yield begin * ratio, end, start - begin + (left if start else 0), (total if is_last else length - right)
            if is_last:
                return

    def _field(self) -> int:
        """Samples that one frame sees: the fewest for which the front end gives the tenth frame, less nine steps."""
        if self._receptive_field is None:
            ratio = self.model.config.inputs_to_logits_ratio
            wanted = self._frames_of(10 * ratio)
            short, enough = 9 * ratio, 10 * ratio
            while enough - short > 1:
                middle = (short + enough) // 2
                short, enough = (short, middle) if self._frames_of(middle) == wanted else (middle, enough)
            self._receptive_field = enough - (wanted - 1) * ratio
        return self._receptive_field

    def _frames_of(self, num_samples: int) -> int:
        batch = self._processor.pad([self._processor.features(np.zeros(num_samples, dtype=np.float32))])
        return int(self.model.master_asr.frame_counts(batch[self.model.main_input_name], batch["attention_mask"]))

    # ------------------------------------------------------------------ through

    def _forward(self, model_inputs, on_error="raise"):
        is_batch = isinstance(model_inputs["is_last"], list)
        items = [dict(zip(model_inputs, values)) for values in zip(*model_inputs.values())] if is_batch else [model_inputs]
        self._read([item for item in items if item["error"] is None], on_error)
        outputs = [{name: item.get(name) for name in ("is_last", "logits", "language", "reading", "trim", "place", "duration_s", "others", "error")} for item in items]
        return {name: [output[name] for output in outputs] for name in outputs[0]} if is_batch else outputs[0]

    def _read(self, items: list[dict], on_error: str) -> None:
        """Gives every item its `logits` `(kept frames, V)`; where the model refuses a batch, item by item, so that one is to blame."""
        if not items:
            return
        if self.model.training:
            self.model.eval()  # and it stays so, as a model does that a pipeline loads: after `trainer.train()` it would drop parts of what it hears
        try:
            readings = [Reading.of(self.model, item["language"]) for item in items]
            batch = self._processor.pad([item["features"][0] for item in items]).to(self.device)
            name = self.model.main_input_name
            batch[name] = batch[name].to(self.model.dtype)
            codes = [item["language"] for item in items]
            # one for all where it is: a list's logits are as wide as the widest alphabet of the model
            outputs = self.model(**batch, language=codes[0] if len(set(codes)) == 1 else codes)
            for item, of_clip, frames, reading in zip(items, outputs.logits, outputs.frames.tolist(), readings):
                first, last = item["kept"]
                # of its own alphabet: how wide a batch is depends on the others, which come and go between two chunks
                item["logits"], item["reading"] = of_clip[first : min(last, frames), : len(reading.vocab)].cpu(), reading
        except (KeyError, ValueError) as error:  # KeyError: a language that was removed meanwhile
            if len(items) == 1:
                items[0]["error"] = _named(error, items[0]["place"], on_error)
                return
            for item in items:
                self._read([item], on_error)

    # ------------------------------------------------------------------ out

    def postprocess(self, model_outputs, return_timestamps=None, on_error="raise"):
        others = {name: [value] * len(model_outputs) for name, value in model_outputs[0]["others"].items()}
        errors = [output["error"] for output in model_outputs if output["error"] is not None]
        if errors:
            return {**others, "text": None, "error": errors[0]}
        try:
            self._check_stands(model_outputs)
            answer = {**others, **self._answer(model_outputs, return_timestamps)}
            self._check_stands(model_outputs)  # again, since the answer was looked up meanwhile
            return answer
        except (KeyError, ValueError) as error:  # a language that is gone, logits that are no numbers
            return {**others, "text": None, "error": _named(error, model_outputs[0]["place"], on_error)}

    def _check_stands(self, model_outputs: list[dict]) -> None:
        """Refuses to make one text of a language and of what took its place, while its chunks were read or after.

        Raises:
            KeyError: if it is gone.
            ValueError: if it was replaced.
        """
        language = model_outputs[0]["language"]
        if not all(output["reading"].stands(self.model, language) for output in model_outputs):
            raise ValueError(f"{language!r} was replaced while this was read: its text would be a mixture. Ask again.")

    def _answer(self, model_outputs: list[dict], return_timestamps) -> dict:
        """`{"text": ..., "chunks": [...]}` of an input, all chunks of it."""
        language, (left, right) = model_outputs[0]["language"], model_outputs[0]["trim"]
        logits = torch.cat([output["logits"].flatten(0, -2) for output in model_outputs])  # (T, V): one text, however it was cut
        tokens = self.model.paths(logits[None, left : len(logits) - right], language)[0]
        if not return_timestamps:
            return {"text": self._processor.decode(tokens, language, skip_special_tokens=True)}
        decoded = self._processor.decode(tokens, language, skip_special_tokens=True, output_char_offsets=True, output_word_offsets=True)
        offsets = decoded[f"{return_timestamps}_offsets"]
        second = self.model.config.inputs_to_logits_ratio / self._processor.sampling_rate_hz  # seconds a frame
        end_s = model_outputs[0]["duration_s"]  # the last frame may begin in the clip and end after it
        chunks = [
            {"text": o[return_timestamps], "timestamp": tuple(min(float(o[f"{side}_offset"] * second), end_s) for side in ("start", "end"))}
            for o in offsets
        ]
        return {"text": decoded["text"], "chunks": chunks}


def _others(source) -> dict:
    """What a row holds beside its audio, its language and its stride."""
    return {name: value for name, value in source.items() if name not in READ_OF_A_ROW} if isinstance(source, Mapping) else {}


def _are_several(given) -> bool:
    """Whether these are several inputs, or several codes: a list, a tuple, a column of `datasets` or pandas, an array of names; not samples, which are numbers."""
    one = (str, bytes, bytearray, memoryview, Mapping, Dataset, torch.Tensor)
    if isinstance(given, one) or any(hasattr(given, name) for name in ("read", "get_all_samples", "column_names", "columns")):
        return False
    is_sized = all(hasattr(given, name) for name in ("__len__", "__iter__", "__getitem__"))
    return is_sized and getattr(given, "ndim", 1) > 0 and getattr(getattr(given, "dtype", None), "kind", "O") in "OSUT"


def _seconds(chunk_length_s, stride_length_s) -> list[float]:
    """`[length, left, right]` of chunks, in seconds.

    Raises:
        ValueError: for what is no number of seconds.
    """
    sides = chunk_length_s / 6 if stride_length_s is None and isinstance(chunk_length_s, Number) else stride_length_s
    seconds = [chunk_length_s, *(sides if isinstance(sides, (list, tuple)) else [sides] * 2)]
    if len(seconds) != 3 or not all(isinstance(value, Number) and math.isfinite(value) for value in seconds):
        raise ValueError(f"chunk_length_s is a number of seconds, stride_length_s one or two of them; got {chunk_length_s!r} and {stride_length_s!r}.")
    return seconds


def _named(error: Exception, place: Optional[int], on_error: str) -> str:
    """The message of an input's error, with its place; raised if that is asked for."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if on_error == "return":
        return message if place is None else f"Input {place}: {message}"
    if place is None:
        raise error
    kind = next(kind for kind in ITEM_ERRORS if isinstance(error, kind))  # one that takes a message, unlike UnicodeDecodeError
    raise kind(f"Input {place}: {message}") from error
