"""The assembly as a PEFT method."""

import copy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from conftest import FAMILIES, VOCABS, inputs_for, tiny_model, vocab
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import ArtisanLinear
from modeling_master_asr.peft_assembly import AssemblyConfig, peft_from_assembly

ES, DE = vocab("abñ"), vocab("aäöüß")
ALL = ["mapping", "head", "specialist", "delta", "scales", "norms"]


@pytest.fixture
def base(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(base):
    return MasterASRForCTC.from_pretrained(base)


def train_a_little(model, language, steps=3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs = inputs_for(model.get_base_model())
    for _ in range(steps):
        model(**inputs, labels=torch.tensor([[3, 4], [5, 3]]), language=language).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return inputs


@pytest.mark.parametrize("parts", [["mapping", "head"], ALL])
def test_train_save_load_is_bit_exact_and_moves_nothing_else(base, tmp_path, parts):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=parts, rank=2))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert all("assembly_adapter" in name for name, p in model.named_parameters() if p.requires_grad)
    inputs = train_a_little(model, "es")
    model.eval()
    for name, p in model.named_parameters():
        assert name not in before or torch.equal(p, before[name]), name
    model.save_pretrained(tmp_path / "peft")
    again = PeftModel.from_pretrained(load(base), tmp_path / "peft").eval()
    with torch.no_grad():
        expected = model(**inputs).logits  # the active adapter names the language
        assert expected.shape[-1] == len(ES)
        assert torch.equal(again(**inputs).logits, expected)
        plain = load(base)
        for code in VOCABS:
            assert torch.equal(again(**inputs, language=code).logits, plain(**inputs, language=code).logits)


@torch.no_grad()
def test_adapters_with_different_alphabets_switch_mix_and_step_aside(base, tmp_path):
    plain = load(base)
    plain.set_language("fr")
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES), adapter_name="spanish")
    model.add_adapter("german", AssemblyConfig(language="de", vocab=DE, init="fr"))
    model.eval()
    inputs = inputs_for(plain)
    es = model(**inputs).logits
    model.set_adapter("german")
    de = model(**inputs).logits
    assert (es.shape[-1], de.shape[-1]) == (len(ES), len(DE))
    mixed = model(**inputs, adapter_names=["spanish", "german"]).logits
    torch.testing.assert_close(mixed[0, :, : len(ES)], es[0], atol=1e-5, rtol=0)  # other batch sizes, other sums
    torch.testing.assert_close(mixed[1], de[1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"No adapters \['dutch'\]. Loaded: \['spanish', 'german'\]"):
        model(**inputs, adapter_names=["spanish", "dutch"])
    with model.disable_adapter():
        assert torch.equal(model(**inputs, language="fr").logits, plain(**inputs, language="fr").logits)
        with pytest.raises(ValueError, match="Which language?"):  # the base had no default: disabling brings that back
            model(**inputs)
    assert torch.equal(model(**inputs).logits, de)
    model.delete_adapter("german")
    assert "de" not in model.get_base_model().languages


@torch.no_grad()
def test_an_adapters_file_loads_where_the_language_that_it_started_from_is_gone(base, tmp_path):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=["mapping", "head"], init="fr")).eval()
    inputs = inputs_for(model.get_base_model())
    model.save_pretrained(tmp_path / "peft")
    fewer = load(base)
    fewer.remove_language("fr")
    assert torch.equal(PeftModel.from_pretrained(fewer, tmp_path / "peft").eval()(**inputs).logits, model(**inputs).logits)


def test_an_adapter_that_is_loaded_to_be_used_does_not_train_and_one_that_is_to_train_does(base, tmp_path):
    get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=["mapping", "head"])).save_pretrained(tmp_path / "peft")
    for is_trainable in (False, True):
        again = PeftModel.from_pretrained(load(base), tmp_path / "peft", is_trainable=is_trainable)
        assert any(parameter.requires_grad for parameter in again.parameters()) == is_trainable
        fresh = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=["mapping", "head"], inference_mode=not is_trainable))
        assert any(parameter.requires_grad for parameter in fresh.parameters()) == is_trainable


