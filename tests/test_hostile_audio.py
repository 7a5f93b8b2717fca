"""Recordings of strangers: one line an input, what is given and what must be said. Nothing else is opened, nothing grows without a limit."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_model

from modeling_master_asr import MasterASRProcessor, audio_master_asr
from modeling_master_asr.audio_master_asr import decode_audio, download, mono_floats, read_audio
from training import transcribe
from training.train_multilingual import MultilingualConfig, build

TONE = (np.sin(np.arange(16_000) / 20) * 0.3).astype(np.float32)  # 1 s


def encoded(samples=TONE, rate_hz=16_000, **kind) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate_hz, 1 if samples.ndim == 1 else samples.shape[1], **(kind or {"format": "WAV"})) as sound:
        for start in range(0, len(samples), 10_000):  # libsndfile's Vorbis encoder falls over long blocks
            sound.write(samples[start : start + 10_000])
    return file.getvalue()


def wav_header(rate_hz: int, channels: int = 1) -> bytes:
    """A WAV file of a second of silence that says what soundfile would not write."""
    body = bytes(32_000)
    return (
        b"RIFF" + (36 + len(body)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little") + (1).to_bytes(2, "little")
        + channels.to_bytes(2, "little") + rate_hz.to_bytes(4, "little") + (rate_hz * 2 * channels & 0xFFFFFFFF).to_bytes(4, "little")
        + (2 * channels).to_bytes(2, "little") + (16).to_bytes(2, "little") + b"data" + len(body).to_bytes(4, "little") + body
    )  # fmt: skip


def by_av(container: str, codec: str, samples=TONE, rate_hz: int = 16_000, layout: str = "mono", **tags) -> bytes:
    """What soundfile does not write; tags in UTF-8."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        out.metadata.update(tags)
        stream = out.add_stream(codec, rate=rate_hz, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * stream.channels), format="fltp", layout=layout)
        frame.rate = rate_hz
        for given in (frame, None):
            for converted in av.AudioResampler(stream.format.name, layout, rate_hz, frame_size=stream.frame_size or None).resample(given) if given else [None]:
                out.mux(stream.encode(converted))
    return file.getvalue()


def broadcast() -> bytes:
    """An MPEG transport stream whose second half says that it is of another stream."""
    content = bytearray(by_av("mpegts", "mp2"))
    for packet in range(len(content) // 188 // 2, len(content) // 188):
        content[188 * packet + 2] = 0x41
    return bytes(content)


class Upload:
    """As Starlette's and FastAPI's `UploadFile`."""

    async def read(self, size: int = -1) -> bytes:
        return encoded()[:size]

    async def seek(self, offset: int) -> None:
        pass


LONG_MP3 = encoded(np.tile(TONE, 20), format="MP3")
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
decoder = lambda data, rate_hz: SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=data, sample_rate=rate_hz))  # noqa: E731

