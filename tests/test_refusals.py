"""What a script refuses it says in words alone: what was received, what is allowed and what to do next."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_model, vocab
from test_training import corpus, run_stage_1  # noqa: F401  the fixture

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from training import adapt_language, evaluate, export_onnx, model_card, push_to_hub, train_multilingual
from training.adapt_language import further_sentences
from training.evaluate import languages_there, text_of
from training.loop import steps
from training.loop.data import select
from training.loop.launch import run

ROOT = Path(__file__).parent.parent


def words_of(main, options: list) -> str:
    """What a script says that is started with these options, and refuses them."""
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([*map(str, options)]))
    assert isinstance(ended.value.code, str)  # which Python prints, and exits with 1
    return ended.value.code

# ---- further sentences


def of_adapt(path: Path) -> list[str]:
    return further_sentences(SimpleNamespace(more_text=path))


def of_evaluate(path: Path) -> list[str]:
    return text_of(f"xx={path}")[1]


@pytest.mark.parametrize("read", [of_adapt, of_evaluate])
def test_further_sentences_may_be_any_utf_that_says_so_and_are_never_guessed(tmp_path, read):
    path = tmp_path / "more.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("marque žluť\r\nb\n".encode(encoding))
        assert read(path) == ["marque žluť", "b"]
    path.write_bytes("a\nmarque\n".encode("utf-16-le"))  # of ASCII letters: valid UTF-8, with a NUL behind each
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=r"more.txt, line 1 holds a NUL character: UTF-16 without its byte order mark\?.*allowed: .*a UTF-8 text file"):
        read(path)
    path.write_bytes("a\naño\n".encode("latin-1"))
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=r"more.txt, line 2 is not UTF-8 \(byte 0xf1\).*allowed: .*a UTF-8 text file"):
        read(path)


# ---- clips


def test_where_no_clip_is_left_the_lines_above_are_pointed_to_and_no_code_is_blamed():
    said = "^No clip of the data can be used; the lines above say why.$"
    with pytest.raises(ValueError, match=said):
        select([], "validation", ["xx"])
    with pytest.raises(SystemExit, match=said):
        languages_there([], "test", SimpleNamespace(languages=["en"]))


# ---- scripts

ROW = {"audio": "a.wav", "language": "xx", "text": "ab"}
DATA = {
    "broken.jsonl": '{"audio": "a.wav"', "nameless.jsonl": json.dumps({**ROW, "language": None}), "m.json": "[]", "m.xlsx": "PK", "good.jsonl": json.dumps(ROW),
    "more.txt": "a\0b",
}  # fmt: skip


@pytest.mark.parametrize("changes, said", [
    ({"--data": "broken.jsonl"}, "broken.jsonl, line 1 is broken"), ({"--data": "nameless.jsonl"}, "line 1 names no language. Give it for the whole source"),
    ({"--data": "m.json"}, "m.json is no manifest"), ({"--data": "m.xlsx"}, "m.xlsx is no manifest"), ({"--data": "nowhere.jsonl"}, "No data at nowhere.jsonl"),
    ({"--data": "good.jsonl"}, "No clip of the data can be used"), ({"--language": "fr"}, "--language: got 'fr'; allowed: one that"), ({"--model": "./nowhere"}, "No folder at ./nowhere"),
    ({"--more_text": "more.txt"}, "--more_text: got more.txt, which cannot be read"), ({"--more_text": "nowhere.txt"}, "--more_text: got nowhere.txt, which cannot be read"),
    ({"--out": "more.txt"}, "--out: got more.txt, which is a file or lies below one; allowed: a folder of this run alone. Name another."),
    ({"--out": "more.txt/run"}, "--out: got more.txt/run, which is a file or lies below one"), ({"--resume": "checkpoint-00000007"}, "No checkpoint-00000007 in run to resume from"),
])  # fmt: skip
def test_what_stage_2_is_given_and_cannot_use_ends_it_with_words_alone(saved, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    for name, content in DATA.items():
        Path(name).write_text(content)
    options = {"--model": saved, "--data": "good.jsonl", "--language": "xx", "--out": "run", **changes}
    assert said in words_of(adapt_language.main, [word for pair in options.items() for word in pair])


def test_a_run_that_goes_on_with_other_settings_ends_with_words_alone_and_an_error_of_its_steps_stays_one(corpus, tmp_path, monkeypatch):  # noqa: F811
    run_stage_1(corpus, tmp_path)
    with pytest.raises(SystemExit, match="made from other data or settings .beta2: 0.999 then, 0.9 now."):
        run(lambda: run_stage_1(corpus, tmp_path, "--resume", "--beta2", "0.9"))
    assert "No data at nowhere" in words_of(train_multilingual.main, ["--data", "nowhere", "--out", tmp_path / "other"])
    monkeypatch.setattr(steps.Run, "one_step", lambda *_: json.loads("not the data's fault"))
    with pytest.raises(ValueError, match="Expecting value"):  # where it was is what there is to know of it
        run(lambda: run_stage_1(corpus, tmp_path / "failing"))


@pytest.mark.parametrize("start", [["-m", "training.adapt_language"], ["training/adapt_language.py"]], ids=["as a module", "by its path"])
def test_a_script_that_is_refused_prints_its_words_and_exits_with_1_however_it_is_started(start, tmp_path):
    options = ["--model", "./nowhere", "--data", "nowhere", "--language", "xx", "--out", tmp_path / "run"]
    ended = subprocess.run([sys.executable, *start, *map(str, options)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and ended.stderr.splitlines()[-1].startswith("No folder at ./nowhere"), ended.stderr


def test_an_evaluation_of_a_split_without_clips_ends_with_words_alone(corpus, saved, tmp_path):  # noqa: F811
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    manifest = corpus / "untested.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows if row["split"] != "test"))
    options = ["--model", saved, "--data", manifest, "--out", tmp_path / "result.json"]
    assert "test clips of [], the model has ['en', 'fr', 'ru']" in words_of(evaluate.main, options)
    assert "The data has no test clips of 'en'; its 8 clips are all in train and validation" in words_of(evaluate.main, [*options, "--languages", "en"])
    assert "No data at nowhere" in words_of(evaluate.main, [*options, "--data", "nowhere"])


@pytest.mark.parametrize("options, said", [
    (["--repo", "me/x", "--assembly", "fr"], "the folder 'model', which nobody else can find"), (["--repo", "me/x", "--assembly", "model"], "holds no assembly_config.json"),
    (["--repo", "a b/c d"], "Repo id must"), (["--repo", "me/x", "--assembly", "fr", "--language", "xx"], "fr has no language 'xx'. It holds ['fr']"),
])  # fmt: skip
def test_a_push_that_cannot_be_ends_with_words_alone(hub, tmp_path, monkeypatch, options, said):
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    model.save_pretrained("model")
    MasterASRProcessor.from_model(model).save_pretrained("model")
    model.save_assembly("fr", "fr")
    assert said in words_of(push_to_hub.main, ["--model", "model", *options])


def test_what_would_take_something_from_a_language_is_refused_before_anything_is_read(saved, tmp_path):
    model = MasterASRForCTC.from_pretrained(saved)
    model.add_language("xx", vocab("ab"), preset="best")
    model.save_pretrained(tmp_path / "model")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "model")
    said = words_of(adapt_language.main, ["--model", tmp_path / "model", "--data", "nowhere", "--language", "xx", "--refine", "--preset", "small", "--out", tmp_path / "run"])
    assert said.startswith("--preset, --parts, --rank, --targets: 'xx' would lose something that it owns")


def refused(main, options: list, capsys) -> str:
    """What a script says of options that it refuses."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, options)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_an_evaluation_does_not_overwrite_its_data(corpus, saved, tmp_path, capsys):  # noqa: F811
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes((corpus / "manifest.jsonl").read_bytes())
    for given in (manifest, f"en={manifest}"):
        assert f"--out {manifest} is what --data names, and would be lost" in refused(evaluate.main, ["--model", saved, "--data", given, "--out", manifest], capsys)
    assert manifest.read_bytes() == (corpus / "manifest.jsonl").read_bytes()


def test_what_cannot_be_exported_or_described_is_refused_before_the_work(saved, tmp_path, capsys):
    assert f"--out {tmp_path} is a folder. Name a file" in refused(export_onnx.main, ["--model", saved, "--language", "fr", "--out", tmp_path], capsys)
    assert "--language: got 'zz'; allowed: one of ['en', 'fr', 'ru']" in refused(export_onnx.main, ["--model", saved, "--language", "zz", "--out", tmp_path / "x"], capsys)
    evaluation, facts = tmp_path / "e.json", tmp_path / "f.json"
    evaluation.write_text("{}"), facts.write_text("{}")
    options = ["--model", saved, "--evaluation", evaluation, "--facts", facts, "--out", tmp_path / "card"]
    assert "e.json lacks ['languages', 'macro', 'minutes', 'split']. It is to be what training.evaluate wrote." in refused(model_card.main, options, capsys)
    evaluation.write_text(json.dumps({"languages": {}, "macro": {}, "minutes": {}, "split": "test"}))
    assert "f.json lacks ['dataset', 'licences', 'license', 'limits', 'repo', 'title', 'training_data']" in refused(model_card.main, options, capsys)
    assert not (tmp_path / "card").exists()
