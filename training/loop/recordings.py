"""Recordings of data from strangers: which files a row may open, what is kept in the cache, how long one is."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, TypeVar

import soundfile

from modeling_master_asr import signs_master_asr, text_master_asr
from modeling_master_asr.audio_master_asr import DOWNLOAD_TIMEOUT_S, declares_length, decode_audio
from modeling_master_asr.backbone_master_asr import SAMPLING_RATE_HZ
from training.loop.record import write_whole

MAX_RECORDING_BYTES = 256 << 20  # of one recording inside a data set
MAX_DOWNLOAD_GB = 20.0  # of recordings, from one data set of the Hub
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".mka", ".amr", ".aiff", ".au")
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "words", list: "a list", dict: "an object"}
NAME_LENGTH = 28  # of names by bytes, in hexadecimal: no other names of files are known to be so long
LEFT_BEHIND_S = 15.0  # more than the Hub's client waits for a single read
Arrived = TypeVar("Arrived")


class LeftOut(Exception):
    """Why one row cannot be used, and the recording or value it is about."""

    def __init__(self, reason: str, about: object = ""):
        super().__init__(f"{reason} ({about})" if about != "" else reason)
        self.reason, self.about = reason, about


def kind(value: object) -> str:
    """What a value from JSON is, in words."""
    return KINDS.get(type(value), f"a {type(value).__name__}")


def printable(value: object) -> str:
    """Words of a stranger for the terminal: control characters, which could rewrite what stands there, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


@dataclass
class Shelf:
    """What the rows of one source may open: bytes they hold, and files of their own data set. Nothing else.

    Args:
        name: of the source, for messages.
        cache: where bytes are kept, once, under a name of their hash.
        folder: of a local source: paths are relative to it.
        root: of a local source: a file has to lie below it, links and `..` resolved.
        allow_outside: a local source may name any file.
        repo: of a data set on the Hub: `owner/name`.
        max_download_gb: of recordings from the Hub, for the whole source.
        download_timeout_s: in which whatever is waited for, a row or a file, has to arrive from the Hub.
    """

    name: str
    cache: Path
    folder: Optional[Path] = None
    root: Optional[Path] = None
    allow_outside: bool = False
    repo: Optional[str] = None
    max_download_gb: float = MAX_DOWNLOAD_GB
    download_timeout_s: float = DOWNLOAD_TIMEOUT_S
    hub: Optional[tuple] = field(default=None, init=False)  # what `datasets` reads a data set of the Hub with, and its files by splits
    _received: int = field(default=0, init=False)

    def list_of(self, *settings: object) -> Path:
        """Where the clips of an opened data set of the Hub are listed once they have been read: another file for other settings, and once the
        set has changed (the names of its files hold its commit) or our way of normalising texts has.
        """
        normalising = [Path(module.__file__).read_bytes() for module in (text_master_asr, signs_master_asr)]
        return Path(self.cache) / f"{hashlib.sha256(f'{settings} {self.hub[1]} {normalising}'.encode()).hexdigest()[:24]}.clips.jsonl"

    def file_of(self, audio: object, where: str) -> Path:
        """The file of a row's recording.

        Raises:
            LeftOut: if there is none that may be opened.
            ValueError: if a local row names a file outside; if a data set sends more than it may.
        """
        if isinstance(audio, dict):
            content, name = audio.get("bytes"), audio.get("path")
            if content and not isinstance(content, bytes):
                raise LeftOut(f"the recording is bytes as {'text' if isinstance(content, str) else kind(content)}: a path is read")
            if not content and not name and set(audio) - {"bytes", "path"}:
                raise LeftOut(f"the recording is an object with {', '.join(map(str, audio))}: a path is read")
            audio = content or name
            if content:
                return self._keep(content, name)
        if isinstance(audio, bytes) and audio:
            return self._keep(audio, None)
        if not audio and audio in (None, "", b""):
            raise LeftOut("no recording")
        if not isinstance(audio, str):
            raise LeftOut(f"the recording is {kind(audio)}: a path is read")
        return self._local(audio, where) if self.repo is None else self._keep(self._own_file(audio), audio)

    def _local(self, name: str, where: str) -> Path:
        for path in (self.folder / spelling for spelling in _spellings(name)):
            try:
                inside = self.allow_outside or path.resolve().is_relative_to(self.root.resolve())
                there = path.is_file()
            except (OSError, ValueError) as error:  # a name that no file can have
                raise LeftOut("no recording", name[:100]) from error
            if not inside:
                raise ValueError(
                    f"{where} names {name!r}, which is not below {self.root} (links resolved): data from others may open no other file. "
                    "If it is yours, pass --allow_outside (allow_outside=True), or move the recordings."
                )
            if there:
                return path
        raise LeftOut("no recording: ~ is not expanded in data" if name.startswith("~") else "no recording", self.folder / name)

    def _own_file(self, name: str) -> bytes:
        """Bytes of a file of this data set: `hf://datasets/owner/name[@revision]/file`, or `file` alone."""
        own = f"hf://datasets/{self.repo}"
        if "://" not in name and not name.startswith(("/", "~")):
            name = f"{own}/{name}"
        if not name.startswith((f"{own}/", f"{own}@")) or "::" in name or ".." in name.split("/") or "%" in name:
            raise LeftOut("names a file that is not of the data set: not opened", name[:200])
        from huggingface_hub import HfFileSystem

        def read() -> bytes:
            with HfFileSystem().open(name, "rb") as opened:
                return opened.read(MAX_RECORDING_BYTES + 1)

        try:
            content = self.arrived(repr(name), read)
        except FileNotFoundError as error:
            raise LeftOut("no recording", name[:200]) from error
        self.count(len(content))
        return content

    def arrived(self, what: str, call: Callable[[], Arrived]) -> Arrived:
        """What `call` returns, which asks the Hub.

        It runs in a thread of its own: the Hub's client limits a single read of a single request, and tries again many times, so that a
        server can keep it waiting for hours. A thread that takes too long is told to end, which it does after that single read.

        Raises:
            TimeoutError: beyond `download_timeout_s`.
        """
        answers: list[Arrived] = []
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                answers.append(call())
            except BaseException as error:
                errors.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(min(self.download_timeout_s, threading.TIMEOUT_MAX))
        if errors:
            raise errors[0]
        if not answers:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(asking.ident), ctypes.py_object(SystemExit))
            atexit.register(asking.join, LEFT_BEHIND_S)  # an interpreter that ends under a thread inside of pyarrow aborts
            raise TimeoutError(
                f"{self.name}: {what} did not arrive within download_timeout_s={self.download_timeout_s:g}. Try again, raise the limit, "
                "--download_timeout_s (download_timeout_s=), or download the set and pass its folder."
            )
        return answers[0]

    def count(self, received: int) -> None:
        """Counts bytes that a data set has sent.

        Raises:
            ValueError: if they are too many.
        """
        self._received += received
        if self._received > self.max_download_gb * 1e9:
            raise ValueError(
                f"{self.name} has sent more than {self.max_download_gb:g} GB of recordings. Name its language, as in xx={self.name}, after whose minutes it is left; ask for fewer; "
                "or raise the limit: --max_download_gb (max_download_gb=)."
            )

    def _keep(self, content: bytes, name: object) -> Path:
        if len(content) > MAX_RECORDING_BYTES:
            raise LeftOut(f"more than {MAX_RECORDING_BYTES} bytes (MAX_RECORDING_BYTES)", str(name)[:100])
        suffix = Path(name).suffix.lower() if isinstance(name, str) else ""
        # of the name that a row gives nothing but a known suffix is used
        path = Path(self.cache) / f"{hashlib.sha256(content).hexdigest()[:NAME_LENGTH]}{suffix if suffix in SUFFIXES else '.audio'}"
        if not path.exists():
            write_whole(path, content)
        return path


