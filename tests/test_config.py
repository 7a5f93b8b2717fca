"""A run is what its settings say: one config a stage, checked by name before anything is read."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model, vocab

from demo.run import DemoConfig
from modeling_master_asr import MasterASRConfig, MasterASRForCTC, MasterASRPipeline
from training import adapt_language, prepare_speech, train_multilingual
from training.adapt_language import AdaptConfig
from training.loop.config import MAY_CHANGE, LoopConfig, as_record, differences, parse
from training.train_multilingual import MultilingualConfig

STAGE_1 = ["--out", "runs/x", "--data", "nowhere.jsonl"]
STAGE_2 = [*STAGE_1, "--model", "nowhere", "--language", "es"]


@pytest.mark.parametrize("script, option, value, allowed", [
    (train_multilingual, "--head_learning_rate", "nan", "a number above 0"),
    (train_multilingual, "--learning_rate", "-0.001", "a number above 0"),
    (train_multilingual, "--minutes_per_language", "0.0", "a number above 0"),
    (train_multilingual, "--sparsity", "1.0", "a number at least 0 and below 1"),
    (train_multilingual, "--beta", "0", "a whole number at least 1"),
    (train_multilingual, "--gamma", "-1", "a whole number at least 0"),
    (train_multilingual, "--steps", "0", "a whole number at least 1"),
    (train_multilingual, "--beta2", "1.0", "a number at least 0 and below 1"),
    (train_multilingual, "--num_layers", "0", "a whole number at least 1"),
    (train_multilingual, "--max_s", "0.1", None),
    (adapt_language, "--minutes", "0.0", "a number above 0"),
    (adapt_language, "--alpha", "inf", "a number above 0"),
    (adapt_language, "--batch_s", "-24.5", "a number above 0"),
    (adapt_language, "--rank", "0", "a whole number at least 1"),
    (adapt_language, "--patience", "-1", "a whole number at least 0"),
    (adapt_language, "--max_minutes", "0.0", "a number above 0"),
    (adapt_language, "--finetune_learning_rate", "nan", "a number above 0"),
])  # fmt: skip
def test_a_setting_that_means_nothing_is_refused_by_name_before_data_is_read(script, option, value, allowed, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([*(STAGE_1 if script is train_multilingual else STAGE_2), option, value])
    assert stopped.value.code == 2
    words = capsys.readouterr().err.splitlines()[-1]
    if allowed is None:  # it depends on another
        assert words.endswith("--min_s: got 0.2; allowed: at most --max_s, which is 0.1.")
    else:
        assert words.endswith(f"{option}: got {value}; allowed: {allowed}.")


@pytest.mark.parametrize("changes, message", [
    ({"parts": ["mapping"]}, r"--parts: got \['mapping'\]; allowed: \['mapping', 'head'\] and any of \['specialist', 'delta', 'scales', 'norms'\]"),
    ({"parts": ["mapping", "head", "tail"]}, r"--parts: got .*'tail'.*; allowed: some of"),
    ({"parts": ["mapping", "head", "head"]}, "--parts: got .*; allowed: one or more, none of them twice"),
    ({"steps": 2.5}, "--steps: got 2.5; allowed: a whole number at least 1"),
    ({"steps": "3"}, "--steps: got '3'; allowed: a whole number"),
    ({"mixed_precision": "fp8"}, r"--mixed_precision: got 'fp8'; allowed: one of \['no', 'bf16'\]"),
    ({"out": "runs"}, "--out: got 'runs'; allowed: a Path"),
    ({"data": []}, r"--data: got \[\]; allowed: one or more"),
    ({"language": ""}, "--language: got ''; allowed: a str"),
    ({"language": "X X"}, "--language: got 'X X'; allowed: letters, digits, _ and -, such as 'en' or 'pa-IN'"),
    ({"language": "-x"}, "--language: got '-x'; allowed: letters, digits, _ and -"),
])  # fmt: skip
def test_a_config_built_in_python_is_checked_as_a_command_line_is(changes, message):
    settings = {"out": Path("runs"), "data": ["m.jsonl"], "model": "m", "language": "es", **changes}
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**settings)


def test_a_command_line_gives_the_config_that_python_gives():
    options = ["--parts", "mapping", "head", "--data", "a", "sr=b", "--out", "runs/es", "--model", "m", "--language", "es", "--resume", "--shard"]
    same = AdaptConfig(parts=["mapping", "head"], data=["a", "sr=b"], out=Path("runs/es"), model="m", language="es", resume="newest", shard=True)
    assert parse(AdaptConfig, "", options) == same
    assert parse(AdaptConfig, "", [*options, "--resume", "checkpoint-00000300"]).resume == "checkpoint-00000300"
    assert parse(MultilingualConfig, "", STAGE_1) == MultilingualConfig(out=Path("runs/x"), data=["nowhere.jsonl"])
    assert parse(DemoConfig, "", []) == DemoConfig()


@pytest.mark.parametrize("kind", [LoopConfig, MultilingualConfig, AdaptConfig])
def test_every_setting_but_those_named_is_compared_and_survives_json(kind):
    required = {"out": Path("runs"), "data": ["m.jsonl"], "model": "m", "language": "es", "steps": 3, "evaluate_every": 2}
    names = {field.name for field in dataclasses.fields(kind)}
    record = as_record(kind(**{name: value for name, value in required.items() if name in names}))
    assert set(record) == names and set(MAY_CHANGE) <= names
    before = {"config": json.loads(json.dumps(record))}
    assert differences(before, {"config": record}) == []
    for name, value in record.items():
        expected = [] if name in MAY_CHANGE else [f"{name}: {value!r} then, 'other' now"]
        assert differences(before, {"config": {**record, name: "other"}}) == expected
    assert differences({"config": {**record, "gone": 0.0}}, {"config": record}) == ["gone: 0.0 then, 'not there' now"]  # a setting that there was once


def test_the_commands_that_lead_to_stage_1_are_of_a_size_for_a_laptop_and_set_what_the_shipped_model_has_too():
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    printed = prepare_speech.next_command(Path("data/manifest.jsonl"), [*reversed(prepare_speech.LANGUAGES)])
    commands = [printed, *(re.search("accelerate launch .*--out runs/stage1 .*", text.replace("\\\n", " "))[0] for text in (train_multilingual.__doc__, page))]
    script = ["accelerate", "launch", "training/train_multilingual.py"]
    assert all(shlex.split(command, comments=True)[:3] == script for command in commands)
    next_one, example, shipped = (parse(MultilingualConfig, "", shlex.split(command, comments=True)[3:]) for command in commands)
    assert next_one == example and "es" not in example.languages and (example.backbone, example.steps) == ("openai/whisper-base", 3000)
    changed = [field.name for field in dataclasses.fields(example) if getattr(example, field.name) != field.default]
    assert all(getattr(example, name) == getattr(shipped, name) for name in changed)
    alone = parse(MultilingualConfig, "", shlex.split(prepare_speech.next_command(Path("m.jsonl"), ["it", "es"]))[3:])
    assert alone == dataclasses.replace(example, data=["m.jsonl"], languages=["it", "es"])  # the manifest has no others


def test_help_shows_every_setting_with_its_default(capsys):
    for script, kind in ((train_multilingual, MultilingualConfig), (adapt_language, AdaptConfig)):
        with pytest.raises(SystemExit):
            script.main(["--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for field in dataclasses.fields(kind):
            assert f"--{field.name} " in shown and field.metadata["help"]
        assert script.__doc__.splitlines()[0] in shown and f"(default: {kind.beta2})" in shown


@pytest.mark.parametrize("settings, rate", [
    ({"preset": "small"}, 3e-3), ({"preset": "best"}, 2e-3), ({"preset": "best", "rank": 1}, 3e-3), ({"preset": "small", "rank": 2}, 2e-3),
    ({"preset": "small", "delta_learning_rate": 5e-4}, 5e-4),
])  # fmt: skip
def test_a_delta_of_rank_1_moves_faster_than_others_unless_told_otherwise(settings, rate):
    config = AdaptConfig(model="m", data=["d"], language="es", out=Path("o"), **settings)
    assert adapt_language.learning_rates(config)["delta"] == rate


@pytest.mark.parametrize("options, words", [
    ({"preset": "paper", "rank": 4}, "--rank: got 4; allowed: none beside the parts .'mapping', 'head'., since it is of specialist and delta"),
    ({"parts": ["mapping", "head", "specialist"], "targets": "all"}, "--targets: got 'all'; allowed: none beside the parts .*, since it is of delta"),
])  # fmt: skip
def test_a_setting_of_a_part_that_no_language_owns_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AdaptConfig(model="m", data=["d"], language="es", out=Path("o"), **options)


def test_a_default_that_is_not_loaded_is_refused_where_it_is_set_or_saved(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="default_language is 'xx'; one of .'en', 'fr', 'ru'. is wanted, or None"):
        MasterASRForCTC.from_pretrained(tmp_path / "m", default_language="xx")
    model.config.default_language = "xx"
    with pytest.raises(ValueError, match="default_language is 'xx'"):
        model.save_pretrained(tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_a_language_that_is_removed_fails_no_request_in_another(monkeypatch):
    """Whoever reads what all languages have looks once, not for their names and then for each."""
    asr, look_up, codes = MasterASRPipeline(tiny_model()), MasterASRConfig.vocab, ["en", "fr", "en"]
    clips = np.random.default_rng(0).standard_normal((3, 8000)).astype(np.float32)
    batch, expected = asr._processor(audio=list(clips), sampling_rate=16_000), asr(list(clips), language=codes, batch_size=3)

    def gone(config, code):
        found = look_up(config, code)
        if "ru" in asr.model.languages:
            asr.model.remove_language("ru")
        return found

    monkeypatch.setattr(MasterASRConfig, "vocab", gone)
    assert asr.model(**batch, language=codes).logits.shape[-1] == len(vocab("abcde"))
    if "ru" not in asr.model.languages:
        asr.model.add_language("ru", vocab("абв"))
    asr._kept_processor = None  # the alphabets are read again
    assert asr(list(clips), language=codes, batch_size=3) == expected and asr.model.languages == ["en", "fr"]
