"""Data as it really comes."""

import csv
import json
import multiprocessing
import os
import random
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_model, vocab
from datasets import Audio, Dataset

from modeling_master_asr import MasterASRProcessor
from modeling_master_asr.text_master_asr import normalize
from training.evaluate import row_swap
from training.loop import augment, data, sources
from training.loop.data import Collator, Features, bucket_of_step
from training.loop.metrics import edits_of, evaluate_clips, transcribe_clips
from training.loop.sources import Clip, read_data, split_named, split_of


def record(path, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).standard_normal(int(16_000 * seconds)) * 0.1, 16_000)
    return path


@pytest.fixture
def mix(tmp_path):
    """One source of every kind, a language each."""
    voice = tmp_path / "cv" / "sr"
    for name in ("train", "dev", "test"):
        record(voice / f"clips/{name}.mp3")
        (voice / f"{name}.tsv").write_text(f'path\tsentence\tlocale\n{name}.mp3\tРеч "{name}\tsr\n', encoding="utf-8")
    with (voice / "train.tsv").open("a") as opened:
        opened.write("gone.mp3\tнема\tsr\nbroken.mp3\tлоше\tsr\n")
    (voice / "clips/broken.mp3").write_bytes(b"no audio")
    for split in ("train", "validation"):
        record(tmp_path / f"folder/{split}/a.wav")
        (tmp_path / f"folder/{split}/metadata.csv").write_text('file_name,transcription\na.wav,"Kaixo, mundua"\n')
    rows = {"audio": [str(record(tmp_path / f"parquet/p{i}.flac")) for i in range(3)], "sentence": ["ngā", "kupu", "e toru"], "language": ["mi"] * 3}
    Dataset.from_dict(rows).cast_column("audio", Audio(decode=False)).to_parquet(tmp_path / "parquet/train-0.parquet")
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as opened:
        csv.writer(opened).writerows([["audio", "text", "language", "split"], [record(tmp_path / "c.ogg").name, "ahoj", "cs", "test"],
                                      [record(tmp_path / "long.wav", 40).name, "dlouhý", "cs", "train"]])  # fmt: skip
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"audio": record(tmp_path / "j.wav").name, "language": "it", "text": "Ciao!", "duration_s": 0.5, "split": "train"}))
    return [str(voice), f"eu={tmp_path / 'folder'}", str(tmp_path / "parquet"), str(table), str(manifest)]


def test_every_kind_of_source_mixes_and_what_is_left_out_is_counted_and_named(mix, tmp_path):
    clips, report = read_data(mix, tmp_path / "cache")
    assert Counter((c.language, c.split) for c in clips) == {
        ("sr", "train"): 1, ("sr", "validation"): 1, ("sr", "test"): 1, ("eu", "train"): 1, ("eu", "validation"): 1,
        ("mi", "train"): 3, ("cs", "test"): 1, ("it", "train"): 1,
    }  # fmt: skip
    assert {c.text for c in clips if c.language == "sr"} == {"реч train", "реч dev", "реч test"}
    text = "\n".join(report.lines(clips))
    for words in ("sr: train 0.0 min in 1 clips", "skipped 1: no recording (such as", "gone.mp3", "cannot be decoded", "broken.mp3",
                  "skipped 1: not 0.2 to 30.0 s long", "alphabet", "dropped characters {',': 2}"):  # fmt: skip
        assert words in text, text


def test_a_streamed_source_stops_at_its_minutes_and_no_other_does(mix, tmp_path):
    clips, _ = read_data([mix[2]], tmp_path / "cache", minutes=0.9 / 60)
    assert len(clips) == 2  # 0.5 s each: the third is not needed
    manifest = tmp_path / "three.jsonl"
    manifest.write_text("\n".join(json.dumps({"audio": f"parquet/p{i}.flac", "language": "mi", "text": "a", "split": "train"}) for i in range(3)))
    assert len(read_data([str(manifest)], tmp_path / "cache", minutes=0.9 / 60)[0]) == 3  # a seed chooses among all of them


def test_the_held_out_clips_of_a_stream_are_not_cut_to_the_minutes_of_training(mix, tmp_path, monkeypatch):
    rows = load_rows(next((tmp_path / "parquet").glob("*.parquet")))
    for name, count in (("train", 3), ("test", 9)):
        Dataset.from_list([{**rows[0], "text": f"a {name} {'e' * i}"} for i in range(count)]).cast_column("audio", Audio(decode=False)).to_parquet(
            tmp_path / f"parquet/{name}-0.parquet"
        )
    source = f"mi={tmp_path / 'parquet'}"
    clips, report = read_data([source], tmp_path / "cache", minutes=0.9 / 60)
    assert Counter(c.split for c in clips) == {"train": 2, "test": 9}
    assert [line for line in report.sources if "first" in line] == [f"{tmp_path / 'parquet'}: of mi's train clips the first 0.015 minutes"]
    monkeypatch.setattr(sources, "HELD_OUT_MINUTES", 3.9 / 60)
    clips, report = read_data([source], tmp_path / "cache", minutes=0.9 / 60)
    assert Counter(c.split for c in clips) == {"train": 2, "test": 8}
    assert f"{tmp_path / 'parquet'}: of mi's test clips the first 0.065 minutes" in report.lines(clips)


