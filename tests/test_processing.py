"""Audio in, text out: shapes, languages, and a clear word for every bad input."""

import copy
import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import VOCABS, tiny_model, vocab
from datasets.fingerprint import Hasher
from transformers import AutoProcessor, Wav2Vec2CTCTokenizer
from transformers.utils import logging

from modeling_master_asr import MasterASRProcessor
from modeling_master_asr.audio_master_asr import decode_audio
from modeling_master_asr.processing_master_asr import nested_tokenizer
from modeling_master_asr.trainer_utils import ClipCollator, ctc_metrics

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


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "wav2vec2-bert"])
def test_features_have_the_clips_true_length_and_a_mask(name):
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
    with pytest.raises(ValueError, match=r"Empty transcript .* .language 'en', number [01] of the batch"):
        processor(text="  ", language="en")


def test_languages_are_added_and_removed(processor):
    processor.add_language("pa-IN", vocab("ਕਖਾ"))
    assert processor.decode(processor(text="ਕਾ ਖ", language="pa-IN").input_ids[0], "pa-IN") == "ਕਾ ਖ"
    with pytest.raises(ValueError, match="already there with another alphabet"):
        processor.add_language("pa-IN", vocab("ਕ"))
    with pytest.raises(ValueError, match=r"The vocab of 'xx' lacks \['\[PAD\]'"):
        processor.add_language("xx", {"a": 0})
    assert "xx" not in processor.languages
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


# ---------------------------------------------------------------------- Transformers' keywords


def test_the_ctc_tutorials_collator_works(processor):
    """Features and labels made clip by clip, padded separately, labels masked by hand: as the CTC tutorial of Transformers does."""
    texts, clips = ["abc", "d"], [CLIP, CLIP[:4000]]
    rows = [{"input_values": processor(audio=c, sampling_rate=16_000).input_values[0], "labels": processor(text=t, language="en").input_ids[0]}
            for c, t in zip(clips, texts)]  # fmt: skip
    assert all(row["labels"].ndim == 1 for row in rows)
    batch = processor.pad([{"input_values": row["input_values"]} for row in rows], padding=True, return_tensors="pt")
    labels = processor.pad(labels=[{"input_ids": row["labels"]} for row in rows], padding=True, return_tensors="pt")
    batch["labels"] = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
    whole = processor(audio=clips, text=texts, language="en", sampling_rate=16_000)
    assert set(batch) == set(whole)
    for name in whole:
        torch.testing.assert_close(batch[name], whole[name])
    lists = [{"input_values": row["input_values"].tolist()} for row in rows]
    together = processor.pad(input_features=lists, labels=[row["labels"].tolist() for row in rows])
    for name in whole:
        torch.testing.assert_close(together[name], whole[name])


