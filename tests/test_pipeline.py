"""The ASR pipeline: the language asked for, exact trimming, chunks, time stamps, any audio."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_model
from transformers import pipeline

from modeling_master_asr import MasterASRPipeline, MasterASRProcessor

RNG = np.random.default_rng(0)
CLIPS = [RNG.standard_normal(n).astype(np.float32) * 0.1 for n in (16_000, 9_000, 12_345)]


def make(family="wav2vec2", **kwargs):
    model = tiny_model(family)
    processor = MasterASRProcessor.from_model(model)
    return pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor, pipeline_class=MasterASRPipeline, **kwargs,
    )  # fmt: skip


@pytest.fixture(params=["wav2vec2", "whisper", "wav2vec2-bert"])
def asr(request):
    return make(request.param)


@torch.no_grad()
def directly(asr, clip, language):
    batch = asr._processor(audio=clip, sampling_rate=16_000)
    return asr._processor.decode(asr.model(**batch, language=language).logits.argmax(-1)[0], language)


def test_each_call_answers_in_the_language_it_names(asr):
    texts = {code: asr(CLIPS[0], language=code)["text"] for code in ("en", "fr", "ru")}
    assert texts == {code: directly(asr, CLIPS[0], code) for code in texts}
    assert len(set(texts.values())) == 3
    assert asr(CLIPS[0], generate_kwargs={"language": "ru"})["text"] == texts["ru"]


def test_a_batch_gives_what_single_clips_give_whatever_their_lengths(asr):
    codes = ["ru", "en", "fr"]
    single = [asr(clip, language=code)["text"] for clip, code in zip(CLIPS, codes)]
    assert [r["text"] for r in asr(CLIPS, language=codes, batch_size=3)] == single
    assert [r["text"] for r in asr(CLIPS, language=codes, batch_size=2)] == single


def test_a_default_language_of_the_pipeline_holds_until_a_call_names_another():
    asr = make(language="fr")
    assert asr(CLIPS[0])["text"] == directly(asr, CLIPS[0], "fr")
    assert asr(CLIPS[0], language="en")["text"] == directly(asr, CLIPS[0], "en")
    assert asr(CLIPS[0])["text"] == directly(asr, CLIPS[0], "fr")


@pytest.mark.parametrize("kind", ["word", "char"])
def test_time_stamps_are_json_and_ordered_and_spell_the_text(asr, kind):
    result = json.loads(json.dumps(asr(CLIPS[0], language="en", return_timestamps=kind)))
    times = [t for chunk in result["chunks"] for t in chunk["timestamp"]]
    assert times == sorted(times) and times[-1] <= 1.0 + 0.05
    joined = (" " if kind == "word" else "").join(chunk["text"] for chunk in result["chunks"])
    assert joined.split() == result["text"].split()


def test_chunks_cover_long_audio_once():
    asr = make()
    long = np.tile(CLIPS[0], 6)
    whole = asr(long, language="en", return_timestamps="char")
    cut = asr(long, language="en", return_timestamps="char", chunk_length_s=2)
    assert abs(len(cut["text"]) - len(whole["text"])) < 0.2 * len(whole["text"])
    assert cut["chunks"][-1]["timestamp"][1] > 5.5
    with pytest.raises(ValueError, match="must be longer than its strides"):
        asr(long, language="en", chunk_length_s=1, stride_length_s=1)


def test_audio_comes_as_a_path_bytes_or_an_array_at_any_rate(tmp_path):
    asr = make()
    path = tmp_path / "a.wav"
    soundfile.write(path, CLIPS[0], 16_000, subtype="FLOAT")
    expected = asr(CLIPS[0], language="en")["text"]
    assert asr(str(path), language="en")["text"] == expected
    assert asr(path.read_bytes(), language="en")["text"] == expected
    assert asr({"raw": CLIPS[0], "sampling_rate": 16_000}, language="en")["text"] == expected
    asr({"array": CLIPS[0], "sampling_rate": 8_000}, language="en")


def test_a_missing_or_unknown_language_raises(asr):
    with pytest.raises(ValueError, match=r"Which language\? Loaded: \['en', 'fr', 'ru'\]"):
        asr(CLIPS[0])
    with pytest.raises(KeyError, match="No assembly for language 'sr'"):
        asr(CLIPS[0], language="sr")
    with pytest.raises(ValueError, match="language has 2 codes"):
        asr(CLIPS, language=["en", "fr"])


def test_bad_audio_and_unknown_arguments_raise():
    asr = make()
    with pytest.raises(ValueError, match="one channel of samples"):
        asr({"raw": np.zeros((2, 8000), np.float32), "sampling_rate": 16_000}, language="en")
    with pytest.raises(ValueError, match="is empty"):
        asr(np.zeros(0, np.float32), language="en")
    with pytest.raises(TypeError, match=r"Unknown arguments \['num_beams'\]"):
        asr(CLIPS[0], language="en", num_beams=3)
    with pytest.raises(ValueError, match="return_timestamps must be 'word' or 'char'"):
        asr(CLIPS[0], language="en", return_timestamps=True)


def test_a_tokenizer_of_other_alphabets_is_refused():
    model, other = tiny_model(), tiny_model(vocabs={"en": {"[PAD]": 0, "[UNK]": 1, "|": 2, "z": 3}})
    processor = MasterASRProcessor.from_model(other)
    with pytest.raises(ValueError, match="disagree on the alphabets"):
        pipeline(
            "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor, pipeline_class=MasterASRPipeline,
        )  # fmt: skip