@pytest.mark.parametrize("source, error, message", [
    ("nowhere", FileNotFoundError, "No data at nowhere"),
    ("x x={folder}", FileNotFoundError, "No data at x x=.*In front of = a code is wanted: letters, digits, _ and -, such as 'en' or 'pa-IN'"),
    ("{folder}", ValueError, "is no manifest"),
    ("{folder}/train", ValueError, "names no language. Give it for the whole source: --data xx="),
])  # fmt: skip
def test_a_source_that_cannot_be_read_says_what_one_is(tmp_path, source, error, message):
    record(tmp_path / "train/a.wav")
    if source.endswith("train"):
        (tmp_path / "train/metadata.csv").write_text("file_name,text\na.wav,a\n")
    with pytest.raises(error, match=message):
        read_data([source.format(folder=tmp_path)], tmp_path / "cache")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_the_splits_of_an_audiofolder_are_those_of_its_recordings_folders(tmp_path, name):
    names = [record(tmp_path / f"{folder}/{i}.wav").relative_to(tmp_path).as_posix() for folder in ("train", "test/ana", "dev") for i in range(6)]
    rows = [{"file_name": name, "text": name.replace("/", " ") + " abcdefg"[: 2 + i]} for i, name in enumerate(names)]
    written = {
        "metadata.csv": "\n".join(["file_name,text", *(f"{row['file_name']},{row['text']}" for row in rows)]),
        "metadata.jsonl": "\n".join(map(json.dumps, rows)),
    }  # fmt: skip
    (tmp_path / name).write_text(written[name])
    clips, report = read_data([f"es={tmp_path}"], tmp_path / "cache")
    assert Counter(clip.split for clip in clips) == {"train": 6, "test": 6, "validation": 6}
    assert all(clip.split == split_named(clip.audio.relative_to(tmp_path).parts[0]) for clip in clips)
    assert any("by the recordings' folders" in line for line in report.lines(clips))
    assert Counter(clip.split for clip in read_data([f"es={tmp_path / name}"], tmp_path / "cache")[0]) == {"train": 6, "test": 6, "validation": 6}
    record(tmp_path / "elsewhere/a.wav")
    more = {"metadata.csv": "\nelsewhere/a.wav,a", "metadata.jsonl": '\n{"file_name": "elsewhere/a.wav", "text": "a"}'}
    (tmp_path / name).write_text(written[name] + more[name])
    with pytest.raises(ValueError, match="the recording lies in no folder that is a split by name, and others of the table do"):
        read_data([f"es={tmp_path}"], tmp_path / "cache")


def test_what_a_row_says_of_its_split_counts_before_its_folder_and_speakers_are_no_splits(tmp_path):
    def splits(rows):
        for row in rows:
            if row.get("file_name"):
                record(tmp_path / row["file_name"])
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return [clip.split for clip in read_data([f"es={tmp_path}"], tmp_path / "cache")[0]]

    said = [{"file_name": f"{folder}/a.wav", "text": folder, "split": split} for folder, split in (("train", "test"), ("test", "train"), ("extra", "dev"))]
    assert splits(said) == ["test", "train", "validation"]
    silent = [{"file_name": None, "text": "ab"}, {"file_name": "train/a.wav", "text": "a"}, {"file_name": "test/a.wav", "text": "b"}]
    assert splits(silent) == ["train", "test"]
    speakers = [{"file_name": f"{who}/a.wav", "text": who} for who in ("dev_patel", "ana", "bob")]
    assert splits(speakers) == [split_of(normalize(row["text"])) for row in speakers]
    below_test = [{"file_name": str(tmp_path / f"{i}.wav"), "text": f"a{'b' * i}"} for i in range(3)]  # tmp_path may lie in a folder called test
    assert splits(below_test) == [split_of(row["text"]) for row in below_test]


def test_a_language_for_the_whole_source_may_rename_its_rows_and_never_mix_them(tmp_path):
    record(tmp_path / "a.wav")
    lines = [json.dumps({"audio": "a.wav", "language": code, "text": "ab", "split": "train"}) for code in ("sr", "SR", "cs")]
    (tmp_path / "one.jsonl").write_text("\n".join(lines[:2]))
    assert {clip.language for clip in read_data([f"srp={tmp_path / 'one.jsonl'}"], tmp_path / "cache")[0]} == {"srp"}
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"two.jsonl, line 3: sr= says one language for the whole source, and its rows name \['cs', 'sr'\]. Leave sr= out"):
        read_data([f"sr={tmp_path / 'two.jsonl'}"], tmp_path / "cache")


