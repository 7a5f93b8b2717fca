"""Audio from anywhere as float32 mono samples: arrays, files, bytes, URLs, the columns of `datasets`.

Recordings come from strangers. A decoder is handed bytes, never a name that it could open; everything that grows has a limit that the
message names; what a file declares is compared with what it yields.
"""

from __future__ import annotations

import io
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from inspect import iscoroutinefunction
from itertools import chain, groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Optional, Union
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import torch
from transformers.utils import logging

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

logger = logging.get_logger(__name__)

MIN_SAMPLES = 400  # 25 ms: one window of every supported front end
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_DURATION_S = 4 * 3600.0  # 0.9 GB of samples at 16 kHz
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_TIMEOUT_S = 300.0
URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"  # beside letters, digits and -._: what stands in a URL as it is
LOUDEST = 10.0  # floats in [-1, 1] may overshoot a little; int16 values kept as floats go to 32,768
BLOCK_SAMPLES = 1 << 20  # decoded at once, all channels together
WHOLE, HALF = 0.95, 0.5  # share of the declared duration below which a file is warned of, and refused
INTEGERS = {"int16": (0, 1 << 15), "int32": (0, 1 << 31), "int8": (0, 1 << 7), "uint8": (1 << 7, 1 << 7)}  # zero and range

# FFmpeg reads text that names other files and ports, too (playlists, SDP): only containers of audio itself are let in.
CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,g722,gsm,matroska,webm,mov,mp4,m4a,mp3,mpeg,mpegts,ogg,tta,voc,w64,wav,wv"
)  # fmt: skip
# What libsndfile says of a WAV, AIFF or AU file that holds less than its header promises, and reads as if that were all.
CUT_SHORT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
UNKNOWN_BYTES = 0x7F000000  # sizes from here on are what recorders write that do not know them yet
GO_ON = ("MP3", "OGG", "FLAC", "AU")  # formats in which nothing but sound comes after the sound; libsndfile's names
NAMED_BY_SUFFIX = {".g722": "g722", ".gsm": "gsm"}  # headerless: nothing in the bytes says what they are


def check_rate(rate_hz, name: str = "audio") -> float:
    """Returns a sampling rate in Hz.

    Raises:
        ValueError: unless it is a number from 1,000 to 768,000.
    """
    try:
        number = float(rate_hz)
    except (TypeError, ValueError):
        number = math.nan
    if not MIN_RATE_HZ <= number <= MAX_RATE_HZ:  # NaN is in no range
        raise ValueError(f"{name} has a sampling rate of {rate_hz!r} Hz; a number from {MIN_RATE_HZ} to {MAX_RATE_HZ} is wanted.")
    return number


def check_limits(**limits: float) -> None:
    """Refuses limits that would be none: nothing is larger than NaN.

    Raises:
        ValueError: naming the first that is no number above 0.
    """
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name} is {value!r}; a number above 0 is wanted.")


def mono_floats(audio, name: str = "audio") -> np.ndarray:
    """One clip as float32 samples `(n,)`. Integers are scaled by their range: int16 / 32768; uint8 about 128.

    Raises:
        TypeError: for what is nothing like samples.
        ValueError: for what holds no samples, more than one channel, or a kind of number whose range says nothing.
    """
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.dtype == torch.bfloat16 else audio).numpy()
    try:
        samples = np.asarray(audio)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} holds no samples ({error}); one array of numbers is wanted, shape (samples,).") from error
    if samples.ndim == 0:
        raise TypeError(f"{name} is {str(audio)[:100]}; a path, URL, bytes, samples, or a row of an Audio column is wanted.")
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)  # one channel, whichever axis it has
    if samples.ndim != 1:
        raise ValueError(
            f"{name} has shape {samples.shape}; one channel of samples is wanted, shape (samples,). "
            "Mix stereo down first: audio.mean(axis=channels)."
        )
    if samples.dtype.name in INTEGERS:
        zero, scale = INTEGERS[samples.dtype.name]
        if samples.dtype.name == "int32" and len(samples) and np.abs(samples).max() <= 1 << 15:
            logger.warning_once(f"{name} holds int32 samples of at most 16 bits, which is next to silence. Are they int16 values? Pass audio.astype('int16').")
        return (samples.astype(np.float32) - np.float32(zero)) / np.float32(scale)
    if not len(samples) or samples.dtype.kind == "f":
        return samples.astype(np.float32)
    raise ValueError(f"{name} holds {samples.dtype}; floats in [-1, 1] are wanted, or {', '.join(INTEGERS)}, which are scaled by their range.")


