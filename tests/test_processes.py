"""Two processes are one with twice the batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import corpus  # noqa: F401  the fixture

from modeling_master_asr import MasterASRForCTC

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def run(launcher, out, corpus, *extra):  # noqa: F811
    command = [
        *launcher, "training.train_multilingual", "--data", str(corpus / "manifest.jsonl"), "--out", str(out), "--backbone",
        str(corpus / "backbone"), "--languages", "en", "fr", "--steps", "10", "--batch_s", "1.5", "--evaluate_every", "5", "--beta", "2",
        "--gamma", "3", "--learning_rate", "1e-3", *extra,
    ]  # fmt: skip
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return MasterASRForCTC.from_pretrained(out / "model").state_dict()


def test_two_gloo_processes_end_as_one_process_with_the_same_global_batch(corpus, tmp_path):  # noqa: F811
    """Ranks train different languages in the same step, through the turns of W and M and the moves of T."""
    one = run([sys.executable, "-m"], tmp_path / "one", corpus, "--gradient_accumulation", "2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    two = run(torchrun, tmp_path / "two", corpus)
    for name in ("one", "two"):
        kept = torch.load(next((tmp_path / name).glob("checkpoint-*/random.pt")), weights_only=True)
        assert len(kept) == {"one": 1, "two": 2}[name]  # every process's generators
        assert json.loads(next((tmp_path / name).glob("checkpoint-*/manifest.json")).read_text())["facts"]["batches_a_step"] == 2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [["--mixed_precision", "bf16"], ["--gradient_checkpointing"]])
def test_autocast_and_recomputation_train_the_same_road(corpus, tmp_path, options):  # noqa: F811
    """Masks are selected in float32 under autocast too: the first masks, and so the loss, stay close."""
    plain = run([sys.executable, "-m"], tmp_path / "plain", corpus)
    other = run([sys.executable, "-m"], tmp_path / "other", corpus, *options)
    tolerance = 0 if "checkpointing" in options[0] else 2e-2
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


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
    one, two = results
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, atol=2e-3, rtol=1e-2, msg=lambda m, n=name: f"{n}: {m}")