def test_a_split_by_text_puts_a_text_in_one_split_and_about_a_tenth_in_test():
    splits = Counter(split_of(f"text {i}") for i in range(1000))
    assert 60 < splits["test"] < 140 and splits["train"] > 700 and split_of("a") == split_of("a")


def many(counts):
    return [Clip(f"{code}{i}", code, "a", 1.0, "train") for code, n in counts.items() for i in range(n)]


def test_temperature_brings_small_languages_nearer_and_1_changes_nothing():
    clips = many({"big": 90, "small": 10})
    shares = []
    for temperature in (1.0, 2.0, 1e9, 1e-3):
        batch_of = bucket_of_step(clips, 1.0, 0, temperature)
        drawn = Counter(batch_of(step)[0].language for step in range(100))
        shares.append(drawn["small"])
    assert shares[:3] == [10, 25, 50] and shares[3] <= 1  # each language once an epoch
    plain, tempered = bucket_of_step(clips, 1.0, 3), bucket_of_step(clips, 1.0, 3, 1.0)
    assert [plain(s) for s in range(150)] == [tempered(s) for s in range(150)]


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-bert"])
def test_an_encoder_of_raw_audio_or_of_stacked_frames_keeps_its_features(family, tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model(family))
    features, heard = Features(processor), Clip(tmp_path / "a.wav", "en", "ab", 1.0, "train")
    sound = processor.features(np.random.default_rng(0).standard_normal(48_000).astype(np.float32))
    features._kept |= {(heard.audio, heard.duration_s, speed): sound for speed in augment.SPEEDS}
    batch = Collator(features, processor, 0, spares=[heard], spec_masks=3)([heard], step=1)  # their time is not Whisper's axis
    assert np.array_equal(batch[processor.model_input_names[0]][0], sound)
    with pytest.raises(ValueError, match="vtlp: got 0.6 with a .*FeatureExtractor; allowed: 0, since formants are moved in log-mel features"):
        Collator(features, processor, 0, spares=[heard], vtlp=0.6)


def test_another_throat_moves_a_formant_to_its_frequency_divided_by_the_factor():
    filters = MasterASRProcessor.from_model(tiny_model("whisper")).feature_extractor.mel_filters
    bins, high = filters.argmax(0), filters.shape[1] // 2
    sound = np.zeros((filters.shape[1], 3), dtype=np.float32)
    sound[high] = 1.0
    for factor in (0.9, 1.0, 1.1):
        moved = augment.other_throat(sound, filters, factor)
        assert moved.dtype == sound.dtype and moved.shape == sound.shape
        if factor == 1.0:
            assert np.allclose(moved, sound, atol=1e-4)
        assert abs(bins[moved[:, 0].argmax()] * factor - bins[high]) <= np.diff(bins)[high]


def masked(before: np.ndarray, after: np.ndarray) -> list[tuple[int, int]]:
    """How many bands of mels, and of times, hold the mean, and their width together; everything else has to be as it was."""
    where = [(after == before.mean()).all(axis) for axis in (1, 0)]
    assert np.array_equal(np.where(where[0][:, None] | where[1], before.mean(), before), after)
    return [(int((np.diff(of.astype(int), prepend=0) > 0).sum()), int(of.sum())) for of in where]


@pytest.mark.parametrize("mels, spec_masks", [(80, 1), (80, 3), (8, 1)])  # 8: fewer mels than the widest band
def test_spec_augment_masks_what_a_small_extractor_has_and_as_many_bands_as_it_is_told(mels, spec_masks):
    sound = np.random.default_rng(0).standard_normal((mels, 450)).astype(np.float32)
    found = [masked(sound, augment.spec_augment(sound, random.Random(seed), spec_masks)) for seed in range(50)]
    for (bands, width), (times, length) in found:
        assert 1 <= bands + times and width <= 12 * spec_masks and (length <= 40 * spec_masks or width == mels)
    assert [max(of)[0] for of in zip(*found)] == [spec_masks, 2 * spec_masks]


def test_augmented_clips_are_heard_at_every_speed_with_parts_masked_and_others_as_they_are(tmp_path):
    processor, clip, asked = MasterASRProcessor.from_model(tiny_model("whisper")), Clip(tmp_path / "a.wav", "en", "ab", 4.5, "train"), []
    sound = np.random.default_rng(0).standard_normal((80, 450)).astype(np.float32)  # at every speed: only masks can differ
    for full_augment_step, speeds, most in ((0, set(augment.SPEEDS), 3), (None, {1.0}, 0)):
        asked.clear()
        collator = Collator(lambda clip, speed: asked.append(speed) or sound, processor, full_augment_step, spec_masks=3)
        found = [masked(sound, collator([clip], step)["input_features"][0].numpy()) for step in range(1, 21)]  # at step 0 nothing is augmented
        assert set(asked) == speeds and max(bands for (bands, _), _ in found) == most