def test_the_stock_tokenizers_own_pad_takes_the_ids(processor):
    rows = [{"input_ids": processor(text=t, language="en").input_ids[0].tolist()} for t in ("abc", "d")]
    assert processor.tokenizer.pad(rows, padding=True, return_tensors="pt").input_ids.tolist() == [[3, 4, 5], [6, 0, 0]]


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "wav2vec2-bert"])
def test_padding_keywords_do_what_they_do_in_transformers(name):
    processor = MasterASRProcessor.from_model(tiny_model(name))
    clips = [CLIP, CLIP[:4000]]
    values, axis = processor.model_input_names[0], {"whisper": -1}.get(name, 1)
    plain = processor(audio=clips, sampling_rate=16_000)
    longest = plain[values].shape[axis]
    for given, expected in (
        ({"padding": "longest"}, longest), ({"padding": "max_length", "max_length": longest + 7}, longest + 7),
        ({"pad_to_multiple_of": 64}, -(-longest // 64) * 64), ({"padding": "max_length", "max_length": longest, "pad_to_multiple_of": 11}, -(-longest // 11) * 11),
    ):  # fmt: skip
        batch = processor(audio=clips, sampling_rate=16_000, **given)
        assert batch[values].shape[axis] == batch["attention_mask"].shape[1] == expected
        assert batch["attention_mask"].sum(-1).tolist() == plain["attention_mask"].sum(-1).tolist()
        torch.testing.assert_close(batch[values].narrow(axis, 0, longest), plain[values])
        assert not batch[values].narrow(axis, longest, expected - longest).any()
    arrays = processor(audio=clips, sampling_rate=16_000, return_tensors="np")
    assert isinstance(arrays[values], np.ndarray) and np.array_equal(arrays[values], plain[values].numpy())
    unpadded = processor(audio=clips, sampling_rate=16_000, padding=False, return_tensors=None)
    assert [a.shape[axis - 1 if axis > 0 else -1] for a in unpadded[values]] == plain["attention_mask"].sum(-1).tolist()


def test_padding_keywords_reach_texts_where_there_are_no_clips(processor):
    texts = ["abc", "d"]
    for given, expected in (({}, 3), ({"padding": "max_length", "max_length": 7}, 7), ({"pad_to_multiple_of": 8}, 8)):
        assert processor(text=texts, language="en", **given).input_ids.shape == (2, expected)
    with pytest.raises(ValueError, match="needs a max_length of at least 3, the longest here; got 2. Nothing is cut"):
        processor(text=texts, language="en", padding="max_length", max_length=2)
    both = processor(audio=[CLIP, CLIP], text=texts, language="en", sampling_rate=16_000, padding="max_length", max_length=9000)
    assert both.input_values.shape == (2, 9000) and both.labels.shape == (2, 3)
    assert set(both) == set(processor.model_input_names)


@pytest.mark.parametrize("given, said", [
    ({"padding": "max_length"}, "needs a max_length of at least 8000, the longest here; got None. Nothing is cut"),
    ({"padding": "max_length", "max_length": 5000}, "at least 8000, the longest here; got 5000"),
    ({"padding": False}, r"Clips of \[4000, 8000\] make no tensor with padding=False. Use padding=True, or return_tensors=None"),
    ({"padding": "shortest"}, "padding is True, 'longest', 'max_length' or False"),
    ({"return_tensors": "tf"}, "return_tensors 'pt', 'np' or None"),
])  # fmt: skip
def test_padding_that_cannot_be_is_refused(processor, given, said):
    with pytest.raises(ValueError, match=said):
        processor(audio=[CLIP, CLIP[:4000]], sampling_rate=16_000, **given)


@pytest.mark.parametrize("given", [{"truncation": True}, {"return_attention_mask": False}, {"images": 1}, {"do_normalize": False}])
def test_keywords_that_would_be_ignored_are_refused(processor, given):
    name = next(iter(given))
    for call in (lambda: processor(audio=CLIP, sampling_rate=16_000, **given), lambda: processor.pad([CLIP], **given)):
        with pytest.raises(TypeError, match=rf"Unknown arguments \['{name}'\]. The processor takes audio, text"):
            call()
    processor(audio=CLIP, sampling_rate=16_000, truncation=False, return_attention_mask=True)


# ---------------------------------------------------------------------- text


@pytest.mark.parametrize("text, code, spelt", [
    ("ABC, de!", "en", "abc de"), ("a-b", "en", "a b"), ("  a   b ", "en", "a b"), ("É", "fr", "é"), ("E\u0301", "fr", "é"), ("«А» б…", "ru", "а б"),
])  # fmt: skip
def test_text_is_normalised_as_in_training_before_it_is_encoded(processor, caplog, text, code, spelt):
    ids = processor(text=text, language=code).input_ids[0]
    assert processor.vocabs[code]["[UNK]"] not in ids.tolist() and not caplog.text
    assert "".join(processor.tokenizer_of(code).convert_ids_to_tokens(ids.tolist())).replace("|", " ") == spelt


def test_an_alphabet_of_capitals_or_punctuation_keeps_them(caplog):
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("ABC"), "fr": vocab("ab-")}))
    assert processor.decode(processor(text="ABC AB", language="en").input_ids[0], "en") == "ABC AB"
    assert processor.decode(processor(text="a-b", language="fr").input_ids[0], "fr") == "a-b"
    assert not caplog.text


