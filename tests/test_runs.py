"""A run is what its settings say: its folder is its own, what it trained is saved before it is tested, and it goes on as it began."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from conftest import terminated_at, tiny_backbone_config, tiny_model, vocab
from test_training import corpus, run_stage_1  # noqa: F401  the fixture
from transformers import AutoModel

from demo import run as demo
from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from training import adapt_language, train_multilingual
from training.loop import checkpoints, folder, launch, steps, watching
from training.loop.config import LoopConfig
from training.loop.data import Collator, Features, bucket_of_step, select
from training.loop.optim import Turns, tri_stage
from training.loop.sources import Clip, read_manifest
from training.loop.splits import load_splits, say_what_is_left
from training.loop.stopping import StopRequest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):  # noqa: F811
    """A model trained by stage 1."""
    out = tmp_path_factory.mktemp("base")
    run_stage_1(corpus, out)
    return out / "model"


def run_stage_2(corpus, base, out, *extra, manifest=None):  # noqa: F811
    adapt_language.main([
        "--model", str(base), "--data", str(manifest or corpus / "manifest.jsonl"), "--language", "es", "--out", str(out), "--steps", "4",
        "--evaluate_every", "2", "--batch_s", "3", "--beta", "2", *extra,
    ])  # fmt: skip
    return json.loads((out / "run.json").read_text())


def manifest_with(corpus, name, change) -> Path:  # noqa: F811
    """A second manifest beside the corpus's own: `change(line)` returns a line, or None to leave it out."""
    lines = [change(json.loads(line)) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    path = corpus / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines if line))
    return path


# ---- the folder


def test_a_used_folder_is_refused_before_data_is_read_and_a_stranger_in_it_stays(corpus, tmp_path):  # noqa: F811
    stranger = tmp_path / "checkpoint-500"
    stranger.mkdir()
    (stranger / "model.safetensors").write_bytes(b"a Trainer's")
    run_stage_1(corpus, tmp_path, "--evaluate_every", "2")
    assert (stranger / "model.safetensors").read_bytes() == b"a Trainer's"
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["checkpoint-00000006", "checkpoint-00000008"]
    with pytest.raises(FileExistsError, match=r"holds a run already: \['checkpoint-00000006', .*'model', 'run.json'\].*--resume, or choose another --out"):
        train_multilingual.main(["--data", "nowhere.jsonl", "--out", str(tmp_path)])
    for name in ("best", "run.json", "assembly"):
        used = tmp_path / "other" / name
        (used / name).mkdir(parents=True)
        with pytest.raises(FileExistsError, match=rf"holds a run already: \['{name}'\]"):
            adapt_language.main(["--data", "nowhere.jsonl", "--out", str(used), "--model", "nowhere", "--language", "es"])


def test_results_without_a_checkpoint_are_not_resumed_over(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match=r"holds \['model'\] but no checkpoint to resume from"):
        train_multilingual.main(["--data", "nowhere.jsonl", "--out", str(tmp_path), "--resume"])


def test_a_second_run_in_a_folder_is_refused_and_a_killed_ones_claim_ends(tmp_path):
    script = "import sys, time; from pathlib import Path; from training.loop.folder import claimed\n"
    script += "with claimed(Path(sys.argv[1]), None): print('claimed', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "claimed\n"
        with pytest.raises(RuntimeError, match=f"Another run is at work in {tmp_path}. Wait until it has ended, or choose another --out."):
            train_multilingual.main(["--data", "nowhere.jsonl", "--out", str(tmp_path)])
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with folder.claimed(tmp_path, None):
        pass


def test_an_older_runs_best_is_neither_returned_nor_kept(tmp_path):
    """A run that ended before its first checkpoint may leave a best one of a later step."""
    checkpoints.save(tmp_path, 30, {"model": {"w": torch.zeros(1)}}, {}, keep=1)
    checkpoints.save(tmp_path, 10, {"model": {"w": torch.ones(1)}}, {}, keep=1)
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["checkpoint-00000010"]


