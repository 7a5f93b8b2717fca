"""Voices that nobody trained on: how they are held out, and what training clips are made to sound like."""

import random

import numpy as np
import pytest
from conftest import tiny_model
from transformers import WhisperFeatureExtractor

from benchmarks.voices import divide
from modeling_master_asr import MasterASRProcessor
from training.loop import augment
from training.loop.augment import mel_centres_hz, vary_voice
from training.loop.data import Collator, Features
from training.loop.sources import Clip


@pytest.fixture(autouse=True)
def every_voice_varies(monkeypatch):
    monkeypatch.setattr(augment, "VARIED_SHARE", 1.0)


def clip(language, speaker, text, split):
    return {"language": language, "speaker": speaker, "text": text, "split": split}


def test_other_voices_are_tested_with_no_sentence_that_training_holds():
    heard = [clip("cs", "small", "a", "train"), clip("cs", "small", "b", "test"), clip("en", "Allison", "c", "train")]
    others = [clip("cs", "big", "a", "test"), clip("cs", "big", "d", "train"), clip("cs", "big", "e", "validation"), clip("cs", "crab", "f", "train")]
    own, tested = divide([*heard, *others], {"small"})
    assert own == heard and [c["text"] for c in tested] == ["e", "f"] and {c["split"] for c in tested} == {"test"}


@pytest.mark.parametrize("throat", [0.82, 1.0, 1.22])
def test_a_throat_moves_a_tone_by_its_share_of_the_frequency(monkeypatch, throat):
    centres_hz = mel_centres_hz(WhisperFeatureExtractor())
    monkeypatch.setattr(augment, "THROATS", (throat, throat))
    monkeypatch.setattr(augment, "NARROW_SHARE", 0.0)
    tone = np.exp(-(((centres_hz - 2000) / 200) ** 2))[:, None].repeat(5, 1).astype(np.float32)  # (mels, frames)
    varied = vary_voice(tone, centres_hz, random.Random(0))
    assert varied.shape == tone.shape and varied.dtype == tone.dtype
    assert abs(centres_hz[varied[:, 0].argmax()] * throat - 2000) < 150  # mels are about that far apart there
    assert (varied == tone).all() == (throat == 1.0)


def test_a_narrow_line_lets_through_only_what_a_telephone_does(monkeypatch):
    centres_hz = mel_centres_hz(WhisperFeatureExtractor())
    monkeypatch.setattr(augment, "NARROW_SHARE", 1.0)
    features = np.random.default_rng(0).standard_normal((len(centres_hz), 7)).astype(np.float32)
    varied = vary_voice(features, centres_hz, random.Random(0))
    outside = (centres_hz < 300) | (centres_hz > 3400)
    assert outside.any() and (varied[outside] == features.min()).all() and (varied[~outside] > features.min()).any()


def test_half_of_the_clips_sound_as_they_were_recorded(monkeypatch):
    monkeypatch.undo()
    centres_hz, rng = mel_centres_hz(WhisperFeatureExtractor()), random.Random(0)
    features = np.random.default_rng(0).standard_normal((len(centres_hz), 3)).astype(np.float32)
    assert 80 < sum(vary_voice(features, centres_hz, rng) is features for _ in range(200)) < 120


def test_voices_vary_in_training_batches_only_where_it_is_asked_for(tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model("whisper"))
    features = Features(processor)
    heard = Clip(tmp_path / "a.wav", "en", "ab", 1.0, "train")
    sound = np.random.default_rng(0).standard_normal((len(mel_centres_hz(processor.feature_extractor)), 100)).astype(np.float32)
    features._kept |= {(heard.audio, speed): sound for speed in augment.SPEEDS}
    plain, varied = (Collator(features, processor, 0, spares=[heard], vary_voices=vary)([heard], step=1)["input_features"] for vary in (False, True))
    tested = Collator(features, processor)([heard])["input_features"]
    assert not np.array_equal(plain, varied) and np.array_equal(tested[0, :, :100], sound)


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-bert"])
def test_an_encoder_of_raw_audio_or_of_stacked_frames_keeps_its_features_and_is_told_that_its_voices_cannot_vary(family, tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model(family))
    with pytest.raises(ValueError, match="--vary_voices: got .*FeatureExtractor; allowed: an encoder that hears mel bands"):
        Collator(Features(processor), processor, 0, vary_voices=True)
    features, heard = Features(processor), Clip(tmp_path / "a.wav", "en", "ab", 1.0, "train")
    sound = processor.features(np.random.default_rng(0).standard_normal(48_000).astype(np.float32))
    features._kept |= {(heard.audio, speed): sound for speed in augment.SPEEDS}
    batch = Collator(features, processor, 0, spares=[heard], spec_masks=3)([heard], step=1)  # their time is not Whisper's axis
    assert np.array_equal(batch[processor.model_input_names[0]][0], sound)