REFUSED = {
    # what is given: (the input, what must be said)
    "nothing": (None, "audio is None; a path, URL, bytes, samples"),
    "no bytes": (b"", "Cannot decode the audio bytes"),
    "text": (b"<html>not found</html>", "Cannot decode the audio bytes: .* Is it an audio file"),
    "text in a bytearray": (bytearray(b"not audio"), "Cannot decode the audio bytes"),
    "a path with a zero": ("a\0b.wav", "No audio file at"),
    "a folder": (".", r"No audio file at \.\. It is a folder: pass the files in it, such as \./\*\.ogg\."),
    "a protocol of FFmpeg's": ("rtp://127.0.0.1:5004", "No audio file at rtp"),
    "a file protocol": ("file:///etc/hostname", "No audio file at file"),
    "text opened as text": (io.StringIO("abc"), "is a StringIO that is not binary"),
    "an upload of a web server": (Upload(), r"is a Upload, which is read asynchronously. Pass its bytes: await source.read\(\)"),
    "an empty list": ([], "is empty: 0 samples"),
    "ragged lists": ([[0.0] * 500, [0.0]], "holds no samples"),
    "words": (["a"] * 500, "holds <U1"),
    "None among samples": ([None] * 500, "holds object"),
    "complex numbers": (TONE.astype(complex), "holds complex128"),
    "truth values": (TONE > 0, "holds bool"),
    "int64": ((TONE * 32767).astype(np.int64), "holds int64; floats in .-1, 1. are wanted, or int16"),
    "floats at int16 scale": (TONE * 32767, r"has a peak of 98\d\d; .* Divide by 32768"),
    "two bare channels": (np.stack([TONE, TONE]), r"has shape \(2, 16000\); one channel"),
    "NaN": (np.where(np.arange(16_000) == 7, np.nan, TONE), "1 samples that are NaN or infinite"),
    "NaN as a rate": ({"array": TONE, "sampling_rate": float("nan")}, "sampling rate of nan Hz; a number from 1000 to 768000"),
    "no rate": ({"array": TONE, "sampling_rate": None}, 'A dict needs "raw" .or "array". and "sampling_rate"'),
    "no rate beside a path": ({"array": TONE, "path": "x.wav"}, 'A dict needs "raw" .or "array". and "sampling_rate"'),
    "a rate of 0": ({"array": TONE, "sampling_rate": 0}, "sampling rate of 0 Hz"),
    "a rate of infinity": ({"array": TONE, "sampling_rate": float("inf")}, "sampling rate of inf Hz"),
    "a negative rate": ({"array": TONE, "sampling_rate": -16_000}, "sampling rate of -16000 Hz"),
    "a rate in words": ({"array": TONE, "sampling_rate": "16 kHz"}, "sampling rate of '16 kHz' Hz"),
    "a number": (5, "audio is 5; a path, URL, bytes, samples"),
    "an object": (object, "audio is <class 'object'>; a path, URL, bytes, samples"),
    "a closed file": ((lambda file: (file.close(), file)[1])(io.BytesIO(encoded())), "the audio file is closed. Open it again, or pass its bytes"),
    "another dict": ({"audio": TONE}, r'or "bytes"; got \[.audio.\]'),
    "a row with a path only": ({"bytes": None, "path": "/etc/hostname"}, "no path in them is opened; if it names a file of yours, pass the path itself"),
    "a WAV at 1 Hz": (wav_header(1), "sampling rate of 1 Hz"),
    "a WAV at 4 GHz": (wav_header(4_000_000_000), "(sampling rate|Cannot decode)"),
    "an mp3 of which 5 % are left": (LONG_MP3[: len(LONG_MP3) // 20], r"damaged or cut short: 0\.\d+ s of the 20\.00 s that it declares"),
    "an mp3 with noise inside": (LONG_MP3[:1000] + bytes(range(256)) * 80 + LONG_MP3[21_500:], "damaged or cut short"),
    "a FLAC cut short": (encoded(np.tile(TONE, 20), format="FLAC")[:9000], "(Cannot decode|damaged or cut short)"),
    "a WAV of a codec that nobody knows": (encoded()[:20] + b"\x81\x01" + encoded()[22:], "Cannot decode .*nothing here decodes its codec. Is it an audio file"),
    "a broadcast in which another stream appears": (broadcast(), "Cannot decode the audio bytes: .*list index out of range"),
    "an m3u8 playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n", "Cannot decode"),
    "an ffconcat list": (b"ffconcat version 1.0\nfile {secret}\n", "Cannot decode"),
    "an SDP text": (SDP, "Cannot decode"),
    "a DASH manifest": (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
                        b"<Representation><BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>", "Cannot decode"),
}  # fmt: skip


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_no_audio_is_refused_with_a_reason(given):
    source, said = REFUSED[given]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=said):
        read_audio(source, 16_000)


def test_what_is_said_of_bytes_that_are_no_audio_names_no_object_of_ours():
    with pytest.raises(ValueError) as error:
        decode_audio(b"not audio", name="a.wav")
    assert str(error.value).startswith("Cannot decode a.wav: Error opening its bytes: Format not recognised.") and "0x" not in str(error.value)


@pytest.mark.parametrize("given", ["an m3u8 playlist", "an ffconcat list", "an SDP text", "a DASH manifest"])
@pytest.mark.parametrize("suffix", [".wav", ".m3u8", ".sdp", ".ffconcat", ".mpd"])
@pytest.mark.parametrize("absolute", [True, False])
def test_text_that_names_files_and_ports_opens_none(given, suffix, absolute, tmp_path, monkeypatch):
    """The file it names is a pipe with nobody at the other end, and on its port nobody sends: whoever opened either would wait for ever.

    Here the guards stand together; test_hostile_containers.py takes each of them away.
    """
    secret = tmp_path / "secret.ts"
    os.mkfifo(secret)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(REFUSED[given][0].replace(b"{secret}", os.fsencode(secret if absolute else secret.name)).replace(b"{port}", b"45678"))
    said = []

    def read():
        with pytest.raises(ValueError, match=f"Cannot decode {path}") as error:
            read_audio(path, 16_000)
        said.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert said and not reader.is_alive()