@pytest.mark.parametrize("letters, text, spelt, unknown", [
    ("abc123", "Abc 12.", "abc 12", ""), ("abcABC", "Abc Cab.", "Abc Cab", ""), ("abc-", "A-b!", "a-b", ""), ("abc", "ab 12 c", "ab ?? c", "12"),
    ("abc", "a % b", "a ? b", "%"), ("abc'", "A\u2019b 'c' 'bc'", "a'b 'c' bc", ""), ("abc'", "b\u00b4a", "b'a", ""), ("αο\u03c2σδ", "ΟΔΟΣ.", "οδο\u03c2", ""), ("a\u0301b", "ab\u0301", "ab\u0301", ""),
])  # fmt: skip
def test_what_an_alphabet_has_stays_and_what_is_spoken_is_not_dropped_in_silence(caplog, letters, text, spelt, unknown):
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"xx": vocab(letters)}))
    tokens = [{i: token for token, i in processor.vocabs["xx"].items()}[int(i)] for i in processor.encode_rows([text], "xx")[0]]
    assert "".join(tokens).replace("|", " ").replace("[UNK]", "?") == spelt
    assert all(f"'{character}' of 'xx'" in caplog.text for character in unknown) and bool(caplog.text) == bool(unknown)


@pytest.mark.parametrize("language, text, spelt", [("tr", "ISI İstanbul", "ısı istanbul"), ("tr-TR", "ISI", "ısı"), ("en", "ISI İs", "isi is")])
def test_capitals_of_i_are_those_of_the_language(caplog, language, text, spelt):
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={language: vocab("abilnstuı")}))
    assert processor.decode(processor.encode([text], language)[0], language) == spelt and not caplog.text


def test_a_token_of_several_letters_is_one_label_and_leaves_the_gaps_between_words(caplog):
    letters = vocab("abc")
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"xx": {**letters, "ch": len(letters)}}))
    token_of = {i: token for token, i in processor.vocabs["xx"].items()}
    rows = processor.encode_rows(["a ch b", "Abchc"], "xx")
    assert [[token_of[int(i)] for i in row] for row in rows] == [["a", "|", "ch", "|", "b"], ["a", "b", "ch", "c"]] and not caplog.text


def test_special_tokens_are_left_out_without_the_second_of_two_equal_letters(processor):
    a, unknown, pad = processor.vocabs["en"]["a"], processor.vocabs["en"]["[UNK]"], processor.vocabs["en"]["[PAD]"]
    ids = torch.tensor([a, a, pad, a, unknown, a])
    assert processor.decode(ids, "en", skip_special_tokens=True) == "aaa" == processor.batch_decode(ids[None], "en", skip_special_tokens=True)[0]
    assert processor.decode(ids, "en") == "aa[UNK]a"


def test_characters_outside_the_alphabet_are_counted_in_one_warning(processor, caplog):
    processor(text=["xa xb", "ay"], language="en")
    processor(text=["xx"], language="en")
    assert [r.message for r in caplog.records] == [
        "Characters outside the alphabet become [UNK]: 'x' of 'en' (2 times), 'y' of 'en' (1 times). Build the vocab from these texts, or leave them out."
    ]


# ---------------------------------------------------------------------- languages and models


def test_the_tokenizer_that_is_handed_out_reads_no_language_that_was_not_named(processor, tmp_path):
    for tokenizer in (processor.tokenizer, copy.deepcopy(processor.tokenizer), pickle.loads(pickle.dumps(processor.tokenizer))):
        for call in (lambda t: t.decode([3, 4]), lambda t: t.batch_decode([[3, 4]]), lambda t: t("ab")):
            with pytest.raises(ValueError, match=r"Which language\? This tokenizer holds the alphabets of \['en', 'fr', 'ru'\]"):
                call(tokenizer)
        tokenizer.set_target_lang("ru")
        assert tokenizer.decode([3, 4]) == "аб"
    processor.save_pretrained(tmp_path)
    again = MasterASRProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Which language"):
        again.tokenizer.decode([3])
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "Wav2Vec2CTCTokenizer"
    stock = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path, target_lang="ru")
    assert type(stock) is Wav2Vec2CTCTokenizer and stock.decode([3, 4]) == "аб"
    only = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("ab")}))
    assert only.tokenizer.decode([3, 4]) == "ab"


def test_an_unreachable_base_means_a_warning_that_names_the_guess(model, caplog, tmp_path):
    model.config.base_model = str(tmp_path / "nowhere")
    processor = MasterASRProcessor.from_model(model)
    assert type(processor.feature_extractor).__name__ == "Wav2Vec2FeatureExtractor"
    assert "nowhere' cannot be read" in caplog.text and "a Wav2Vec2FeatureExtractor with the family's usual settings stands in" in caplog.text
    caplog.clear()
    processor.feature_extractor.save_pretrained(tmp_path / "base")
    model.config.base_model = str(tmp_path / "base")
    MasterASRProcessor.from_model(model)
    assert not caplog.text


