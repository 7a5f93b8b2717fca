"""The assembly as a PEFT method."""

import subprocess
import sys

import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_model, vocab
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.peft_assembly import AssemblyConfig, peft_from_assembly

ES, DE = vocab("abñ"), vocab("aäöüß")
ALL = ["mapping", "head", "specialist", "delta"]


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
def test_native_and_peft_forms_convert_bit_exactly_both_ways(base, tmp_path):
    native = load(base)
    native.add_language("es", ES, parts=ALL, rank=2)
    for p in native.assemblies["es"].parameters():
        p.add_(0.1 * torch.randn_like(p))
    native.save_assembly("es", tmp_path / "native")
    inputs = inputs_for(native)
    expected = native(**inputs, language="es").logits
    peft_model = peft_from_assembly(load(base), tmp_path / "native").eval()
    assert torch.equal(peft_model(**inputs).logits, expected)
    peft_model.get_base_model().save_assembly("es", tmp_path / "back")
    name = "assembly.es.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "native" / name).read_bytes()
    peft_model.save_pretrained(tmp_path / "peft")
    assert torch.equal(PeftModel.from_pretrained(load(base), tmp_path / "peft")(**inputs).logits, expected)


@torch.no_grad()
def test_an_adapter_refuses_another_base(base, tmp_path):
    get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES)).save_pretrained(tmp_path / "peft")
    other = load(base)
    next(other.master_asr.backbone.parameters()).add_(1)
    with pytest.raises(ValueError, match="never saved, or has been trained since"):
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
    model = get_peft_model(model, AssemblyConfig(language="es", vocab=ES, parts=ALL, rank=2))
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
    model = get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, parts=ALL, rank=2)).eval()
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
    model.add_adapter("two", AssemblyConfig(language="es", vocab=DE, parts=ALL, rank=2))
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


def test_what_cannot_take_an_adapter_is_refused(base):
    with pytest.raises(ValueError, match="adds a language to a MasterASRForCTC; got a MasterASRModel"):
        get_peft_model(load(base).master_asr, AssemblyConfig(language="es", vocab=ES))
    with pytest.raises(KeyError, match="No assembly for language 'frr'"):
        get_peft_model(load(base), AssemblyConfig(language="es", vocab=ES, init="frr"))
    with pytest.raises(ValueError, match="'fr' is already there"):
        get_peft_model(load(base), AssemblyConfig(language="fr", vocab=ES))