@torch.no_grad()
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_native_and_peft_forms_convert_bit_exactly_both_ways(base, tmp_path, targets):
    native = load(base)
    native.add_language("es", ES, parts=ALL, rank=2, targets=targets)
    for p in native.assemblies["es"].parameters():
        p.add_(0.1 * torch.randn_like(p))
    native.save_assembly("es", tmp_path / "native")
    inputs = inputs_for(native)
    expected = native(**inputs, language="es").logits
    peft_model = peft_from_assembly(load(base), tmp_path / "native").eval()
    assert torch.equal(peft_model(**inputs).logits, expected)
    peft_model.get_base_model().save_assembly("es", tmp_path / "back")
    # tensor by tensor: safetensors writes its header's entries in no fixed order
    back, there = (load_file(tmp_path / place / "assembly.es.safetensors") for place in ("back", "native"))
    assert list(back) == list(there) and all(back[name].dtype == value.dtype and torch.equal(back[name], value) for name, value in there.items())
    peft_model.save_pretrained(tmp_path / "peft")
    assert torch.equal(PeftModel.from_pretrained(load(base), tmp_path / "peft")(**inputs).logits, expected)


@torch.no_grad()
def test_an_adapter_refuses_another_base(base, tmp_path):
    get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES)).save_pretrained(tmp_path / "peft")
    other = load(base)
    next(other.master_asr.backbone.parameters()).add_(1)
    with pytest.raises(ValueError, match="never saved, or has been trained or cast since"):
        PeftModel.from_pretrained(other, tmp_path / "peft")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="The adapter of 'es' was made for the base"):
        PeftModel.from_pretrained(load(tmp_path / "other"), tmp_path / "peft")


@torch.no_grad()
def test_an_adapter_travels_over_http(hub, base, tmp_path):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES)).eval()
    model.push_to_hub("tester/es-peft", token="a-token")
    again = PeftModel.from_pretrained(load(base), "tester/es-peft", cache_dir=str(tmp_path / "cache")).eval()
    inputs = inputs_for(model.get_base_model())
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_config_without_an_alphabet_is_refused():
    with pytest.raises(ValueError, match='needs language="xx" and its vocab'):
        AssemblyConfig(language="es")


@torch.no_grad()
def test_a_bfloat16_base_takes_float32_adapters(base, tmp_path):
    model = MasterASRForCTC.from_pretrained(base, dtype=torch.bfloat16)
    model = get_peft_model(model, AssemblyConfig(language="es", vocab=ES, parts=ALL, rank=2, targets="all"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.enable_grad():
        inputs = {name: value for name, value in inputs_for(model.get_base_model()).items()}
        inputs["input_values"] = inputs["input_values"].bfloat16()
        model.train()(**inputs, labels=torch.tensor([[3, 4], [5, 3]])).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path / "peft")
    again = PeftModel.from_pretrained(MasterASRForCTC.from_pretrained(base, dtype=torch.bfloat16), tmp_path / "peft").eval()
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_the_last_adapter_can_go_and_unload_gives_the_base_back(base):
    plain = load(base)
    plain.set_language("fr")
    inputs = inputs_for(plain)
    expected, state = plain(**inputs).logits, plain.state_dict()
    for leave in ("delete_adapter", "unload"):
        own = load(base)
        own.set_language("fr")
        model = get_peft_model(own, AssemblyConfig(language="es", vocab=ES)).eval()
        if leave == "unload":
            model = model.unload()
            assert model.state_dict().keys() == state.keys()
            model.add_language("es", ES)  # nothing of the adapter is left
            model.remove_language("es")
        else:
            model.delete_adapter("default")
            model = model.base_model  # PeftModel's own call wants an adapter
        assert own.languages == plain.languages and own.config.to_dict() == plain.config.to_dict()
        assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("parts", [["mapping", "head"], ALL])
def test_an_adapter_loads_under_any_name(base, tmp_path, parts):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=parts, rank=2), adapter_name="mine").eval()
    model.save_pretrained(tmp_path / "peft")
    assert not any("mine" in key for key in load_file(tmp_path / "peft" / "mine" / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(load(base), tmp_path / "peft" / "mine", adapter_name="yours").eval()
    inputs = inputs_for(model.get_base_model())
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_an_adapter_loads_without_values_first(base, tmp_path):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=ALL, rank=2, targets="all")).eval()
    model.save_pretrained(tmp_path / "peft")
    again = PeftModel.from_pretrained(load(base), tmp_path / "peft", low_cpu_mem_usage=True).eval()
    again.load_adapter(tmp_path / "peft", adapter_name="second", low_cpu_mem_usage=True)
    inputs = inputs_for(model.get_base_model())
    for name in ("default", "second"):
        again.set_adapter(name)
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_importing_the_package_is_enough_to_load_an_adapter(base, tmp_path):
    get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES)).save_pretrained(tmp_path / "peft")
    code = (
        "import sys; from modeling_master_asr import MasterASRForCTC; from peft import PeftModel; "
        "print(PeftModel.from_pretrained(MasterASRForCTC.from_pretrained(sys.argv[1]), sys.argv[2]).get_base_model().languages)"
    )
    run = [sys.executable, "-c", code, str(base), str(tmp_path / "peft")]
    assert "'es'" in subprocess.run(run, check=True, capture_output=True, text=True).stdout
    without = "import sys; sys.modules['peft'] = None; import modeling_master_asr; print(modeling_master_asr.MasterASRForCTC.__name__)"
    assert subprocess.run([sys.executable, "-c", without], check=True, capture_output=True, text=True).stdout == "MasterASRForCTC\n"


