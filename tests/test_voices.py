"""Voices that nobody trained on: how they are held out; and whose features are masked."""

import numpy as np
import pytest
from conftest import tiny_model

from benchmarks.voices import divide
from modeling_master_asr import MasterASRProcessor
from training.loop import augment
from training.loop.data import Collator, Features
from training.loop.sources import Clip


def clip(language, speaker, text, split):
    return {"language": language, "speaker": speaker, "text": text, "split": split}


def test_other_voices_are_tested_with_no_sentence_that_training_holds():
    heard = [clip("cs", "small", "a", "train"), clip("cs", "small", "b", "test"), clip("en", "Allison", "c", "train")]
    others = [clip("cs", "big", "a", "test"), clip("cs", "big", "d", "train"), clip("cs", "big", "e", "validation"), clip("cs", "crab", "f", "train")]
    own, tested = divide([*heard, *others], {"small"})
    assert own == heard and [c["text"] for c in tested] == ["e", "f"] and {c["split"] for c in tested} == {"test"}


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-bert"])
def test_an_encoder_of_raw_audio_or_of_stacked_frames_keeps_its_features(family, tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model(family))
    features, heard = Features(processor), Clip(tmp_path / "a.wav", "en", "ab", 1.0, "train")
    sound = processor.features(np.random.default_rng(0).standard_normal(48_000).astype(np.float32))
    features._kept |= {(heard.audio, speed): sound for speed in augment.SPEEDS}
    batch = Collator(features, processor, 0, spares=[heard], spec_masks=3)([heard], step=1)  # their time is not Whisper's axis
    assert np.array_equal(batch[processor.model_input_names[0]][0], sound)
