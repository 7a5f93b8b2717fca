"""A folder we save is complete: a process that cannot import the package loads it and gets the same bits."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import inputs_for, tiny_model
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor

ROOT = Path(__file__).parent.parent

STRANGER = """
import sys, json
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_master_asr":
            raise ImportError("the package is not here")
sys.meta_path.insert(0, Blocked())
import numpy as np, torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCTC, AutoProcessor, pipeline
folder, out = sys.argv[1:3]
inputs = load_file(folder + "/../inputs.safetensors")
with torch.no_grad():
    model = AutoModelForCTC.from_pretrained(folder, trust_remote_code=True)
    logits = model(**inputs, language="fr").logits
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert torch.isfinite(encoder(**inputs, language="fr").last_hidden_state).all()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
clip = np.sin(np.arange(8000) / 20).astype(np.float32)
asr = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
texts = {code: asr(clip, language=code)["text"] for code in ("en", "ru")}
if len(sys.argv) > 3:
    model.save_pretrained(sys.argv[3]); processor.save_pretrained(sys.argv[3])
json.dump({"logits": logits.flatten().tolist(), "texts": texts, "class": type(asr).__name__}, open(out, "w"))
"""


def run_as_a_stranger(folder: Path, out: Path, resave: Path | None = None, cache: Path | None = None) -> dict:
    command = [sys.executable, "-c", STRANGER, str(folder), str(out), *([str(resave)] if resave else [])]
    env = {"PATH": "/usr/bin:/bin", "HF_HOME": str(cache or out.parent / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def blocked_process(expression: str, folder: Path, home: Path) -> str:
    """What an expression over the auto classes gives where the package is not importable; `sys.argv[1]`: the folder."""
    head = STRANGER[: STRANGER.index("folder, out")]
    env = {"PATH": "/usr/bin:/bin", "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", f"{head}\nprint({expression})", str(folder)], capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@torch.no_grad()
@pytest.mark.parametrize("family", [pytest.param("wav2vec2", marks=pytest.mark.slow), "whisper"])
def test_a_flat_copy_loads_where_the_package_is_not_importable_also_after_a_resave(family, tmp_path):
    torch.set_num_threads(2)
    model = tiny_model(family)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    MasterASRProcessor.from_model(model).save_pretrained(folder)
    inputs = inputs_for(model)
    save_file(inputs, tmp_path / "inputs.safetensors")
    expected = model(**inputs, language="fr").logits
    first = run_as_a_stranger(folder, tmp_path / "first.json", resave=tmp_path / "again")
    second = run_as_a_stranger(tmp_path / "again", tmp_path / "second.json")
    for answer in (first, second):
        assert torch.equal(torch.tensor(answer["logits"]).view_as(expected), expected)
        assert answer["class"] == "MasterASRPipeline" and answer["texts"]["en"] != answer["texts"]["ru"]


def test_the_saved_folder_holds_every_code_file(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    code = {p.name for p in (ROOT / "modeling_master_asr").glob("*_master_asr.py")}
    assert code == {p.name for p in tmp_path.glob("*.py")} and len(code) == len(ROOMS)
    assert MasterASRForCTC.from_pretrained(tmp_path).languages == ["en", "fr", "ru"]


def linked(tmp_path) -> tuple[Path, Path]:
    """A folder of code, and beside it a checkpoint whose code are links to it, as the shipped one's are."""
    clone, folder = tmp_path / "clone", tmp_path / "model"
    model = tiny_model()
    model.save_pretrained(folder)
    MasterASRProcessor.from_model(model).save_pretrained(folder)
    clone.mkdir()
    for file in folder.glob("*.py"):
        file.rename(clone / file.name)
        file.symlink_to(f"../clone/{file.name}")
    return clone, folder


@pytest.mark.parametrize("name, auto", [
    ("configuration_master_asr.MasterASRConfig", "AutoConfig"), ("modeling_master_asr.MasterASRForCTC", "AutoModelForCTC"),
    ("modeling_master_asr.MasterASRModel", "AutoModel"), ("processing_master_asr.MasterASRProcessor", "AutoProcessor"),
    ("processing_master_asr.Wav2Vec2CTCTokenizer", "AutoTokenizer"),
])  # fmt: skip
def test_what_runs_from_the_module_cache_is_never_saved_into_the_clone_that_its_folder_links_to(name, auto, tmp_path):
    clone, folder = linked(tmp_path)
    cls = get_class_from_dynamic_module(name, str(folder))
    cls.register_for_auto_class(auto)  # as the auto classes do: Transformers then copies code by itself, too
    loaded, before = cls.from_pretrained(folder), {file.name: file.read_bytes() for file in clone.iterdir()}
    for file in clone.iterdir():
        file.write_text("an edit that was made meanwhile")
    loaded.save_pretrained(folder)
    assert {file.read_text() for file in clone.iterdir()} == {"an edit that was made meanwhile"} and len(list(clone.iterdir())) == len(before)
    files = [file for file in folder.glob("*.py") if not file.is_symlink()]
    assert files and all(file.read_bytes() == before[file.name] for file in files) and not list(folder.glob("*.part"))


def test_a_materialized_whispers_code_takes_the_place_of_a_link(tmp_path):
    (tmp_path / "source.py").write_text("somebody's")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/whisper_master_asr.py").symlink_to("../source.py")
    plain = tiny_model("whisper").materialize("fr")
    type(plain).register_for_auto_class("AutoModel")  # Transformers then copies code by itself, too
    plain.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "source.py").read_text() == "somebody's" and not (tmp_path / "plain/whisper_master_asr.py").is_symlink()