def check_audio(audio, sampling_rate: Optional[int], wanted_hz: int, name: str = "audio") -> np.ndarray:
    """Returns one clip as float32 mono samples in [-1, 1].

    Raises:
        ValueError: for another rate, stereo, empty, too short, too loud, or not-finite audio, naming `name`.
    """
    if sampling_rate is not None and check_rate(sampling_rate, name) != wanted_hz:
        raise ValueError(
            f"{name} is at {sampling_rate} Hz, the model listens at {wanted_hz} Hz. Resample it "
            "(the pipeline does, and training.transcribe), or decode it at that rate."
        )
    samples = mono_floats(audio, name)
    if len(samples) < MIN_SAMPLES:
        raise ValueError(f"{name} is {'empty' if not len(samples) else 'too short'}: {len(samples)} samples, at least {MIN_SAMPLES} (25 ms) are needed.")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(samples)).sum())} samples that are NaN or infinite. Decode it again.")
    peak = max(float(samples.max()), -float(samples.min()))
    if peak > LOUDEST:
        raise ValueError(f"{name} has a peak of {peak:.0f}; floats in [-1, 1] are wanted. Are these int16 values kept as floats? Divide by 32768.")
    return samples


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Samples `(n,)` or `(n, channels)` at another rate.

    Raises:
        ImportError: if the rates differ and soxr is not installed.
        ValueError: for a rate that is none.
    """
    from_hz, to_hz = check_rate(from_hz), check_rate(to_hz)
    if from_hz == to_hz:
        return samples
    return _soxr(from_hz, to_hz).resample(samples, from_hz, to_hz)


def _soxr(from_hz, to_hz):
    if soxr is None:
        raise ImportError(f"Resampling {from_hz} Hz to {to_hz} Hz needs soxr: pip install soxr.")
    return soxr


# ---------------------------------------------------------------------- files and bytes


class _Mono:
    """Takes blocks of a recording and keeps them as mono at the wanted rate: the result and one block, nothing else in memory."""

    def __init__(self, rate_hz: float, wanted_hz: int, name: str, max_duration_s: float):
        self.name, self.max_duration_s, self.wanted_hz = name, max_duration_s, wanted_hz
        self.kept, self.rate_hz, self.stream = io.BytesIO(), wanted_hz, None
        self.go_on_at(rate_hz)

    def go_on_at(self, rate_hz: float) -> None:
        """Of what is added from here on, the rate; what the last rate's resampler holds back is kept first.

        Raises:
            ValueError: for a rate that no recording has.
        """
        if check_rate(rate_hz, self.name) == self.rate_hz:
            return
        if self.stream is not None:
            self.add(np.zeros(0, np.float32), last=True)
        self.rate_hz = rate_hz
        self.stream = None if rate_hz == self.wanted_hz else _soxr(rate_hz, self.wanted_hz).ResampleStream(rate_hz, self.wanted_hz, 1, dtype="float32")

    def add(self, block: np.ndarray, last: bool = False) -> None:
        """Appends samples `(n,)` or `(n, channels)`.

        Raises:
            ValueError: beyond the longest duration allowed.
        """
        mono = block.mean(axis=1) if block.ndim == 2 else block
        if self.stream is not None:
            mono = self.stream.resample_chunk(mono, last=last)
        self.kept.write(np.ascontiguousarray(mono, dtype=np.float32).data)
        if self.kept.tell() > 4 * self.max_duration_s * self.wanted_hz:
            raise ValueError(
                f"{self.name} is longer than max_duration_s={self.max_duration_s:.0f} ({self.max_duration_s / 3600:.2f} h). "
                "Cut it, or pass a larger max_duration_s."
            )

    def finish(self) -> np.ndarray:
        self.add(np.zeros(0, np.float32), last=True)
        return np.frombuffer(self.kept.getbuffer(), dtype=np.float32)  # no second copy


def decode_audio(
    source: Union[str, Path, bytes, bytearray, memoryview, io.IOBase],
    sampling_rate_hz: int = 16_000,
    name: Optional[str] = None,
    max_duration_s: float = MAX_DURATION_S,
) -> np.ndarray:
    """Decodes a file, its bytes or an open binary file into float32 mono samples `(n,)` at `sampling_rate_hz`; needs no system ffmpeg.

    soundfile reads WAV, FLAC, Ogg, Opus and mp3; PyAV, where installed, the rest (G.722, m4a, video). Neither opens anything else.

    Args:
        name: what messages call it; None: its path.
        max_duration_s: longer recordings are refused while they are decoded.

    Raises:
        ValueError: if it cannot be decoded, is too long, or yields less than half of what it declares, naming it.
        FileNotFoundError: if it is not there.
    """
    check_limits(max_duration_s=max_duration_s)
    best, declared_s, errors = None, 0.0, []
    with _opened(source, name) as (file, suffix, name):
        for decode in [d for d, library in ((_with_soundfile, soundfile), (_with_av, av)) if library is not None]:
            file.seek(0)
            try:
                samples, seconds = decode(file, suffix, lambda rate_hz: _Mono(rate_hz, sampling_rate_hz, name, max_duration_s))
            except _DECODER_ERRORS as error:
                errors.append(str(error))
                continue
            if best is None or len(samples) > len(best):
                best, declared_s = samples, seconds
            if len(best) and len(best) >= WHOLE * declared_s * sampling_rate_hz:
                return best
    if best is None:
        hint = "" if av is not None and soundfile is not None else " More formats: pip install soundfile av."
        raise ValueError(f"Cannot decode {name}: {'; '.join(errors)}. Is it an audio file?{hint}")
    found_s = len(best) / sampling_rate_hz
    if found_s < HALF * declared_s:
        raise ValueError(f"{name} is damaged or cut short: {found_s:.2f} s of the {declared_s:.2f} s that it declares or holds can be decoded. Fetch it again.")
    if found_s < WHOLE * declared_s:
        logger.warning(f"{name} is damaged or cut short: only {found_s:.2f} s of the {declared_s:.2f} s that it declares or holds can be decoded.")
    return best


# Tags that are not UTF-8 cost no recording; from 19 on PyAV passes over them itself.
_TAGS = {} if av is None or int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
_DECODER_ERRORS = (RuntimeError,) if av is None else (RuntimeError, av.error.FFmpegError, IndexError)  # the last: PyAV's, of a stream that appears midway


@contextmanager
def _opened(source, name: Optional[str]):
    """`(binary file, suffix, name)` of a path, bytes or an open file."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), "", name or "the audio bytes"
    elif hasattr(source, "read"):
        if iscoroutinefunction(source.read):
            raise ValueError(f"{name or 'audio'} is a {type(source).__name__}, which is read asynchronously. Pass its bytes: await source.read().")
        if not hasattr(source, "seek") or isinstance(source, io.TextIOBase):
            raise ValueError(f"{name or 'audio'} is a {type(source).__name__} that is not binary or cannot seek. Pass its bytes: source.read().")
        if getattr(source, "closed", False):
            raise ValueError(f"{name or 'the audio file'} is closed. Open it again, or pass its bytes.")
        yield source, "", name or "the audio file"
    else:
        if not os.path.isfile(source):
            hint = f" It is a folder: pass the files in it, such as {os.path.join(os.fsdecode(source), '*.ogg')}." if os.path.isdir(source) else ""
            raise FileNotFoundError(f"No audio file at {source}.{hint}")
        with open(source, "rb") as file:
            yield file, os.path.splitext(os.fsdecode(source))[1].lower(), name or os.fsdecode(source)


