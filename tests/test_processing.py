"""Audio in, text out: shapes, languages, and a clear word for every bad input."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import VOCABS, tiny_model, vocab
from transformers import AutoProcessor

from modeling_master_asr import MasterASRProcessor
from modeling_master_asr.audio_master_asr import decode_audio

CLIP = np.sin(np.arange(8000) / 20).astype(np.float32)


def test_text_survives_encoding_and_decoding_in_every_language(processor):
    texts, codes = ["abc de", "é ab", "аб в"], ["en", "fr", "ru"]
    ids = processor(text=texts, language=codes).input_ids
    assert ids.shape == (3, 6) and ids[1].tolist() == [6, 2, 3, 4, -100, -100]
    assert processor.batch_decode(ids, language=codes) == texts


def test_decoding_merges_repeats_and_drops_blanks_and_padding_frames(processor):
    assert processor.decode([3, 3, 0, 3, 4, 4, 0], "en") == "aab"
    assert processor.batch_decode(torch.tensor([[3, 4, 5, 5]]), "en", frames=[2]) == ["ab"]


def test_the_same_ids_read_differently_in_two_languages(processor):
    assert processor.decode([3, 4], "en") == "ab" and processor.decode([3, 4], "ru") == "аб"


@pytest.mark.parametrize("name, backbone", [("wav2vec2", {}), ("whisper", {}), ("wav2vec2-bert", {})])
def test_features_have_the_clips_true_length_and_a_mask(name, backbone):
    model = tiny_model(name)
    processor = MasterASRProcessor.from_model(model)
    batch = processor(audio=[CLIP, CLIP[:4000]], sampling_rate=16_000)
    assert batch["attention_mask"].sum(-1).tolist()[0] > batch["attention_mask"].sum(-1).tolist()[1]
    single = processor(audio=CLIP[:4000], sampling_rate=16_000)
    frames = single["attention_mask"].shape[1]
    axis = {"whisper": 2}.get(name, 1)
    values = batch[model.main_input_name][1:].narrow(axis, 0, frames)
    torch.testing.assert_close(values, single[model.main_input_name])


def test_audio_and_text_together_give_inputs_and_labels(processor):
    batch = processor(audio=[CLIP], text=["ab"], language="en", sampling_rate=16_000)
    assert set(batch) == {"input_values", "attention_mask", "labels"}


@pytest.mark.parametrize("audio, rate, message", [
    (CLIP[:0], 16_000, "is empty: 0 samples"),
    ([], 16_000, "is empty"),
    (CLIP[:100], 16_000, "is too short: 100 samples, at least 400"),
    (np.where(np.arange(8000) == 7, np.nan, CLIP), 16_000, "1 samples that are NaN or infinite"),
    ([np.stack([CLIP, CLIP], axis=1)], 16_000, r"has shape \(8000, 2\); one channel"),
    ((CLIP * 32767).astype(np.int64), 16_000, "holds int64; floats in .-1, 1. are wanted, or int16"),
    (CLIP * 32767, 16_000, "has a peak of 32767; floats in .-1, 1. are wanted. .* Divide by 32768"),
    (CLIP, 8_000, "at 8000 Hz, the model listens at 16000 Hz"),
])  # fmt: skip
def test_bad_audio_is_named(processor, audio, rate, message):
    with pytest.raises(ValueError, match=message):
        processor(audio=audio, sampling_rate=rate)


def test_the_bad_clip_of_a_batch_is_named(processor):
    with pytest.raises(ValueError, match="clip 1 is too short"):
        processor(audio=[CLIP, CLIP[:10]], sampling_rate=16_000)


def test_bad_calls_are_named(processor):
    with pytest.raises(ValueError, match="Nothing to process"):
        processor()
    with pytest.raises(ValueError, match=r"Which language\? Known: \['en', 'fr', 'ru'\]"):
        processor(text="ab")
    with pytest.raises(KeyError, match="No alphabet for language 'sr'"):
        processor(text="ab", language="sr")
    with pytest.raises(KeyError, match="No alphabet for language 'sr'"):
        processor.decode([3], language="sr")
    with pytest.raises(ValueError, match="2 codes for 1 texts"):
        processor(text="ab", language=["en", "fr"])
    with pytest.raises(ValueError, match="Empty transcript .language 'en'"):
        processor(text="  ", language="en")


def test_languages_are_added_and_removed(processor):
    processor.add_language("pa-IN", vocab("ਕਖਾ"))
    assert processor.decode(processor(text="ਕਾ ਖ", language="pa-IN").input_ids[0], "pa-IN") == "ਕਾ ਖ"
    with pytest.raises(ValueError, match="already there with another alphabet"):
        processor.add_language("pa-IN", vocab("ਕ"))
    processor.remove_language("pa-IN")
    assert processor.languages == list(VOCABS)


def test_a_processor_that_disagrees_with_its_model_raises(model, processor):
    processor.check_model(model)
    model.remove_language("fr")
    model.add_language("fr", vocab("xyz"))
    with pytest.raises(ValueError, match=r"disagree on the alphabets of \['fr'\]"):
        processor.check_model(model)


def test_a_saved_processor_loads_through_autoprocessor(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.vocabs == VOCABS and again.decode([3, 4], "ru") == "аб"


@pytest.mark.parametrize("suffix, rate", [("wav", 16_000), ("flac", 44_100), ("ogg", 8_000), ("mp3", 22_050)])
def test_audio_files_decode_to_mono_at_16_khz(tmp_path, suffix, rate):
    samples = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32) * 0.5
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([samples, samples], axis=1), rate)
    decoded = decode_audio(path)
    assert decoded.dtype == np.float32 and decoded.ndim == 1 and abs(len(decoded) - 16_000) < 1500
    spectrum = np.abs(np.fft.rfft(decoded[1000:9000]))
    assert abs(np.argmax(spectrum) * 16_000 / 8000 - 440) < 5
    assert np.array_equal(decode_audio(path.read_bytes()), decoded)


def test_a_file_that_is_no_audio_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"not audio at all")
    with pytest.raises(ValueError, match="Cannot decode .*a.wav"):
        decode_audio(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match="No audio file at .*b.wav"):
        decode_audio(tmp_path / "b.wav")