def _spellings(name: str) -> list[str]:
    """A file's name as it is written, and as another system may have it: macOS takes letters and accents apart, Windows writes `\\`."""
    names = list(dict.fromkeys([name, name.replace("\\", "/")]))
    return list(dict.fromkeys([*names, *(unicodedata.normalize(form, each) for each in names for form in ("NFC", "NFD"))]))


def content_name(path: Path) -> Optional[str]:
    """The name of a recording that a run received and named by its bytes; None of others."""
    return path.name if path.parent.name == "recordings" and re.fullmatch(rf"[0-9a-f]{{{NAME_LENGTH}}}", path.stem) else None


def identity_of(path: Path) -> str:
    """What tells a recording from others, and from one that took its place: the name that its bytes gave it, else where it lies, its size and its time.

    Raises:
        OSError: if it is not there.
    """
    about = path.stat()
    return content_name(path) or f"{path.resolve()}|{about.st_size}|{about.st_mtime_ns}"


def seconds_of(path: Path) -> float:
    """The length of a recording: from its header, or decoded where soundfile knows none (m4a, webm), or guesses (an mp3 without a tag).

    Raises:
        LeftOut: if it cannot be decoded.
    """
    try:
        info = soundfile.info(str(path))
        with path.open("rb") as opened:
            is_known = info.format != "MP3" or declares_length(opened)
        if is_known and info.frames > 0:
            return info.duration
    except (RuntimeError, TypeError, ValueError):  # TypeError: a file called .raw; ValueError: a name that is not UTF-8
        pass
    # CHOICE: decoded once more, not asked of the container: a webm from a browser declares no duration, and `decode_audio` is the one guarded way
    try:
        return len(decode_audio(path, SAMPLING_RATE_HZ)) / SAMPLING_RATE_HZ
    except (ValueError, OSError, TypeError) as error:
        raise LeftOut("cannot be decoded", path) from error


def copies(paths: list[Path], others: list[Path]) -> list[Path]:
    """Those of `paths` whose bytes are also in one of `others`."""
    for key in (_size, _tail, _digest):  # the cheap ones first: hardly a file is read whole
        keys = {path: key(path) for path in {*paths, *others}}
        both = {keys[path] for path in paths} & {keys[path] for path in others}
        paths, others = ([path for path in side if keys[path] in both] for side in (paths, others))
    return paths


def repeats(paths: list[Path]) -> list[Path]:
    """Those of `paths` whose bytes are also in one before them."""
    groups = [paths]
    for key in (_size, _tail, _digest):
        groups = [same for group in groups if len(group) > 1 for same in _divided(group, key)]
    return [path for group in groups for path in group[1:]]


def _divided(paths: list[Path], key: Callable[[Path], object]) -> list[list[Path]]:
    groups = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return list(groups.values())


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> bytes:
    with path.open("rb") as opened:
        opened.seek(max(0, _size(path) - 1024))
        return opened.read()


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