def test_only_what_has_our_manifest_is_deleted(tmp_path):
    (tmp_path / "checkpoint-00000010").mkdir()
    (tmp_path / "checkpoint-00000010/theirs").write_text("x")
    for step in (20, 30, 40):
        checkpoints.save(tmp_path, step, {"model": {}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000010", "checkpoint-00000030", "checkpoint-00000040"]
    with pytest.raises(OSError, match="checkpoint-00000010 is in the way, and no checkpoint of ours"):
        checkpoints.save(tmp_path, 10, {"model": {}}, {})
    checkpoints.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000010"]


# ---- resuming


@pytest.mark.parametrize("option, value, words", [
    ("--learning_rate", "2e-3", "learning_rate: 0.001 then, 0.002 now"), ("--sparsity", "0.4", "sparsity: 0.3 then, 0.4 now"),
    ("--gamma", "4", "gamma: 3 then, 4 now"), ("--gradient_accumulation", "2", "batches_a_step: 1 then, 2 now"),
    ("--beta2", "0.98", "beta2: 0.999 then, 0.98 now"),
])  # fmt: skip
def test_a_changed_setting_is_refused_by_name(corpus, base, tmp_path, option, value, words):  # noqa: F811
    shutil.copytree(base.parent / "checkpoint-00000004", tmp_path / "checkpoint-00000004")
    with pytest.raises(ValueError, match=rf"made from other data or settings \({words}\)"):
        run_stage_1(corpus, tmp_path, "--resume", option, value)


def test_the_whole_config_stands_in_every_checkpoint_and_beside_the_result(base):
    kept = json.loads((base.parent / "checkpoint-00000008/manifest.json").read_text())["facts"]["config"]
    beside = json.loads((base.parent / "run.json").read_text())["config"]
    assert beside == kept and kept["mixed_precision"] == "no"  # what Accelerate made of it
    assert beside["learning_rate"] == 1e-3 and beside["gamma"] == 3 and beside["out"] == str(base.parent)


def test_a_vanished_clip_is_named(corpus, base, tmp_path):  # noqa: F811
    def change(line):
        return None if line["audio"] == "en-train-3.wav" else line

    manifest = manifest_with(corpus, tmp_path.name, change)
    shutil.copytree(base.parent / "checkpoint-00000004", tmp_path / "out/checkpoint-00000004")
    with pytest.raises(ValueError, match=r"1 are gone \['en-train-3.wav \(train, en, 0.9 s\): ab ba'\], 0 are new"):
        run_stage_1(corpus, tmp_path / "out", "--resume", "--data", str(manifest))


def test_the_same_clips_in_another_order_are_other_batches_and_refused(corpus, base, tmp_path):  # noqa: F811
    lines = (corpus / "manifest.jsonl").read_text().splitlines()
    manifest = corpus / "backwards.jsonl"
    manifest.write_text("\n".join(reversed(lines)))
    shutil.copytree(base.parent / "checkpoint-00000004", tmp_path / "out/checkpoint-00000004")
    with pytest.raises(ValueError, match="The clips are those that the run began with, in another order"):
        run_stage_1(corpus, tmp_path / "out", "--resume", "--data", str(manifest))


def test_resuming_before_the_first_checkpoint_starts_at_step_0_and_says_so(corpus, base, tmp_path, capsys):  # noqa: F811
    model = run_stage_1(corpus, tmp_path, "--resume")
    assert f"Nothing to resume in {tmp_path}: the run ended before its first checkpoint. Starting at step 0." in capsys.readouterr().out
    for name, value in MasterASRForCTC.from_pretrained(base).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(FileNotFoundError, match="No checkpoint-00000002 in"):
        run_stage_1(corpus, tmp_path, "--resume", "checkpoint-00000002")


@pytest.fixture
def heard():
    """Ctrl-C is heard, though these tests themselves may run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_saves_and_stops_and_the_resumed_run_reports_the_whole(corpus, tmp_path, monkeypatch, capsys, heard, number, name):  # noqa: F811
    options = ("--steps", "24", "--evaluate_every", "8")
    whole = run_stage_1(corpus, tmp_path / "whole", *options)
    before, begin = signal.getsignal(number), Turns.begin
    with monkeypatch.context() as patch:
        patch.setattr(Turns, "begin", lambda self, step: (os.kill(os.getpid(), number) if step == 12 else None, begin(self, step)))
        with pytest.raises(SystemExit) as stopped:
            run_stage_1(corpus, tmp_path / "cut", *options)
    assert stopped.value.code == 0 and signal.getsignal(number) == before
    assert f"Stopped at step 13 on {name}. Go on with the same command and --resume." in capsys.readouterr().out
    resumed = run_stage_1(corpus, tmp_path / "cut", *options, "--resume")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "cut"))
    assert one["log"] == other["log"] and set(one["log"]["loss"]) == {"0", "20"}  # the mean at 20 is over steps of both halves
    assert one["log"]["mapping"]["24"]["share_of_changed_mask_bits"] > 0 and one["test"] == other["test"]


def test_a_second_ctrl_c_ends_at_once_and_one_that_is_ignored_stays_ignored(heard):
    with pytest.raises(KeyboardInterrupt), StopRequest(SimpleNamespace(num_processes=1, device="cpu"), None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason() == "on Ctrl-C"
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest(SimpleNamespace(num_processes=1, device="cpu"), None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason() is None


def test_minutes_that_are_left_out_and_letters_that_they_alone_hold_are_said(capsys):
    clips = [Clip(Path(f"{i}.wav"), "es", text, 30.0, "train") for i, text in enumerate(("ola", "gola", "ala"))]
    say_what_is_left(SimpleNamespace(print=print), [clips[0]], clips)
    say_what_is_left(SimpleNamespace(print=print), clips, clips)
    assert capsys.readouterr().out == "es: 1.0 minutes of training clips are left out (--minutes, --minutes_per_language). Letters that they alone hold: g\n"


def test_a_resumed_run_draws_the_dropout_that_an_uninterrupted_one_draws(corpus, tmp_path):  # noqa: F811
    AutoModel.from_config(tiny_backbone_config("wav2vec2", hidden_dropout=0.3)).save_pretrained(tmp_path / "backbone")
    options = ("--backbone", str(tmp_path / "backbone"))
    whole = run_stage_1(corpus, tmp_path / "whole", *options).state_dict()
    shutil.copytree(tmp_path / "whole/checkpoint-00000004", tmp_path / "cut/checkpoint-00000004")
    torch.manual_seed(1)
    resumed = run_stage_1(corpus, tmp_path / "cut", *options, "--resume").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_stopped_fine_tuning_goes_on_where_it_stopped(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    options = ("--finetune_steps", "5", "--parts", "mapping", "head", "delta")
    whole = run_stage_2(corpus, base, tmp_path / "whole", *options)
    with terminated_at(3, num_steps=5):
        run_stage_2(corpus, base, tmp_path / "cut", *options)
    assert (tmp_path / "cut/finetune/checkpoint-00000004").is_dir()
    again, begin = [], Turns.begin
    monkeypatch.setattr(Turns, "begin", lambda self, step: (again.append((self.num_steps, step)), begin(self, step)))
    resumed = run_stage_2(corpus, base, tmp_path / "cut", *options, "--resume")
    assert again == [(5, 4)]  # one step was left
    for name in ("test", "log", "finetune_test", "finetune_log"):
        assert whole[name] == resumed[name]
    ends = [MasterASRForCTC.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "cut")]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_early_stopping_returns_to_the_best_weights_bit_for_bit_also_when_it_is_resumed(corpus, tmp_path, monkeypatch):  # noqa: F811
    cers, seen, evaluated = {2: 50.0, 4: 40.0, 6: 45.0, 8: 41.0}, {}, []

    def scripted(accelerator, model, processor, features, validation, step, log, *_):
        evaluated.append(step)
        log["validation"][str(step)] = {"macro": {"cer": cers[step], "wer": 0.0}, "languages": {}}
        seen[step] = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    monkeypatch.setattr(steps, "watch", scripted)
    options = ("--patience", "2", "--steps", "16", "--evaluate_every", "2")
    end = run_stage_1(corpus, tmp_path, *options).state_dict()
    assert evaluated == list(cers)  # two evaluations after the best one, it stopped
    assert all(torch.equal(end[name], value) for name, value in seen[4].items())
    assert not all(torch.equal(end[name], value) for name, value in seen[8].items())
    again = run_stage_1(corpus, tmp_path, *options, "--resume").state_dict()
    assert evaluated == list(cers) and all(torch.equal(again[name], value) for name, value in end.items())


# ---- trained is saved, then tested


def test_what_was_trained_is_saved_before_it_is_tested_and_resume_only_tests(corpus, base, tmp_path, monkeypatch, capsys):  # noqa: F811
    whole = run_stage_2(corpus, base, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(adapt_language, "measured", lambda *_: (_ for _ in ()).throw(MemoryError("in the test")))
        with pytest.raises(MemoryError):
            run_stage_2(corpus, base, tmp_path / "cut")
    assert f"Trained: {tmp_path / 'cut/assembly'}." in capsys.readouterr().out
    model = MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / "cut/assembly")])
    monkeypatch.setattr(steps.Run, "one_step", lambda *_: pytest.fail("trained again"))
    assert run_stage_2(corpus, base, tmp_path / "cut", "--resume")["test"] == whole["test"]
    other = MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / "whole/assembly")])
    assert all(torch.equal(value, other.assemblies["es"].state_dict()[name]) for name, value in model.assemblies["es"].state_dict().items())


def spoil_test_clips(corpus, tmp_path, count, missing=False) -> Path:  # noqa: F811
    """The corpus with its first `count` Spanish and French test clips unreadable, or not there."""
    (corpus / "broken.wav").write_bytes(b"no audio")

    def change(line):
        name = line["audio"]
        if any(name == f"{code}-test-{i}.wav" for code in ("es", "fr") for i in range(count)):
            return None if missing else {**line, "audio": "broken.wav"}
        return line

    return manifest_with(corpus, tmp_path.name, change)


def test_test_clips_that_cannot_be_read_cost_themselves_alone(corpus, base, tmp_path):  # noqa: F811
    test = run_stage_2(corpus, base, tmp_path / "one", manifest=spoil_test_clips(corpus, tmp_path, 1))["test"]
    assert test["left_out"] == [str(corpus / "broken.wav")] and set(test["languages"]) == {"es"}


@pytest.mark.parametrize("missing", [False, True])
def test_without_a_test_clip_only_the_figure_is_missing(corpus, base, tmp_path, capsys, missing):  # noqa: F811
    manifest = spoil_test_clips(corpus, tmp_path, 2, missing)
    result = run_stage_2(corpus, base, tmp_path / "es", "--finetune_steps", "1", manifest=manifest)
    said = capsys.readouterr().out
    assert result["test"] is None and result["finetune_test"] is None and ("Not tested: No clips to score" in said) == (not missing)
    assert said.count("No test clips of ['es']: there will be no test figures") == missing  # once, not with each of its readings
    assert MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / "es/assembly")]).languages == ["en", "fr", "es"]
    assert MasterASRForCTC.from_pretrained(tmp_path / "es/model").languages == ["en", "fr", "es"]
    run_stage_1(corpus, tmp_path / "stage1", "--data", str(manifest))
    test = json.loads((tmp_path / "stage1/run.json").read_text())["test"]
    assert set(test["languages"]) == {"en"} and {name: test["languages"]["en"][name] for name in test["macro"]} == test["macro"]


@pytest.mark.parametrize("says_s", [1.5, 25.0])
def test_a_recording_that_is_longer_or_shorter_than_it_says_is_named_and_costs_that_clip(corpus, tmp_path, says_s):  # noqa: F811
    """One that is shorter may have been cut, under the whole of its text."""
    soundfile.write(tmp_path / "long.wav", np.full(16_000 * 20, 0.1), 16_000)
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("ab")}))
    long = Clip(tmp_path / "long.wav", "en", "ab", says_s, "train")
    good = [clip for clip in read_manifest(corpus / "manifest.jsonl") if clip.language == "en" and clip.split == "train"]
    collator = Collator(Features(processor), processor, spares=[long, *good])
    batch = collator([long, good[0]])
    assert collator.broken == {long.audio: f"{long.audio} lasts 20.0 s, and its entry in the data says {says_s} s."}
    assert batch["input_values"].shape[1] < 2 * 16_000
    for about_s in (18.0, 19.9, 22.0):
        assert len(Features(processor)(Clip(tmp_path / "long.wav", "en", "ab", about_s, "train"))) == 20 * 16_000


@pytest.mark.parametrize("harm", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-7]),
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"),
    lambda path: np.save(path.open("wb"), np.zeros(3, dtype=np.float32)),
])  # fmt: skip
def test_kept_features_that_are_not_whole_are_computed_again(corpus, tmp_path, harm):  # noqa: F811
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("ab")}))
    clip = read_manifest(corpus / "manifest.jsonl")[0]
    expected = Features(processor, tmp_path)(clip)
    path = next(tmp_path.iterdir())
    harm(path)
    assert np.array_equal(Features(processor, tmp_path)(clip), expected)
    again = path.stat().st_mtime_ns
    assert np.array_equal(Features(processor, tmp_path)(clip), expected) and path.stat().st_mtime_ns == again  # whole now


def test_features_that_cannot_be_kept_cost_no_clip(corpus, tmp_path, monkeypatch, capsys):  # noqa: F811
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("ab")}))
    clip = read_manifest(corpus / "manifest.jsonl")[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    kept = Features(processor, tmp_path)
    features = kept(clip)
    assert np.array_equal(kept(clip), features)
    monkeypatch.undo()
    assert np.array_equal(features, Features(processor)(clip)) and not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count(f"Features are not kept in {tmp_path}: [Errno 28] No space left on device") == 1
    (tmp_path / "file").write_text("no folder")
    assert np.array_equal(features, Features(processor, tmp_path / "file")(clip))  # nor can it be read: a shared folder that went away


def test_too_few_minutes_for_any_clip_are_refused_instead_of_searched_forever(corpus):  # noqa: F811
    clips = read_manifest(corpus / "manifest.jsonl")
    with pytest.raises(ValueError, match="No train clip of 'es' fits into 0.001 minutes; the shortest lasts 0.6 s"):
        select(clips, "train", ["es"], 0.001)
    with pytest.raises(ValueError, match="No clips to train on are left"):
        bucket_of_step([], 24.0, 0)


# ---- what a run shows of itself


def test_the_learning_rate_never_exceeds_its_peak_however_short_the_run():
    for num_steps in range(1, 60):
        factors = [tri_stage(step, num_steps) for step in range(num_steps)]
        assert max(factors) <= 1.0 and min(factors) > 0


def test_every_batch_of_an_accumulated_step_is_logged_under_its_own_language(corpus, tmp_path, monkeypatch):  # noqa: F811
    heard, logged, forward = [], {}, MasterASRForCTC.forward

    def listening(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.training:
            heard.append((kwargs["language"][0], float(output.loss.detach())))
        return output

    monkeypatch.setattr(MasterASRForCTC, "forward", listening)
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step=None, **_: logged.setdefault(step, {}).update(values))
    run_stage_1(corpus, tmp_path, "--gradient_accumulation", "4", "--batch_s", "1.5")
    assert len({language for language, _ in heard[:4] + heard[20:24]}) == 2
    for step in (0, 5):
        of_step = heard[4 * step : 4 * step + 4]
        for code in ("en", "fr"):
            losses = [loss for language, loss in of_step if language == code]
            assert logged[step].get(f"loss/{code}") == (pytest.approx(sum(losses) / len(losses)) if losses else None)


def test_watching_is_of_the_languages_that_train_however_many_others_there_are():
    others = {f"x{i}": vocab("ab") for i in range(watching.MASKS_WATCHED + 4)}
    model = tiny_model(vocabs=others)
    model.add_language("es", vocab("añ"))
    with torch.no_grad():
        model.assemblies["es"].mapping.copy_(torch.linspace(-1, 2, 32).view(8, 4))
    first = watching.state_of_masks(Accelerator(), model, ["es"])
    assert "es" in first["masks"] and len(first["masks"]) == watching.MASKS_WATCHED and set(first["gates"]) == {"es"}
    figures, everyone = watching.mapping_figures(model, languages=["es"]), watching.mapping_figures(model)
    mapping = model.assemblies["es"].mapping.detach()
    assert figures["std_of_T"] == pytest.approx(float(mapping.std())) != everyone["std_of_T"]
    assert figures["share_of_open_gates"] == pytest.approx(float(watching.gates_of(mapping).float().mean()))
    assert watching.gates_of(mapping).tolist() == [(row > 0).tolist() if bool((row > 0).any()) else [False, False, False, True] for row in mapping]
    sizes = watching.weights_a_layer(model)
    masks = first["masks"]
    pairs = [watching.share_of_differing_bits(masks["es"], mask, sizes) for code, mask in masks.items() if code != "es"]
    assert figures["share_of_mask_bits_in_which_languages_differ"] == pytest.approx(sum(pairs) / len(pairs))


def test_stage_2_watches_its_own_language(corpus, base, tmp_path):  # noqa: F811
    log = run_stage_2(corpus, base, tmp_path, "--parts", "mapping", "head")["log"]
    mapping = MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / "assembly")]).assemblies["es"].mapping
    assert log["mapping"]["4"]["std_of_T"] == pytest.approx(float(mapping.detach().std()), rel=1e-3)  # the file holds halves


# ---- the nearest language


def test_a_batch_without_a_shared_letter_counts_for_nothing_in_the_ranking():
    model, letters = tiny_model(vocabs={"en": vocab("abc"), "ru": vocab("где")}), vocab("axyz")  # 2 is the space
    generator = torch.Generator().manual_seed(0)
    shared, strange = ({"input_values": torch.randn(2, 4000, generator=generator), "labels": torch.tensor(rows)}
                       for rows in ([[3, 3, 3], [3, -100, -100]], [[4, 5, -100], [6, 2, 5]]))  # fmt: skip
    alone = model.rank_assemblies([shared], letters)
    assert model.rank_assemblies([strange, shared], letters) == alone and alone["ru"] == float("inf")
    assert model.rank_assemblies([strange], letters)["en"] == float("inf")
    both = {name: torch.cat([shared[name], strange[name]]) for name in shared}  # nor does a clip beside others
    assert model.rank_assemblies([both], letters)["en"] == pytest.approx(alone["en"], rel=1e-5)


def test_a_language_whose_letters_nobody_has_says_that_nobody_is_near(warnings):
    model = tiny_model(vocabs={"en": vocab("abc")})
    batch = {"input_values": torch.randn(1, 4000), "labels": torch.tensor([[3, 4]])}
    model.add_language("ru", vocab("гд"), init="nearest", batches=[batch])
    assert "No loaded language shares a letter with the new one's clips, as far as their frames can spell their texts, so none is known to be near: it starts from 'en', the first." in warnings()


def test_the_ranking_is_computed_once_and_what_is_printed_is_used(corpus, base, tmp_path, monkeypatch, capsys):  # noqa: F811
    calls, rank = [], MasterASRForCTC.rank_assemblies
    monkeypatch.setattr(MasterASRForCTC, "rank_assemblies", lambda *args: calls.append(dict(reversed(rank(*args).items()))) or calls[-1])
    started = []
    add = MasterASRForCTC.add_language
    monkeypatch.setattr(MasterASRForCTC, "add_language", lambda self, *a, **k: started.append(k["init"]) or add(self, *a, **k))
    run_stage_2(corpus, base, tmp_path)
    assert len(calls) == 1 and started[0] == min(calls[0], key=calls[0].get)
    said = f"starts as that of {started[0]!r}, which fits best (CTC loss with each language's, inf: cannot spell it): { {code: round(loss, 2) for code, loss in calls[0].items()} }"
    assert said in capsys.readouterr().out


def test_a_language_that_is_there_and_an_unknown_start_are_refused_before_data_is_read(base, tmp_path, capsys):
    options = ["--model", str(base), "--data", "nowhere.jsonl", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=r"--language: got 'fr'; allowed: one that .* does not have. It has \['en', 'fr'\]. To give it more of its own: --refine. To measure it: python -m training.evaluate --model .* --languages fr"):
        adapt_language.main([*options, "--language", "fr"])
    with pytest.raises(ValueError, match=r"--refine: .* has no 'es'; it has \['en', 'fr'\]. One that you trained: --assembly FOLDER. Without --refine the language is added."):
        adapt_language.main([*options, "--language", "es", "--refine"])
    with pytest.raises(SystemExit):
        adapt_language.main([*options, "--language", "es", "--assembly", str(base)])
    assert "--assembly: got" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        adapt_language.main([*options, "--language", "fr", "--refine", "--init", "en"])
    assert "--init: got 'en'; allowed: none beside --refine" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--init: got 'near'; allowed: one of \['nearest', 'random', 'en', 'fr'\]"):
        adapt_language.main([*options, "--language", "es", "--init", "near"])


def test_the_demo_cleans_its_default_folder_alone_and_is_alone_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out, used in ((demo.DEFAULT_OUT, True), (Path("mine"), True), (Path("new"), False)):
        if used:
            checkpoints.save(out / "paper", 1, {"model": {}}, {})
        config = demo.DemoConfig(out=out)
        if out == Path("mine"):
            with pytest.raises(FileExistsError, match="mine holds a run already: .'checkpoint-00000001'.*runs/demo is written anew"), demo.own_folder(config):
                pass
            assert checkpoints.listed(out / "paper")
            continue
        with demo.own_folder(config), pytest.raises(RuntimeError, match="Another run is at work in"), demo.own_folder(config):
            pass


def test_the_demo_shows_a_language_that_disturbs_no_other(corpus, base, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(demo, "CHECKPOINT", base)
    monkeypatch.setattr(demo, "DATA", corpus / "manifest.jsonl")
    demo.main(["--steps", "2", "--preset", "small", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "Logits of ['en', 'fr'] bit-equal to before: True" in said and "preset paper" in said and "preset small" in said
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["others_bit_equal"] is True and kept["base"] == MasterASRForCTC.from_pretrained(base).master_asr.base_fingerprint()[:12]
    assert f"preset small  {kept['presets']['small']['greedy']:5.1f} %" in said and f"in mind: {kept['presets']['small']['after']:.1f} %" in said
    assert MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / "assembly")]).languages == ["en", "fr", "es"]


def test_fp16_whose_losses_nobody_would_scale_back_is_refused_and_reading_may_take_hours(tmp_path, monkeypatch):
    handed = {}

    def told(**kwargs):
        handed.update(kwargs)
        return SimpleNamespace(mixed_precision="fp16", distributed_type="NO")

    monkeypatch.setattr(launch, "Accelerator", told)
    config = LoopConfig(out=tmp_path, data=["x"], steps=1, evaluate_every=1)
    with pytest.raises(ValueError, match=r"told to train in fp16; allowed: no or bf16.*--mixed_precision no"):
        launch.make_accelerator(config)
    (waiting,) = [handler for handler in handed["kwargs_handlers"] if isinstance(handler, InitProcessGroupKwargs)]
    assert waiting.timeout.total_seconds() >= 3600  # a default of ten minutes killed runs whose data took longer to read


def test_validation_and_test_have_their_minutes_too(corpus, tmp_path, capsys):  # noqa: F811
    config = LoopConfig(out=tmp_path, data=[str(corpus / "manifest.jsonl")], steps=1, evaluate_every=1, held_out_minutes=0.012)
    splits = load_splits(Accelerator(), config, ["en", "fr"], 60.0)
    assert [len(clips) for clips in (splits.training, splits.validation, splits.test)] == [12, 2, 2]  # one of two a language
    assert re.search(r"en: 0\.0\d minutes of validation and test are left out \(--held_out_minutes\)", capsys.readouterr().out)
    whole = load_splits(Accelerator(), replace(config, held_out_minutes=60.0), ["en", "fr"], 60.0)
    assert len(whole.validation) == len(whole.test) == 4 and "--held_out_minutes" not in capsys.readouterr().out


def test_without_a_choice_every_language_that_has_clips_to_train_on_trains_and_the_others_are_named(corpus, tmp_path, capsys):  # noqa: F811
    lines = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    data = corpus / "with_a_third.jsonl"
    data.write_text("\n".join(map(json.dumps, [*lines, {**lines[0], "language": "sr", "split": "test"}])))
    config = LoopConfig(out=tmp_path, data=[str(data)], steps=1, evaluate_every=1)
    splits = load_splits(Accelerator(), config, None, 60.0)
    assert list(dict.fromkeys(clip.language for clip in splits.training)) == list(dict.fromkeys(line["language"] for line in lines))
    assert "No clips to train on, so no training, of ['sr']." in capsys.readouterr().out
    load_splits(Accelerator(), config, ["en"], 60.0)
    assert "no training, of" not in capsys.readouterr().out  # whoever names some knows
    data.write_text("\n".join(json.dumps({**line, "split": "test"}) for line in lines[:3]))
    with pytest.raises(ValueError, match="The data has no validation clips of 'en'; its 3 clips are all in test."):
        load_splits(Accelerator(), config, None, 60.0)
    data.write_text("\n".join(json.dumps({**line, "audio": "gone.wav"}) for line in lines))
    with pytest.raises(ValueError, match="No clip of the data can be used; the lines above say why."):
        load_splits(Accelerator(), config, None, 60.0)


def test_a_run_goes_on_where_fewer_devices_are_seen(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    checkpoints.set_random_state(checkpoints.random_state() | {"cuda": ["of the first", "of the second"]})
    assert given == ["of the first"]


def test_the_best_weights_of_the_checkpoint_that_a_killed_run_goes_on_from_are_still_there(corpus, tmp_path, monkeypatch):  # noqa: F811
    cers, original = {2: 50.0, 4: 40.0, 6: 60.0}, steps.Run.save

    def scripted(accelerator, model, processor, features, validation, step, log, *_):
        log["validation"][str(step)] = {"macro": {"cer": cers[step], "wer": 0.0}, "languages": {}}

    def dying(run, step):
        if step == 4:  # after its weights were kept as the best ones, before the checkpoint that says so
            raise KeyboardInterrupt
        original(run, step)

    monkeypatch.setattr(steps, "watch", scripted)
    options = ("--patience", "2", "--steps", "6", "--evaluate_every", "2")
    monkeypatch.setattr(steps.Run, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run_stage_1(corpus, tmp_path, *options)
    monkeypatch.setattr(steps.Run, "save", original)
    cers[4] = 55.0  # as on a GPU, whose sums are not the same twice
    run_stage_1(corpus, tmp_path, *options, "--resume")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["log"]["validation"]["4"]["macro"]["cer"] == 55.0


def test_kept_features_of_a_received_recording_serve_every_run(processor, tmp_path):
    name = "0123456789abcdef0123456789ab.wav"
    for run in ("one", "two"):
        path = tmp_path / run / "recordings" / name
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.random.default_rng(0).standard_normal(8000) * 0.1, 16_000)
        Features(processor, tmp_path / "cache")(Clip(path, "en", "a", 0.5, "train"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    other = tmp_path / "two" / "a.wav"  # named by a stranger: another file of this name may hold something else
    other.write_bytes(path.read_bytes())
    Features(processor, tmp_path / "cache")(Clip(other, "en", "a", 0.5, "train"))
    assert len(list((tmp_path / "cache").iterdir())) == 2
