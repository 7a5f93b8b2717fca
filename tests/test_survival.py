"""A run that is killed, cut off or refused loses nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_backbone_config
from test_training import corpus, run_stage_1  # noqa: F401  the fixture
from transformers import AutoModel

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.files_master_asr import replace_text
from training.loop import checkpoints, record, steps, stopping
from training.loop.optim import Turns

ROOT = Path(__file__).parent.parent
PARTS = {"model": {"w": torch.arange(6.0)}, "progress": {"log": {"loss": {"0": 1.5}}}}
FACTS = {"config_of": "d"}


class Killed(BaseException):
    """What no `except Exception` and no `except OSError` sees, as SIGKILL."""


@pytest.mark.parametrize("moment", range(60))  # beyond the last
def test_a_checkpoint_is_whole_or_absent_whenever_its_writing_is_cut(tmp_path, monkeypatch, moment):
    checkpoints.save(tmp_path, 10, PARTS, FACTS)
    calls = {"left": moment}

    def dying(original):
        def call(*args, **kwargs):
            if calls["left"] == 0:
                raise Killed
            calls["left"] -= 1
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (torch, "save"), (checkpoints.json, "dump")):
            patch.setattr(module, name, dying(getattr(module, name)))
        try:
            for step in (20, 20, 30):  # the second time as a run that repeats what was killed
                checkpoints.save(tmp_path, step, PARTS, FACTS)
        except Killed:
            pass
    there = checkpoints.listed(tmp_path)
    assert there and all(checkpoints.damage(path) is None for path in there)
    step, parts = checkpoints.load(tmp_path, "newest", FACTS)
    assert step in (10, 20, 30) and torch.equal(parts["model"]["w"], PARTS["model"]["w"]) and parts["progress"] == PARTS["progress"]
    checkpoints.save(tmp_path, 40, PARTS, FACTS)  # what the kill left does not stand in the way
    assert checkpoints.load(tmp_path, "newest", FACTS)[0] == 40 and len(checkpoints.listed(tmp_path)) <= checkpoints.KEEP


@pytest.mark.parametrize("harm, words", [
    (lambda path: path.unlink(), "model.pt is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-5]), "model.pt has .* bytes, not"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "model.pt has another SHA-256"),
])  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_offered(tmp_path, harm, words):
    for step in (10, 20):
        checkpoints.save(tmp_path, step, PARTS, FACTS)
    harm(tmp_path / "checkpoint-00000020/model.pt")
    with pytest.raises(ValueError, match=f"checkpoint-00000020 is damaged: {words}.*The one before it, checkpoint-00000010, is whole: delete this one and --resume"):
        checkpoints.load(tmp_path, "newest", FACTS)
    assert checkpoints.load(tmp_path, "checkpoint-00000010", FACTS)[0] == 10
    (tmp_path / "checkpoint-00000010/manifest.json").unlink()
    with pytest.raises(ValueError, match="No older one is whole"):
        checkpoints.load(tmp_path, "newest", FACTS)


def test_a_full_disk_is_named_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 10, PARTS, FACTS)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"Cannot write .*checkpoint-00000020 .*No space left.*still there: \['checkpoint-00000010'\]"):
        checkpoints.save(tmp_path, 20, PARTS, FACTS)
    assert checkpoints.load(tmp_path, "newest", FACTS)[0] == 10 and not list(tmp_path.glob(".*"))


def test_a_full_disk_in_the_words_of_torch_is_said_as_such_and_leaves_nothing_half(tmp_path, monkeypatch):
    """torch.save raises a RuntimeError about its own positions there."""
    checkpoints.save(tmp_path, 10, PARTS, FACTS)
    original = Path.open

    class Full:
        def __init__(self, opened):
            self.opened, self.left = opened, 500

        def write(self, content):
            self.left -= len(content)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.opened.write(content)

        def __getattr__(self, name):
            return getattr(self.opened, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.opened.close()

    monkeypatch.setattr(Path, "open", lambda self, mode="r", *a, **k: Full(original(self, mode, *a, **k)) if mode == "wb" else original(self, mode, *a, **k))
    with pytest.raises(OSError, match=r"Cannot write .*20 \(\[Errno 28\] No space left on device; \d+ MB free\). Free or open the disk and --resume") as raised:
        checkpoints.save(tmp_path, 20, PARTS, FACTS)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000010"]


@pytest.mark.parametrize("write", [record.write_json, lambda path, content: replace_text(path, json.dumps(content))])
def test_a_result_that_cannot_be_written_leaves_the_old_one_and_nothing_half(tmp_path, monkeypatch, write):
    write(tmp_path / "run.json", {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "run.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"] and json.loads((tmp_path / "run.json").read_text()) == {"a": 1}


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refused(*args, **kwargs):  # the tests may run as root, whom no permission stops
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OSError, match="Cannot write .*checkpoint-00000020 .*Permission denied.*still there: none"):
        checkpoints.save(tmp_path, 20, PARTS, FACTS)


def test_data_that_changed_since_is_refused(tmp_path):
    checkpoints.save(tmp_path, 10, PARTS, FACTS)
    with pytest.raises(ValueError, match="made from other data or settings .config_of: 'd' then, 'e' now"):
        checkpoints.load(tmp_path, "newest", {"config_of": "e"})
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        checkpoints.load(tmp_path / "empty", "newest", FACTS)


def command(corpus, out):  # noqa: F811
    return [
        sys.executable, "-m", "training.train_multilingual", "--data", str(corpus / "manifest.jsonl"), "--out", str(out), "--backbone",
        str(corpus / "backbone"), "--languages", "en", "fr", "--steps", "60", "--batch_s", "3", "--evaluate_every", "3", "--beta", "4",
        "--gamma", "5", "--learning_rate", "1e-3",
    ]  # fmt: skip


@pytest.mark.timeout(600)  # five starts of a training, on a machine that may have other work
def test_a_run_killed_at_random_moments_ends_bit_equal_to_an_uninterrupted_one(corpus, tmp_path):  # noqa: F811
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # in a process of its own too: other tests of this one may have left another number of threads, and so another order of sums
    subprocess.run(command(corpus, tmp_path / "whole"), env=env, cwd=ROOT, check=True, capture_output=True)
    rng, kills = random.Random(0), 0
    for _ in range(12):
        resume = ["--resume"] if checkpoints.listed(tmp_path / "cut") else []
        before = [path.name for path in checkpoints.listed(tmp_path / "cut")]
        with open(tmp_path / "log", "w") as log:
            run = subprocess.Popen([*command(corpus, tmp_path / "cut"), *resume], env=env, cwd=ROOT, stdout=log, stderr=log)
            while run.poll() is None and [p.name for p in checkpoints.listed(tmp_path / "cut")] in (before, []):
                time.sleep(0.01)
            if kills < 3:
                time.sleep(rng.uniform(0, 0.3))
                run.send_signal(signal.SIGKILL)
                kills += run.wait() == -signal.SIGKILL
            elif run.wait() == 0:
                break
            else:
                pytest.fail((tmp_path / "log").read_text()[-2000:])
    assert kills == 3
    ends = [MasterASRForCTC.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "cut")]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_a_checkpoint_is_there_until_the_one_that_takes_its_place_is_written(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 10, PARTS, FACTS)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="still there: .'checkpoint-00000010'."):
            checkpoints.save(tmp_path, 10, PARTS, FACTS)
    assert checkpoints.load(tmp_path, "newest", FACTS)[0] == 10


def test_a_stop_behind_an_evaluation_keeps_its_figures_and_who_goes_on_evaluates_once(corpus, tmp_path, monkeypatch):  # noqa: F811
    written, evaluated, save, watch = [], [], checkpoints.save, steps.watch
    monkeypatch.setattr(checkpoints, "save", lambda out, step, *args, **named: (written.append(step), save(out, step, *args, **named)))
    with monkeypatch.context() as patch:
        patch.setattr(steps, "watch", lambda *args: (watch(*args), os.kill(os.getpid(), signal.SIGTERM)))
        with pytest.raises(SystemExit) as stopped:
            run_stage_1(corpus, tmp_path)
    assert stopped.value.code == 0 and written == [4, 4]  # before the evaluation, and with its figures
    monkeypatch.setattr(steps, "watch", lambda *args: (evaluated.append(args[5]), watch(*args)))
    run_stage_1(corpus, tmp_path, "--resume")
    assert 4 not in evaluated and evaluated
    assert written.count(4) == 2


def test_a_kill_during_an_evaluation_loses_no_step_and_changes_nothing(corpus, tmp_path, monkeypatch):  # noqa: F811
    whole, watch, trained, one_step = run_stage_1(corpus, tmp_path / "whole"), steps.watch, [], steps.Run.one_step

    def out_of_memory(*args):
        watch(*args)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(steps, "watch", out_of_memory)
        with pytest.raises(MemoryError):
            run_stage_1(corpus, tmp_path / "cut")
    monkeypatch.setattr(steps.Run, "one_step", lambda run, wrapped, step, of: (trained.append(step), one_step(run, wrapped, step, of))[1])
    again = run_stage_1(corpus, tmp_path / "cut", "--resume")
    assert trained[0] == 4
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    logs = [json.loads((tmp_path / name / "run.json").read_text())["log"] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_what_the_processes_lost_counts_together_at_a_checkpoint(corpus, tmp_path, monkeypatch):  # noqa: F811
    names = [json.loads(line)["audio"] for line in (corpus / "manifest.jsonl").read_text().splitlines() if '"train"' in line and '"fr"' in line]
    monkeypatch.setattr(steps.Run, "broken_clips", lambda run: {str(corpus / name): "lost elsewhere" for name in names[:4]})  # of six, three may be
    with pytest.raises(ValueError, match="4 of 6 clips of 'fr' cannot be read, such as: .'lost elsewhere'"):
        run_stage_1(corpus, tmp_path)
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["checkpoint-00000004"]  # what was trained is there


def test_a_stop_that_is_asked_for_before_an_evaluation_saves_at_once_and_who_goes_on_evaluates_first(corpus, tmp_path, monkeypatch, capsys):  # noqa: F811
    whole, one_step = run_stage_1(corpus, tmp_path / "whole"), steps.Run.one_step
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(steps.Run, "one_step", lambda run, wrapped, step, of: (one_step(run, wrapped, step, of), step == 3 and os.kill(os.getpid(), signal.SIGTERM))[0])
        with pytest.raises(SystemExit) as stopped:
            run_stage_1(corpus, tmp_path / "cut")
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "Stopped at step 4 on SIGTERM" in said and "validation CER" not in said
    again = run_stage_1(corpus, tmp_path / "cut", "--resume")
    assert "step 4: validation CER" in capsys.readouterr().out
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    logs = [json.loads((tmp_path / name / "run.json").read_text())["log"] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_run_stops_cleanly_after_its_minutes_and_goes_on(corpus, tmp_path, monkeypatch, capsys):  # noqa: F811
    whole = run_stage_1(corpus, tmp_path / "whole")
    clock = iter([0.0] * 3)  # the start, when the data is read, the first step; then the minutes are over, and one step is made all the same: else a run that is long in starting never ends
    with monkeypatch.context() as patch:
        patch.setattr(stopping.time, "monotonic", lambda: next(clock, 1e9))
        with pytest.raises(SystemExit) as stopped:
            run_stage_1(corpus, tmp_path / "cut", "--max_minutes", "1")
    assert stopped.value.code == 0
    assert "Stopped at step 1 since --max_minutes are over. Go on with the same command and --resume." in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="No checkpoint-00000007 in .* to resume from. There: .'checkpoint-00000001'."):
        run_stage_1(corpus, tmp_path / "cut", "--resume", "checkpoint-00000007", "--data", "nowhere.jsonl")  # said before anything is read
    again = run_stage_1(corpus, tmp_path / "cut", "--resume")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_gradients_that_are_not_finite_move_nothing_are_named_and_too_many_stop_the_run(corpus, tmp_path, monkeypatch):  # noqa: F811
    bad_steps = {2}
    original = Turns.begin

    def spoil(self, step):
        original(self, step)
        if step in bad_steps:
            parameter = self.optimizer.param_groups[-1]["params"][0]
            parameter.register_hook(lambda grad, n=step: grad * float("nan") if n in bad_steps and self.spoilt == n else grad)
        self.spoilt = step

    monkeypatch.setattr(Turns, "begin", spoil)
    model = run_stage_1(corpus, tmp_path / "one")
    result = json.loads((tmp_path / "one/run.json").read_text())
    assert [entry["step"] for entry in result["log"]["skipped"]] == [2] and result["log"]["skipped"][0]["clips"]
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    bad_steps.update(range(40))
    with pytest.raises(FloatingPointError, match=r"11 steps had gradients that are not finite \(allowed: 10\). \d+ clips, such as \['.*wav'"):
        run_stage_1(corpus, tmp_path / "many", "--steps", "20")


def test_a_checkpoint_is_synced_whole_before_it_has_its_name_and_its_folder_after(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}").rpartition("/")[2]), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("renamed"), rename(*paths)))
    checkpoints.save(tmp_path, 10, {"model": {"w": torch.ones(1)}, "turns": {}}, {})
    assert set(done[: done.index("renamed")]) == {"model.pt", "turns.pt", "manifest.json", ".checkpoint-00000010.part"} and done[-1] == tmp_path.name


def test_a_sigterm_that_comes_behind_the_last_step_reaches_whoever_waits_for_it():
    heard, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        with stopping.StopRequest(SimpleNamespace(num_processes=1, device="cpu"), None):
            os.kill(os.getpid(), signal.SIGTERM)
            assert not heard
        assert heard == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_resumed_run_draws_the_time_masks_of_an_encoder_that_masks_itself_as_an_uninterrupted_one_does(corpus, tmp_path):  # noqa: F811
    """They come from NumPy."""
    AutoModel.from_config(tiny_backbone_config("wav2vec2", mask_time_prob=0.3, mask_time_length=2)).save_pretrained(tmp_path / "backbone")
    options = "--backbone", str(tmp_path / "backbone")
    whole = run_stage_1(corpus, tmp_path / "whole", *options).state_dict()
    shutil.copytree(tmp_path / "whole/checkpoint-00000004", tmp_path / "cut/checkpoint-00000004")
    np.random.seed(1)
    resumed = run_stage_1(corpus, tmp_path / "cut", *options, "--resume").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
