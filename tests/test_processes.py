"""Two processes are one with twice the batches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from test_trainer import by_trainer
from test_training import corpus, run_stage_1  # noqa: F401  the fixture

from modeling_master_asr import MasterASRForCTC
from training import adapt_language, evaluate, train_multilingual
from training.loop import launch

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def two(*command, fails: bool = False) -> subprocess.CompletedProcess:
    """A module (`-m`, name) or script with its options, in two processes."""
    done = subprocess.run([*TWO, *map(str, command)], env=ENV, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done


def one(main, *options) -> None:
    """A command in this process, with an Accelerate that knows nothing of other tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        main([str(option) for option in options])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def stage_1(corpus, out) -> list:  # noqa: F811
    return [
        "--data", corpus / "manifest.jsonl", "--out", out, "--backbone", corpus / "backbone", "--languages", "en", "fr", "--steps", "10",
        "--batch_s", "1.5", "--evaluate_every", "5", "--beta", "2", "--gamma", "3", "--learning_rate", "1e-3",
    ]  # fmt: skip


def run(processes, out, corpus, *extra):  # noqa: F811
    """Final weights of stage 1."""
    options = [*stage_1(corpus, out), *extra]
    if processes == 1:
        one(train_multilingual.main, *options)
    else:
        two("-m", "training.train_multilingual", *options)
    return MasterASRForCTC.from_pretrained(out / "model").state_dict()


@pytest.fixture(scope="module")
def ends(corpus, tmp_path_factory):  # noqa: F811
    """Folder and final weights of one run as one process, as two, and as two that share the weights."""
    out = tmp_path_factory.mktemp("ends")
    runs = {"one": (1, "--gradient_accumulation", "2"), "two": (2,), "shards": (2, "--shard")}
    return out, {name: run(processes, out / name, corpus, *extra) for name, (processes, *extra) in runs.items()}


