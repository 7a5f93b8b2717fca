"""MasterASRProcessor: audio in, text out, aware of the language of every clip."""

from __future__ import annotations

import io
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch
from transformers import (
    AutoFeatureExtractor,
    BatchFeature,
    ProcessorMixin,
    Wav2Vec2CTCTokenizer,
)

try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None
try:
    import av
except ImportError:
    av = None

from .backbone_master_asr import family_of, family_reading
from .configuration_master_asr import PAD_TOKEN, SPACE_TOKEN, UNK_TOKEN, MasterASRConfig, copy_code
from .upload_master_asr import UploadMixin

MIN_SAMPLES = 400  # 25 ms: one window of every supported front end


def check_audio(audio, sampling_rate: Optional[int], wanted_hz: int, name: str = "audio") -> np.ndarray:
    """Returns one clip as float32 mono samples in [-1, 1].

    Raises:
        ValueError: for another rate, stereo, empty, too short, or not-finite audio, naming `name`.
    """
    if sampling_rate is not None and sampling_rate != wanted_hz:
        raise ValueError(
            f"{name} is at {sampling_rate} Hz, the model listens at {wanted_hz} Hz. Resample it "
            "(the pipeline does, and training.transcribe), or decode it at that rate."
        )
    samples = np.asarray(audio)
    if samples.ndim != 1:
        raise ValueError(
            f"{name} has shape {samples.shape}; one channel of samples is wanted, shape (samples,). "
            "Mix stereo down first: audio.mean(axis=channels)."
        )
    if np.issubdtype(samples.dtype, np.integer):
        raise ValueError(
            f"{name} holds integers ({samples.dtype}); floats in [-1, 1] are wanted. "
            f"Divide by {float(np.iinfo(samples.dtype).max) + 1:.0f}."
        )
    if len(samples) < MIN_SAMPLES:
        raise ValueError(f"{name} is {'empty' if not len(samples) else 'too short'}: {len(samples)} samples, at least {MIN_SAMPLES} (25 ms) are needed.")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(samples)).sum())} samples that are NaN or infinite. Decode it again.")
    return samples


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Samples `(n,)` or `(n, channels)` at another rate.

    Raises:
        ImportError: if the rates differ and soxr is not installed.
    """
    if from_hz == to_hz:
        return samples
    if soxr is None:
        raise ImportError(f"Resampling {from_hz} Hz to {to_hz} Hz needs soxr: pip install soxr.")
    return soxr.resample(samples, from_hz, to_hz)


def decode_audio(source: Union[str, bytes, Path], sampling_rate_hz: int = 16_000) -> np.ndarray:
    """Decodes a file (or its bytes) into float32 mono samples `(n,)` at `sampling_rate_hz`; needs no system ffmpeg.

    soundfile reads WAV, FLAC, Ogg, Opus and mp3; PyAV, where installed, the rest (G.722, m4a, video).

    Raises:
        ValueError: if the file cannot be decoded, naming it.
        FileNotFoundError: if it is not there.
    """
    name = "the audio bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"No audio file at {name}.")
    try:
        if soundfile is None:
            raise RuntimeError("soundfile is not installed")
        opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        samples, rate_hz = soundfile.read(opened, dtype="float32", always_2d=True)
        samples = samples.mean(axis=1)
    except RuntimeError as error:
        if av is None:
            raise ValueError(f"Cannot decode {name}: {error}. pip install soundfile soxr av.") from error
        samples, rate_hz = _decode_with_av(source, name)
    return resample(samples, rate_hz, sampling_rate_hz)


def _decode_with_av(source, name: str) -> tuple[np.ndarray, int]:
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        with av.open(opened) as container:
            stream = container.streams.audio[0]
            rate_hz = stream.codec_context.sample_rate
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
            frames = [out.to_ndarray()[0] for frame in container.decode(stream) for out in resampler.resample(frame)]
            frames += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"Cannot decode {name}: {error}. Is it an audio file?") from error
    return np.concatenate(frames) if frames else np.zeros(0, np.float32), rate_hz


class MasterASRProcessor(UploadMixin, ProcessorMixin):
    """Feature extractor of the backbone + one alphabet a language, as a stock `Wav2Vec2CTCTokenizer`.

    The language is named in every call that touches text; nothing is remembered between calls.
    """

    def __init__(self, feature_extractor, tokenizer, **kwargs):
        super().__init__(feature_extractor, tokenizer)
        self._by_language: dict[str, Wav2Vec2CTCTokenizer] = {}

    @classmethod
    def from_model(cls, model, feature_extractor=None) -> MasterASRProcessor:
        """The processor of a model: its languages' alphabets, and its backbone's own feature extractor where one is found."""
        return cls.from_config(model.config, feature_extractor)

    @classmethod
    def from_config(cls, config: MasterASRConfig, feature_extractor=None) -> MasterASRProcessor:
        """As `from_model`, from a config alone."""
        if feature_extractor is None:
            feature_extractor = family_of(config.backbone_config).new_feature_extractor(config.backbone_config)
            own = config.name_or_path if Path(config.name_or_path or "").is_dir() else None  # base_model names no folder once it is saved
            for source in filter(None, (config.base_model, own)):
                try:
                    feature_extractor = AutoFeatureExtractor.from_pretrained(source)
                    break
                except (OSError, ValueError):
                    pass  # a repo or folder without processor files: the family's own settings serve
        vocabs = {language: config.vocab(language) for language in config.languages}
        return cls(feature_extractor, nested_tokenizer(vocabs))

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
            ValueError: if the language is there with another one.
        """
        if language in self.vocabs and self.vocabs[language] != vocab:
            raise ValueError(f"Language {language!r} is already there with another alphabet. Remove it first: processor.remove_language({language!r}).")
        self.tokenizer = nested_tokenizer({**self.vocabs, language: dict(vocab)})
        self._by_language.pop(language, None)

    def remove_language(self, language: str) -> None:
        """Deletes an alphabet.

        Raises:
            KeyError: if it is not there.
        """
        self.tokenizer_of(language)
        self.tokenizer = nested_tokenizer({code: vocab for code, vocab in self.vocabs.items() if code != language})
        self._by_language.pop(language, None)

    def tokenizer_of(self, language: str) -> Wav2Vec2CTCTokenizer:
        """The stock tokenizer of one language.

        Raises:
            KeyError: if its alphabet is not known.
        """
        if language not in self.vocabs:
            raise KeyError(
                f"No alphabet for language {language!r}. Known: {self.languages}. Add it with processor.add_language(...)."
            )
        if language not in self._by_language:
            self._by_language[language] = nested_tokenizer({language: self.vocabs[language]})
        return self._by_language[language]

    def check_model(self, model, languages: Optional[list[str]] = None) -> None:
        """Refuses a model whose alphabets are not these: its text would be silently wrong.

        Args:
            languages: which to compare; None: all of the model's.

        Raises:
            ValueError: naming the languages that differ.
        """
        config = model.config
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
        return [self.feature_extractor.model_input_names[0], "attention_mask"]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """The model's input for one clip of float samples, at its true length: `(samples,)` or `(mels or frames, ...)`."""
        return family_reading(self.feature_extractor).features(self.feature_extractor, samples)

    def pad(self, features: list[np.ndarray]) -> BatchFeature:
        """Pads clips' `features` with zeros to the longest; `attention_mask` is 1 on speech."""
        name = self.feature_extractor.model_input_names[0]
        axis = family_reading(self.feature_extractor).time_axis
        lengths = [f.shape[axis] for f in features]
        longest = max(lengths)
        batch = []
        for feature, length in zip(features, lengths):
            width = [(0, 0)] * feature.ndim
            width[axis] = (0, longest - length)
            batch.append(np.pad(feature, width))
        mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        return BatchFeature({name: torch.from_numpy(np.stack(batch)), "attention_mask": mask.long()})

    def __call__(
        self,
        audio=None,
        text: Union[str, list[str], None] = None,
        language: Union[str, list[str], None] = None,
        sampling_rate: Optional[int] = None,
        return_tensors: str = "pt",
        padding: bool = True,
        **kwargs,
    ) -> BatchFeature:
        """Model inputs for clips, or label ids for texts, or both.

        Args:
            audio: one clip `(samples,)` or a list of clips, float mono in [-1, 1].
            text: one text or a list; encoded with the alphabet of `language`.
            language: one code, or one for each text.
            sampling_rate: of `audio`, in Hz; checked against the model's.
            return_tensors: "pt" only, kept for Transformers' calling convention.

        Returns:
            `input_values` or `input_features` and `attention_mask`; `input_ids` for text alone (-100 where padded), `labels`
            where both are given.

        Raises:
            ValueError, KeyError: for unusable audio, a missing or unknown language.
        """
        if audio is None and text is None:
            raise ValueError("Nothing to process: pass audio=..., text=..., or both.")
        batch = BatchFeature()
        if audio is not None:
            clips = [audio] if isinstance(audio, (np.ndarray, torch.Tensor)) and np.ndim(audio) == 1 else audio
            if isinstance(clips, (list, tuple)) and clips and np.ndim(clips[0]) == 0:
                clips = [clips]  # one clip as a plain list of samples
            if len(clips) == 0:
                clips = [np.zeros(0, dtype=np.float32)]
            names = [f"clip {i}" if len(clips) > 1 else "audio" for i in range(len(clips))]
            samples = [check_audio(clip, sampling_rate, self.sampling_rate_hz, n) for clip, n in zip(clips, names)]
            batch = self.pad([self.features(clip) for clip in samples])
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            batch["input_ids" if audio is None else "labels"] = self.encode(texts, language)
        return batch

    def encode(self, texts: list[str], language: Union[str, list[str], None]) -> torch.Tensor:
        """Label ids `(B, longest)`, -100 where padded.

        Raises:
            ValueError: for an empty text.
        """
        rows = []
        for text, code in zip(texts, self._codes(language, len(texts))):
            text = unicodedata.normalize("NFKC", text).strip()
            if not text:
                raise ValueError(f"Empty transcript (language {code!r}): CTC has nothing to learn from it. Drop the clip.")
            rows.append(self.tokenizer_of(code)(text).input_ids)
        longest = max(map(len, rows))
        return torch.tensor([row + [-100] * (longest - len(row)) for row in rows])

    # ------------------------------------------------------------------ text out

    def decode(self, token_ids, language: Optional[str] = None, **kwargs):
        """Text of one clip's frames of token ids `(T,)`: repeats merged, blanks dropped.

        Raises:
            ValueError, KeyError: for a missing or unknown language.
        """
        code = self._codes(language, 1)[0]
        ids = torch.as_tensor(token_ids)
        ids = torch.where(ids < 0, self.vocabs[self._known(code)][PAD_TOKEN], ids)
        return self.tokenizer_of(code).decode(ids, **kwargs)

    def _known(self, code: str) -> str:
        self.tokenizer_of(code)
        return code

    def batch_decode(self, token_ids, language: Union[str, list[str], None] = None, frames=None, **kwargs) -> list[str]:
        """Text of each clip of `(B, T)` token ids.

        Args:
            language: one code, or one for each clip.
            frames: each clip's true number of frames; past them a batch holds padding, which is not speech.
        """
        codes = self._codes(language, len(token_ids))
        ends = [None] * len(codes) if frames is None else [int(f) for f in frames]
        return [self.decode(ids[:end], code, **kwargs) for ids, code, end in zip(token_ids, codes, ends)]

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict:
        """As in Transformers, plus `auto_map`, by which AutoProcessor finds this class in the folder's own code."""
        return {**super().to_dict(), "auto_map": {"AutoProcessor": "processing_master_asr.MasterASRProcessor"}}

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers, plus the code files remote loading needs."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        saved = super().save_pretrained(save_directory, **kwargs)
        copy_code(save_directory)
        return saved


def nested_tokenizer(vocabs: dict[str, dict[str, int]]) -> Wav2Vec2CTCTokenizer:
    """A stock CTC tokenizer over `{language: {token: id}}`; its own defaults would append `<s>` and move the pad id."""
    first = next(iter(vocabs), None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabs, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(path), pad_token=PAD_TOKEN, unk_token=UNK_TOKEN, word_delimiter_token=SPACE_TOKEN,
            bos_token=None, eos_token=None, target_lang=first, do_lower_case=False,
        )  # fmt: skip