def test_a_clip_too_short_to_be_normalised_is_refused_by_name():
    processor = MasterASRProcessor.from_model(tiny_model("wav2vec2-bert"))
    with pytest.raises(ValueError, match="500 samples are too short for a SeamlessM4TFeatureExtractor"):
        processor(audio=CLIP[:500], sampling_rate=16_000)


# ---------------------------------------------------------------------- what a Trainer needs


def test_the_trainers_parts_are_installed_and_say_which_extra_is_missing(processor, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", CLIP, 16_000)
    examples = [{"audio": audio, "text": "Ab, c!", "language": "en"} for audio in
                (str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes(), CLIP, {"array": CLIP, "sampling_rate": 16_000})]  # fmt: skip
    batch = ClipCollator(processor)(examples)
    assert list(batch)[-1] == "language" and batch["labels"].tolist() == [[3, 4, 2, 5]] * 4
    torch.testing.assert_close(batch["input_values"], batch["input_values"][:1].expand(4, -1), atol=1e-2, rtol=0)
    monkeypatch.setitem(sys.modules, "modeling_master_asr.error_rates", None)  # as where evaluate is not installed
    with pytest.raises(ImportError, match=r'CER and WER need evaluate and jiwer: pip install -e "\.\[train\]" in a clone'):
        ctc_metrics(processor, "en")


def test_audio_at_a_rate_that_nobody_names_is_taken_at_the_models_and_that_is_said(processor, warnings):
    logging.warning_once.cache_clear()  # another test may have heard it
    processor(audio=CLIP, sampling_rate=16_000)
    assert "sampling_rate" not in warnings()
    processor(audio=CLIP)
    assert "No sampling_rate was given: audio is taken to be at 16000 Hz" in warnings()


def test_a_character_outside_the_alphabet_is_one_error_and_nobody_can_guess_it(processor):
    alphabet = processor.vocabs["en"]
    labels = processor.encode(["ñabc"], "en").numpy()
    for heard, cer in (("abc", 25.0), (["[UNK]", "a", "b", "c"], 25.0), ("dabc", 25.0)):
        ids = [alphabet[token] for token in heard]
        prediction = SimpleNamespace(predictions=np.array([ids + [0] * (4 - len(ids))]), label_ids=labels)
        assert ctc_metrics(processor, "en")(prediction)["cer"] == cer


# ---------------------------------------------------------------------- files


def test_a_file_that_is_no_audio_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"not audio at all")
    with pytest.raises(ValueError, match="Cannot decode .*a.wav"):
        decode_audio(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match="No audio file at .*b.wav"):
        decode_audio(tmp_path / "b.wav")


def test_a_recording_reads_alike_however_it_is_handed_over_and_knows_its_own_rate(processor, tmp_path, warnings):
    samples = (np.random.default_rng(0).standard_normal(8000) * 0.1).astype(np.float32)
    path, slow = tmp_path / "a.wav", tmp_path / "slow.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    soundfile.write(slow, samples, 8_000, subtype="FLOAT")
    expected = processor(samples, sampling_rate=16_000)["input_values"]
    row = {"array": samples, "sampling_rate": 16_000}
    logging.warning_once.cache_clear()  # another test may have heard it
    for audio in (str(path), path, path.read_bytes(), row, [str(path)], [row]):
        assert torch.equal(processor(audio)["input_values"], expected)
    assert torch.equal(processor([str(path), samples], sampling_rate=16_000)["input_values"], expected.repeat(2, 1))
    assert processor(str(slow))["input_values"].shape == (1, 16_000)  # at 8 kHz it lasts a second
    assert "sampling_rate" not in warnings()  # no rate had to be guessed
    with pytest.raises(FileNotFoundError, match="nowhere.wav"):
        processor(str(tmp_path / "nowhere.wav"))