@pytest.mark.parametrize("many", ["two", "shards"])
def test_two_gloo_processes_end_as_one_process_with_the_same_global_batch(ends, many):
    """Ranks train different languages in the same step, through the turns of W and M and the moves of T."""
    out, weights = ends
    for name, processes in (("one", 1), (many, 2)):
        kept = torch.load(next((out / name).glob("checkpoint-*/random.pt")), weights_only=True)
        assert len(kept) == processes  # every process's generators
        assert json.loads(next((out / name).glob("checkpoint-*/manifest.json")).read_text())["facts"]["batches_a_step"] == 2
    for name, value in weights["one"].items():
        torch.testing.assert_close(weights[many][name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    single, other = (json.loads((out / name / "run.json").read_text()) for name in ("one", many))
    assert single["test"] == other["test"]  # evaluated in shares, by all processes
    assert single["mapping"] == pytest.approx(other["mapping"], abs=1e-4)


TERMINATED = """
import faulthandler, os, signal, sys
faulthandler.dump_traceback_later(150, exit=True)  # where a process that waits for ever waits
from training.loop.optim import Turns
from training.train_multilingual import main
begin = Turns.begin
def terminate(self, step):
    if step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    begin(self, step)
Turns.begin = terminate
main(sys.argv[1:])
"""


def test_processes_stop_at_the_same_step_whichever_of_them_is_terminated_and_go_on_bit_equal(ends, corpus, tmp_path):  # noqa: F811
    out, weights = ends
    (tmp_path / "worker.py").write_text(TERMINATED)
    stopped = two(tmp_path / "worker.py", *stage_1(corpus, tmp_path / "out"))
    assert stopped.stdout.count("Stopped at step 4 on SIGTERM. Go on with the same command and --resume.") == 1
    again = run(2, tmp_path / "out", corpus, "--resume")
    for name, value in weights["two"].items():
        assert torch.equal(again[name], value), name
    whole, resumed = (json.loads((folder / "run.json").read_text())["log"] for folder in (out / "two", tmp_path / "out"))
    assert whole == resumed


ON_ITS_OWN_MACHINE = """
import os, sys
from training.loop import agreement
from training.{script} import main
agreement.SEEN_WITHIN_S = 0.5
os.chdir(os.path.join(os.path.dirname(__file__), os.environ["RANK"]))
main([option.replace("RANK", os.environ["RANK"]) for option in sys.argv[1:]])
"""


@pytest.fixture
def two_machines(corpus, tmp_path):  # noqa: F811
    """A folder with a copy of the corpus in `0/data` and in `1/data`: what a relative path means to either of two processes."""
    for rank in "01":
        shutil.copytree(corpus, tmp_path / rank / "data")
    return tmp_path


def on_two_machines(folder, script, *options, fails=False) -> subprocess.CompletedProcess:
    (folder / "worker.py").write_text(ON_ITS_OWN_MACHINE.format(script=script))
    return two(folder / "worker.py", *options, fails=fails)


def recording_of(folder, split) -> Path:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    return folder / next(row["audio"] for row in rows if row["language"] == "en" and row["split"] == split)


def test_machines_that_do_not_share_their_folder_are_refused_before_a_step(two_machines, corpus):  # noqa: F811
    failed = on_two_machines(two_machines, "train_multilingual", *stage_1(corpus, two_machines / "out-RANK"), fails=True).stderr
    assert f"--out: processes [1] of 2 do not see what process 0 writes into {two_machines / 'out-0'}. Pass a folder that all machines share." in failed
    assert "training:" not in failed


@pytest.mark.parametrize("split, loses", [("train", "all"), ("test", "a byte")])
def test_machines_with_other_recordings_are_refused_before_a_step(two_machines, split, loses):
    recording = recording_of(two_machines / "1" / "data", split)
    content = recording.read_bytes()
    recording.unlink()
    if loses == "a byte":
        recording.write_bytes(content[:-1])
    failed = on_two_machines(two_machines, "train_multilingual", *stage_1(Path("data"), two_machines / "out"), fails=True).stderr
    assert "Processes [1] of 2 have other recordings than process 0. Give every machine the same --data and --out" in failed
    assert "training:" not in failed


def test_tables_are_read_by_the_first_process_alone(two_machines, ends):
    """A hub is asked once, and a million recordings are opened once, whatever the processes."""
    out, _ = ends
    (two_machines / "1" / "data" / "manifest.jsonl").unlink()
    done = on_two_machines(two_machines, "train_multilingual", *stage_1(Path("data"), two_machines / "out"))
    assert done.stdout.count("en: train") == 1
    ended, as_ever = (json.loads((folder / "run.json").read_text()) for folder in (two_machines / "out", out / "two"))
    assert ended["test"] == as_ever["test"]
    on_two_machines(two_machines, "evaluate", "--model", out / "one" / "model", "--data", "data/manifest.jsonl", "--out", two_machines / "two.json")
    one(evaluate.main, "--model", out / "one" / "model", "--data", two_machines / "0" / "data" / "manifest.jsonl", "--out", two_machines / "one.json")
    assert json.loads((two_machines / "two.json").read_text())["languages"] == json.loads((two_machines / "one.json").read_text())["languages"]


def test_a_machine_without_a_recording_is_told_before_it_is_evaluated_on(two_machines, ends):
    out, _ = ends
    recording_of(two_machines / "1" / "data", "test").unlink()
    options = ["--model", out / "one" / "model", "--data", "data/manifest.jsonl", "--out", two_machines / "result.json"]
    failed = on_two_machines(two_machines, "evaluate", *options, fails=True).stderr
    assert "Processes [1] of 2 have other recordings than process 0." in failed
    assert not (two_machines / "result.json").exists()


def test_shards_that_are_killed_go_on_bit_equal(ends, corpus):  # noqa: F811
    out, weights = ends
    shutil.copytree(out / "shards/checkpoint-00000005", out / "shards-cut/checkpoint-00000005")
    again = run(2, out / "shards-cut", corpus, "--resume", "--shard")
    for name, value in weights["shards"].items():
        assert torch.equal(again[name], value), name


def test_shards_that_are_killed_go_on_in_one_process(ends, corpus):  # noqa: F811
    """A checkpoint is whole, however the weights were divided."""
    out, weights = ends
    shutil.copytree(out / "shards/checkpoint-00000005", out / "shards-one/checkpoint-00000005")
    again = run(1, out / "shards-one", corpus, "--resume", "--gradient_accumulation", "2")
    for name, value in weights["one"].items():
        torch.testing.assert_close(again[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def language(ends, corpus):  # noqa: F811
    """Options of a stage 2 with "+ ft", and its end in one process."""
    out, _ = ends
    options = ["--model", out / "one/model", "--data", corpus / "manifest.jsonl", "--language", "es", "--steps", "4", "--evaluate_every",
               "2", "--batch_s", "1.5", "--parts", "mapping", "head", "delta", "--teacher_steps", "3", "--finetune_steps", "2"]  # fmt: skip
    one(adapt_language.main, *options, "--out", out / "es", "--gradient_accumulation", "2")
    return options, MasterASRForCTC.from_pretrained(out / "es/model").state_dict()


@pytest.mark.parametrize("divided", [pytest.param([], marks=pytest.mark.slow), ["--shard"]])
def test_a_language_and_then_all_weights_train_in_two_processes(ends, language, tmp_path, divided):
    options, expected = language
    two("-m", "training.adapt_language", *options, "--out", tmp_path, *divided)
    many = MasterASRForCTC.from_pretrained(tmp_path / "model").state_dict()
    for name, value in expected.items():
        # stage 2 ends with what the language owns in half precision: a difference of 1e-5 may round to the next of its values
        atol, rtol = (1e-4, 1e-3) if "lang_es" in name else (2e-5, 1e-4)
        torch.testing.assert_close(many[name], value, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")
    base = MasterASRForCTC.from_pretrained(ends[0] / "one/model")
    base.load_assembly(tmp_path / "assembly")  # as it was before the weights moved: it fits the base


def test_weights_are_not_divided_among_one_process_nor_by_accelerate(corpus, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(ValueError, match="--shard divides the weights among processes, and there is one"):
        run_stage_1(corpus, tmp_path, "--shard")
    monkeypatch.setattr(launch.Accelerator, "distributed_type", DistributedType.FSDP)  # which it gives to GPUs alone
    with pytest.raises(ValueError, match="leave --use_fsdp out, pass --shard"):
        run_stage_1(corpus, tmp_path)


def untrained(corpus, out) -> dict:  # noqa: F811
    """The weights that every run of stage 1 starts from."""
    return run(1, out, corpus, "--learning_rate", "1e-12")


def check_road(start: dict, end: dict, other: dict, share: float) -> None:
    """Whether each tensor of `other` ends as near to that of `end` as this share of its way from the start, and all of them as near as a fifth of it."""
    names = [name for name in end if not name.endswith("k_proj.bias")]  # softmax takes those out: nothing but rounding moves them
    ways, gaps = (torch.stack([(end[name] - of[name]).float().norm() for name in names]) for of in (start, other))
    for name, way, gap in zip(names, ways.tolist(), gaps.tolist()):
        assert gap <= share * way, f"{name}: {gap:.2e} apart after a way of {way:.2e}"
    assert float(gaps.norm()) <= share / 5 * float(ways.norm())


def test_autocast_and_recomputation_train_the_same_road(corpus, tmp_path):  # noqa: F811
    """Masks are selected in float32 under autocast too: the first masks, and so the loss, stay close."""
    plain = run(1, tmp_path / "plain", corpus)
    check_road(untrained(corpus, tmp_path / "start"), plain, run(1, tmp_path / "bf16", corpus, "--mixed_precision", "bf16"), 0.5)
    recomputed = run(1, tmp_path / "recomputed", corpus, "--gradient_checkpointing")
    for name, value in plain.items():
        assert torch.equal(recomputed[name], value), name


@pytest.mark.slow
def test_shards_train_the_same_road_under_autocast_and_recomputation(corpus, tmp_path):  # noqa: F811
    options = ["--mixed_precision", "bf16", "--gradient_checkpointing", "--gradient_accumulation", "2"]
    whole, shards = (run(2, tmp_path / name, corpus, *options, *extra) for name, extra in (("whole", []), ("shards", ["--shard"])))
    check_road(untrained(corpus, tmp_path / "start"), whole, shards, 0.01)


TRAINER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/tests")
import torch
from test_trainer import by_trainer
torch.set_num_threads(1)
model, trainer = by_trainer(Path(sys.argv[2]), 1, sys.argv[3], gradient_accumulation_steps=int(sys.argv[4]), activation_checkpointing=True)
if trainer.is_world_process_zero():
    torch.save(model.state_dict(), sys.argv[3] + ".pt")
"""


@pytest.mark.slow
def test_the_trainer_in_two_processes_ends_as_in_one_with_the_same_global_batch(corpus, tmp_path):  # noqa: F811
    (tmp_path / "worker.py").write_text(TRAINER)
    two(tmp_path / "worker.py", ROOT, corpus, tmp_path / "two", 1)
    AcceleratorState._reset_state(reset_partial_state=True)
    model, _ = by_trainer(corpus, 1, tmp_path / "one", gradient_accumulation_steps=2, activation_checkpointing=True)
    many = torch.load(tmp_path / "two.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(many[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["several_gpus", "several_machines"])
def test_the_launch_configs_hold_only_what_accelerate_knows(name):
    config = load_config_from_file(str(ROOT / f"training/accelerate/{name}.yaml"))  # refuses unknown keys
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "bf16" and config.num_processes > 1


SHARDED = """
import os, sys
sys.path.insert(0, sys.argv[1] + "/tests")
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from conftest import inputs_for, tiny_model
torch.set_num_threads(1)
world = int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo")
model = tiny_model(num_specialists=2)
model.requires_grad_(True)
if world > 1:
    for layer in model.master_asr.backbone.encoder.layers:
        fully_shard(layer)
    fully_shard(model)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
losses = []
for step in range(6):
    model.train()
    inputs, language = inputs_for(model, seed=step), ("en", "fr")[step % 2]
    loss = model(**inputs, language=language, labels=torch.tensor([[3, 4], [4, 3]])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
state = {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for n, p in model.named_parameters()}
if dist.get_rank() == 0:
    torch.save({"losses": losses, "state": state}, sys.argv[2])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_sharded_model_trains_as_a_whole_one(tmp_path):
    """FSDP2 over two gloo processes: masks follow the moving specialists there too."""
    (tmp_path / "worker.py").write_text(SHARDED)
    results = []
    for processes in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run([*launcher, str(tmp_path / "worker.py"), str(ROOT), str(tmp_path / f"{processes}.pt")], env=ENV, cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(tmp_path / f"{processes}.pt"))
    whole, shards = results
    assert whole["losses"] == pytest.approx(shards["losses"], rel=1e-4)
    for name, value in whole["state"].items():
        torch.testing.assert_close(shards["state"][name], value, atol=2e-3, rtol=1e-2, msg=lambda m, n=name: f"{n}: {m}")