def test_merging_says_why_not_and_what_instead(base):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES))
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match=r"no weights to merge .*materialize\(language\)"):
            merge()
    model.get_base_model().materialize("es")


@torch.no_grad()
def test_two_adapters_of_one_language_take_turns(base):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES), adapter_name="one")
    model.add_adapter("two", AssemblyConfig(language="es", vocab=DE, parts=ALL, rank=2, targets="all"))
    model.eval()
    inputs = inputs_for(model.get_base_model())
    a = model(**inputs).logits
    model.set_adapter("two")
    b = model(**inputs, language="es").logits
    assert (a.shape[-1], b.shape[-1]) == (len(ES), len(DE))
    with pytest.raises(ValueError, match=r"\['one'\] are of a language that another adapter serves"):
        model(**inputs, adapter_names=["one", "two"])
    model.delete_adapter("two")
    assert torch.equal(model(**inputs, language="es").logits, a)


@pytest.mark.parametrize("change, instead", [
    (lambda model, folder: model.load_assembly(folder, replace=True), "makes place as one: peft_model.delete_adapter"),
    (lambda model, folder: model.give_parts("es", preset="best"), r"has the parts of its own config: AssemblyConfig\(..., preset"),
    (lambda model, folder: model.remove_language("es"), "is removed as one: peft_model.delete_adapter"),
    (lambda model, folder: model.set_text("es", ["a b"]), r"has the sentences of its own config: AssemblyConfig\(..., sentences"),
])  # fmt: skip
def test_what_is_done_to_a_language_that_is_an_adapter_is_refused_and_changes_nothing(base, tmp_path, change, instead):
    native = load(base)
    native.add_language("es", vocab("zñba"))
    native.save_assembly("es", tmp_path / "native")
    peft_model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES)).eval()
    model, inputs = peft_model.get_base_model(), inputs_for(load(base))
    before, said = copy.deepcopy(model.config.to_dict()), peft_model(**inputs, language="es").logits
    with pytest.raises(ValueError, match=f"'es' is a PEFT adapter and {instead}"):
        change(model, tmp_path / "native")
    assert model.config.to_dict() == before and torch.equal(peft_model(**inputs, language="es").logits, said)
    peft_model.delete_adapter("default")
    assert model.load_assembly(tmp_path / "native", replace=True) == "es" and list(model.assemblies["es"].parts) == list(native.assemblies["es"].parts)


def test_what_cannot_take_an_adapter_is_refused(base):
    with pytest.raises(ValueError, match="adds a language to a MasterASRForCTC; got a MasterASRModel"):
        get_peft_model(load(base).master_asr, AssemblyConfig(language="es", vocab=ES))
    with pytest.raises(KeyError, match="No assembly for language 'frr'"):
        get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, init="frr"))
    with pytest.raises(ValueError, match="'fr' is already there"):
        get_peft_model(load(base), AssemblyConfig(language="fr", vocab=ES))


def adapted(family="wav2vec2", targets=("q_proj", "v_proj"), **kwargs):
    torch.manual_seed(0)
    return get_peft_model(tiny_model(family), LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets), r=2, **kwargs))


