"""An adapter's file and config, by whoever: its own language's values, all of them and finite, or nothing of the model changes."""

import copy
import json

import pytest
import torch
from conftest import inputs_for
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_peft import ALL, ES, base, load  # noqa: F401

from modeling_master_asr.peft_assembly import AssemblyConfig


def train_a_little(model):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**inputs_for(model.get_base_model()), labels=torch.tensor([[3, 4], [5, 3]]), language="es").loss.backward()
    optimizer.step()


def add_names_of_the_base(state, model):
    state |= {f"base_model.model.{name}": torch.zeros_like(value) for name, value in model.state_dict().items() if name.endswith("layer_norm.weight")}


def add_another_language(state, model):
    state["base_model.model.master_asr.assemblies.lang_fr.mapping"] = torch.zeros_like(model.assemblies["fr"].mapping)


def change_head(change):
    def changed(state, model):
        name = next(name for name in state if name.endswith("head.weight"))
        state[name] = change(state[name])

    return changed


def drop_head(state, model):
    del state[next(name for name in state if name.endswith("head.weight"))]


SPOILED = [
    (add_names_of_the_base, "layer_norm.weight: .*, not wanted"),
    (add_another_language, r"lang_fr.mapping: .*, not wanted"),
    (drop_head, "head.weight: missing, not"),
    (change_head(lambda value: value[:-1].clone()), r"head.weight: \(5, \d+\), not \(6, "),
    (change_head(lambda value: value * float("nan")), r"NaN, infinite or of no type that belongs there in \[.*head.weight"),
    (change_head(lambda value: value * float("inf")), r"NaN, infinite or of no type that belongs there in \[.*head.weight"),
    (change_head(lambda value: value.to(torch.int8)), r"NaN, infinite or of no type that belongs there in \[.*head.weight"),
]