def test_a_clip_that_cannot_be_read_is_left_out_of_the_figures_and_named(tmp_path):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    clips = [Clip(record(tmp_path / f"{i}.wav", seconds=0.4 + 0.1 * i), "en", "ab", 0.5, "test") for i in range(3)]
    whole = evaluate_clips(model, processor, Features(processor), clips)
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    bad = Clip(tmp_path / "bad.wav", "en", "a long text that would count", 0.5, "test")
    assert evaluate_clips(model, processor, Features(processor), [*clips, bad]) == {**whole, "left_out": [str(bad.audio)]}
    many_bad = [Clip(tmp_path / f"gone{i}.wav", "en", "a", 0.5, "test") for i in range(20)]  # however many: a long run goes on
    assert len(evaluate_clips(model, processor, Features(processor), [*clips, *many_bad])["left_out"]) == 20
    with pytest.raises(ValueError, match="No clips to score"):
        evaluate_clips(model, processor, Features(processor), [bad])


def test_a_perfect_reader_has_no_errors_whatever_its_alphabet_writes(tmp_path):
    model = tiny_model(vocabs={"en": vocab("A5-")})
    processor = MasterASRProcessor.from_model(model)
    bank = model.master_asr.character_bank
    with torch.no_grad():
        bank.weight.zero_()
        bank.bias.copy_(torch.tensor([float(character == "A") for character in model.config.character_bank]))  # hears "A" in every clip
    clips = [Clip(record(tmp_path / "a.wav"), "en", "a", 0.5, "test")]
    assert processor.encode(["a", "A"], "en").tolist() == [[3], [3]]  # capitals where the alphabet has only those
    assert evaluate_clips(model, processor, Features(processor), clips)["macro"] == {"cer": 0.0, "wer": 0.0}
    with torch.no_grad():
        bank.bias[model.config.character_bank.index("[UNK]")] = 9.0  # which says nothing
    assert evaluate_clips(model, processor, Features(processor), clips)["macro"] == {"cer": 100.0, "wer": 100.0}


def test_what_whisper_cannot_hear_at_once_is_named_and_what_it_could_not_hear_slower_is_not_slowed(tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model("whisper"))
    long, longer = (Clip(record(tmp_path / f"{s}.wav", s), "en", "ab", s, "train") for s in (29.0, 31.0))
    features = Features(processor)
    assert [features(long, speed).shape[-1] for speed in (0.9, 1.0, 1.1)] == [2900, 2900, 2636]
    with pytest.raises(ValueError, match="31.0.wav lasts 31.0 s, and this encoder hears 30 s at once. Cut it"):
        features(longer)
    of_samples = Features(MasterASRProcessor.from_model(tiny_model()))
    assert len(of_samples(longer, 0.9)) > 31 * 16_000


@pytest.mark.parametrize("folder", [None, "cache"])
def test_a_second_entry_of_a_recording_is_held_to_its_own_duration(tmp_path, folder):
    path = record(tmp_path / "a.wav", 2.0)
    features = Features(MasterASRProcessor.from_model(tiny_model()), folder and tmp_path / folder)
    assert len(features(Clip(path, "en", "ab", 2.0, "train"))) == 32_000
    with pytest.raises(ValueError, match="a.wav lasts 2.0 s, and its entry in the data says 20.0 s"):
        features(Clip(path, "en", "ab", 20.0, "train"))


def test_clips_that_cannot_be_read_have_no_part_in_row_swaps(tmp_path):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    clips = [Clip(record(tmp_path / f"{i}.wav", seconds=0.4 + 0.1 * i), "en", "ab", 0.5, "test") for i in range(2)]
    bad = Clip(tmp_path / "bad.wav", "en", "a long text that would count", 0.5, "test")
    table = row_swap(model, processor, Features(processor), clips, greedy=True)
    assert set(table) == {"en"} and set(table["en"]) == set(model.languages)
    assert row_swap(model, processor, Features(processor), [*clips, bad], [str(bad.audio)], greedy=True) == table


def test_the_stated_share_of_the_augmented_clips_is_heard_through_another_throat(tmp_path, monkeypatch):
    processor, heard = MasterASRProcessor.from_model(tiny_model("whisper")), []
    clips = [Clip(record(tmp_path / "a.wav", seconds=0.4), "en", "ab", 0.4, "train")] * 10
    monkeypatch.setattr(data, "other_throat", lambda feature, mel_filters, factor: heard.append(factor) or feature + 9.0)
    for vtlp, wanted in ((0.0, range(0, 1)), (0.5, range(70, 131)), (0.99, range(190, 201))):
        heard.clear()
        collator = Collator(Features(processor), processor, full_augment_step=0, vtlp=vtlp)
        batches = [collator(clips, step) for step in range(1, 21)]  # at step 0 nothing is augmented
        assert len(heard) in wanted, vtlp
        moved = sum(float(clip.max()) > 5.0 for batch in batches for clip in batch["input_features"])
        assert moved == len(heard)  # and it is what the batch holds
    low, high = augment.THROATS
    assert low <= min(heard) < 0.9 < 1.1 < max(heard) <= high