@torch.no_grad()
@pytest.mark.parametrize("safe", [False, True])
def test_an_adapter_on_artisan_layers_is_right_unmerged_and_refuses_to_merge(tmp_path, safe):
    model = adapted(init_lora_weights=False).eval()
    inputs = inputs_for(model.get_base_model())
    by_hand = tiny_model()
    for name, layer in by_hand.named_modules():  # W_l x + B A x
        if name.endswith(("q_proj", "v_proj")):
            change = model.get_base_model().get_submodule(name).get_delta_weight("default")
            layer.register_forward_hook(lambda m, x, y, change=change: y + torch.nn.functional.linear(x[0], change))
    expected = model(**inputs, language="fr").logits
    torch.testing.assert_close(expected, by_hand(**inputs, language="fr").logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "lora")
    for again in (model, copy.deepcopy(model), PeftModel.from_pretrained(tiny_model(), tmp_path / "lora").eval()):
        for merge in (lambda m: m.merge_and_unload(safe_merge=safe), lambda m: m.merge_adapter(safe_merge=safe)):
            with pytest.raises(NotImplementedError, match=r"\(W \+ BA\) \* B is not W \* B \+ BA"):
                merge(again)
        assert torch.equal(again(**inputs, language="fr").logits, expected)
    with model.disable_adapter():
        assert torch.equal(model(**inputs, language="fr").logits, tiny_model()(**inputs, language="fr").logits)
    assert torch.equal(model.unload()(**inputs, language="fr").logits, tiny_model()(**inputs, language="fr").logits)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], r=2),
        LoHaConfig(target_modules=["q_proj"], r=2),
        LoKrConfig(target_modules=["q_proj"], r=2),
        OFTConfig(target_modules=["q_proj"], r=0, oft_block_size=4),
        VeraConfig(target_modules=["q_proj"], r=2),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_every_method_of_peft_refuses_to_merge_into_artisan_layers(config):
    model = get_peft_model(tiny_model(), config)
    with pytest.raises(NotImplementedError, match="cannot be merged: every language masks W"):
        model.merge_and_unload()


def test_first_values_that_are_taken_out_of_w_are_refused():
    with pytest.raises(NotImplementedError, match="init_lora_weights=True"):
        adapted(init_lora_weights="pissa")


@pytest.mark.parametrize("targets", [["q_proj"], ["output_dense"]])
def test_methods_that_put_the_plain_w_in_its_place_are_refused(targets):
    with pytest.raises(NotImplementedError, match="DoRA takes its magnitudes from the plain W"):
        adapted(targets=targets, use_dora=True)
    if hasattr(peft, "FrodConfig"):
        with pytest.raises(NotImplementedError, match="FRoD puts a weight of its own in the place of W"):
            get_peft_model(tiny_model(), peft.FrodConfig(target_modules=targets))


