"""MasterASRProcessor: audio in, text out, aware of the language of every clip."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Set
from contextlib import nullcontext
from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch
from transformers import (
    AutoFeatureExtractor,
    BatchFeature,
    ProcessorMixin,
)
from transformers import Wav2Vec2CTCTokenizer as StockTokenizer
from transformers.utils import logging

from .audio_master_asr import MAX_DURATION_S, MIN_SAMPLES, check_audio, clips_of, is_recording, read_audio
from .backbone_master_asr import family_of, family_reading, settings_that_differ
from .configuration_master_asr import PAD_TOKEN, SPACE_TOKEN, UNK_TOKEN, MasterASRConfig, check_vocab
from .files_master_asr import copy_code
from .text_master_asr import characters_of, spelled, tokens_of, with_single_spaces
from .upload_master_asr import UploadMixin

logger = logging.get_logger(__name__)

AS_ALWAYS = {"truncation": False, "return_attention_mask": True}  # Transformers' callers say so; nothing else is done here


class MasterASRProcessor(UploadMixin, ProcessorMixin):
    """Feature extractor of the backbone + one alphabet a language, as a stock `Wav2Vec2CTCTokenizer`.

    The language is named in every call that touches text; nothing is remembered between calls.
    """

    def __init__(self, feature_extractor, tokenizer, **kwargs):
        vocabs = getattr(tokenizer, "vocab", None)
        if not isinstance(tokenizer, Wav2Vec2CTCTokenizer) and is_nested(vocabs):  # a stock one, read from a folder
            tokenizer = nested_tokenizer(vocabs, getattr(tokenizer, "default", tokenizer.target_lang))  # ours of another module says so
        super().__init__(feature_extractor, tokenizer)
        if isinstance(tokenizer, Wav2Vec2CTCTokenizer):
            for language, vocab in self.vocabs.items():
                check_vocab(vocab, language)
        self._by_language: dict[str, tuple[dict[str, int], Wav2Vec2CTCTokenizer]] = {}  # and the alphabet that it was made of
        self._warned: set[tuple[str, str]] = set()  # (language, character) that was said to be unknown

    def __getstate__(self) -> dict:
        """Without what use has left, so that `datasets` knows a processor again."""
        return {**self.__dict__, "_by_language": {}, "_warned": set()}

    @classmethod
    def from_model(cls, model, feature_extractor=None) -> MasterASRProcessor:
        """The processor of a model: its languages' alphabets as they are now, and its own feature extractor, or its backbone's, where one is found."""
        return cls.from_config(model.config, feature_extractor)

    @classmethod
    def from_config(cls, config: MasterASRConfig, feature_extractor=None) -> MasterASRProcessor:
        """As `from_model`, from a config alone."""
        if feature_extractor is None and config.feature_extractor is not None:
            feature_extractor = family_of(config.backbone_config).feature_extractor(**config.feature_extractor)
        elif feature_extractor is None:
            feature_extractor = family_of(config.backbone_config).new_feature_extractor(config.backbone_config)
            unreadable = None
            own = config.name_or_path, getattr(config, "_commit_hash", None)  # a folder or a repo; base_model names no folder once it is saved
            for source, revision in [place for place in (own, (config.base_model, None)) if place[0]]:
                try:
                    feature_extractor, unreadable = AutoFeatureExtractor.from_pretrained(source, revision=revision or "main"), None
                    break
                except (OSError, ValueError) as error:  # a folder without processor files, or a hub out of reach
                    unreadable = unreadable or (source, str(error).splitlines()[0])
            if unreadable:
                logger.warning(
                    f"The feature extractor of {unreadable[0]!r} cannot be read ({unreadable[1]}); a {type(feature_extractor).__name__} with "
                    f"the family's usual settings stands in: {feature_extractor.to_dict()}. If the base was trained with another, pass "
                    "feature_extractor=..., or load the processor of the model's own folder."
                )
        vocabs = {language: config.vocab(language) for language in config.languages}
        return cls(feature_extractor, nested_tokenizer(vocabs, config.default_language))

    # ------------------------------------------------------------------ languages

    @property
    def vocabs(self) -> dict[str, dict[str, int]]:
        """`{language: {token: id}}`."""
        return self.tokenizer.vocab

    @property
    def languages(self) -> list[str]:
        """Codes whose alphabets are known."""
        return list(self.vocabs)

    def add_language(self, language: str, vocab: dict[str, int]) -> None:
        """Adds an alphabet.

        Raises:
            ValueError: if it is none, or if the language is there with another one.
        """
        vocab = check_vocab(vocab, language)
        if language in self.vocabs and self.vocabs[language] != vocab:
            raise ValueError(f"Language {language!r} is already there with another alphabet. Remove it first: processor.remove_language({language!r}).")
        self.tokenizer = nested_tokenizer({**self.vocabs, language: vocab}, self.tokenizer.default)

    def remove_language(self, language: str) -> None:
        """Deletes an alphabet.

        Raises:
            KeyError: if it is not there.
        """
        self.vocab_of(language)
        self.tokenizer = nested_tokenizer({code: vocab for code, vocab in self.vocabs.items() if code != language}, self.tokenizer.default)

    def vocab_of(self, language: str) -> dict[str, int]:
        """The alphabet of one language, `{token: id}`.

        Raises:
            KeyError: if it is not known.
        """
        if language not in self.vocabs:
            raise KeyError(
                f"No alphabet for language {language!r}. Known: {self.languages}. Add it with processor.add_language(...)."
            )
        return self.vocabs[language]

    def tokenizer_of(self, language: str) -> Wav2Vec2CTCTokenizer:
        """The stock tokenizer of one language.

        Raises:
            KeyError: if its alphabet is not known.
        """
        vocab = self.vocab_of(language)
        made_of, tokenizer = self._by_language.get(language, (None, None))
        if made_of is not vocab:  # nor where `tokenizer` was replaced by another
            made_of, tokenizer = self._by_language[language] = vocab, nested_tokenizer({language: vocab})
        return tokenizer

    def check_model(self, model, languages: Optional[list[str]] = None) -> None:
        """Refuses a model whose alphabets or inputs are not these: its text would be silently wrong.

        Args:
            languages: which to compare; None: all of the model's.

        Raises:
            ValueError: naming the languages or the features that differ.
        """
        config = model.config
        name, wanted = self.feature_extractor.model_input_names[0], model.main_input_name
        size, mels = getattr(self.feature_extractor, "feature_size", None), getattr(config.backbone_config, "num_mel_bins", None)
        if name != wanted or (mels is not None and size != mels):
            raise ValueError(
                f"This processor belongs to another model: its {type(self.feature_extractor).__name__} makes {name} of size {size}, the model "
                f"takes {wanted}{'' if mels is None else f' of size {mels}'}. Use the model's own: MasterASRProcessor.from_model(model)."
            )
        others = settings_that_differ(self.feature_extractor, config.feature_extractor)
        if others:
            raise ValueError(
                f"This processor's feature extractor is not the one that the model was trained with: "
                f"{', '.join(f'{name} {ours!r} instead of {theirs!r}' for name, (ours, theirs) in others.items())}. Use the model's own: "
                "MasterASRProcessor.from_model(model)."
            )
        differing = [c for c in (config.languages if languages is None else languages) if self.vocabs.get(c) != config.vocab(c)]
        if differing:
            raise ValueError(
                f"Processor and model disagree on the alphabets of {differing}. Use the model's own: "
                "MasterASRProcessor.from_model(model)."
            )

    def _codes(self, language: Union[str, list[str], None], count: int) -> list[str]:
        if language is None and len(self.languages) == 1:
            language = self.languages[0]
        if language is None:
            raise ValueError(f"Which language? Known: {self.languages}. Pass language=... with the call.")
        if isinstance(language, (Set, Mapping)):
            raise TypeError(f"language is {language!r}, which has no order; one code, or a list of one for each text, is wanted.")
        codes = [language] * count if isinstance(language, str) else list(language)
        if len(codes) != count:
            raise ValueError(f"language has {len(codes)} codes for {count} texts; pass one code, or one for each text.")
        return codes

    # ------------------------------------------------------------------ audio in

    @property
    def sampling_rate_hz(self) -> int:
        return self.feature_extractor.sampling_rate

    @property
    def model_input_names(self) -> list[str]:
        return [self.feature_extractor.model_input_names[0], "attention_mask", "labels"]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """The model's input for one clip of float samples, at its true length: `(samples,)` or `(mels or frames, ...)`.

        Raises:
            ValueError: for a clip so short that nothing can be normalised.
        """
        # NumPy warns of the variance of a clip of a frame or two, which is refused; around no other, since the filters are the process's, not the thread's
        quiet = warnings.catch_warnings(action="ignore", category=RuntimeWarning) if len(samples) < 2 * MIN_SAMPLES else nullcontext()
        # outside of any autocast, which would round the filters of mels
        with torch.autocast("cpu", enabled=False), np.errstate(invalid="ignore"), quiet:
            features = family_reading(self.feature_extractor).features(self.feature_extractor, samples)
        if not np.isfinite(features).all():
            raise ValueError(f"{len(samples)} samples are too short for a {type(self.feature_extractor).__name__}: its features are not numbers.")
        return features

    def pad(
        self,
        features: Optional[list] = None,
        labels: Optional[list] = None,
        padding: Union[bool, str] = True,
        max_length: Optional[int] = None,
        pad_to_multiple_of: Optional[int] = None,
        return_tensors: Optional[str] = "pt",
        input_features: Optional[list] = None,
        **kwargs,
    ) -> BatchFeature:
        """Pads clips with zeros to one length; `attention_mask` is 1 on speech. Labels are padded with -100 beside clips.

        Args:
            features: clips' `features`, or dicts that hold them under the model's input name, as in Transformers' collators, and perhaps `labels`; with
                an `attention_mask` they were padded before, and are read as far as their speech.
            labels: label ids `(L,)`, or dicts with `input_ids` and perhaps a mask; alone they give `input_ids` and their own `attention_mask`.
            padding: True or "longest"; "max_length"; False: a list of clips at their true lengths.
            max_length, pad_to_multiple_of: along time, in samples or in frames of features.
            return_tensors: "pt", "np", or None for lists of arrays.
            input_features: another name for `features`, as in Transformers.

        Raises:
            ValueError, TypeError: for a combination that cannot be, naming what works; for padding before or amid speech.
        """
        check_keywords(kwargs)
        features = input_features if features is None else features
        how = {"padding": padding, "max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of, "return_tensors": return_tensors}
        batch = BatchFeature()
        if features is not None:
            name = self.feature_extractor.model_input_names[0]
            axis = family_reading(self.feature_extractor).time_axis
            features = as_list(features)
            labels = labels if labels is not None else [f["labels"] for f in features if isinstance(f, Mapping) and "labels" in f] or None
            clips = [row_of(f, name, axis, np.float32) for f in features]
            batch[name], batch["attention_mask"] = pad_rows(clips, axis, 0.0, **how)
        if labels is not None:
            rows = [row_of(row, "input_ids", 0, np.int64).reshape(-1) for row in as_list(labels)]
            if features is not None and len(rows) != len(clips):
                raise ValueError(f"{len(rows)} rows of labels for {len(clips)} clips: each clip has its own.")
            how |= {"max_length": None, "padding": bool(padding), "pad_to_multiple_of": None} if features is not None else {}
            ids, mask = pad_rows(rows, 0, -100 if features is not None else self.tokenizer.pad_token_id, **how)
            batch |= {"labels": ids} if features is not None else {"input_ids": ids, "attention_mask": mask}
        return batch

    def __call__(
        self,
        audio=None,
        text: Union[str, list[str], None] = None,
        language: Union[str, list[str], None] = None,
        sampling_rate: Optional[int] = None,
        return_tensors: Optional[str] = "pt",
        padding: Union[bool, str] = True,
        max_length: Optional[int] = None,
        pad_to_multiple_of: Optional[int] = None,
        max_duration_s: float = MAX_DURATION_S,
        **kwargs,
    ) -> BatchFeature:
        """Model inputs for clips, or label ids for texts, or both.

        Args:
            audio: one clip `(samples,)` or a list of clips, mono: floats in [-1, 1], or int16 and the like, scaled by their range;
                or recordings, which know their rate: paths, URLs, bytes, rows of an Audio column.
            text: one text or a list; normalised and encoded with the alphabet of `language`.
            language: one code, or one for each text.
            sampling_rate: of samples, in Hz; checked against the model's.
            max_duration_s: of a recording.
            return_tensors, padding, max_length, pad_to_multiple_of: of the clips, as in `pad`; of the texts where there are no clips.

        Returns:
            `input_values` or `input_features` and `attention_mask`; `input_ids` for text alone (-100 where padded), `labels`
            where both are given.

        Raises:
            ValueError, KeyError, TypeError, OSError: for unusable audio, a missing or unknown language, an unknown keyword.
        """
        check_keywords(kwargs)
        if audio is None and text is None:
            raise ValueError("Nothing to process: pass audio=..., text=..., or both.")
        batch = BatchFeature()
        if audio is not None:
            clips = clips_of(audio)
            if sampling_rate is None and not all(is_recording(clip) for clip in clips):
                logger.warning_once(f"No sampling_rate was given: audio is taken to be at {self.sampling_rate_hz} Hz. At another rate it would be heard wrong.")
            names = [f"clip {i}" if len(clips) > 1 else "audio" for i in range(len(clips))]
            samples = [self._samples(clip, name, sampling_rate, max_duration_s) for clip, name in zip(clips, names)]
            batch = self.pad([self.features(clip) for clip in samples], None, padding, max_length, pad_to_multiple_of, return_tensors)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text) if hasattr(text, "__iter__") else [text]
            if not texts or not all(isinstance(one, str) for one in texts):
                raise TypeError(f"text: got {text!r:.100}; allowed: a text, or a list of texts.")
            rows = self.encode_rows(texts, language)
            of_text = (padding, max_length, pad_to_multiple_of) if audio is None else (bool(padding), None, None)
            if audio is not None and len(rows) != len(clips):
                raise ValueError(f"{len(rows)} texts for {len(clips)} clips: each clip has its own.")
            ids, _ = pad_rows(rows, 0, -100, *of_text, return_tensors)
            batch["input_ids" if audio is None else "labels"] = ids
        return batch

    def _samples(self, clip, name: str, sampling_rate: Optional[int], max_duration_s: float) -> np.ndarray:
        """One clip's samples `(n,)` at the model's rate, whatever holds them."""
        if not is_recording(clip):
            return check_audio(clip, sampling_rate, self.sampling_rate_hz, name)
        said = None if isinstance(clip, (str, os.PathLike)) else name  # a path names itself
        return read_audio(clip, self.sampling_rate_hz, said, max_duration_s)

    def encode(self, texts: list[str], language: Union[str, list[str], None], raw: bool = True) -> torch.Tensor:
        """Label ids `(B, longest)` of texts, -100 where padded.

        Args:
            raw: False for texts that were normalised already, whose apostrophes are all letters.

        Raises:
            ValueError: for a text without a letter.
        """
        return pad_rows(self.encode_rows(texts, language, raw), 0, -100)[0]

    def encode_rows(self, texts: list[str], language: Union[str, list[str], None], raw: bool = True) -> list[np.ndarray]:
        """Label ids `(L,)` of each text; characters outside the alphabet become [UNK] and are named in one warning.

        Raises:
            ValueError: for a text without a letter, or none.
        """
        rows, unknown = [], Counter()
        for text, code in zip(texts, self._codes(language, len(texts))):
            if not isinstance(text, str):
                raise ValueError(f"text: got {text!r:.100} (language {code!r}, number {len(rows)} of the batch); allowed: what is said, in words. Drop clips without a transcript.")
            alphabet = self.vocab_of(code)
            tokens = tokens_of(spelled(text, characters_of(alphabet), code, raw), alphabet)
            if not tokens:
                raise ValueError(f"Empty transcript {text!r} (language {code!r}, number {len(rows)} of the batch): CTC has nothing to learn from it. Drop the clip.")
            unknown.update((code, token) for token in tokens if token not in alphabet)
            rows.append(np.asarray([alphabet.get(token, alphabet[UNK_TOKEN]) for token in tokens], dtype=np.int64))
        if unknown.keys() - self._warned:
            self._warned |= unknown.keys()
            named = ", ".join(f"{character!r} of {code!r} ({count} times)" for (code, character), count in unknown.most_common(20))
            logger.warning(f"Characters outside the alphabet become {UNK_TOKEN}: {named}. Build the vocab from these texts, or leave them out.")
        return rows

    # ------------------------------------------------------------------ text out

    def decode(self, token_ids, language: Optional[str] = None, **kwargs):
        """Text of one clip's frames of token ids `(T,)`: repeats merged, blanks dropped.

        Args:
            kwargs: of the tokenizer. `skip_special_tokens` leaves [UNK] out, as a blank: the stock tokenizer would drop the blanks first,
                and with them the second of two equal letters.

        Raises:
            ValueError, KeyError: for a missing or unknown language; for ids that its alphabet has no token for.
        """
        code = self._codes(language, 1)[0]
        alphabet, ids = self.vocab_of(code), torch.as_tensor(token_ids)
        if ids.ndim != 1 or ids.numel() and ids.is_floating_point():
            raise ValueError(f"token_ids: got {ids.dtype} of shape {tuple(ids.shape)}; allowed: whole numbers (frames,) of a clip; batch_decode: of each. Of logits: model.paths, or argmax(-1).")
        if ids.numel() and ids.max() >= len(alphabet):
            raise ValueError(
                f"token_ids: got {int(ids.max())}; the alphabet of {code!r} has {len(alphabet)} tokens. Is the processor older than the model? Make it anew: "
                "MasterASRProcessor.from_model(model)."
            )
        unheard = (ids < 0) | (ids == alphabet[UNK_TOKEN]) if kwargs.pop("skip_special_tokens", False) else ids < 0
        ids = torch.where(unheard, alphabet[PAD_TOKEN], ids)
        return self.tokenizer_of(code).decode(ids, **kwargs)

    def batch_decode(self, token_ids, language: Union[str, list[str], None] = None, frames=None, **kwargs) -> list[str]:
        """Text of each clip of `(B, T)` token ids.

        Args:
            language: one code, or one for each clip.
            frames: each clip's true number of frames, `(B,)`; past them a batch holds padding, which is not speech.
            kwargs: as in `decode`.

        Raises:
            ValueError: for a missing language, or another number of codes, or of frames, than of clips.
            KeyError: for an unknown language.
        """
        if len(token_ids) and np.ndim(token_ids[0]) == 0:
            raise ValueError(f"token_ids: got {token_ids!r:.100}; allowed: a row of ids for each clip. Of one clip: decode.")
        codes = self._codes(language, len(token_ids))
        ends = [None] * len(codes) if frames is None else [int(f) for f in frames]
        if len(ends) != len(codes):
            raise ValueError(f"frames has {len(ends)} numbers for {len(codes)} clips: each clip has its own.")
        return [self.decode(ids[:end], code, **kwargs) for ids, code, end in zip(token_ids, codes, ends)]

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in Transformers.

        Raises:
            ValueError: if vocab.json lacks the language that its tokenizer begins with.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except KeyError as error:
            raise ValueError(
                f"The processor of {pretrained_model_name_or_path} lacks {error}. Does its vocab.json hold the language that its "
                "tokenizer_config.json names? Download or save it again: MasterASRProcessor.from_model(model).save_pretrained(folder)."
            ) from error

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, pretrained_model_name_or_path, subfolder="", **kwargs):
        """Called by Transformers, which else asks the folder for a class; it is ours, and no code of the folder's runs."""
        return Wav2Vec2CTCTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def to_dict(self) -> dict:
        """As in Transformers, plus `auto_map`, by which AutoProcessor finds this class in the folder's own code."""
        return {**super().to_dict(), "auto_map": {"AutoProcessor": "processing_master_asr.MasterASRProcessor"}}

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers, plus the code files remote loading needs."""
        saved = super().save_pretrained(save_directory, **kwargs)
        copy_code(save_directory)
        return saved


class Wav2Vec2CTCTokenizer(StockTokenizer):
    """The stock tokenizer, which answers in its first alphabet when there are several and nobody named one: this one refuses.

    It bears the stock class's name because that is what is saved with it: whoever loads the folder gets Transformers' own, but with
    `trust_remote_code=True` this one. A folder of several alphabets and no default names a class that Transformers lacks, so that it asks for that.

    Args:
        target_lang: the language that Transformers' own reads in; None: nobody has named one.
    """

    _named, default = True, None

    @classmethod
    def from_pretrained(cls, *args, target_lang: Optional[str] = None, **kwargs):
        """As in Transformers; a language that the caller names is named, as by `set_target_lang`."""
        tokenizer = super().from_pretrained(*args, **kwargs)
        if target_lang is not None:
            tokenizer.set_target_lang(target_lang)
        return tokenizer

    def __init__(self, vocab_file, *args, target_lang: Optional[str] = None, **kwargs):
        try:
            vocab = json.loads(Path(vocab_file or "vocab.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ValueError(f"The alphabets, vocab.json, cannot be read ({error}). Download or save them again: MasterASRProcessor.from_model(model).save_pretrained(folder).") from error
        first = next(iter(vocab), None) if target_lang is None and is_nested(vocab) else target_lang  # the stock class needs one
        super().__init__(vocab_file, *args, target_lang=first, **kwargs)
        if self._holds_several:
            self._named, self.default = False, target_lang
            self._auto_map = {"AutoTokenizer": ["processing_master_asr.Wav2Vec2CTCTokenizer", None]}  # slow, fast

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in Transformers, plus the code files remote loading needs where there are several alphabets."""
        copy_code(save_directory, links_only=True)
        if self._processor_class:  # which the file then names, and AutoProcessor looks for there alone
            self._auto_map = {**(getattr(self, "_auto_map", None) or {}), "AutoProcessor": "processing_master_asr.MasterASRProcessor"}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if self._holds_several:
            copy_code(save_directory)
            if self.default is None:
                path = Path(save_directory, "tokenizer_config.json")
                facts = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": MasterASRTokenizer.__name__, "target_lang": None}
                path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return saved

    @property
    def _holds_several(self) -> bool:
        return is_nested(self.vocab) and len(self.vocab) > 1

    def set_target_lang(self, target_lang: str) -> None:
        super().set_target_lang(target_lang)
        self._named, self.default = True, target_lang

    def _check_named(self) -> None:
        if not self._named:
            raise ValueError(
                f"Which language? This tokenizer holds the alphabets of {list(self.vocab)}. Use processor.decode(ids, language=...) and "
                "processor(text=..., language=...), or tokenizer.set_target_lang(...). "
                "In a pipeline: MasterASRPipeline(model), and language=... with the call."
            )

    def _tokenize(self, text, **kwargs):
        self._check_named()
        return super()._tokenize(text, **kwargs)

    def _decode(self, token_ids, *args, **kwargs):
        """As in Transformers, but that a silence between two words is one gap, however often a space is heard in it."""
        self._check_named()
        path = with_single_spaces(as_list(token_ids), self.pad_token_id, self.word_delimiter_token_id)
        return super()._decode(path, *args, **kwargs)


