"""Texts in recordings that name other files and ports: no entrance lets a decoder open what they name.

The decoder has two guards, the containers it may read and the protocols it may speak. Each is tested while the other is taken away:
together they would hide that one of them is gone.
"""

import io
import os
import socket
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import tiny_model
from transformers import pipeline

from modeling_master_asr import MasterASRPipeline, MasterASRProcessor, audio_master_asr
from modeling_master_asr.audio_master_asr import decode_audio, read_audio
from training import transcribe
from training.loop.data import Features
from training.loop.recordings import LeftOut, seconds_of
from training.loop.sources import Clip

GUARDS = ("format_whitelist", "protocol_whitelist")
READS_OTHERS = ("concat", "concatf", "dash", "hls", "applehttp", "image2", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp", "tee", "vobsub")
FFCONCAT = "ffconcat version 1.0\nfile {recording}\n"
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"


@pytest.fixture(scope="module")
def asr():
    processor = MasterASRProcessor.from_model(model := tiny_model())
    return pipeline("automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor,
                    pipeline_class=MasterASRPipeline)  # fmt: skip


def by_command(path: Path, saved, capsys) -> None:
    """`training.transcribe` says why on stderr, and no text: as an error, to be compared with the others."""
    code = transcribe.main([str(path), "--model", str(saved), "--language", "en"])
    said = capsys.readouterr()
    assert code == 1 and not said.out
    raise ValueError(said.err)


# how a recording comes in, what reads it
ENTRANCES = {
    "decode_audio, a path": lambda path, **_: decode_audio(path),
    "decode_audio, bytes": lambda path, **_: decode_audio(path.read_bytes()),
    "decode_audio, an open file, which has a name": lambda path, **_: decode_audio(path.open("rb")),
    "read_audio, a path": lambda path, **_: read_audio(str(path), 16_000),
    "read_audio, a row": lambda path, **_: read_audio({"bytes": path.read_bytes(), "path": str(path)}, 16_000),
    "the features of a clip": lambda path, asr, **_: Features(asr._processor)(Clip(path, "en", "ab", 1.0, "train")),
    "the length of a clip": lambda path, **_: seconds_of(path),
    "the pipeline, a path": lambda path, asr, **_: asr(str(path), language="en"),
    "the pipeline, bytes": lambda path, asr, **_: asr(path.read_bytes(), language="en"),
    "the pipeline, an open file": lambda path, asr, **_: asr(io.BytesIO(path.read_bytes()), language="en"),
    "the pipeline, a row": lambda path, asr, **_: asr({"bytes": path.read_bytes(), "path": str(path)}, language="en"),
    "training.transcribe": lambda path, saved, capsys, **_: by_command(path, saved, capsys),
}


class Spy:
    """`av.open` with one guard taken away; keeps what each call was handed."""

    def __init__(self, monkeypatch, taken_away=()):
        self.calls, self.original, self.taken_away = [], av.open, taken_away
        monkeypatch.setattr(audio_master_asr.av, "open", self)

    def __call__(self, file, options=None, **others):
        self.calls.append((file, dict(options or {})))
        kept = {name: value for name, value in (options or {}).items() if name not in self.taken_away}
        return self.original(file, options=kept, timeout=1, **others)  # a decoder that waits on a port does not do so for ever


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that relative names are seen from, with a second recording in it."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("private.wav", np.sin(np.arange(16_000) / 20) * 0.3, 16_000)
    return tmp_path


@pytest.fixture
def port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def is_bound(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        try:
            mine.bind(("", port))
        except OSError:
            return True
    return False


def bound_while(read, port: int) -> bool:
    """Whether the port was ever bound while `read` ran in another thread."""
    reader, bound = threading.Thread(target=read, daemon=True), False
    reader.start()
    ends = time.monotonic() + 20
    while reader.is_alive() and time.monotonic() < ends:
        bound = bound or is_bound(port)
        reader.join(0.01)
    assert not reader.is_alive()
    return bound


@pytest.mark.parametrize("taken_away", [(), *((guard,) for guard in GUARDS)], ids=["both guards", *(f"without {guard}" for guard in GUARDS)])
@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_text_that_names_a_second_recording_reads_none_of_it(entrance, suffix, taken_away, folder, monkeypatch, asr, saved, capsys):
    path = folder / f"clip{suffix}"
    path.write_text(FFCONCAT.format(recording="private.wav"))
    spy = Spy(monkeypatch, taken_away)
    with pytest.raises((ValueError, LeftOut), match="(?i)cannot (be decoded|decode)"):
        ENTRANCES[entrance](path, asr=asr, saved=saved, capsys=capsys)
    assert len(spy.calls) == 1


def test_without_both_guards_the_second_recording_is_read_from_bytes_alone(folder, monkeypatch):
    """The control: what is refused above would else be read, through the same door."""
    Spy(monkeypatch, GUARDS)
    assert len(decode_audio(FFCONCAT.format(recording="private.wav").encode())) == 16_000


@pytest.mark.parametrize("taken_away", [(), *((guard,) for guard in GUARDS)], ids=["both guards", *(f"without {guard}" for guard in GUARDS)])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_text_that_names_a_port_binds_none(entrance, taken_away, folder, monkeypatch, asr, saved, capsys, port):
    path = folder / "clip.wav"
    path.write_text(SDP.format(port=port), newline="")
    Spy(monkeypatch, taken_away)
    errors = []

    def read():
        with pytest.raises((ValueError, LeftOut), match="(?i)cannot (be decoded|decode)") as error:
            ENTRANCES[entrance](path, asr=asr, saved=saved, capsys=capsys)
        errors.append(error)

    assert not bound_while(read, port) and errors


def test_without_both_guards_the_port_is_bound_from_bytes_alone(folder, monkeypatch, port):
    """The control."""
    Spy(monkeypatch, GUARDS)

    def read():
        with pytest.raises(ValueError, match="Cannot decode"):
            decode_audio(SDP.format(port=port).encode())

    assert any(bound_while(read, port) for _ in range(5))  # the one who looks may come too late on a busy machine


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_entrance_hands_the_decoder_both_guards_and_no_name(entrance, folder, monkeypatch, asr, saved, capsys):
    path = folder / "clip.mp3"
    path.write_bytes(b"nothing")
    spy = Spy(monkeypatch)
    with pytest.raises((ValueError, LeftOut), match="(?i)cannot (be decoded|decode)"):
        ENTRANCES[entrance](path, asr=asr, saved=saved, capsys=capsys)
    ((file, options),) = spy.calls
    assert not isinstance(file, (str, os.PathLike)) and not hasattr(file, "name")
    assert options["protocol_whitelist"] == "none"
    assert options["format_whitelist"] and not set(options["format_whitelist"].split(",")) & set(READS_OTHERS)
