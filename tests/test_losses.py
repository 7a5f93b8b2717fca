"""What may be lost of a run's clips before it stops: those that cannot be read, and those whose frames cannot spell their text."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import terminated_at, tiny_model
from test_sources import record
from test_training import corpus, run_stage_1  # noqa: F401  the fixture
from transformers import TrainingArguments

from modeling_master_asr import MasterASRProcessor
from training.loop.augment import SPEEDS
from training.loop.data import Collator, Features, drop_impossible, has_frames, there_now
from training.loop.sources import Clip
from training.loop.trainer import MasterASRTrainer


def test_a_clip_that_breaks_costs_that_clip_and_another_stands_in(tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model())
    good = [Clip(record(tmp_path / f"{i}.wav"), "en", "ab", 0.5, "train") for i in range(2)]
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    bad = Clip(tmp_path / "bad.wav", "en", "ba", 0.5, "train")
    collator = Collator(Features(processor), processor, spares=[bad, *good])
    batch = collator([bad, good[1]])
    assert batch["labels"].tolist() == [[3, 4], [3, 4]] and list(collator.broken) == [bad.audio]
    with pytest.raises(ValueError, match="1 of 1 clips of 'en' cannot be read, such as: ..Cannot decode .*bad.wav"):
        Collator(Features(processor), processor, spares=[bad])([bad])
    spares = [Clip(tmp_path / f"bad{i}.wav", "en", "ba", 0.5, "train") for i in range(24)]
    with pytest.raises(ValueError, match="11 of 24 clips of 'en' cannot be read, such as: .'.*bad0.wav"):
        Collator(Features(processor), processor, spares=spares)(spares)
    with pytest.raises(ValueError, match="3 of 4 clips of 'fr' cannot be read"):  # of a small language half, whatever others have
        Collator(Features(processor), processor, spares=[*good * 50, *(replace(clip, language="fr") for clip in spares[:4])])([replace(spares[0], language="fr")])


def test_what_stands_in_is_another_clip_each_time_and_no_longer_where_one_is_so_that_a_batch_keeps_to_its_seconds(tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model())
    good = [Clip(record(tmp_path / f"{i}.wav", s), "en", "ab", s, "train") for i, s in enumerate((1.5, *[0.5] * 6, 1.0, 1.2))]
    bad = [Clip(tmp_path / f"bad{i}.wav", "en", "ba", 0.6, "train") for i in range(4)]
    collator = Collator(Features(processor), processor, spares=[*bad, *good])
    chosen = [collator._readable(clip, 1.0, step)[0] for step in range(5) for clip in bad]
    assert {clip.duration_s for clip in chosen} == {0.5} and len(set(chosen)) > 3
    assert chosen == [collator._readable(clip, 1.0, step)[0] for step in range(5) for clip in bad]  # a run that is resumed hears the same
    shortest = Collator(Features(processor), processor, spares=[good[0], *good[-2:]])._readable(bad[0], 1.0, 0)[0]
    assert shortest.duration_s == 1.0


def test_texts_that_their_frames_cannot_spell_are_dropped_and_many_of_them_stop_the_run(tmp_path):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    good, bad = (Clip(tmp_path / "a.wav", "en", text, 0.05, "train") for text in ("ab", "a" * 100))
    assert drop_impossible([good] * 50 + [bad], processor, model) == ([good] * 50, [bad])
    with pytest.raises(ValueError, match=r"The texts of 11 of 61 clips of 'en' need more frames.*a.wav .0.05 s.: 'aaa"):
        drop_impossible([good] * 50 + [bad] * 11, processor, model)
    other = replace(bad, language="fr")
    with pytest.raises(ValueError, match=r"The texts of 1 of 1 clips of 'fr' need more frames"):  # a language is never lost whole, however many clips others have
        drop_impossible([good] * 500 + [other], processor, model)


def test_the_frames_of_a_faster_clip_and_the_blanks_between_doubles_count(tmp_path):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    frame_s = model.config.inputs_to_logits_ratio / processor.sampling_rate_hz

    def is_kept(text, frames) -> bool:
        return has_frames(Clip(tmp_path / "a.wav", "en", text, (frames + 1.5) * frame_s, "train"), processor, model)

    assert is_kept("ab" * 20, 44) and not is_kept("ab" * 20, 42)  # at 1.1 of their speed 40 and 38
    assert is_kept("aabb" * 10, 66) and not is_kept("aabb" * 10, 64)  # a blank between two of the same


def test_clips_shorter_than_what_their_encoder_masks_at_once_are_dropped_before_a_batch_of_them_kills_the_run(tmp_path):
    model = tiny_model()
    encoder = model.config.backbone_config
    encoder.mask_time_prob, encoder.mask_time_length = 0.5, 12
    model.master_asr.backbone.masked_spec_embed = torch.nn.Parameter(torch.zeros(encoder.hidden_size))  # as encoders that mask have it
    processor = MasterASRProcessor.from_model(model)
    frame_s = model.config.inputs_to_logits_ratio / processor.sampling_rate_hz
    clips = [Clip(tmp_path / "a.wav", "en", "ab", (frames + 1.5) * frame_s * max(SPEEDS), "train") for frames in (11, 12)]
    assert [has_frames(clip, processor, model) for clip in clips] == [False, True]
    batch = {"input_values": torch.randn(1, int(clips[1].duration_s / max(SPEEDS) * processor.sampling_rate_hz)), "labels": torch.tensor([[3, 4]])}
    assert bool(model.train()(**batch, language="en").loss.isfinite())
    with pytest.raises(ValueError, match="`mask_length` has to be smaller than `sequence_length`"):  # what it would be
        model(input_values=batch["input_values"][:, : batch["input_values"].shape[1] - 3 * model.config.inputs_to_logits_ratio], labels=batch["labels"], language="en")
    encoder.apply_spec_augment = False
    assert has_frames(clips[0], processor, model)


def test_a_result_claims_the_minutes_that_were_heard_and_keeps_the_sentences_of_these_alone(corpus, tmp_path):  # noqa: F811
    shutil.copytree(corpus, tmp_path / "data")
    manifest = tmp_path / "data/manifest.jsonl"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"audio": "en-train-5.wav", "language": "en", "text": "a b"', '"audio": "en-train-5.wav", "language": "en", "text": "bbb"'))
    (tmp_path / "data/en-train-5.wav").write_bytes(b"RIFF nothing")
    model = run_stage_1(tmp_path / "data", tmp_path / "out")
    result = json.loads((tmp_path / "out/run.json").read_text())
    assert [Path(path).name for path in result["log"]["broken_clips"]] == ["en-train-5.wav"]
    assert result["minutes"] == pytest.approx({"en": 4.0 / 60, "fr": 5.1 / 60}, abs=0.006)  # whole, both have 5.1 s
    assert set(model.config.text("en").splitlines()) == {"ab ba", "abba", "a b"}


def test_a_run_whose_recordings_have_moved_goes_on_with_the_same_clips_in_the_place_of_a_broken_one(corpus, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(corpus, tmp_path / "data")
    soundfile.write(tmp_path / "data/en-train-5.wav", np.zeros(16_000), 16_000)
    options = "--evaluate_every", "2", "--backbone", str(corpus / "backbone")
    whole = run_stage_1(tmp_path / "data", tmp_path / "whole", *options)
    with terminated_at(5):
        run_stage_1(tmp_path / "data", tmp_path / "cut", *options)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    shutil.move(tmp_path / "cut", tmp_path / "cut too")
    moved = run_stage_1(tmp_path / "elsewhere", tmp_path / "cut too", *options, "--resume")
    assert all(torch.equal(value, moved.state_dict()[name]) for name, value in whole.state_dict().items())
    results = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "cut too")]
    assert [[Path(path).name for path in result["log"]["broken_clips"]] for result in results] == [["en-train-5.wav"]] * 2
    assert results[0]["minutes"] == results[1]["minutes"] and whole.config.text("en") == moved.config.text("en")


def test_a_recording_that_has_moved_is_found_by_its_own_name_and_its_folders(tmp_path):
    clips = [Clip(tmp_path / name, "en", "ab", 1.0, "train") for name in ("en/clips/1.wav", "fr/clips/1.wav", "fr/clips/2.wav")]
    assert there_now(Path("/old/fr/clips/1.wav"), clips) == tmp_path / "fr/clips/1.wav"
    assert there_now(tmp_path / "en/clips/1.wav", clips) == tmp_path / "en/clips/1.wav"
    assert there_now(Path("/old/fr/clips/3.wav"), clips) == Path("/old/fr/clips/3.wav")


def test_stage_1_makes_its_alphabets_of_what_trains_alone_and_starts_as_if_the_rest_had_not_been_there(corpus, tmp_path):  # noqa: F811
    shutil.copytree(corpus, tmp_path / "data")
    manifest = tmp_path / "data/manifest.jsonl"
    lines, dropped = manifest.read_text(encoding="utf-8").splitlines(), '"audio": "en-train-5.wav", "language": "en", "text": "a b"'
    assert sum(dropped in line for line in lines) == 1
    manifest.write_text("\n".join(line for line in lines if dropped not in line), encoding="utf-8")
    without = run_stage_1(tmp_path / "data", tmp_path / "without")
    manifest.write_text("\n".join(line.replace('"text": "a b"', f'"text": "{"zqx" * 3000}"') if dropped in line else line for line in lines), encoding="utf-8")
    found = run_stage_1(tmp_path / "data", tmp_path / "out")
    assert [Path(path).name for path in json.loads((tmp_path / "out/run.json").read_text())["dropped"]] == ["en-train-5.wav"]
    assert found.config.vocab("en") == without.config.vocab("en") and found.config.character_bank == without.config.character_bank
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in without.state_dict().items())


def test_a_trainer_refuses_half_precision_that_wants_its_losses_scaled(tmp_path):
    with pytest.raises(ValueError, match="TrainingArguments: got fp16=True; allowed: bf16, or neither"):
        MasterASRTrainer(None, TrainingArguments(str(tmp_path), max_steps=1, fp16=True, use_cpu=True), None, [], [], None)