def test_the_stock_decoder_would_have_read_the_other_file(tmp_path):
    """The control: without the whitelist FFmpeg follows the same text, so the refusals above are ours."""
    (tmp_path / "secret.wav").write_bytes(encoded())
    (tmp_path / "clip.wav").write_bytes(b"ffconcat version 1.0\nfile secret.wav\n")
    with av.open(str(tmp_path / "clip.wav")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16_000


def test_decoders_are_handed_bytes_and_never_a_name(tmp_path, monkeypatch):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded())
    handed = []
    original = soundfile.SoundFile.__init__
    monkeypatch.setattr(soundfile.SoundFile, "__init__", lambda self, file, *a, **k: (handed.append(file), original(self, file, *a, **k))[1])
    decode_audio(path)
    original_open = av.open
    monkeypatch.setattr(av, "open", lambda file, **k: (handed.append(file), original_open(file, **k))[1])
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="Cannot decode"):
        decode_audio(path)
    assert len(handed) == 3 and not any(isinstance(file, (str, os.PathLike)) or hasattr(file, "name") for file in handed)


# ---------------------------------------------------------------------- what is read


READ = {
    "floats": TONE,
    "float64": TONE.astype(np.float64),
    "a list of floats": TONE.tolist(),
    "int16": (TONE * 32768).astype(np.int16),
    "int32": (TONE.astype(np.float64) * 2**31).astype(np.int32),
    "uint8": np.round(TONE * 128 + 128).astype(np.uint8),
    "a tensor": torch.from_numpy(TONE),
    "a tensor of one channel": torch.from_numpy(TONE)[None],
    "WAV": encoded(format="WAV", subtype="FLOAT"),
    "WAV in a bytearray": bytearray(encoded()),
    "WAV in a memoryview": memoryview(encoded()),
    "WAV in BytesIO": io.BytesIO(encoded()),
    "a WAV at its end": (lambda file: (file.seek(0, 2), file)[1])(io.BytesIO(encoded())),
    "a row of samples": {"array": TONE, "sampling_rate": 16_000, "path": "x.wav"},
    "a row of int16": {"array": (TONE * 32768).astype(np.int16), "sampling_rate": 16_000},
    "a row of bytes": {"bytes": encoded(), "path": "/etc/hostname"},
    "a row of raw": {"raw": TONE.tolist(), "sampling_rate": 16_000.0},
    "a decoder, mono": decoder(torch.from_numpy(TONE)[None], 16_000),
    "a decoder, stereo": decoder(torch.from_numpy(np.stack([TONE * 2, TONE * 0])), 16_000),
    "a stereo WAV": encoded(np.stack([TONE * 2, TONE * 0], axis=1)),
}  # fmt: skip


@pytest.mark.parametrize("given", READ)
def test_one_clip_is_the_same_samples_however_it_comes(given):
    samples = read_audio(READ[given], 16_000)
    assert samples.dtype == np.float32 and samples.shape == TONE.shape
    assert np.abs(samples - TONE).max() < (0.01 if given == "uint8" else 1e-4)


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.int32, np.uint8])
def test_integers_are_scaled_alike_at_any_rate(kind):
    """int16 at another rate used to go through unscaled."""
    scaled = {np.float32: TONE, np.int16: TONE * 32767, np.int32: TONE * (2**31 - 128), np.uint8: np.round(TONE * 127 + 128)}[kind].astype(kind)
    for rate_hz in (8_000, 16_000, 44_100):
        expected = read_audio({"array": TONE, "sampling_rate": rate_hz}, 16_000)
        assert np.abs(read_audio({"array": scaled, "sampling_rate": rate_hz}, 16_000) - expected).max() < 0.02
    processor = MasterASRProcessor.from_model(tiny_model())
    values = processor(audio=scaled, sampling_rate=16_000).input_values
    assert (values - processor(audio=TONE, sampling_rate=16_000).input_values).abs().max() < 0.05


