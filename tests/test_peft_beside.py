"""PEFT languages beside the base's own, beside each other and beside other methods: what one verb does, no other undoes."""

import copy

import pytest
import torch
from conftest import inputs_for, vocab
from peft import LoraConfig, PeftConfig, get_peft_model
from test_peft import ES, base, load  # noqa: F401

from modeling_master_asr.peft_assembly import AssemblyAdapters, AssemblyConfig, peft_from_assembly

FI = vocab("aäö")
LORA = {"target_modules": ["intermediate_dense"], "r": 2, "init_lora_weights": False}


def with_spanish(model, **config):
    return get_peft_model(model, AssemblyConfig(language="es", vocab=ES, **config)).eval()


def test_a_model_is_not_saved_under_an_adapters_names_not_even_if_it_has_no_language_of_its_own(base, tmp_path):  # noqa: F811
    model = load(base)
    for code in list(model.languages):
        model.remove_language(code)
    model.save_pretrained(base)
    with_spanish(model)
    with pytest.raises(ValueError, match=r"A PEFT adapter is on \(.*assembly_adapter.default"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def switch_off_and_on(adapted):
    with adapted.disable_adapter():
        pass


def fail_to_load(adapted, folder):
    with pytest.raises(ValueError, match="NaN"):
        adapted.load_adapter(folder, adapter_name="bad")


def test_the_default_that_is_named_beside_an_adapter_holds_until_an_adapter_is_chosen(base, tmp_path):  # noqa: F811
    spoiled = with_spanish(load(base))
    torch.nn.init.constant_(spoiled.get_base_model().assemblies["es"].head.bias, float("nan"))
    spoiled.save_pretrained(tmp_path / "bad")
    model = load(base)
    adapted = with_spanish(model)
    verbs = [
        switch_off_and_on, lambda p: p.add_adapter("fi", AssemblyConfig(language="fi", vocab=FI)), lambda p: p.delete_adapter("fi"),
        lambda p: fail_to_load(p, tmp_path / "bad"),
    ]  # fmt: skip
    for verb in verbs:
        model.set_language("fr")
        verb(adapted)
        assert model.config.default_language == "fr"
    adapted.set_adapter("default")
    assert model.config.default_language == "es"
    model.set_language(None)
    switch_off_and_on(adapted)
    assert model.config.default_language is None


def test_no_language_that_is_gone_is_the_default_nor_once_its_code_comes_back(base):  # noqa: F811
    model = load(base)
    model.set_language("en")
    adapted = with_spanish(model)
    model.remove_language("en")
    with adapted.disable_adapter():
        assert model.config.default_language is None
    model.add_language("en", vocab("xyz"), preset="paper")
    assert adapted.unload().config.default_language is None
    model = load(base)
    adapted = with_spanish(model)
    model.set_language("es")
    adapted.delete_adapter("default")
    assert model.config.default_language is None


def test_chance_is_neither_saved_nor_baked_in_nor_read_in_a_copy(base, tmp_path):  # noqa: F811
    with_spanish(load(base)).save_pretrained(tmp_path / "es")
    model = load(base)
    with_no_values = get_peft_model(model, PeftConfig.from_pretrained(tmp_path / "es")).eval()  # the file's config, not its values
    model.load_state_dict(model.state_dict())
    twin = copy.deepcopy(with_no_values).get_base_model()
    for act in (
        lambda: model.save_assembly("es", tmp_path / "out"), lambda: model.materialize("es"), lambda: model(**inputs_for(model), language="es"),
        lambda: twin(**inputs_for(model), language="es"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="The adapter 'default' of 'es' was made for a file whose values never came"):
            act()
    assert not (tmp_path / "out").exists()
    model(**inputs_for(model), language="fr")


@torch.no_grad()
def test_lora_beside_a_language_is_taken_off_or_merged_and_the_language_stays(base):  # noqa: F811
    for take_off in ("unload", "merge_and_unload"):
        model = load(base)
        adapted = with_spanish(model)
        inputs = inputs_for(model)
        before = model(**inputs, language="es").logits
        lora = get_peft_model(model, LoraConfig(**LORA), adapter_name="lora").eval()
        beside = model(**inputs, language="es").logits
        assert not torch.equal(beside, before)
        getattr(lora, take_off)()
        assert not any("lora_" in name for name in model.state_dict())
        torch.testing.assert_close(model(**inputs, language="es").logits, before if take_off == "unload" else beside, atol=1e-5, rtol=1e-5)
        assert adapted.unload().languages == ["en", "fr", "ru"]
        assert list(model.assemblies) == ["en", "fr", "ru"]


@torch.no_grad()
def test_a_language_is_taken_off_and_lora_beside_it_stays(base):  # noqa: F811
    model = load(base)
    adapted = with_spanish(model)
    get_peft_model(model, LoraConfig(**LORA), adapter_name="lora").eval()
    before = model(**inputs_for(model), language="fr").logits
    adapted.unload()
    assert model.languages == ["en", "fr", "ru"] and not isinstance(model.assemblies, AssemblyAdapters)
    assert torch.equal(model(**inputs_for(model), language="fr").logits, before)


@torch.no_grad()
def test_transformers_deletes_lora_beside_a_language(base):  # noqa: F811
    model = load(base)
    model.add_adapter(AssemblyConfig(language="es", vocab=ES), "es")
    model.eval()
    before = {code: model(**inputs_for(model), language=code).logits for code in model.languages}
    model.add_adapter(LoraConfig(**LORA), "lora")
    model.delete_adapter("lora")
    assert list(model.peft_config) == ["es"]
    for code, logits in before.items():
        assert torch.equal(model.eval()(**inputs_for(model), language=code).logits, logits), code


def test_without_its_last_adapter_a_model_is_the_plain_one_and_is_saved(base, tmp_path):  # noqa: F811
    for by_transformers in (True, False):
        model = load(base)
        if by_transformers:
            model.add_adapter(AssemblyConfig(language="es", vocab=ES), "es")
            model.delete_adapter("es")
        else:
            get_peft_model(model, AssemblyConfig(language="es", vocab=ES), adapter_name="es").delete_adapter("es")
        assert not isinstance(model.assemblies, AssemblyAdapters) and not model._forward_pre_hooks
        model.save_pretrained(tmp_path / "out")
        assert load(tmp_path / "out").languages == ["en", "fr", "ru"]


def test_a_peft_model_takes_a_language_again_behind_its_last_one(base):  # noqa: F811
    adapted = with_spanish(load(base))
    adapted.delete_adapter("default")
    adapted.add_adapter("fi", AssemblyConfig(language="fi", vocab=FI))
    adapted.set_adapter("fi")
    model = adapted.get_base_model()
    assert model.languages == ["en", "fr", "ru", "fi"] and model.config.default_language == "fi"
    model.eval()(**inputs_for(model))
    assert adapted.unload().languages == ["en", "fr", "ru"]


def test_a_file_that_is_refused_leaves_what_trained_and_the_order_of_languages(base, tmp_path):  # noqa: F811
    model = load(base)
    model.add_language("es", ES, preset="paper")
    model.save_assembly("es", tmp_path / "es")
    file = next((tmp_path / "es").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-50])
    model = load(base)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert any(before.values())
    with pytest.raises(ValueError, match="es"):
        peft_from_assembly(model, tmp_path / "es")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    adapted = with_spanish(model)
    adapted.add_adapter("fi", AssemblyConfig(language="fi", vocab=FI))
    with pytest.raises(ValueError, match="rank is 999"):
        adapted.add_adapter("es2", AssemblyConfig(language="es", vocab=ES, preset="best", rank=999))
    assert model.languages == ["en", "fr", "ru", "es", "fi"]
