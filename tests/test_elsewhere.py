"""Away from the machine that this was written on: notebooks, full disks, other users, consoles without letters."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model, vocab

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor, assembly_master_asr
from training import compact_checkpoint
from training.loop import launch, record

REIMPORT = """
import sys, modeling_master_asr
from peft import PeftConfig
for name in [name for name in sys.modules if name.startswith("modeling_master_asr")]:
    del sys.modules[name]
from modeling_master_asr.peft_assembly import AssemblyConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
assert PEFT_TYPE_TO_CONFIG_MAPPING["ASSEMBLY"] is AssemblyConfig
import importlib
importlib.reload(sys.modules["modeling_master_asr.peft_assembly"])
"""


def test_the_package_is_imported_anew_as_notebooks_do():
    done = subprocess.run([sys.executable, "-c", REIMPORT], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr


def full(part):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_language_that_was_there(tmp_path, monkeypatch):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    model.save_assembly("fr", tmp_path / "fr")
    before = {file.name: file.read_bytes() for file in (tmp_path / "fr").iterdir()}
    model.give_parts("fr", "small", vocab=vocab("abcéñ"))
    for failing in ("text_writer", "save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(assembly_master_asr, failing, (lambda text: full) if failing == "text_writer" else lambda state, part, **_: full(part))
            with pytest.raises(OSError, match="No space left"):
                model.save_assembly("fr", tmp_path / "fr")
        assert {file.name: file.read_bytes() for file in (tmp_path / "fr").iterdir()} == before
    other = MasterASRForCTC.from_pretrained(tmp_path / "base")
    other.load_assembly(tmp_path / "fr", replace=True)
    model.save_assembly("fr", tmp_path / "fr")
    other.load_assembly(tmp_path / "fr", replace=True)
    assert "ñ" in other.config.vocab("fr")


def test_weights_may_be_read_by_whoever_may_read_the_config(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_model().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for folder in (tmp_path / "model", tmp_path / "shards"):
        modes = {file.stat().st_mode for file in folder.iterdir()}
        assert len(modes) == 1 and list(folder.glob("*.safetensors"))
    (tmp_path / "outside").write_text("")
    (tmp_path / "outside").chmod(0o600)
    for name, target in (("model.linked.safetensors", tmp_path / "outside"), ("model.gone.safetensors", tmp_path / "gone")):
        (tmp_path / "model" / name).symlink_to(target)
    (tmp_path / "model" / "secret.safetensors").write_text("")
    (tmp_path / "model" / "secret.safetensors").chmod(0o600)
    tiny_model().save_pretrained(tmp_path / "model")
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "outside", tmp_path / "model" / "secret.safetensors")} == {"0o600"}


def test_a_compaction_that_fails_leaves_nothing_that_looks_like_a_model(tmp_path, monkeypatch):
    model = tiny_model("whisper")
    model.save_pretrained(tmp_path / "model")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "small")]
    with monkeypatch.context() as patch:
        patch.setattr(MasterASRProcessor, "save_pretrained", lambda self, folder: full(folder))
        with pytest.raises(OSError, match="No space left"):
            compact_checkpoint.main(command)
    assert list((tmp_path / "small").iterdir()) == [] and sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]
    compact_checkpoint.main(command)
    assert MasterASRForCTC.from_pretrained(tmp_path / "small").languages == ["en", "fr", "ru"]


def test_every_command_writes_letters_on_a_console_that_has_none(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    launch.run(lambda: print("runs/modèle", flush=True))
    assert console.buffer.getvalue() == "runs/modèle\n".encode()


def test_a_result_of_a_notebook_names_no_kernel(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/ipykernel_launcher.py", "-f", "kernel-1.json"])
    assert record.facts_of_run()["command"] == "in a notebook"
    for script in ("evaluate.py", "train_kernel_size.py"):
        monkeypatch.setattr(sys, "argv", [f"/x/{script}", "--model", "m"])
        assert record.facts_of_run()["command"] == f"{script} --model m"


def test_a_copy_in_somebody_elses_repository_has_no_commit(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "theirs").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "theirs")
    for root, has_commit in ((tmp_path / "ours", False), (tmp_path, True)):
        file = root / "training" / "loop" / "record.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(record, "__file__", str(file))
        assert bool(record.commit_of_clone()) is has_commit