def declares_length(file) -> bool:
    """Whether an mp3 (a binary file) says how long it is; of others libsndfile and FFmpeg take the first frame's bit rate for that of all."""
    file.seek(0)
    head = file.read(10)
    if head[:3] == b"ID3":  # its size in four bytes of seven bits
        file.seek(10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0))))
        head = b""
    first = head + file.read(512)  # a frame's header, 32 bytes at most, and the tag
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _with_soundfile(file, suffix: str, start) -> tuple[np.ndarray, float]:
    """Samples, and the seconds that the file's header declares, or that its bytes amount to where they go on after that: files put together."""
    with soundfile.SoundFile(_nameless(file)) as sound:
        mono = start(sound.samplerate)
        frames, heard = max(1, BLOCK_SAMPLES // sound.channels), 0
        while len(block := sound.read(frames, dtype="float32", always_2d=True)):
            mono.add(block)
            heard += len(block)
        read_to, size = file.tell(), file.seek(0, io.SEEK_END)
        parts = size / read_to if sound.format in GO_ON and 0 < read_to < size else 1.0
        if (sizes := CUT_SHORT.search(sound.extra_info)) and int(sizes[2]) < int(sizes[1]) < UNKNOWN_BYTES:
            parts = int(sizes[1]) / max(int(sizes[2]), 1)
        declared = sound.frames if sound.format != "MP3" or declares_length(file) else heard
        return mono.finish(), parts * declared / sound.samplerate


def _with_av(file, suffix: str, start) -> tuple[np.ndarray, float]:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    with av.open(_nameless(file), format=NAMED_BY_SUFFIX.get(suffix), options=options, **_TAGS) as container:
        if not container.streams.audio:
            raise RuntimeError("there is no audio in it")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise RuntimeError("nothing here decodes its codec")
        rate_hz = stream.codec_context.sample_rate
        mono = start(rate_hz)
        for frame_hz, block in _as_floats(_frames(container, stream)):
            mono.go_on_at(frame_hz)
            mono.add(block)
        declared_s = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / av.time_base  # a video goes on longer
        return mono.finish(), declared_s * _put_together(file)


def _put_together(file) -> float:
    """How many times as long as the first WAV or AIFF file all of those are that were put together: decoders end with the first."""
    file.seek(0)
    first = file.read(12)
    length = 8 + int.from_bytes(first[4:8], "little" if first[:4] == b"RIFF" else "big")
    file.seek(length)
    second = file.read(12)
    is_another = first[8:] in (b"WAVE", b"AIFF", b"AIFC") and (first[:4], first[8:]) == (second[:4], second[8:])
    return file.seek(0, io.SEEK_END) / length if is_another else 1.0


def _as_floats(frames: Iterator) -> Iterator[tuple[int, np.ndarray]]:
    """Rates and samples `(n, channels)` of frames, whose rate, channels or kind of number may change on the way: a stream's dump, files put together.

    Each at its own rate: a file of 146 bytes whose frames say 655,350 Hz and 50 Hz in turn would have gigabytes at the first.
    """
    for (frame_hz, layout, _), alike in groupby(frames, key=lambda frame: (frame.sample_rate, frame.layout.name, frame.format.name)):
        # its channels stay: FFmpeg's mono of two is louder than either, and soundfile's files are given their mean
        resampler = av.AudioResampler(format="flt", layout=layout, rate=frame_hz)
        for frame in chain(alike, [None]):
            for out in resampler.resample(frame):
                yield frame_hz, out.to_ndarray().reshape(-1, out.layout.nb_channels)


def _frames(container, stream) -> Iterator:
    """A stream's frames. What no frame can be made of is passed over in mp3 alone: the header of a file that was put behind another."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if container.format.name != "mp3":
                raise


class _Nameless(SimpleNamespace):
    def __repr__(self) -> str:  # as soundfile calls it in its messages
        return "its bytes"


def _nameless(file) -> _Nameless:
    """The bytes of an open file and nothing else: no decoder gets a name to open something by."""
    return _Nameless(**{name: getattr(file, name) for name in ("read", "readinto", "seek", "tell") if hasattr(file, name)})


# ---------------------------------------------------------------------- everything else


def download(url: str, timeout_s: float = DOWNLOAD_TIMEOUT_S, max_bytes: int = MAX_DOWNLOAD_BYTES) -> bytes:
    """The content of an http(s) URL.

    Args:
        timeout_s: for the whole download.

    Raises:
        ValueError: beyond `max_bytes`.
        TimeoutError, OSError: if it takes longer, or fails; the URL is named.
    """
    ends, content = time.monotonic() + timeout_s, bytearray()
    try:
        with urlopen(quote(url, safe=URL_CHARACTERS), timeout=min(timeout_s, 30.0)) as response:
            while block := response.read1(1 << 20):
                content += block
                if len(content) > max_bytes:
                    raise ValueError(f"{url} has more than max_download_bytes={max_bytes:.0f} bytes. Pass a larger limit if you trust it.")
                if time.monotonic() > ends:
                    raise TimeoutError
            if (whole := response.headers.get("Content-Length", "")).isdigit() and len(content) < int(whole):
                raise OSError(f"only {len(content)} of {whole} bytes arrived")
    except TimeoutError as error:
        raise TimeoutError(f"{url} did not arrive within download_timeout_s={timeout_s:g}. Pass a larger one, or fetch the file first.") from error
    except (OSError, HTTPException) as error:
        raise OSError(f"Cannot download {url}: {error}.") from error
    return bytes(content)


def is_recording(source) -> bool:
    """Whether `read_audio` would decode or resample it: it knows its own rate, as samples do not."""
    kinds = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)
    return isinstance(source, kinds) or hasattr(source, "read") or hasattr(source, "get_all_samples")


def clips_of(audio) -> list:
    """One clip or several as a list of clips; what holds none is left to be refused by name."""
    if is_recording(audio) or not hasattr(audio, "__len__"):
        return [audio]
    if isinstance(audio, (np.ndarray, torch.Tensor)) and np.ndim(audio) == 1:
        return [audio]
    if len(audio) == 0:
        return [np.zeros(0, dtype=np.float32)]
    if isinstance(audio, (list, tuple)) and not is_recording(audio[0]) and np.ndim(audio[0]) == 0:
        return [audio]  # one clip as a plain list of samples
    return audio


def read_audio(
    source,
    wanted_hz: int,
    name: Optional[str] = None,
    max_duration_s: float = MAX_DURATION_S,
    download_timeout_s: float = DOWNLOAD_TIMEOUT_S,
    max_download_bytes: int = MAX_DOWNLOAD_BYTES,
) -> np.ndarray:
    """One clip as float32 mono samples at `wanted_hz`, from whatever holds it.

    Args:
        source: a path, http(s) URL, bytes, a binary file; samples `(n,)` at `wanted_hz`, as an array, tensor or list; a row of a
            `datasets` Audio column: an `AudioDecoder`, `{"array" or "raw": samples, "sampling_rate": Hz}` or `{"bytes": ...}`.

    Raises:
        ValueError, TypeError, OSError: for what is no audio, naming it.
    """
    check_limits(max_duration_s=max_duration_s, download_timeout_s=download_timeout_s, max_download_bytes=max_download_bytes)
    if isinstance(source, Mapping):
        source, rate_hz = _row(source)
        if rate_hz is not None:
            source = resample(mono_floats(source, name or "audio"), check_rate(rate_hz, name or "audio"), wanted_hz)
    elif hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder, which `datasets` 4 hands out
        try:
            decoded = source.get_all_samples()
        except RuntimeError as error:  # torchcodec's word for a file that it cannot decode
            raise ValueError(f"{name or 'audio'} cannot be decoded ({error}).") from error
        # (channels, n) -> (n,): here the layout is known
        source = resample(mono_floats(decoded.data.float().mean(dim=0), name or "audio"), decoded.sample_rate, wanted_hz)
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        name = name or source
        source = download(source, download_timeout_s, max_download_bytes)
    if isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(source, "read"):
        if name is None and isinstance(source, (str, os.PathLike)):
            name = os.fsdecode(source)
        source = decode_audio(source, wanted_hz, name, max_duration_s)
    samples = check_audio(source, None, wanted_hz, name or "audio")
    if len(samples) > max_duration_s * wanted_hz:
        raise ValueError(f"{name or 'audio'} is longer than max_duration_s={max_duration_s:.0f}. Cut it, or pass a larger max_duration_s.")
    return samples


def _row(row: Mapping) -> tuple:
    """`(samples, rate in Hz)` or `(bytes, None)` of a dict."""
    samples = row.get("raw") if row.get("raw") is not None else row.get("array")
    if samples is not None and row.get("sampling_rate") is not None:
        return samples, row["sampling_rate"]
    if row.get("bytes") is not None:
        return row["bytes"], None
    if samples is None and row.get("path") is not None:
        raise ValueError(
            f"This row holds no audio, only the path {str(row['path'])!r}. Rows may come from others, so no path in them is opened; "
            'if it names a file of yours, pass the path itself, row["path"]. Of a whole data set, which would make rows of such paths again, as bytes: '
            'data.map(lambda row: {"audio": {"bytes": open(row["audio"]["path"], "rb").read(), "path": None}}).'
        )
    raise ValueError(f'A dict needs "raw" (or "array") and "sampling_rate", or "bytes"; got {sorted(map(str, row))}.')