def test_the_edits_of_the_clips_add_up_to_the_cer(tmp_path):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    texts = ["ab", "ba ab", "aab"]
    clips = [Clip(record(tmp_path / f"{i}.wav", seconds=0.4 + 0.1 * i), "en", text, 0.5, "test") for i, text in enumerate(texts)]
    rates = evaluate_clips(model, processor, Features(processor), clips, by_clip=True)["languages"]["en"]
    edits, characters = zip(*(map(int, pair.split("/")) for pair in rates["edits"].split()))
    assert characters == (2, 5, 3) and 100 * sum(edits) / sum(characters) == pytest.approx(rates["cer"])
    assert edits_of("", "ab") == (2, 2) and edits_of("abba", "ab") == (2, 2) and edits_of("ab", "ab") == (0, 2)


def test_a_swapped_row_encodes_with_all_of_the_others_assembly_but_its_head(tmp_path):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    with torch.no_grad():
        model.assemblies["fr"].mapping.normal_()
    clips = [Clip(record(tmp_path / f"{i}.wav", seconds=0.4 + 0.1 * i), "en", "ab", 0.5, "test") for i in range(3)]
    features = Features(processor)
    own, swapped = (transcribe_clips(model, processor, Collator(features, processor), clips, encoded_as=code, greedy=True) for code in ("en", "fr"))
    for texts, code in ((own, "en"), (swapped, "fr")):
        for clip, text in zip(clips, texts):
            inputs = processor.pad([features(clip)])
            with torch.no_grad():
                logits = model.assemblies["en"].head(model.master_asr(**inputs, language=code).last_hidden_state)
            assert text == normalize(processor.batch_decode(logits.argmax(-1), "en", skip_special_tokens=True)[0], language="en")
    assert own != swapped and own == transcribe_clips(model, processor, Collator(features, processor), clips, greedy=True)


def test_a_broken_line_of_a_manifest_is_named_and_a_broken_clip_is_counted(tmp_path):
    record(tmp_path / "a.wav")
    lines = ['{"audio": "a.wav", "language": "en", "text": "ab", "split": "train"}', "", '{"audio": "a.wav", "language": "en", "text": " ! "}',
             '{"audio": "none.wav", "language": "en", "text": "ab"}']  # fmt: skip
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    clips, report = read_data([str(tmp_path / "m.jsonl")], tmp_path / "cache")
    assert [c.text for c in clips] == ["ab"] and report.skipped["en"] == {"empty transcript": 1, "no recording": 1}
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, '{"audio": "a.wav"']))
    with pytest.raises(ValueError, match="m.jsonl, line 5 is broken .*A line is a JSON object with audio, language and text"):
        read_data([str(tmp_path / "m.jsonl")], tmp_path / "cache")


@pytest.mark.parametrize("column, reason", [("text", "empty transcript"), ("audio", "no recording")])
def test_a_row_of_json_without_a_key_that_others_have_is_left_out_as_one_where_it_is_empty(tmp_path, column, reason):
    """Exports drop empty fields."""
    record(tmp_path / "a.wav")
    row = {"audio": "a.wav", "language": "en", "text": "ab", "split": "train"}
    bare = {name: value for name, value in row.items() if name != column}
    for rows in ([bare, row], [row, bare]):
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
        clips, report = read_data([str(tmp_path / "m.jsonl")], tmp_path / "cache")
        assert [clip.text for clip in clips] == ["ab"] and report.skipped["en"] == {reason: 1}
        with pytest.raises(ValueError, match=f"m.jsonl, line {rows.index(bare) + 1}: {reason}.*Mend or drop the line"):
            sources.read_manifest(tmp_path / "m.jsonl")


def test_features_in_memory_are_bounded_and_the_same_when_there_is_no_room(tmp_path, monkeypatch):
    processor = MasterASRProcessor.from_model(tiny_model())
    clips = [Clip(record(tmp_path / f"{i}.wav"), "en", "ab", 0.5, "train") for i in range(3)]
    whole = Features(processor)
    one = whole(clips[0])
    assert whole(clips[0]) is one
    monkeypatch.setattr(data, "MEMORY_BYTES", 2 * one.nbytes)
    bounded = Features(processor)
    for clip in clips * 2:
        assert np.array_equal(bounded(clip), whole(clip))
    assert len(bounded._kept) == 2


def fill(cache, path):
    processor = MasterASRProcessor.from_model(tiny_model())
    Features(processor, cache)(Clip(path, "en", "a", 0.5, "train"))