def written(base, folder, spoil=None, code="es", **config):  # noqa: F811
    """An adapter's folder, its file and config spoiled."""
    model = load(base)
    get_peft_model(model, AssemblyConfig(language=code, vocab=ES, parts=ALL, rank=2)).save_pretrained(folder)
    state = load_file(folder / "adapter_model.safetensors")
    if spoil is not None:
        spoil(state, load(base))
        save_file(state, folder / "adapter_model.safetensors")
    said = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def all_of(model):
    """What a refusal leaves as it was: values, what trains, languages, config, hooks."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return values, (trains, model.languages, copy.deepcopy(model.config.to_dict()), len(model._forward_pre_hooks), getattr(model, "_hf_peft_config_loaded", False), hasattr(model, "peft_config"))


def assert_as_before(model, before):
    now = all_of(model)
    assert now[1] == before[1] and now[0].keys() == before[0].keys()
    assert all(torch.equal(value, before[0][name]) for name, value in now[0].items())


WAYS = [
    lambda model, folder: PeftModel.from_pretrained(model, folder),
    lambda model, folder: PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True, is_trainable=True),
    lambda model, folder: model.load_adapter(str(folder)),  # Transformers' own
]


@pytest.mark.parametrize("way", WAYS, ids=["peft", "peft without values first", "transformers"])
@pytest.mark.parametrize(("spoil", "words"), SPOILED)
def test_a_file_that_is_not_its_own_language_whole_and_finite_is_refused_and_the_model_stays_as_it_was(base, tmp_path, way, spoil, words):  # noqa: F811
    model = load(base)
    model.set_language("fr")
    before = all_of(model)
    with pytest.raises(ValueError, match=words):
        way(model, written(base, tmp_path / "bad", spoil))
    assert_as_before(model, before)
    way(model, written(base, tmp_path / "good"))  # nothing of the refused one is in the way
    assert "es" in model.languages


@pytest.mark.parametrize("way", WAYS, ids=["peft", "peft without values first", "transformers"])
@pytest.mark.parametrize("targets", [["character_bank", "layer_norm"], ["assemblies", "layer_norm"], "all-linear", ".*", "assemblies", 5])
def test_an_adapter_that_targets_anything_but_the_assemblies_is_refused_and_the_model_stays_as_it_was(base, tmp_path, way, targets):  # noqa: F811
    model = load(base)
    before = all_of(model)
    with pytest.raises(ValueError, match="target_modules: got .*Allowed: .*assemblies"):
        way(model, written(base, tmp_path, target_modules=targets))
    assert_as_before(model, before)


def test_a_target_that_a_config_is_given_after_it_was_made_is_refused_as_well(base):  # noqa: F811
    model, config = load(base), AssemblyConfig(language="es", vocab=ES)
    config.target_modules = {"assemblies", "layer_norm"}
    before = all_of(model)
    with pytest.raises(ValueError, match="target_modules: got .*Allowed: .*assemblies"):
        get_peft_model(model, config)
    assert_as_before(model, before)
    for targets in (None, ["assemblies"], {"assemblies"}):
        get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, target_modules=targets))


@torch.no_grad()
@pytest.mark.parametrize("code", ["de", "es"])
def test_a_refused_file_beside_other_adapters_leaves_them_and_the_active_one(base, tmp_path, code):  # noqa: F811
    model = PeftModel.from_pretrained(load(base), written(base, tmp_path / "good"), adapter_name="one", is_trainable=True).eval()
    inputs, expected, before = inputs_for(model.get_base_model()), model(**inputs_for(model.get_base_model())).logits, all_of(model.get_base_model())
    bad = written(base, tmp_path / "bad", drop_head, code=code)
    with pytest.raises(ValueError, match="head.weight: missing"):
        model.load_adapter(bad, adapter_name="two")
    assert list(model.peft_config) == ["one"] and model.active_adapters == ["one"]
    assert_as_before(model.get_base_model(), before)
    assert torch.equal(model(**inputs).logits, expected)
    assert model.load_adapter(written(base, tmp_path / "good_too", code=code), adapter_name="two").missing_keys == []


def test_training_that_is_resumed_from_a_spoiled_file_keeps_the_adapter_it_has(base, tmp_path):  # noqa: F811
    bad, good = written(base, tmp_path / "bad", change_head(lambda value: value * float("nan"))), written(base, tmp_path / "good")
    for config in (AssemblyConfig(language="es", vocab=ES, parts=ALL, rank=2), AssemblyConfig.from_pretrained(good)):
        config.inference_mode = False
        model = get_peft_model(load(base), config)
        train_a_little(model)
        before = all_of(model.get_base_model())
        with pytest.raises(ValueError, match="NaN"):
            model.load_adapter(bad, "default", is_trainable=True)
        assert_as_before(model.get_base_model(), before)
        model.load_adapter(good, "default", is_trainable=True)
        head = model.get_base_model().assemblies["es"].head.weight
        assert torch.equal(head, load_file(good / "adapter_model.safetensors")["base_model.model.master_asr.assemblies.assembly_adapter.head.weight"])


@torch.no_grad()
def test_a_lora_beside_a_language_loads_as_ever(base, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    other = load(base)
    other.add_adapter(LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False), "lora")
    other.save_pretrained(tmp_path / "lora")
    model = load(base)
    model.load_adapter(str(written(base, tmp_path / "good")), "language")
    model.load_adapter(str(tmp_path / "lora"), "lora")
    values = load_file(tmp_path / "lora/adapter_model.safetensors")
    loaded = {name.replace(".lora.", "."): value for name, value in model.state_dict().items() if "lora_" in name}
    assert len(values) == len(loaded) and all(torch.equal(value, loaded[name.removeprefix("base_model.model.")]) for name, value in values.items())


@torch.no_grad()
@pytest.mark.parametrize(
    ("way", "error", "words"),
    [(WAYS[0], ValueError, "The adapter 'default' of 'es' .* would read by chance"), (WAYS[2], KeyError, "No assembly for language 'es'")],
    ids=["peft", "transformers"],
)
@pytest.mark.parametrize("loss", ["missing", "cut"])
def test_nobody_is_read_with_an_adapter_whose_file_was_missing_or_cut(base, tmp_path, way, error, words, loss):  # noqa: F811
    """A server that goes on behind an adapter that could not be loaded answers with an error, not by chance."""
    model, folder = load(base), written(base, tmp_path / "bad")
    file, content = folder / "adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes()
    file.unlink()
    if loss == "cut":
        file.write_bytes(content[:-10])
    inputs = inputs_for(model)
    expected = model(**inputs, language="fr").logits
    with pytest.raises((OSError, ValueError, SafetensorError)):
        way(model, folder)
    with pytest.raises(error, match=words):
        model(**inputs, language="es")
    assert torch.equal(model(**inputs, language="fr").logits, expected)


def test_an_adapter_that_is_made_anew_from_a_files_config_trains_and_is_read_without_its_values(base, tmp_path):  # noqa: F811
    config = AssemblyConfig.from_pretrained(written(base, tmp_path / "good"))
    config.inference_mode = False
    model = get_peft_model(load(base), config)
    model.eval()(**inputs_for(model.get_base_model()), language="es")
    train_a_little(model)
    model.requires_grad_(False)
    copy.deepcopy(model)(**inputs_for(model.get_base_model()), language="es")


@torch.no_grad()
def test_once_its_values_have_come_an_adapter_is_read_without_being_asked(base, tmp_path):  # noqa: F811
    good = written(base, tmp_path / "good")
    for way in WAYS:
        model = load(base)
        way(model, good)
        assert not model.assemblies["es"].head._forward_pre_hooks
        model(**inputs_for(model), language="es")