@torch.no_grad()
def test_a_refused_merge_leaves_every_layer_as_it_was():
    model = adapted(targets="all-linear", init_lora_weights=False).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        copied = copy.deepcopy(model)
        copied.merge_and_unload()
    assert copied.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    with pytest.raises(ValueError, match="materialize bakes in no PEFT adapter"):
        model.get_base_model().materialize("fr")
    inputs = inputs_for(model.get_base_model())
    with model.disable_adapter():
        expected = model(**inputs, language="fr").logits
    torch.testing.assert_close(model.unload().materialize("fr")(**inputs).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_adapter_off_the_artisan_layers_merges():
    model = adapted(targets=["intermediate_dense", "output_dense"], init_lora_weights=False).eval()
    inputs = inputs_for(model.get_base_model())
    expected = model(**inputs, language="fr").logits
    torch.testing.assert_close(model.merge_and_unload()(**inputs, language="fr").logits, expected, atol=1e-5, rtol=0)


def test_an_adapter_on_layers_whose_rows_a_language_scales_refuses_to_merge():
    base = tiny_model()
    base.add_language("es", ES, parts=["mapping", "head", "scales"])
    model = get_peft_model(base, LoraConfig(target_modules=["output_dense"], r=2))
    with pytest.raises(NotImplementedError, match=r"\['es'\] scale the rows"):
        model.merge_and_unload()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_has_no_dead_adapter(family):
    kwargs = {}
    if family == "wavlm":
        with pytest.raises(ValueError, match="WavLM's attention reads the weights of q_proj.* silently ignored.*exclude_modules"):
            adapted(family, "all-linear")
        kwargs["exclude_modules"] = ["q_proj", "k_proj", "v_proj", "out_proj"]
    model = adapted(family, "all-linear", init_lora_weights=False, **kwargs).train()
    model(**inputs_for(model.get_base_model()), language="fr", labels=torch.tensor([[3, 4], [5, 3]])).loss.backward()
    dead = [name for name, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert not dead and any(p.requires_grad for p in model.parameters())


def test_the_character_bank_trains_as_a_module_to_save(tmp_path):
    model = adapted(modules_to_save=["character_bank"])
    inputs = train_a_little(model, "fr")
    bank = model.get_base_model().master_asr.character_bank
    assert not torch.equal(bank.modules_to_save["default"].weight, bank.original_module.weight)
    model.eval().save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "lora").eval()
    with torch.no_grad():
        expected = model(**inputs, language="fr").logits
        assert torch.equal(again(**inputs, language="fr").logits, expected)
        with model.disable_adapter():
            assert torch.equal(model(**inputs, language="fr").logits, tiny_model()(**inputs, language="fr").logits)


@pytest.mark.parametrize(
    ("name", "words"),
    [("head", "no weights of its own. Train the bank"), ("q_proj", "masks, deltas, scales"), ("output_dense", "masks, deltas, scales"), ("lang_fr", "AssemblyConfig")],
)
def test_what_a_copy_cannot_train_is_refused(name, words):
    with pytest.raises(ValueError, match=f"modules_to_save cannot copy a .*{words}"):
        adapted(targets=["k_proj"], modules_to_save=[name])


def test_a_language_s_own_head_trains_as_a_module_to_save():
    base = tiny_model()
    base.add_language("es", ES)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lang_es.head"]))
    train_a_little(model, "es")
    head = base.assemblies["es"].head
    assert not torch.equal(head.modules_to_save["default"].weight, head.original_module.weight)


@torch.no_grad()
def test_two_native_files_of_one_language_become_two_adapters(base, tmp_path):
    inputs, expected = inputs_for(load(base)), {}
    for seed, name in enumerate(("one", "two")):
        native = load(base)
        torch.manual_seed(seed)
        native.add_language("es", ES, preset="small")
        native.assemblies["es"].head.weight.normal_()
        native.save_assembly("es", tmp_path / name)
        expected[name] = native(**inputs, language="es").logits
    peft_model = peft_from_assembly(load(base), tmp_path / "one", adapter_name="one")
    peft_from_assembly(peft_model, tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        peft_model.set_adapter(name)
        assert torch.equal(peft_model.eval()(**inputs, language="es").logits, expected[name])


@torch.no_grad()
def test_threads_that_name_adapters_hear_their_own(base, monkeypatch):
    peft_model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES), adapter_name="es")
    peft_model.add_adapter("de", AssemblyConfig(language="de", vocab=DE))
    inputs = inputs_for(peft_model.eval().get_base_model())
    expected = {name: peft_model(**inputs, adapter_names=[name] * 2).logits for name in ("es", "de")}
    together, base_model = threading.Barrier(2), type(peft_model).get_base_model

    def wait(self):  # PEFT asks for the base once a call's adapters are named
        together.wait(timeout=20)
        return base_model(self)

    monkeypatch.setattr(type(peft_model), "get_base_model", wait)
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(expected, pool.map(lambda name: peft_model(**inputs, adapter_names=[name] * 2).logits, expected)))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_with_an_adapter_on_is_not_saved_under_names_that_nobody_reads(base, tmp_path):
    peft_model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES))
    with pytest.raises(ValueError, match="A PEFT adapter is on .*base_layer.*peft_model.save_pretrained writes the adapter"):
        peft_model.get_base_model().save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    peft_model.unload().save_pretrained(tmp_path / "whole")
    assert load(tmp_path / "whole").languages == list(VOCABS)


def test_an_adapter_on_a_languages_head_alone_is_not_dropped_from_its_file_or_its_plain_model(base, tmp_path):
    model = load(base)
    model.add_language("es", ES)
    model.save_pretrained(tmp_path / "with_es")
    model = get_peft_model(load(tmp_path / "with_es"), LoraConfig(target_modules=r".*lang_es\.head")).get_base_model()
    with pytest.raises(ValueError, match="A PEFT adapter is on this language's head"):
        model.save_assembly("es", tmp_path / "es")
    with pytest.raises(ValueError, match="materialize bakes in no PEFT adapter of the encoder or the head"):
        model.materialize("es")
    assert not (tmp_path / "es").exists()


def test_a_language_beside_an_adapter_on_the_encoder_is_not_saved_for_a_base_that_nobody_has(base, tmp_path):
    model = load(base)
    model.add_language("es", ES)
    stored = model.master_asr.stored
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))  # Transformers' own, whose save writes the adapter alone
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_model.safetensors").exists() and model.master_asr.stored is stored
    with pytest.raises(ValueError, match="A PEFT adapter is on the encoder, and an assembly fits a base without it. Take it off first"):
        model.save_assembly("es", tmp_path / "es")