def test_int16_values_in_wider_numbers_are_warned_of(caplog):
    samples = mono_floats((TONE * 32767).astype(np.int32), "the clip")
    assert np.abs(samples).max() < 1e-4 and "the clip holds int32 samples of at most 16 bits" in caplog.text and "audio.astype('int16')" in caplog.text


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "AIFF", "AU"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_recording_that_holds_less_than_its_header_says_is_not_read_as_whole(container, share, caplog):
    whole = encoded(np.tile(TONE, 4), format=container)
    cut = whole[: int(share * len(whole))]
    assert len(decode_audio(whole)) == 4 * len(TONE) and not caplog.text
    if share < 0.5:
        with pytest.raises(ValueError, match=r"the audio bytes is damaged or cut short: \d\.\d+ s of the \d\.\d+ s that it declares"):
            decode_audio(cut)
    else:
        assert len(decode_audio(cut)) < 0.71 * 4 * len(TONE) and "damaged or cut short: only" in caplog.text


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_whose_recorder_did_not_know_its_length_is_whole(size, caplog):
    whole = encoded(TONE, format="WAV")
    place = whole.index(b"data") + 4
    assert len(decode_audio(whole[:place] + size.to_bytes(4, "little") + whole[place + 4 :])) == len(TONE) and not caplog.text


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize("kind", [{"format": "FLAC"}, {"format": "MP3"}, {"format": "OGG", "subtype": "VORBIS"}])
def test_a_recording_beyond_the_limit_is_refused_while_it_is_decoded(kind, monkeypatch):
    content = encoded(np.zeros((48_000 * 60, 2), np.float32), 48_000, **kind)
    read, original = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, *a, **k: (read.append(1), original(self, *a, **k))[1])
    with pytest.raises(ValueError, match=r"bytes is longer than max_duration_s=12 \(0.00 h\). Cut it, or pass a larger max_duration_s"):
        decode_audio(content, max_duration_s=12.0)
    assert len(read) <= 3  # of 6 blocks
    assert len(decode_audio(content)) == 16_000 * 60