class MasterASRTokenizer(Wav2Vec2CTCTokenizer):
    """What a folder of several alphabets and no default says that it holds: Transformers alone lacks it, and so has nothing to read with."""


def is_nested(vocab) -> bool:
    """Whether `vocab` is `{language: {token: id}}`."""
    return isinstance(vocab, dict) and any(isinstance(value, dict) for value in vocab.values())


def nested_tokenizer(vocabs: dict[str, dict[str, int]], default: Optional[str] = None) -> Wav2Vec2CTCTokenizer:
    """A CTC tokenizer over `{language: {token: id}}`; the stock defaults would append `<s>` and move the pad id.

    Args:
        default: the language that Transformers' own tokenizer, which a folder gives, reads in; None: it gives none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabs, ensure_ascii=False), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(
            str(path), pad_token=PAD_TOKEN, unk_token=UNK_TOKEN, word_delimiter_token=SPACE_TOKEN,
            bos_token=None, eos_token=None, target_lang=default if default in vocabs else None, do_lower_case=False,
        )  # fmt: skip
    return tokenizer


def as_list(items) -> list:
    """A list of what is one batch, or the one item in a list."""
    return [items] if isinstance(items, (Mapping, np.ndarray, torch.Tensor)) and np.ndim(items) < 2 else list(items)


def check_keywords(kwargs: dict) -> None:
    """Refuses keywords that would be ignored.

    Raises:
        TypeError: naming them.
    """
    given = [name for name, value in kwargs.items() if value is not None and (name not in AS_ALWAYS or AS_ALWAYS[name] is not value)]
    if given:
        raise TypeError(
            f"Unknown arguments {sorted(given)}. The processor takes audio, text, language, sampling_rate, padding (True, 'longest', "
            "'max_length', False), max_length, pad_to_multiple_of and return_tensors ('pt', 'np', None)."
        )


def row_of(given, name: str, axis: int, dtype) -> np.ndarray:
    """An array, or what a mapping holds under `name`, up to the end that its `attention_mask` gives it.

    Raises:
        ValueError: for a mask of another length, without speech, or with padding elsewhere than at the end.
    """
    if not isinstance(given, Mapping):
        return np.asarray(given, dtype=dtype)
    row = np.asarray(given[name], dtype=dtype)
    if given.get("attention_mask") is None:
        return row
    mask = np.asarray(given["attention_mask"]) != 0
    end = int(mask.sum())
    if mask.shape != (row.shape[axis],) or not end or not mask[:end].all():
        raise ValueError(
            f"attention_mask: got one of shape {mask.shape} with {end} ones beside {name} of shape {row.shape}; allowed: of one clip, a value for each step of axis {axis}, ones and then "
            "zeros. Of a batch: a mapping for each of its clips."
        )
    return row.take(range(end), axis)


def pad_rows(rows: list[np.ndarray], axis: int, value, padding=True, max_length=None, pad_to_multiple_of=None, return_tensors="pt") -> tuple:
    """`(rows padded with value along axis, mask with 1 where a row is)`, stacked, or lists of arrays where nothing is padded.

    Raises:
        ValueError: for a padding, a length or a kind of tensor that cannot be.
    """
    if padding not in (True, False, "longest", "max_length", "do_not_pad") or return_tensors not in ("pt", "np", None):
        raise ValueError(
            f"padding={padding!r}, return_tensors={return_tensors!r}: padding is True, 'longest', 'max_length' or False, return_tensors 'pt', 'np' or None."
        )
    lengths = [row.shape[axis] for row in rows]
    if padding in (False, "do_not_pad"):
        targets = lengths
        if return_tensors is not None and len(set(lengths)) > 1:
            raise ValueError(f"Clips of {sorted(set(lengths))} make no tensor with padding={padding!r}. Use padding=True, or return_tensors=None.")
    else:
        if padding == "max_length" and (max_length is None or max(lengths) > max_length):
            raise ValueError(f"padding='max_length' needs a max_length of at least {max(lengths)}, the longest here; got {max_length}. Nothing is cut.")
        longest = max_length if padding == "max_length" else max(lengths)
        step = pad_to_multiple_of or 1
        targets = [-(-longest // step) * step] * len(rows)
    padded, masks = [], []
    for row, length, target in zip(rows, lengths, targets):
        width = [(0, 0)] * row.ndim
        width[axis] = (0, target - length)
        padded.append(np.pad(row, width, constant_values=value))
        masks.append((np.arange(target) < length).astype(np.int64))
    if return_tensors is None:
        return padded, masks
    stacked = np.stack(padded), np.stack(masks)
    return stacked if return_tensors == "np" else tuple(torch.from_numpy(array) for array in stacked)