def test_what_is_said_of_a_recording_can_be_followed_and_names_it(processor, tmp_path):
    row = {"array": CLIP, "sampling_rate": 16_000}
    with pytest.raises(ValueError, match="clip 2 is too short: 100 samples"):
        processor([row, row, {**row, "array": CLIP[:100]}])
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(32_000), 16_000)
    with pytest.raises(ValueError, match="long.wav.*max_duration_s"):
        processor(str(path), max_duration_s=1.0)
    assert processor(str(path), max_duration_s=3.0)["input_values"].shape == (1, 32_000)


def test_a_trainer_that_dropped_the_columns_is_told_how_to_keep_them(processor):
    with pytest.raises(KeyError, match=r"no \['audio', 'text'\]; it has \['language'\]. Give the data set that column.*remove_unused_columns=False"):
        ClipCollator(processor)([{"language": "fr"}])
    whole = {"audio": CLIP, "text": "ab", "language": "fr"}
    with pytest.raises(KeyError, match=r"no \['text'\]; it has \['audio', 'language'\]"):
        ClipCollator(processor)([whole, {"audio": CLIP, "language": "fr"}])


def test_samples_are_taken_at_the_rate_that_a_column_beside_them_says(processor):
    wanted = ClipCollator(processor)([{"audio": {"array": CLIP, "sampling_rate": 8000}, "text": "ab", "language": "en"}])["input_values"]
    for audio in (CLIP, CLIP.tolist(), torch.tensor(CLIP), {"array": CLIP, "sampling_rate": 8000}):
        found = ClipCollator(processor)([{"audio": audio, "text": "ab", "language": "en", "sampling_rate": 8000}])["input_values"]
        assert torch.equal(found, wanted) and found.shape[1] == 2 * len(CLIP)


def test_a_collator_that_knows_the_model_makes_no_labels_of_another_alphabet():
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    model.add_language("es", vocab("abñ"))
    processor.add_language("es", vocab("bañ"))
    collator = ClipCollator(processor, model)
    with pytest.raises(ValueError, match=r"Processor and model disagree on the alphabets of \['es'\]"):
        collator([{"audio": CLIP, "text": "ab", "language": code} for code in ("fr", "es")])
    assert collator([{"audio": CLIP, "text": "ab", "language": "fr"}])["labels"].tolist() == [[3, 4]]


def test_a_tokenizer_that_is_put_into_the_place_of_anothers_is_the_one_that_decodes():
    processor = MasterASRProcessor.from_model(tiny_model())
    assert processor.decode([3, 0, 6], "fr") == "aé"
    grown = {**processor.vocabs["fr"], "ç": len(processor.vocabs["fr"])}
    with pytest.raises(ValueError, match=rf"token_ids: got {grown['ç']}; the alphabet of 'fr' has {grown['ç']} tokens. Is the processor older than the model\?.*from_model"):
        processor.decode([3, 0, grown["ç"]], "fr")
    processor.tokenizer = nested_tokenizer({**processor.vocabs, "fr": grown}, "en")
    assert processor.decode([3, 0, grown["ç"]], "fr") == "aç" and processor.tokenizer_of("fr") is processor.tokenizer_of("fr")


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_clips_that_were_padded_before_are_padded_again_as_if_they_had_not_been(family):
    processor = MasterASRProcessor.from_model(tiny_model(family))
    clips = [np.random.default_rng(i).standard_normal(n).astype(np.float32) for i, n in enumerate((4_000, 6_400, 16_000))]
    name, once = processor.model_input_names[0], processor(clips, sampling_rate=16_000)
    rows = [{name: once[name][i], "attention_mask": once["attention_mask"][i]} for i in range(2)]
    again, fresh = processor.pad(rows), processor(clips[:2], sampling_rate=16_000)
    assert torch.equal(again[name], fresh[name]) and torch.equal(again["attention_mask"], fresh["attention_mask"])
    texts = processor.pad(labels=[[3, 6], [3]])
    rows = [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(texts["input_ids"], texts["attention_mask"])]
    assert processor.pad(labels=rows)["attention_mask"].tolist() == [[1, 1], [1, 0]] and processor.pad(again[name], labels=rows)["labels"][1, 1] == -100
    for mask in (once["attention_mask"][0].flip(0), once["attention_mask"][0][1:], once["attention_mask"], 0 * once["attention_mask"][0]):
        with pytest.raises(ValueError, match="attention_mask: got one of shape .* ones and then zeros. Of a batch: a mapping for each"):
            processor.pad([{name: once[name][0], "attention_mask": mask}])


