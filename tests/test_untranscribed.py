"""Recordings without transcripts: the language writes them down, trains on with them, and keeps of them nothing else."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from conftest import terminated_at, tiny_model
from test_processes import one, two
from test_runs import base  # noqa: F401  the fixture
from test_training import corpus  # noqa: F401  the fixture

from benchmarks import methods
from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.cards_master_asr import assembly_part
from training import adapt_language, evaluate
from training.loop import checkpoints, untranscribed
from training.loop.data import Features
from training.loop.sources import Clip, read_data
from training.loop.untranscribed import Written, beside, recordings, trusted

OPTIONS = ("--language", "fr", "--refine", "--parts", "mapping", "head", "delta", "--rank", "1", "--steps", "4", "--evaluate_every", "2", "--batch_s", "3", "--beta", "2")


@pytest.fixture(scope="module")
def unheard(corpus):  # noqa: F811
    """A folder of four recordings that nobody transcribed, and of what is none."""
    folder, rng = corpus / "unheard", np.random.default_rng(1)
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(["a.wav", "b.WAV", "deep/c.flac", "d.wav"]):
        soundfile.write(folder / name, rng.standard_normal(int(16_000 * (0.6 + 0.1 * i))) * 0.1, 16_000)
    soundfile.write(folder / "short.wav", np.ones(160) * 0.1, 16_000)
    shutil.copy(folder / "a.wav", folder / "deep/again.wav")
    for held_out in ("train", "validation", "test"):
        shutil.copy(corpus / f"fr-{held_out}-0.wav", folder / f"{held_out}.wav")
    Path(os.fsdecode(bytes(folder) + b"/\xe9.wav")).write_bytes((folder / "d.wav").read_bytes() + b"\0")
    (folder / "deep/link.wav").symlink_to(corpus / "es-train-4.wav")  # of another language, but --data has it not transcribed as this one's
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("é")
    return folder


@pytest.fixture(scope="module")
def reader(corpus, base):  # noqa: F811
    """The base, whose French reads letters in any noise, others with its sentences in mind than without."""
    folder = corpus / "reader"
    shutil.copytree(base, folder)
    model = MasterASRForCTC.from_pretrained(base)
    torch.manual_seed(0)
    with torch.no_grad():
        bank = model.master_asr.character_bank
        bank.weight.normal_(0, 3)
        bank.bias[model.assemblies["fr"].head.rows[0]] -= 3  # of the blank
    model.save_pretrained(folder)
    return folder


def refine(corpus, base, out, unheard, *extra):  # noqa: F811
    adapt_language.main(["--model", str(base), "--data", str(corpus / "manifest.jsonl"), "--untranscribed", str(unheard), "--out", str(out), *OPTIONS, *extra])
    return json.loads((out / "run.json").read_text())


def rows_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "untranscribed.jsonl").read_text().splitlines()]


def test_recordings_that_are_transcribed_twice_there_too_short_or_broken_are_left_out_and_counted(corpus, unheard):  # noqa: F811
    known = [Clip(corpus / f"fr-{split}-0.wav", "fr", "é", 0.6, split) for split in ("train", "validation", "test")]
    found, left = recordings([str(unheard), str(unheard / "a.wav")], known, "fr", 0.2, 30.0)
    assert [str(clip.audio.relative_to(unheard)) for clip in found] == ["a.wav", "b.WAV", "d.wav", "deep/c.flac", "deep/link.wav"]
    assert {clip.text for clip in found} == {""} and {clip.language for clip in found} == {"fr"} and found[1].duration_s == pytest.approx(0.7)
    assert left == {"are there twice": 1, "are transcribed in --data": 3, "do not last 0.2 to 30.0 s": 1, "cannot be decoded": 1, "cannot be read": 1, "have names that are not UTF-8": 1}
    with pytest.raises(ValueError, match=r"--untranscribed: none of the 1 recordings in .*broken.wav can be used: \{'cannot be decoded': 1\}. Names that end in .wav"):
        recordings([str(unheard / "broken.wav")], known, "fr", 0.2, 30.0)
    with pytest.raises(ValueError, match="--untranscribed: nowhere is not there; allowed: recordings, and folders of them."):
        recordings(["nowhere"], known, "fr", 0.2, 30.0)


def test_the_surest_four_fifths_train_and_all_where_none_is_less_sure():
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)

    def written(*disagreements):
        return [Written(Clip(Path(f"{i}.wav"), "fr", "é", 1.0, "train"), value) for i, value in enumerate(disagreements)]

    assert [clip.audio.stem for clip in trusted(written(0.5, 0.1, 0.2, 0.0, 0.1), processor, model)] == ["1", "2", "3", "4"]
    assert len(trusted(written(*[0.0] * 7), processor, model)) == 7 and trusted([], processor, model) == []
    long = Written(Clip(Path("long.wav"), "fr", "é" * 999, 1.0, "train"), 0.0)  # more letters than frames
    assert [clip.audio.stem for clip in trusted([long, *written(0.0)], processor, model)] == ["0"]


def test_transcribed_clips_are_heard_again_until_they_are_half_as_long():
    mine, theirs = ([Clip(Path(name), "fr", "é", seconds, "train")] for name, seconds in (("mine.wav", 10.0), ("theirs.wav", 63.0)))
    assert beside(mine, theirs) == mine * 3 + theirs and beside(mine, []) == mine and beside([], theirs) == [] and beside(theirs, mine) == theirs + mine


def test_a_language_writes_recordings_down_and_trains_on_them_and_keeps_none_of_these_texts(corpus, reader, tmp_path, monkeypatch, capsys, unheard):  # noqa: F811
    heard, plain = [], adapt_language.run_steps
    monkeypatch.setattr(adapt_language, "run_steps", lambda *args, **kwargs: (heard.extend(args[5].training), plain(*args, **kwargs))[1])
    result = refine(corpus, reader, tmp_path, unheard)
    rows, said = rows_of(tmp_path), capsys.readouterr().out
    assert len(rows) >= 3 and any(row["trained"] for row in rows)  # an untrained model reads something in noise
    trained = {(Path(row["audio"]), row["text"]) for row in rows if row["trained"]}
    assert {(clip.audio, clip.text) for clip in heard if clip.audio.is_relative_to(unheard)} == trained
    assert sum(clip.audio.is_relative_to(unheard) for clip in heard) == len(trained) < len(heard)
    assert result["untranscribed"]["trained"] == len(trained) and result["untranscribed"]["left_out"]["are transcribed in --data"] == 3
    assert "untranscribed: 3 recordings are left out: they are transcribed in --data." in said and f"written down in {tmp_path / 'untranscribed.jsonl'}" in said
    assert result["base"] == result["base_after"] and result["minutes"] == {"fr": pytest.approx(0.085, abs=0.01)}  # of what people transcribed
    before, after = MasterASRForCTC.from_pretrained(reader), MasterASRForCTC.from_pretrained(reader, assemblies=[str(tmp_path / "assembly")])
    facts = json.loads((tmp_path / "assembly/assembly_config.json").read_text())["assemblies"]["fr"]
    assert facts["minutes"] == result["minutes"] and facts["untranscribed_minutes"]["fr"] > 0 and "| 0.1 + 0.1† |" in assembly_part({"fr": facts}, "me/fr")
    assert set(after.config.text("fr").splitlines()) <= {*before.config.text("fr").splitlines(), "éa", "aé a", "é"}
    theirs = before.assemblies["en"].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in after.assemblies["en"].state_dict().items())
    clips, _ = read_data([str(tmp_path / "untranscribed.jsonl")], tmp_path / "cache", allow_outside=True)  # as people mend it and pass it on
    assert {(clip.audio, clip.text, clip.split) for clip in clips} == {(Path(row["audio"]), row["text"], "train") for row in rows}


def test_a_name_that_holds_another_kind_of_line_end_is_read_back_as_it_was_saved(tmp_path):
    clips = [Clip(tmp_path / name, "fr", "é\x85a", 1.0, "train") for name in ("a\u2028b.wav", "c.wav")]
    untranscribed.save(tmp_path / untranscribed.FILE, [Written(clip, 0.0) for clip in clips], clips)
    assert untranscribed.read_trained(tmp_path / untranscribed.FILE) == clips


def test_a_language_writes_with_further_sentences_in_mind(corpus, reader, tmp_path, monkeypatch, unheard):  # noqa: F811
    (tmp_path / "more.txt").write_text("aéaéaé\n")
    read, plain = [], untranscribed.transcribe_clips
    monkeypatch.setattr(untranscribed, "transcribe_clips", lambda model, *args, **kwargs: (read.append(model.config.text("fr")), plain(model, *args, **kwargs))[1])
    refine(corpus, reader, tmp_path / "out", unheard, "--more_text", str(tmp_path / "more.txt"), "--steps", "1", "--evaluate_every", "1")
    assert set(read) == {MasterASRForCTC.from_pretrained(reader, assemblies=[str(tmp_path / "out/assembly")]).config.text("fr")} and "aéaéaé" in read[0].splitlines()


def test_held_out_clips_that_this_run_has_no_minutes_for_are_not_written_down(corpus, reader, tmp_path, unheard):  # noqa: F811
    refine(corpus, reader, tmp_path, corpus, "--held_out_minutes", "0.011", "--steps", "1", "--evaluate_every", "1")  # one clip of each
    assert not [row["audio"] for row in rows_of(tmp_path) if Path(row["audio"]).name.startswith("fr-")]


def test_a_resumed_run_trains_on_what_was_written_before(corpus, reader, tmp_path, monkeypatch, unheard):  # noqa: F811
    whole = refine(corpus, reader, tmp_path / "whole", unheard)
    with terminated_at(2):
        refine(corpus, reader, tmp_path / "cut", unheard)
    assert checkpoints.listed(tmp_path / "cut")[-1].name == checkpoints.name_of(3)
    assert any(Path(row["audio"]).name == "link.wav" and row["trained"] for row in rows_of(tmp_path / "cut"))  # by its own name, by which clips are compared
    monkeypatch.setattr(untranscribed, "write_down", None)  # nobody writes twice
    resumed = refine(corpus, reader, tmp_path / "cut", unheard, "--resume")
    assert all(whole[name] == resumed[name] for name in ("test", "log", "untranscribed")) and rows_of(tmp_path / "whole") == rows_of(tmp_path / "cut")
    one_model, other = (MasterASRForCTC.from_pretrained(reader, assemblies=[str(tmp_path / name / "assembly")]) for name in ("whole", "cut"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one_model.state_dict().items())


def test_a_run_that_is_not_resumed_writes_anew(corpus, reader, tmp_path, unheard):  # noqa: F811
    tmp_path.joinpath("untranscribed.jsonl").write_text("of a run that was killed before its first checkpoint")
    refine(corpus, reader, tmp_path, unheard, "--steps", "1", "--evaluate_every", "1")
    assert rows_of(tmp_path)


def test_a_run_that_is_resumed_before_its_first_checkpoint_hears_what_it_is_given_now(corpus, reader, tmp_path, unheard, monkeypatch):  # noqa: F811
    def killed(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(adapt_language, "train", killed)
        with pytest.raises(MemoryError):
            refine(corpus, reader, tmp_path, unheard / "deep")
    assert {Path(row["audio"]).name for row in rows_of(tmp_path)} <= {"again.wav", "c.flac", "link.wav"}
    refine(corpus, reader, tmp_path, unheard / "d.wav", "--resume", "--steps", "1", "--evaluate_every", "1")
    assert [Path(row["audio"]).name for row in rows_of(tmp_path)] == ["d.wav"]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_killed_between_writing_down_and_its_first_checkpoint_reads_nothing_again(corpus, reader, tmp_path, unheard, monkeypatch, resume):  # noqa: F811
    def killed(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(adapt_language, "train", killed)
        with pytest.raises(MemoryError):
            refine(corpus, reader, tmp_path, unheard)
    written = rows_of(tmp_path)
    monkeypatch.setattr(untranscribed, "transcribe_clips", None)
    refine(corpus, reader, tmp_path, unheard, "--steps", "1", "--evaluate_every", "1", *resume)
    assert written and rows_of(tmp_path) == written


def test_a_run_killed_while_it_writes_down_goes_on_and_reads_anew_only_what_changed(reader, tmp_path, unheard, monkeypatch):
    model, processor, begun, read = MasterASRForCTC.from_pretrained(reader), MasterASRProcessor.from_pretrained(reader), tmp_path / untranscribed.BEGUN, []
    shutil.copytree(unheard, tmp_path / "unheard", symlinks=True)
    clips, _ = recordings([str(tmp_path / "unheard")], [], "fr", 0.2, 30.0)
    plain, pairs = untranscribed.transcribe_clips, [[clip.audio.name for clip in clips[i : i + 2]] for i in range(0, len(clips), 2)]

    def watched(model, processor, collator, part, **kwargs):
        if read == pairs[:2]:
            raise MemoryError
        read.extend([[clip.audio.name for clip in part]] * kwargs["greedy"])  # a pair is read with sentences in mind, and then without
        return plain(model, processor, collator, part, **kwargs)

    def write() -> list[Written]:
        read.clear()
        return untranscribed.write_down(Accelerator(), model, processor, Features(processor), clips, begun)

    whole = write()
    begun.unlink()
    monkeypatch.setattr(untranscribed, "AT_A_TIME", 2)
    monkeypatch.setattr(untranscribed, "transcribe_clips", watched)
    with pytest.raises(MemoryError):
        write()
    assert write() == whole and read == pairs[2:] and len(pairs) > 3
    begun.write_text(begun.read_text()[:-1])  # the last line is cut, as a kill cuts it
    assert write() == whole and read == pairs[-1:] and write() == whole and read == []
    clips[0].audio.write_bytes(clips[1].audio.read_bytes())
    assert write() != whole and read == pairs[:1]
    model.config.set_text("fr", "aé")
    with pytest.raises(MemoryError):
        write()
    assert read == pairs[:2]  # and would read on: this is another reader


def test_the_first_process_decides_what_was_read_before_for_those_whose_recordings_lie_elsewhere(reader, tmp_path, unheard, monkeypatch):
    """Else one of them would wait for the others in what they need not do."""
    model, processor, sent = MasterASRForCTC.from_pretrained(reader), MasterASRProcessor.from_pretrained(reader), []

    def write(folder, is_main: bool) -> list[Written]:
        clips, _ = recordings([str(folder)], [], "fr", 0.2, 30.0)
        accelerator = Accelerator()
        other = SimpleNamespace(is_main_process=is_main, num_processes=1, process_index=0)
        return untranscribed.write_down(accelerator if is_main else other, model, processor, Features(processor), clips, tmp_path / untranscribed.BEGUN)

    first = write(unheard, True)
    monkeypatch.setattr(untranscribed, "broadcast_object_list", lambda content: (sent.append(content), content)[1])
    assert write(unheard, True) == first and len(sent) == 2
    shutil.copytree(unheard, tmp_path / "elsewhere", symlinks=True)
    told = iter(sent)
    monkeypatch.setattr(untranscribed, "broadcast_object_list", lambda content: next(told))
    monkeypatch.setattr(untranscribed, "transcribe_clips", None)  # read already
    assert [one.clip.text for one in write(tmp_path / "elsewhere", False)] == [one.clip.text for one in first]


def test_a_language_whose_alphabet_grows_after_it_has_written_reads_its_new_letters(corpus, reader, tmp_path, unheard):  # noqa: F811
    more = tmp_path / "data"
    shutil.copytree(corpus, more, ignore=shutil.ignore_patterns("reader", "unheard", "run*"))
    lines = [json.loads(line) for line in (more / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    (more / "manifest.jsonl").write_text("".join(json.dumps(line | {"text": line["text"].replace("é", "ñ")} if line["language"] == "fr" else line) + "\n" for line in lines))
    result = refine(more, reader, tmp_path / "run", unheard)
    evaluate.main(["--model", str(reader), "--assembly", str(tmp_path / "run/assembly"), "--data", str(more / "manifest.jsonl"), "--languages", "fr", "--greedy", "--out", str(tmp_path / "again.json")])
    assert result["test"]["macro"] == json.loads((tmp_path / "again.json").read_text())["macro"]


def test_two_processes_write_what_one_writes(corpus, reader, tmp_path, unheard):  # noqa: F811
    options = ["--model", reader, "--data", corpus / "manifest.jsonl", "--untranscribed", unheard, *OPTIONS, "--steps", "1", "--evaluate_every", "1"]
    one(adapt_language.main, *options, "--out", tmp_path / "one")
    two("-m", "training.adapt_language", *options, "--out", tmp_path / "two")
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") != []


def test_a_language_without_sentences_is_not_asked_to_write(corpus, reader, tmp_path, unheard):  # noqa: F811
    with pytest.raises(ValueError, match="--untranscribed: 'fr' has no sentences in mind to write with.*Pass --more_text, or leave --text none out."):
        refine(corpus, reader, tmp_path, unheard, "--text", "none")


def test_untranscribed_recordings_are_refused_of_a_language_that_does_not_read_yet(capsys):
    with pytest.raises(SystemExit):
        adapt_language.main(["--model", "m", "--data", "d", "--language", "xx", "--out", "o", "--untranscribed", "folder"])
    assert "--untranscribed: got ['folder']; allowed: beside --refine, since a language has to read before it writes" in capsys.readouterr().err


def test_a_method_that_others_use_trains_on_with_what_it_wrote_down_too(corpus, reader, tmp_path, monkeypatch, unheard):  # noqa: F811
    runs, (plain, added) = [], (methods.train, methods.add_language)

    def watched(accelerator, model, processor, features, turns, clips, *args, **named):
        moving = {name for name, value in model.named_parameters() if value.requires_grad}
        log = plain(accelerator, model, processor, features, turns, clips, *args, **named)
        runs.append((clips, moving, dict(zip((group["name"] for group in turns.optimizer.param_groups), turns.base_lrs))))
        return log

    def reading(model, *args):
        added(model, *args)
        with torch.no_grad():
            model.assemblies["es"].head.weight.normal_(0, 3), model.assemblies["es"].head.bias[0].sub_(3)  # of the blank: it reads letters in any noise

    monkeypatch.setattr(methods, "train", watched)
    monkeypatch.setattr(methods, "add_language", reading)
    methods.main([
        "--method", "lora", "--model", str(reader), "--data", str(corpus / "manifest.jsonl"), "--language", "es", "--untranscribed", str(unheard), "--out", str(tmp_path),
        "--steps", "2", "--evaluate_every", "2", "--init", "random", "--features_cache", str(tmp_path / "cache"),
    ])  # fmt: skip
    (first, moved, rates), (second, moved_on, rates_on) = runs
    trained = {(Path(row["audio"]), row["text"]) for row in rows_of(tmp_path) if row["trained"]}
    assert trained and {(clip.audio, clip.text) for clip in second} == trained | {(clip.audio, clip.text) for clip in first}
    assert not any(clip.audio.is_relative_to(unheard) for clip in first) and moved == moved_on and any("lora_" in name for name in moved)
    assert rates == {**rates_on, "head": 5e-3} and rates_on["head"] == 1e-3
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["untranscribed"]["trained"] == len(trained) and result["minutes"] == {"es": pytest.approx(0.08, abs=0.02)}
