"""What is printed to be typed can be typed: next commands, whatever their folders are called, and the examples and options of `--help`."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import save_tiny_model, tiny_model, vocab
from test_runs import base, run_stage_2  # noqa: F401  the fixture
from test_training import corpus  # noqa: F401  the fixture

from demo import run as demo
from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from training import (
    adapt_language,
    compact_checkpoint,
    evaluate,
    export_onnx,
    model_card,
    prepare_speech,
    push_to_hub,
    train_multilingual,
    transcribe,
)
from training.adapt_language import AdaptConfig
from training.loop.models import resolve_model
from training.loop.sources import read_data
from training.train_multilingual import MultilingualConfig

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (adapt_language, compact_checkpoint, evaluate, export_onnx, model_card, prepare_speech, push_to_hub, train_multilingual, transcribe, demo)
NAMED = {"model": "my model", "data": ["x=a b.jsonl", "c'd"], "out": Path("my runs")}


def shown_by_help(script, capsys) -> str:
    with pytest.raises(SystemExit):
        script.main(["--help"])
    return capsys.readouterr().out


def after(command: list[str], option: str, count: int = 1) -> list[str]:
    start = command.index(option) + 1
    return command[start : start + count]


def test_the_commands_that_end_a_training_hold_names_with_spaces(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    adapt_language.report(AdaptConfig(language="xx", **NAMED), {"test": None, "with_text": {"test": None}})
    command = shlex.split(capsys.readouterr().out.partition("Next: ")[2])
    assert command[:3] == ["python", "-m", "training.transcribe"] and after(command, "--model") == ["my model"] and after(command, "--assembly") == ["my runs/assembly"]
    for had, new in ({"en": 1.0}, "es"), ({"es": 1.0}, "xx"):
        result = {"test": None, "with_text": {"test": None}, "minutes": had, "mapping": {}, "log": {"skipped": [], "broken_clips": {}}}
        train_multilingual.report(MultilingualConfig(out=NAMED["out"], data=NAMED["data"]), result)
        command = shlex.split(capsys.readouterr().out.partition("Next: ")[2])
        assert command[:3] == ["python", "-m", "training.adapt_language"] and command[-4:] == ["--language", new, "--out", f"runs/{new}"]
        assert after(command, "--model") == ["my runs/model"] and after(command, "--data", 2) == NAMED["data"]


def test_the_commands_of_refusals_hold_names_with_spaces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("my model"))
    with pytest.raises(ValueError, match="To measure it: ") as error:
        adapt_language.load(SimpleNamespace(device="cpu"), AdaptConfig(language="fr", **NAMED))
    command = shlex.split(re.search(r"To measure it: (.*?)\. A run of yours", str(error.value))[1])
    assert command[:3] == ["python", "-m", "training.evaluate"] and after(command, "--model") == ["my model"] and after(command, "--data", 2) == NAMED["data"]
    assert after(command, "--languages") == ["fr"] and after(command, "--out") == ["my runs.json"]
    soundfile.write("a.wav", [0.1] * 8000, 16_000)
    Path("a b.jsonl").write_text('{"audio": "a.wav", "text": "ab"}')
    with pytest.raises(ValueError, match=r"Give it for the whole source: --data 'xx=a b.jsonl'\."):
        read_data(["a b.jsonl"], tmp_path / "cache")
    Path("a whisper").mkdir()
    Path("a whisper/config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ValueError, match=r"python -m training.train_multilingual --backbone 'a whisper' \.\.\."):
        resolve_model("a whisper")


def test_the_commands_of_smaller_scripts_hold_names_with_spaces(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "my model")
    compact_checkpoint.main(["--model", str(model), "--out", str(tmp_path / "a small one")])
    assert after(shlex.split(capsys.readouterr().out.partition("Next: ")[2]), "--model") == [str(tmp_path / "a small one")]
    assert after(shlex.split(prepare_speech.next_command(Path("my data/m.jsonl"), ["it"])), "--data") == ["my data/m.jsonl"]


def test_an_assembly_takes_no_recording_for_another_and_several_can_be_named(tmp_path, capsys):
    options = ["--model", str(save_tiny_model(tmp_path / "model")), "--language", "fr"]
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.remove_language("fr")
    for code in ("es", "fr"):
        model.add_language(code, vocab("abñ"), init="random")
        model.save_assembly(code, tmp_path / code)
    soundfile.write(tmp_path / "a.wav", torch.randn(8000).numpy() * 0.1, 16_000)
    named = ["--assembly", str(tmp_path / "es"), "--assembly", str(tmp_path / "fr")]
    assert transcribe.main([*options, *named, str(tmp_path / "a.wav")]) == 0
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "language": "es", "text": "ab", "split": "test"}')
    rated = [*options[:2], "--data", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "rates.json")]
    for several in (named, ["--assembly", str(tmp_path / "es"), str(tmp_path / "fr")]):  # here no recordings follow
        capsys.readouterr()
        evaluate.main([*rated, *several])
        assert "es\tCER" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.__name__ for script in SCRIPTS])
def test_the_examples_of_a_help_can_be_copied(script, capsys):
    description = re.split("\n(?:positional arguments|options):", shown_by_help(script, capsys))[0]
    assert not re.search(r"\S {8,}[^\s#]", description), description  # a line end that was lost
    assert all(line.startswith(" " * 8) for line in re.findall(r"\\\n(.*)", description))


def test_the_card_of_a_documented_push_is_of_the_model_that_is_pushed():
    command = shlex.split(next(line for line in push_to_hub.__doc__.splitlines() if "--card" in line), comments=True)
    assert Path(*after(command, "--card")).parts[:2] == Path(*after(command, "--model")).parts[:2]


def test_a_help_says_of_a_switch_what_it_does(capsys):
    shown = " ".join(shown_by_help(adapt_language, capsys).split())
    decay = "whether T's rate falls like the others'; with --no_mapping_decay it is constant, as the paper's"
    assert shown.count(decay) == shown.count("turns --mapping_decay off") == 1
    assert "also every language with its own head and all else of every other's" in " ".join(shown_by_help(evaluate, capsys).split())
    assert "--language es \\ --out runs/try --steps 40" in shown


def test_every_stage_1_that_we_advertise_gives_m_its_turn_and_a_run_that_gives_none_says_so(capsys):
    texts = [train_multilingual.__doc__, (ROOT / "README.md").read_text(), prepare_speech.next_command(Path("m.jsonl"), ["en", "it"])]
    commands = [found for text in texts for found in re.findall(r"train_multilingual(?:\.py)? (?:[^\n]*\\\n)*[^\n]*--steps \d+[^\n]*(?:\\\n[^\n]*)*", text)]
    assert len(commands) >= 4
    for command in commands:
        steps, gamma = (int(re.search(f"--{name} ([0-9]+)", command)[1]) for name in ("steps", "gamma"))
        assert gamma < steps / 2, command
    for gamma, sparsity, warned in ((300, 0.3, True), (299, 0.3, False), (5000, 0.0, False)):
        train_multilingual.announce(tiny_model(), SimpleNamespace(gamma=gamma, steps=300, sparsity=sparsity), [], [])
        assert ("M never moves" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("text", ["none", "transcripts"])
def test_a_figure_that_was_read_greedily_says_so(corpus, base, tmp_path, text):  # noqa: F811
    run_stage_2(corpus, base, tmp_path, "--text", text)
    facts = json.loads((tmp_path / "assembly" / "assembly_config.json").read_text())["assemblies"]["es"]
    assert (facts["greedy"], "text" in facts) == ((True, False) if text == "none" else (False, True))


def test_transcribe_gives_each_word_its_begin_and_end():
    words = json.loads(transcribe.spoken("a.wav", {"text": "ab", "chunks": [{"text": "ab", "timestamp": (0.5, 1.25)}]}, "en"))
    assert words == {"file": "a.wav", "language": "en", "text": "ab", "words": [{"word": "ab", "start_s": 0.5, "end_s": 1.25}]}


def test_transcribe_cuts_what_is_longer_than_whisper_takes(tmp_path):
    model = tiny_model("whisper")
    model.save_pretrained(tmp_path)
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).standard_normal(31 * 16_000) * 0.1, 16_000)
    assert transcribe.main([str(tmp_path / "long.wav"), "--model", str(tmp_path), "--language", "en"]) == 0