def test_features_are_the_same_within_autocast():
    processor, samples = MasterASRProcessor.from_model(tiny_model("whisper")), np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = processor.features(samples)
    assert np.array_equal(within, processor.features(samples))


def test_features_and_logits_are_the_same_while_another_thread_loads_a_model_in_half_precision(family):
    """Transformers sets the default dtype of the whole process while it builds a model, and a window made in bfloat16 is another one."""
    model, samples = tiny_model(family), np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    processor = MasterASRProcessor.from_model(model)

    def read():
        model.master_asr.masks.forget()
        features = processor.features(samples)
        with torch.no_grad():
            return features, model(**processor.pad([features]), language="en").logits

    features, logits = read()
    torch.set_default_dtype(torch.bfloat16)
    try:
        meanwhile = read()
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(meanwhile[0], features) and torch.equal(meanwhile[1], logits)


def test_what_is_no_text_and_no_row_of_ids_is_refused_in_words(model):
    processor = MasterASRProcessor.from_model(model)
    for text in ([], [None], 3):
        with pytest.raises(TypeError, match="text: got .*; allowed: a text, or a list of texts"):
            processor(text=text, language="fr")
    for ids in (torch.zeros(2, 3, 4), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="token_ids: got torch.float32 of shape .*Of logits: model.paths, or argmax"):
            processor.batch_decode(ids, language="fr") if ids.ndim == 3 else processor.decode(ids, language="fr")
    with pytest.raises(ValueError, match=r"token_ids: got \[3, 4\]; allowed: a row of ids for each clip. Of one clip: decode."):
        processor.batch_decode([3, 4], language="fr")


def test_labels_that_lie_beside_a_clip_are_padded_with_it(model):
    processor = MasterASRProcessor.from_model(model)
    clips = [{"input_values": np.ones(n, dtype=np.float32), "labels": labels} for n, labels in ((500, [3, 4]), (400, [5]))]
    assert processor.pad(clips)["labels"].tolist() == [[3, 4], [5, -100]]
    with pytest.raises(ValueError, match="1 rows of labels for 2 clips"):
        processor.pad([clips[0], {"input_values": clips[1]["input_values"]}])


def test_a_processor_that_was_used_is_the_same_to_datasets(model):
    processor = MasterASRProcessor.from_model(model)
    before = Hasher.hash(processor)
    processor(text="aé?", language="fr")
    processor.batch_decode(torch.tensor([[3, 4]]), language="fr")
    assert Hasher.hash(processor) == before


@pytest.mark.parametrize("change, words", [
    (lambda vocabs: vocabs["fr"].pop("a"), "The ids of the vocab of 'fr' must be"),
    (lambda vocabs: vocabs["fr"].update(a="3"), "The vocab of 'fr' must give each token"),
    (lambda vocabs: vocabs["fr"].pop("[PAD]"), "The vocab of 'fr' lacks"),
    (None, "The alphabets, vocab.json, cannot be read"),
])  # fmt: skip
def test_alphabets_that_are_none_are_refused_when_they_are_loaded(model, tmp_path, change, words):
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path)
    path = tmp_path / "vocab.json"
    if change is None:
        path.write_text(path.read_text()[:-9])
    else:
        vocabs = json.loads(path.read_text())
        change(vocabs)
        path.write_text(json.dumps(vocabs))
    with pytest.raises(ValueError, match=words):
        MasterASRProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("path, text", [("a||b", "a b"), ("a|_|b", "a b"), ("a|__||_b", "a b"), ("a|_||_|c_|", "a c"), ("|_|a", "a"), ("aa|a", "a a")])
def test_a_silence_between_two_words_is_one_gap_whoever_reads_it(processor, path, text):
    """The pipeline, batch_decode and the figures of evaluation."""
    alphabet = processor.vocabs["en"]
    ids = torch.tensor([alphabet["[PAD]" if token == "_" else token] for token in path])
    assert processor.decode(ids, "en").strip() == processor.tokenizer_of("en").decode(ids).strip() == text
    words = processor.decode(ids, "en", output_word_offsets=True)["word_offsets"]
    assert [word["word"] for word in words] == text.split()