def test_a_features_cache_is_keyed_by_its_settings_and_safe_in_two_processes(tmp_path):
    path, cache = record(tmp_path / "a.wav"), tmp_path / "cache"
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=fill, args=(cache, path)) for _ in range(2)]
    [p.start() for p in both]
    [p.join() for p in both]
    assert [p.exitcode for p in both] == [0, 0] and len(list(cache.iterdir())) == 1
    processor = MasterASRProcessor.from_model(tiny_model())
    clip = Clip(path, "en", "a", 0.5, "train")
    assert np.array_equal(Features(processor, cache)(clip), Features(processor)(clip))
    processor.feature_extractor.do_normalize = not processor.feature_extractor.do_normalize
    changed = Features(processor, cache)(clip)
    assert len(list(cache.iterdir())) == 2 and np.array_equal(changed, Features(processor)(clip))


def load_rows(parquet):
    return Dataset.from_parquet(str(parquet)).cast_column("audio", Audio(decode=False)).to_list()


@pytest.mark.parametrize("name", ["manifest.jsonl", "list.csv", "metadata.csv"])
def test_a_table_in_a_folder_that_is_a_split_by_name_is_of_that_split(tmp_path, name):
    for split in ("train", "dev", "test"):
        record(tmp_path / split / "a.wav")
        rows = [{"audio": "a.wav", "language": "en", "text": "ab", "duration_s": 0.5}] * 20
        lines = [json.dumps(row) for row in rows] if name.endswith("jsonl") else [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (tmp_path / split / name).write_text("\n".join(lines))
    clips, report = read_data([str(tmp_path / split / name) for split in ("train", "dev", "test")], tmp_path)
    assert Counter(clip.split for clip in clips) == {"train": 20, "validation": 20, "test": 20}
    assert not any("hash" in line for line in report.lines(clips))


def test_clips_that_a_hash_divides_are_counted(tmp_path):
    record(tmp_path / "a.wav")
    row = {"audio": "a.wav", "language": "en", "text": "ab", "duration_s": 0.5}
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps(r) for r in (row, row, {**row, "split": "test"})))
    clips, report = read_data([str(tmp_path / "all.jsonl")], tmp_path)
    assert f"{tmp_path / 'all.jsonl'}: 2 clips of no named split, divided by a hash of their texts" in report.lines(clips)


def test_folders_that_are_linked_are_read_and_circles_end(tmp_path):
    for split in ("train", "test"):
        record(tmp_path / f"real/{split}/a.wav")
        (tmp_path / f"real/{split}/metadata.csv").write_text("file_name,text\na.wav,a\n")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"set/{split}").symlink_to(tmp_path / f"real/{split}")
    (tmp_path / "set/again").symlink_to(tmp_path / "set")
    clips, _ = read_data([f"en={tmp_path / 'set'}"], tmp_path, allow_outside=True)
    assert Counter(clip.split for clip in clips) == {"train": 1, "test": 1}