DECODE = """
import resource, sys
from modeling_master_asr.audio_master_asr import decode_audio
peak_kb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_audio(sys.argv[1])  # what the libraries themselves need
before_kb = peak_kb()
assert len(decode_audio(sys.argv[2])) == 16_000 * 600
print(peak_kb() - before_kb)
"""


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_memory_is_bounded_by_the_mono_result(suffix, tmp_path):
    """Ten stereo minutes of silence at 48 kHz: 0.1 MB on disk as FLAC, 230 MB as floats, 38 MB as the result.

    In a process of its own, whose peak nothing else has raised.
    """
    pytest.importorskip("resource")
    for name, minutes in (("short", 1 / 60), ("long", 10)):
        with soundfile.SoundFile(tmp_path / f"{name}.{suffix}", "w", 48_000, 2) as file:
            for _ in range(round(minutes * 60)):
                file.write(np.zeros((48_000, 2), np.int16))
    done = subprocess.run([sys.executable, "-c", DECODE, *(str(tmp_path / f"{name}.{suffix}") for name in ("short", "long"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 130_000


@pytest.fixture
def server():
    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/odd":
                self.wfile.write(b"not http\r\n\r\n")
                return
            self.send_response(200)
            if self.path == "/cut.ogg":
                self.send_header("Content-Length", str(len(encoded(format="OGG"))))
                self.end_headers()
                self.wfile.write(encoded(format="OGG")[:-100])
                return
            self.end_headers()
            if self.path in ("/clip.wav", "/a%20clip%C3%A4.wav"):
                self.wfile.write(encoded())
            while self.path == "/endless":
                try:
                    self.wfile.write(bytes(1000))
                except OSError:
                    return
                time.sleep(0.01)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_downloads_end_by_time_and_by_size(server):
    assert np.abs(read_audio(f"{server}/clip.wav", 16_000) - TONE).max() < 1e-4
    with pytest.raises(ValueError, match=r"/clip.wav has more than max_download_bytes=999 bytes"):
        read_audio(f"{server}/clip.wav", 16_000, max_download_bytes=999)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"/endless did not arrive within download_timeout_s=0.3"):
        download(f"{server}/endless", timeout_s=0.3)
    assert time.monotonic() - started < 5
    with pytest.raises(OSError, match=r"Cannot download .*/cut.ogg: only \d+ of \d+ bytes arrived"):  # a whole one, to its decoder
        read_audio(f"{server}/cut.ogg", 16_000)
    with pytest.raises(OSError, match="Cannot download .*/odd: "):
        read_audio(f"{server}/odd", 16_000)
    assert len(read_audio(f"{server}/a clipä.wav", 16_000)) == len(TONE)
    with pytest.raises(OSError, match="Cannot download http://127.0.0.1:9/"):
        download("http://127.0.0.1:9/x.wav", timeout_s=1)


@pytest.mark.parametrize("value", [float("nan"), 0, -1, "60", None, True])
@pytest.mark.parametrize("limit", ["max_duration_s", "download_timeout_s", "max_download_bytes"])
def test_a_limit_that_would_be_none_is_refused(limit, value):
    """Nothing is larger than NaN: as a limit it let everything through."""
    with pytest.raises(ValueError, match=re.escape(f"{limit} is {value!r}; a number above 0 is wanted")):
        read_audio(encoded(), 16_000, **{limit: value})


@pytest.mark.parametrize("content", [LONG_MP3[: int(len(LONG_MP3) * 0.7)], LONG_MP3[:1000] + bytes(range(256)) * 40 + LONG_MP3[11_000:]],
                         ids=["its end is missing", "noise inside"])  # fmt: skip
def test_a_recording_a_little_short_is_read_and_said(content, caplog):
    samples = decode_audio(content, name="a.mp3")
    assert 12 < len(samples) / 16_000 < 16
    assert "a.mp3 is damaged or cut short: only 1" in caplog.text and "of the 20.00 s that it declares" in caplog.text


@pytest.mark.parametrize("kind", [{"format": "OGG"}, {"format": "OGG", "subtype": "OPUS"}])
def test_ogg_files_put_together_are_read_to_the_end(kind, caplog):
    part = encoded(np.tile(TONE, 4), **kind)
    assert len(decode_audio(part)) / 16_000 == pytest.approx(4.0, abs=0.1) and len(decode_audio(2 * part)) / 16_000 == pytest.approx(8.0, abs=0.2)
    assert not caplog.text


@pytest.mark.parametrize("kind", ["FLAC", "AU", "WAV", "AIFF"])
def test_no_second_file_is_left_out_in_silence(kind, caplog):
    """Of a WAV or AIFF that was put behind another no decoder reads the second, and a short first one would stand for both."""
    first, second = encoded(TONE, format=kind), encoded(np.tile(TONE, 3), format=kind)
    if kind in ("FLAC", "AU"):
        assert len(decode_audio(first + second)) / 16_000 == pytest.approx(4.0, abs=0.01) and not caplog.text
    else:
        with pytest.raises(ValueError, match=r"the audio bytes is damaged or cut short: 1\.00 s of the 4\.00 s that it declares or holds"):
            decode_audio(first + second)
        assert len(decode_audio(second + first)) == 3 * len(TONE) and "only 3.00 s of the 4.00 s" in caplog.text


@pytest.mark.parametrize("first, second", [((16_000, "mono"), (16_000, "stereo")), ((16_000, "stereo"), (16_000, "mono")), ((22_050, "mono"), (16_000, "stereo"))])
def test_a_recording_whose_rate_or_channels_change_on_the_way_is_read_to_the_end(first, second):
    tone = lambda rate_hz: np.sin(np.arange(2 * rate_hz) * 800 / rate_hz).astype(np.float32) * 0.3  # noqa: E731
    samples = decode_audio(b"".join(by_av("adts", "aac", tone(rate_hz), rate_hz, layout) for rate_hz, layout in (first, second)))
    assert len(samples) / 16_000 == pytest.approx(4.0, abs=0.3)
    for half in (samples[8_000:24_000], samples[-24_000:-8_000]):  # the same tone, as loud
        assert np.abs(np.fft.rfft(half)).argmax() == pytest.approx(800 / 6.2832, abs=1) and np.abs(half).max() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("channels", [2, 3, 6, 9])
def test_mono_is_the_mean_of_all_channels_whichever_library_decodes(channels, monkeypatch):
    content = encoded(np.stack([TONE * (i + 1) / channels for i in range(channels)], axis=1), subtype="FLOAT", format="WAV")
    mean = decode_audio(content)
    monkeypatch.setattr("modeling_master_asr.audio_master_asr.soundfile", None)
    assert np.abs(mean - TONE * (channels + 1) / 2 / channels).max() < 1e-6 and np.abs(decode_audio(content) - mean).max() < 1e-6


@pytest.mark.parametrize("container, codec", [("ipod", "aac"), ("avi", "mp2"), ("caf", "alac"), ("flv", "aac")])
def test_tags_in_another_encoding_cost_no_recording(container, codec):
    content = by_av(container, codec, title="R__union")
    assert b"R__union" in content
    content = content.replace(b"R__union", b"R\xe9\xe9union")  # Latin-1, as old recorders wrote them
    assert len(decode_audio(content)) / 16_000 == pytest.approx(1.0, abs=0.1)


def test_a_video_is_as_long_as_its_sound():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture, sound = container.add_stream("mpeg4", rate=5), container.add_stream("aac", rate=16_000)
        picture.width = picture.height = 32
        for _ in range(50):
            container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(np.tile(TONE, 3)[None], format="fltp", layout="mono")
        frame.rate = 16_000
        container.mux(sound.encode(frame)), container.mux(picture.encode(None)), container.mux(sound.encode(None))
    assert len(decode_audio(file.getvalue())) / 16_000 == pytest.approx(3.0, abs=0.2)


def test_mp3_files_put_together_are_read_to_the_end_or_said_to_be_longer(monkeypatch, caplog):
    """Each declares its own length, and a decoder that believes the first one would drop the others in silence."""
    joined = 3 * encoded(np.tile(TONE, 2), format="MP3")
    assert len(decode_audio(joined)) / 16_000 == pytest.approx(6.0, abs=0.3)  # each brings the padding of its encoder
    assert not caplog.text
    monkeypatch.setattr("modeling_master_asr.audio_master_asr.av", None)
    with pytest.raises(ValueError, match=r"the audio bytes is damaged or cut short: 2\.00 s of the 6\.00 s that it declares or holds"):
        decode_audio(joined)


# ---------------------------------------------------------------------- the command


def test_transcribe_does_the_rest_of_its_files_and_ends_with_1(saved, tmp_path, capsys):
    good, odd, bad = tmp_path / "a.wav", os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.wav"), tmp_path / "b.wav"
    for path in (good, odd):
        with open(path, "wb") as file:
            file.write(encoded(np.tile(TONE, 2)))
    bad.write_bytes(b"not audio")
    files = [str(bad), str(tmp_path / "none.wav"), str(good), odd]
    assert transcribe.main([*files, "--model", str(saved), "--language", "en"]) == 1
    said = capsys.readouterr()
    assert [line.split("\t")[0] for line in said.out.splitlines()] == [str(good), str(tmp_path) + "/\\udcff\\udce9.wav"]
    assert f"Cannot decode {bad}" in said.err and "No audio file at" in said.err and "2 of 4 files could not be read." in said.err
    assert transcribe.main([str(good), odd, "--model", str(saved), "--language", "en", "--json"]) == 0


def test_transcribe_has_the_limits_that_its_messages_name(saved, server, capsys):
    options = ["--model", str(saved), "--language", "en"]
    assert transcribe.main([f"{server}/clip.wav", *options, "--max_download_bytes", "999"]) == 1
    assert "/clip.wav has more than max_download_bytes=999 bytes" in capsys.readouterr().err
    assert transcribe.main([f"{server}/endless", *options, "--download_timeout_s", "0.3"]) == 1
    assert "/endless did not arrive within download_timeout_s=0.3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        transcribe.main(["a.wav", *options, "--max_duration_s", "nan"])
    assert "--max_duration_s: got 'nan'; allowed: a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("model, said", [
    ("checkpoints/no-such-model", "No folder at checkpoints/no-such-model"),
    ("./nothing", "No folder at ./nothing"),
    ("owner/nothing", "No folder at owner/nothing, and the hub has no model of that name"),
    ("{tmp}/empty", "holds no config.json, so it is no saved model"),
    ("{tmp}/whisper", "is a plain 'whisper' model, not a Master-ASR one. .*--backbone"),
])  # fmt: skip
def test_a_model_that_is_none_is_said_at_once(model, said, tmp_path, capsys, hub):
    (tmp_path / "empty").mkdir()
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper/config.json").write_text('{"model_type": "whisper"}')
    started = time.monotonic()
    with pytest.raises(SystemExit) as exit:
        transcribe.main(["a.wav", "--model", model.format(tmp=tmp_path), "--language", "en"])
    error = capsys.readouterr().err
    assert exit.value.code == 1 and time.monotonic() - started < 10
    assert re.search(said, error), error


@pytest.mark.parametrize("backbone", ["runs/base", "./nothing", "tests/no-such"])
def test_a_backbone_that_can_only_be_a_folder_asks_no_hub(backbone, tmp_path, hub):
    clips = [SimpleNamespace(language="en", text="ab")]
    config = MultilingualConfig(out=tmp_path, data=["m.jsonl"], steps=1, evaluate_every=1, backbone=backbone, languages=["en"])
    with pytest.raises(FileNotFoundError, match=f"No folder at {backbone}"):
        build(config, clips)
    assert not hub.requests


@pytest.mark.parametrize("assembly", ["runs/es", "checkpoints/es", "./nothing", "tests/no-such"])
def test_an_assembly_that_can_only_be_a_folder_asks_no_hub(assembly, saved, capsys, hub):
    with pytest.raises(SystemExit) as exit:
        transcribe.main(["a.wav", "--model", str(saved), "--assembly", assembly, "--language", "en"])
    assert exit.value.code != 0 and f"No folder at {assembly}" in capsys.readouterr().err and not hub.requests


def test_a_language_that_the_model_lacks_is_said_before_any_recording_is_read(saved, capsys):
    with pytest.raises(SystemExit):
        transcribe.main(["missing.wav", "--model", str(saved), "--language", "sr"])
    assert "No assembly for language 'sr'" in capsys.readouterr().err


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = ((value << 1) ^ polynomial if value & top else value << 1) & mask
    return value


def _flac_frame(number: int, size: int, channels: int, rate_hz: int | None = None) -> bytes:
    """A frame of silence, with a rate of its own or the stream's."""
    head = bytes([0xFF, 0xF8, 7 << 4 | (13 if rate_hz else 0), (channels - 1) << 4 | 4 << 1, number]) + (size - 1).to_bytes(2, "big")
    head += rate_hz.to_bytes(2, "big") if rate_hz else b""
    whole = head + bytes([_crc(head, 7, 8)]) + bytes(3 * channels)
    return whole + _crc(whole, 0x8005, 16).to_bytes(2, "big")


def _flac(*frames: bytes, rate_hz: int, channels: int) -> bytes:
    facts = (rate_hz << 44 | (channels - 1) << 41 | 15 << 36).to_bytes(8, "big")
    return b"fLaC" + bytes([0x80, 0, 0, 34]) + b"\xff\xff\xff\xff" + bytes(6) + facts + bytes(16) + b"".join(frames)


def test_a_frame_grows_no_further_than_its_own_rate_allows(monkeypatch):
    """Each is at its own rate: at the stream's, one of 50 Hz would be 13,000 times as long, and this one 655 times."""
    taken, add = [], audio_master_asr._Mono.add
    monkeypatch.setattr(audio_master_asr._Mono, "add", lambda mono, block, last=False: (taken.append(len(block)), add(mono, block, last)))
    frames = _flac_frame(0, 4096, 8), _flac_frame(1, 2000, 8, 1000), _flac_frame(2, 4096, 8)
    samples = decode_audio(_flac(*frames, rate_hz=655_350, channels=8))
    assert max(taken) == 4096 and abs(len(samples) - 16_000 * (2 * 4096 / 655_350 + 2)) < 66_000


def test_a_frame_of_a_rate_that_no_recording_has_is_refused():
    frames = _flac_frame(0, 4096, 8), _flac_frame(1, 2000, 8, 50), _flac_frame(2, 4096, 8)
    with pytest.raises(ValueError, match="has a sampling rate of 50 Hz; a number from 1000 to 768000 is wanted"):
        decode_audio(_flac(*frames, rate_hz=655_350, channels=8))
