"""The assembly as a PEFT method."""

import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_model, vocab
from peft import PeftModel, get_peft_model

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