def test_a_recording_whose_name_is_not_utf8_is_read_whatever_says_how_long_it_is(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    record(tmp_path / "a.wav").rename(tmp_path / name)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": name, "language": "en", "text": "ab"}))
    (clip,), _ = read_data([str(tmp_path / "m.jsonl")], tmp_path)
    assert clip.duration_s == 0.5


@pytest.mark.parametrize("language", [["en"], {"en": 1}])
def test_a_language_that_is_no_text_is_named_by_its_row_in_a_stream_too(language):
    budget, row = sources.Budget(minutes=1.0), sources.Row("row 3", {"language": language}, None, "train")
    assert not budget.spent(row)
    with pytest.raises(ValueError, match="row 3: the language is .* a code is wanted"):
        sources._language(row, "m.jsonl")


def manifest_of(folder, *rows, name="m.jsonl"):
    (folder / name).write_text("\n".join(json.dumps({"language": "it", "split": "train", **row}, ensure_ascii=False) for row in rows), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("header, rows, torn", [
    ("audio\ttext", ['0.wav\t"prima riga', 'seconda riga"', "1.wav\tciao", "2.wav\tbene"], [2, 3]),
    ("text\taudio", ['"prima riga', 'seconda riga"\t0.wav', "ciao\t1.wav", "bene\t2.wav"], [2, 3]),
    ("audio\ttext", ["1.wav\tciao", '0.wav\t"prima', "", "e", 'seconda"', "2.wav\tbene"], [3, 5, 6]),
    ("audio\ttext\tsplit", ['1.wav\tciao\ttrain', '0.wav\t"prima', 'seconda"\ttrain', "2.wav\tbene\ttrain"], [3, 4]),
    ("audio\ttext", ["1.wav\tciao\t", "0.wav\tun\ttab", "2.wav\tbene\t\t"], [3]),
    ("audio\ttext\t", ["1.wav\tciao", "2.wav\tbene\t"], []), ("audio\ttext\tup_votes\tsegment", ["1.wav\tciao\t2", "2.wav\tbene"], []),
    ("audio\ttext", ['1.wav\t"ciao', "2.wav\tbene"], []),  # a lone quote is part of the sentence
])  # fmt: skip
def test_a_transcript_over_several_lines_of_a_table_with_tabs_is_left_out_whole_and_counted(tmp_path, header, rows, torn):
    for i in range(3):
        record(tmp_path / f"{i}.wav")
    path = tmp_path / "m.tsv"
    path.write_text("\n".join([header, *rows]) + "\n")
    clips, report = read_data([f"it={path}"], tmp_path / "cache")
    assert [clip.text for clip in clips] == ["ciao", "bene"]
    said = [line for line in report.lines(clips) if "over several lines" in line]
    assert said == ([f"skipped {len(torn)} lines: another number of fields than the header has, or beside one: a text over several lines? (such as {path}, line {torn[0]})"] if torn else [])


def test_a_manifest_that_has_to_be_whole_holds_no_text_over_several_lines(tmp_path):
    record(tmp_path / "a.wav")
    (tmp_path / "m.tsv").write_text('audio\tlanguage\ttext\na.wav\tit\tciao\na.wav\tit\t"prima\nseconda"\n')
    with pytest.raises(ValueError, match="m.tsv, line 3: another number of fields .* a text over several lines.. Mend or drop the line"):
        sources.read_manifest(tmp_path / "m.tsv")


def test_a_table_with_tabs_of_which_no_row_fits_its_header_is_refused(tmp_path):
    (tmp_path / "m.tsv").write_text("audio\tlanguage\ttext\n1.wav\tciao\n2.wav\tbene\n")
    with pytest.raises(ValueError, match="m.tsv, line 2 has 2 fields, the header 3, and no other row fits it either"):
        read_data([f"it={tmp_path / 'm.tsv'}"], tmp_path / "cache")


def test_an_audiofolder_may_keep_its_recordings_in_a_folder_called_clips(tmp_path):
    record(tmp_path / "clips/a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text,language\nclips/a.wav,ciao,it\n")
    assert [clip.text for clip in read_data([str(tmp_path)], tmp_path / "cache")[0]] == ["ciao"]
    (tmp_path / "train.tsv").write_text("path\tsentence\tlocale\na.wav\taddio\tit\n")  # now it is Common Voice's
    assert [clip.text for clip in read_data([str(tmp_path)], tmp_path / "cache")[0]] == ["addio"]


def test_the_same_recording_with_the_same_text_is_counted_and_kept(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / f"{name}.wav", 3.0)
    record(tmp_path / "c.wav", 2.0)
    rows = [*({"audio": f"{name}.wav", "text": "ciao"} for name in "aab"), {"audio": "a.wav", "text": "altro"}, {"audio": "c.wav", "text": "ciao"},
            {"audio": "b.wav", "text": "ciao", "split": "test"}]  # fmt: skip
    path = manifest_of(tmp_path, *rows)
    clips, report = read_data([str(path)], tmp_path / "cache")
    said = [line for line in report.lines(clips) if "count again" in line]
    assert len(clips) == 6 and said == [
        f"    WARNING: 2 of 5 train clips are said twice: the same recording with the same text, 0.1 minutes that count again (such as {clips[1].audio}). Keep one of each"
    ]
    again = f"{tmp_path}/../{tmp_path.name}/m.jsonl"
    clips, report = read_data([str(path), again], tmp_path / "cache")
    assert "WARNING: 7 of 10 train clips are said twice" in "\n".join(report.lines(clips))


def test_clips_that_lose_a_digit_or_a_symbol_are_counted(tmp_path):
    record(tmp_path / "a.wav")
    texts = ["nel 1998 ero qui", "il 5% di €", "io & te", "ciao, \"bello\"! ❤", "'bello' ciao", "l'una ' e", "12"]
    clips, report = read_data([str(manifest_of(tmp_path, *({"audio": "a.wav", "text": text} for text in texts)))], tmp_path / "cache")
    (said,) = (line for line in report.lines(clips) if "dropped characters" in line)
    assert said.endswith("; 3 clips lose a digit or a symbol that is spoken (such as 'nel 1998 ero qui'): spell them as they are said"), said


def test_what_is_doubtful_in_transcripts_is_named_for_each_language_and_marks_are_seen_in_the_alphabet(tmp_path):
    record(tmp_path / "a.wav")
    texts = {
        "naq": ["!gâi tsēs", "ha?a o:nen", "ó̱:n", "[laugh] yes", "（ laughs 2 ） no", "ọ́ q\u0331"],
        "he": ['צה"ל', "don't «EU» well-known 10:30, and/or a@b.de https://x.de", "what? yes! no.", "col·lega l’eau"],
        "nl": ["Yıldız", "Ik zie Yıldız"], "tr": ["ışık IŞIK"],
    }  # fmt: skip
    rows = [{"audio": "a.wav", "text": text, "language": code} for code, of_language in texts.items() for text in of_language]
    clips, report = read_data([str(manifest_of(tmp_path, *rows))], tmp_path / "cache")
    a_sign = "a sign in a word, or before its first letter, is a gap: write it as a letter if it is one"
    assert {code: dict(of) for code, of in report.noted.items()} == {
        "naq": {a_sign: 3, "words in brackets are kept, as if they were said: take them out if they are none": 2},
        "nl": {"a capital I became an i beside an ı: 'nl' is no code of a language that has both, as Turkish has": 1},
    }
    said = "\n".join(report.lines(clips))
    assert f"noted 3: {a_sign}" in said and "'!gâi')" in said and "\u25cc\u0301" in said and "\u25cc\u0331" in said


@pytest.mark.parametrize("on_disk, named", [
    ("n\u0303andu\u0301.wav", "\u00f1and\u00fa.wav"), ("\u00f1and\u00fa.wav", "n\u0303andu\u0301.wav"), ("clips/a.wav", r"clips\a.wav"),
    ("clips/n\u0303.wav", "clips\\\u00f1.wav"), (r"clips\a.wav", r"clips\a.wav"),
])  # fmt: skip
def test_a_name_from_another_system_finds_its_recording(tmp_path, on_disk, named):
    record(tmp_path / on_disk)
    (clip,), _ = read_data([str(manifest_of(tmp_path, {"audio": named, "text": "ab"}))], tmp_path / "cache")
    assert clip.audio == tmp_path / on_disk


def test_a_name_with_backslashes_leads_nowhere_else_and_its_folders_are_splits_too(tmp_path):
    record(tmp_path / "private.wav")
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="line 1 names .*private.wav.*not below"):
        read_data([str(manifest_of(tmp_path / "set", {"audio": r"..\private.wav", "text": "ab"}))], tmp_path / "cache")
    for split in ("train", "test"):
        record(tmp_path / f"folder/{split}/a.wav")
    (tmp_path / "folder/metadata.csv").write_text("file_name,text\ntrain\\a.wav,a\ntest\\a.wav,b\n")
    assert [clip.split for clip in read_data([f"es={tmp_path / 'folder'}"], tmp_path / "cache")[0]] == ["train", "test"]


@pytest.mark.parametrize("samples", [np.zeros(8000), np.full(8000, 5e-5), np.random.default_rng(0).standard_normal((8000, 1)) * [[0.1, -0.1]]])
def test_a_silent_recording_is_left_out_and_named(tmp_path, samples):
    soundfile.write(tmp_path / "silent.wav", samples, 16_000, subtype="FLOAT")
    processor = MasterASRProcessor.from_model(tiny_model())
    good, silent = Clip(record(tmp_path / "a.wav"), "en", "ab", 0.5, "train"), Clip(tmp_path / "silent.wav", "en", "ba", 0.5, "train")
    collator = Collator(Features(processor), processor, spares=[silent, good])
    assert collator([silent])["labels"].tolist() == [[3, 4]] and "silent.wav is silent: its peak is" in collator.broken[silent.audio]


@pytest.mark.parametrize("cache", ["cache", None])
def test_each_speed_has_features_of_its_own_also_of_a_cache_and_a_recording_that_was_made_anew(tmp_path, cache):
    clip, processor = Clip(record(tmp_path / "a.wav", seconds=1.0), "en", "a", 1.0, "train"), MasterASRProcessor.from_model(tiny_model())
    features = Features(processor, cache and tmp_path / cache)
    lengths = [len(features(clip, speed)) for _ in range(2) for speed in augment.SPEEDS]
    assert len(set(lengths)) == 3 and lengths[:3] == lengths[3:]
    before, stat = features(clip), clip.audio.stat()
    soundfile.write(clip.audio, np.random.default_rng(1).standard_normal(16_000) * 0.1, 16_000)
    os.utime(clip.audio, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert clip.audio.stat().st_size == stat.st_size and not np.array_equal(Features(processor, cache and tmp_path / cache)(clip), before)


def test_the_share_of_clips_that_are_altered_grows_until_it_is_full(tmp_path):
    processor, clip, asked, shares = MasterASRProcessor.from_model(tiny_model("whisper")), Clip(tmp_path / "a.wav", "en", "ab", 4.5, "train"), [], []
    sound = np.random.default_rng(0).standard_normal((80, 450)).astype(np.float32)
    collator = Collator(lambda clip, speed: asked.append(speed) or sound, processor, 1000)
    for step in (0, 500, 1000):
        asked.clear()
        collator([clip] * 600, step)
        shares.append(sum(speed != 1.0 for speed in asked) / 600)
    assert shares[0] == 0 and shares[1:] == pytest.approx([1 / 3, 2 / 3], abs=0.07)  # of the altered a third is heard at its own speed
