"""A setting reaches what it is named after: each is given a value that nothing else has, and is looked for where it acts."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from test_runs import base, run_stage_2  # noqa: F401  the fixture
from test_training import corpus, run_stage_1  # noqa: F401  the fixture

from demo import run as demo
from demo.run import DemoConfig
from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.artisan_master_asr import ArtisanLinear
from training import adapt_language, train_multilingual
from training.loop import splits, steps, watching
from training.loop.data import Features
from training.loop.sources import read_manifest
from training.loop.watching import mapping_figures


@pytest.fixture
def seen(monkeypatch):
    """`{what was called: its arguments by name}`, of the last call."""
    calls: dict[str, dict] = {}

    def spy(module, name, **instead):
        plain = getattr(module, name)

        def spied(*args, **kwargs):
            bound = inspect.signature(plain).bind(*args, **kwargs)
            bound.apply_defaults()
            calls[name] = dict(bound.arguments)
            bound.arguments.update(instead)
            return plain(*bound.args, **bound.kwargs)

        monkeypatch.setattr(module, name, spied)

    for module in (train_multilingual, adapt_language):
        spy(module, "Turns")
    spy(steps, "bucket_of_step"), spy(splits, "select"), spy(steps, "Collator", vtlp=0.0)  # which raw audio refuses
    return calls


LOOP = ("--spec_masks", "2", "--vtlp", "0.25", "--temperature", "1.5", "--seed", "7", "--beta2", "0.97", "--batch_s", "2.5")


def check_loop(seen, batches) -> None:
    assert {name: seen["bucket_of_step"][name] for name in ("batch_s", "seed", "temperature")} == {"batch_s": 2.5, "seed": 7, "temperature": 1.5}
    assert {name: seen["Collator"][name] for name in ("seed", "spec_masks", "vtlp")} == {"seed": 7, "spec_masks": 2, "vtlp": 0.25}
    assert seen["Collator"]["full_augment_step"] == batches // 4
    assert seen["select"]["seed"] == 7 and seen["Turns"]["beta2"] == 0.97


def test_the_settings_of_stage_1_reach_what_they_are_named_after(corpus, tmp_path, seen, monkeypatch):  # noqa: F811
    noises, reset = [], ArtisanLinear.reset_specialists
    monkeypatch.setattr(ArtisanLinear, "reset_specialists", lambda layer, **kwargs: (noises.append(kwargs), reset(layer, **kwargs)))
    model = run_stage_1(
        corpus, tmp_path, *LOOP, "--alpha", "3", "--beta", "4", "--gamma", "5", "--learning_rate", "1e-4", "--head_learning_rate", "3e-4",
        "--mapping_learning_rate", "4e-4", "--norms_learning_rate", "5e-4", "--specialist_noise", "0.375", "--gradient_accumulation", "2",
    )  # fmt: skip
    check_loop(seen, batches=16)
    turns = seen["Turns"]
    assert {name: turns[name] for name in ("alpha", "beta", "gamma", "num_steps")} == {"alpha": 3, "beta": 4, "gamma": 5, "num_steps": 8}
    assert {name: turns["learning_rates"][name] for name in ("W", "M", "head", "T", "norms")} == {"W": 1e-4, "M": 1e-4, "head": 3e-4, "T": 4e-4, "norms": 5e-4}
    assert noises.count({"noise": 0.375}) == len(model.master_asr.artisan_layers)


def test_the_settings_of_stage_2_reach_what_they_are_named_after(corpus, base, tmp_path, seen):  # noqa: F811
    run_stage_2(
        corpus, base, tmp_path, *LOOP, "--alpha", "3", "--beta", "4", "--mapping_gradient", "accumulated", "--mapping_rest", "0.15", "--no_mapping_decay", "--preset", "best",
        "--head_learning_rate", "3e-4", "--mapping_learning_rate", "4e-4", "--norms_learning_rate", "5e-4", "--delta_learning_rate", "6e-4",
    )  # fmt: skip
    check_loop(seen, batches=4)
    turns = seen["Turns"]
    assert {name: turns[name] for name in ("alpha", "beta", "gamma", "num_steps", "mapping_gradient", "mapping_decay", "mapping_rest")} == {
        "alpha": 3, "beta": 4, "gamma": 0, "num_steps": 4, "mapping_gradient": "accumulated", "mapping_decay": False, "mapping_rest": 0.15,
    }  # fmt: skip
    assert {name: turns["learning_rates"][name] for name in ("head", "T", "norms", "delta")} == {"head": 3e-4, "T": 4e-4, "norms": 5e-4, "delta": 6e-4}


def test_teacher_language_and_finetuning_have_each_the_steps_and_rates_that_are_named_for_them(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    made, turns = [], adapt_language.Turns
    monkeypatch.setattr(adapt_language, "Turns", lambda model, alpha, beta, gamma, rates, num_steps, *args, **kwargs: (
        made.append((num_steps, rates)), turns(model, alpha, beta, gamma, rates, num_steps, *args, **kwargs))[1])  # fmt: skip
    run_stage_2(
        corpus, base, tmp_path, "--teacher_steps", "3", "--finetune_steps", "2", "--finetune_learning_rate", "1e-5",
        "--parts", "mapping", "head", "specialist", "scales", "--specialist_learning_rate", "2e-5", "--scales_learning_rate", "3e-5",
    )  # fmt: skip
    (teachers, teacher), (own, language), (after, finetuned) = made
    assert (teachers, own, after) == (3, 4, 2) and teacher == language and teacher["W"] == adapt_language.RATE_OF_TEACHER == 1e-4
    assert (language["specialist"], language["scales"]) == (2e-5, 3e-5) and set(finetuned.values()) == {1e-5}


def test_validation_while_a_language_trains_is_read_greedily(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    evaluate, greedy = watching.evaluate_clips, []
    monkeypatch.setattr(watching, "evaluate_clips", lambda *args, **kwargs: (greedy.append(kwargs.get("greedy")), evaluate(*args, **kwargs))[1])
    run_stage_2(corpus, base, tmp_path)
    assert greedy == [True, True]


def test_what_stage_2_tests_is_what_its_file_holds_in_few_bits(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    tested, measured = [], adapt_language.measured
    monkeypatch.setattr(adapt_language, "measured", lambda accelerator, model, *rest: (tested.append(model), measured(accelerator, model, *rest))[1])
    run_stage_2(corpus, base, tmp_path, "--preset", "best")
    held = type(tested[0]).from_pretrained(base, assemblies=[str(tmp_path / "assembly")])
    for name, value in tested[0].assemblies["es"].state_dict().items():
        assert torch.equal(value, held.assemblies["es"].state_dict()[name]), name
    result = json.loads((tmp_path / "run.json").read_text())
    assert 0 < 1024 * result["kilobytes"] < 2.1 * sum(result["parameters"].values())  # in 16 bits at most


def test_the_demos_languages_are_kept_in_few_bits_too(corpus, base, tmp_path):  # noqa: F811
    model, processor = MasterASRForCTC.from_pretrained(base), MasterASRProcessor.from_pretrained(base)
    config = replace(DemoConfig(out=tmp_path).stage_2("best"), steps=2, evaluate_every=2)
    result = demo.adapt(model, processor, Features(processor), read_manifest(corpus / "manifest.jsonl"), config, test_minutes=1.0)
    assert 0 < 1024 * result["kilobytes"] < 2.1 * sum(parameter.numel() for parameter in model.assemblies["es"].parameters())


def test_a_specialist_is_dead_where_no_language_selects_it():
    model = tiny_model()
    with torch.no_grad():
        for code, assembly in model.assemblies.items():
            assembly.mapping.fill_(-1.0)
            if code == "fr":
                assembly.mapping[:, 1] = 1.0
    layers, k = model.assemblies["fr"].mapping.shape
    figures = mapping_figures(model)
    # where a row selects none its largest entry stands in: the first here
    assert figures["dead_specialists"] == layers * (k - 2) and figures["specialists_in_use_a_layer"] == 2.0
    assert figures["share_of_open_gates"] == pytest.approx(1 / k) and figures["entropy_of_T_bits"] == pytest.approx(0.8398, abs=1e-3)
    with torch.no_grad():
        model.assemblies["fr"].mapping.fill_(40.0)
    assert mapping_figures(model, languages=["fr"])["entropy_of_T_bits"] == pytest.approx(0.0, abs=1e-6)  # and no NaN