def test_a_checkpoint_whose_links_lead_nowhere_has_its_code_again_when_it_is_saved(tmp_path):
    clone, folder = linked(tmp_path)
    shutil.rmtree(clone)
    MasterASRForCTC.from_pretrained(folder).save_pretrained(folder)
    code = {path.name: path.read_bytes() for path in (ROOT / "modeling_master_asr").glob("*_master_asr.py")}
    assert {path.name: path.read_bytes() for path in folder.glob("*.py")} == code
    for path in folder.glob("*.py"):
        path.unlink()
        path.symlink_to(ROOT / "modeling_master_asr" / path.name)
    MasterASRForCTC.from_pretrained(folder).save_pretrained(folder)
    assert all(path.is_symlink() for path in folder.glob("*.py"))  # to the very code that would be copied


ROOMS = {  # who may import whom
    "files": set(),
    "configuration": {"files"},
    "artisan": set(),
    "masks": {"artisan"},
    "weights": {"artisan", "assembly", "masks"},
    "whisper": set(),  # a materialized Whisper ships it alone
    "backbone": {"whisper"},
    "construction": {"artisan", "backbone", "configuration", "files"},
    "packing": set(),
    "assembly": {"configuration", "artisan", "files", "packing"},
    "upload": {"files"},
    "base": {"configuration", "files", "masks", "upload"},
    "languages": {"artisan", "assembly", "backbone", "configuration", "ngrams", "text"},
    "ngrams": {"configuration", "text"},
    "cards": {"assembly", "configuration", "files"},
    "hub": {"assembly", "base", "cards", "files", "processing", "upload"},
    "modeling": {"artisan", "assembly", "backbone", "base", "configuration", "construction", "hub", "languages", "masks", "weights", "whisper", "wrapping"},
    "wrapping": {"artisan", "assembly"},
    "audio": set(),
    "signs": set(),
    "text": {"configuration", "signs"},
    "processing": {"audio", "backbone", "configuration", "files", "text", "upload"},
    "pipeline": {"audio", "processing", "configuration"},
}
OUTSIDE = {"torch", "numpy", "transformers", "safetensors", "huggingface_hub"}
OPTIONAL = {"soundfile", "soxr", "av"}


def imports_of(path: Path):
    """(module, is_optional) of every import; optional: in a `try:` or under `if TYPE_CHECKING:`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {n for g in ast.walk(tree) if isinstance(g, (ast.Try, ast.If)) for n in ast.walk(g)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node in guarded


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_imports_only_what_it_may(room):
    for module, guarded in imports_of(ROOT / f"modeling_master_asr/{room}_master_asr.py"):
        if module.startswith("."):
            other = module.lstrip(".").removesuffix("_master_asr")
            assert other in ROOMS[room] or guarded, f"{room} imports {module}"
        else:
            name = module.split(".")[0]
            allowed = name in sys.stdlib_module_names or name in OUTSIDE or (guarded and name in OPTIONAL)
            assert allowed, f"{room} imports {module}"


def test_the_library_never_imports_the_scripts():
    for path in (ROOT / "modeling_master_asr").glob("*.py"):
        assert not any(module.split(".")[0] in ("training", "benchmarks", "tests") for module, _ in imports_of(path))


def test_only_the_peft_room_and_its_benchmark_need_peft():
    for folder in ("modeling_master_asr", "training", "training/loop", "demo"):
        for path in (ROOT / folder).glob("*.py"):
            names = {module.split(".")[0] for module, _ in imports_of(path)} | {m.lstrip(".") for m, _ in imports_of(path) if m[:1] == "."}
            assert path.name == "peft_assembly.py" or not names & {"peft", "peft_assembly"}, path


def test_the_shipped_checkpoint_links_to_todays_code():
    """A copy would answer with an old release's bugs, and be tracked twice."""
    shipped = ROOT / "checkpoints" / "master-asr-whisper-base"
    code = {p.name for p in (ROOT / "modeling_master_asr").glob("*_master_asr.py")}
    assert {p.name for p in shipped.glob("*.py")} == code
    assert all((shipped / name).resolve() == ROOT / "modeling_master_asr" / name for name in code)


@torch.no_grad()
def test_the_shipped_checkpoint_reads_a_real_recording_in_six_languages():
    from modeling_master_asr.trainer_utils import error_rates
    from training.loop.sources import read_manifest
    from training.transcribe import load

    asr = load(str(ROOT / "checkpoints" / "master-asr-whisper-base"), [])
    clips = [c for c in read_manifest(ROOT / "demo/manifest.jsonl") if c.language != "es"]
    assert {c.language for c in clips} == set(asr.model.languages)
    heard = [asr(str(clip.audio), language=clip.language)["text"] for clip in clips]
    assert error_rates(heard, [clip.text for clip in clips])["cer"] < 35
    wrong = [asr(str(clip.audio), language="cs" if clip.language == "ru" else "ru")["text"] for clip in clips]
    assert error_rates(wrong, [clip.text for clip in clips])["cer"] > 60


def test_a_config_that_is_saved_alone_has_the_code_that_it_names(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=True).languages == model.config.languages
    assert {path.name for path in tmp_path.glob("*.py")} == {path.name for path in Path("modeling_master_asr").glob("*_master_asr.py")}
    assert model.config.hidden_size == model.config.backbone_config.hidden_size