def test_a_layer_of_ours_cannot_be_replaced_by_one_that_reads_a_single_weight():
    model = tiny_model()
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, ArtisanLinear))
    with pytest.raises(NotImplementedError, match="A Linear in place of an ArtisanLinear would read one dense weight.*materialize"):
        model.set_submodule(name, torch.nn.Linear(layer.in_features, layer.out_features))
    assert model.get_submodule(name) is layer
    model.set_submodule(name, torch.nn.Sequential(layer))  # what holds it is its own affair


def test_a_name_that_pytorch_keeps_for_itself_is_refused_before_anything_changes_and_never_chosen(base, tmp_path):
    made = load(base)
    made.add_language("to", ES)
    made.save_assembly("to", tmp_path / "to")
    made.add_language("es", ES)
    made.save_assembly("es", tmp_path / "es")
    model = peft_from_assembly(load(base), tmp_path / "es", "es")
    before = list(model.get_base_model().languages)
    for name, instead in (("to", "lang_to"), ("training", "lang_training"), ("zh.Hant", "lang_zh_Hant")):
        with pytest.raises(ValueError, match=f"adapter_name: got '{name}', which PyTorch cannot name a module.*'{instead}'"):
            model.add_adapter(name, AssemblyConfig(language="to", vocab=ES))
    assert model.get_base_model().languages == before
    model = peft_from_assembly(load(base), tmp_path / "es", "es")
    model = peft_from_assembly(model, tmp_path / "to", "to")
    inputs = inputs_for(made)
    model.set_adapter("lang_to")
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, made.eval()(**inputs, language="to").logits)


def test_transformers_itself_loads_the_folder_of_an_adapter(base, tmp_path):
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES)).eval()
    model.save_pretrained(tmp_path)
    again = MasterASRForCTC.from_pretrained(tmp_path).eval()
    inputs = inputs_for(again)
    with torch.no_grad():
        assert torch.equal(again(**inputs, language="es").logits, model(**inputs, language="es").logits)


def test_a_model_with_transformers_own_adapter_is_not_pushed_without_itself(base):
    model = load(base)
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ValueError, match=r"Transformers' own adapter is on.*delete_adapter\(name\) first"):
        model.push_to_hub("tester/adapted")


def test_a_language_is_not_said_to_be_of_another_base_where_an_adapter_hides_it(base, tmp_path):
    made = load(base)
    made.add_language("es", ES)
    made.save_assembly("es", tmp_path)
    model = get_peft_model(load(base), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="a PEFT adapter lies on this model.*Load the language first"):
        model.get_base_model().load_assembly(tmp_path)


def test_an_assembly_that_cannot_be_read_leaves_no_language_behind(base, tmp_path):
    load(base).save_assembly("fr", tmp_path / "fr")
    file = next((tmp_path / "fr").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    model = load(base)
    model.remove_language("fr")
    model.set_language("ru")
    for wrap in (False, True):
        target = get_peft_model(model, AssemblyConfig(language="es", vocab=ES)) if wrap else model
        languages, default = list(model.languages), model.config.default_language
        with pytest.raises(ValueError, match="fr"):
            peft_from_assembly(target, tmp_path / "fr")
        assert model.languages == languages and model.config.default_language == default
        assert "fr" not in model.assemblies and hasattr(model.assemblies, "set_base_default") == wrap


def test_the_default_that_is_named_beside_adapters_stays_when_they_go_and_no_removed_one_comes_back(base, tmp_path):
    model = load(base)
    model.set_language("fr")
    adapted = get_peft_model(model, AssemblyConfig(language="es", vocab=ES))
    assert model.config.default_language == "es"
    model.set_language("ru")
    assert model.config.default_language == "ru"
    with adapted.disable_adapter():
        assert model.config.default_language == "ru"
    model.remove_language("ru")
    assert adapted.unload().config.default_language is None
    model.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").languages == ["en", "fr"]


@torch.no_grad()
def test_base_among_adapter_names_is_the_bases_default_language(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    base = MasterASRForCTC.from_pretrained(tmp_path)
    base.set_language("fr")
    model = get_peft_model(base, AssemblyConfig(language="es", vocab=vocab("abñ")), adapter_name="es").eval()
    inputs = inputs_for(base)
    assert torch.equal(model(**inputs, adapter_names=["es", "__base__"]).logits, model(**inputs, language=["es", "fr"]).logits)
