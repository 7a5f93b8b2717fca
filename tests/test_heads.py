"""A head's rows are its own alphabet's, wherever its values come from; what a file holds of it is what was read."""

import copy

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from modeling_master_asr import MasterASRForCTC

ONE = vocab("abñ")
BANK = {"target_parameters": ["character_bank.weight"], "target_modules": []}


def with_an_adapter_on_the_bank(folder, config):
    """`(peft_model, inputs, logits)` of "fr", whose head shares the bank."""
    base = MasterASRForCTC.from_pretrained(folder)
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        inputs = inputs_for(base, (4000,))
        logits = model(**inputs, language="fr").logits
        with model.disable_adapter():
            assert (model(**inputs, language="fr").logits - logits).abs().max() > 0.1
    return model, inputs, logits


@torch.no_grad()
@pytest.mark.parametrize("config", [
    LoraConfig(r=2, **BANK),
    LoraConfig(r=2, target_modules=r".*lang_xx\.head", modules_to_save=["character_bank"]),
])  # fmt: skip
def test_what_is_written_of_a_head_is_what_was_read_through_an_adapter_on_the_bank(tmp_path, config):
    first = tiny_model()
    first.add_language("xx", ONE)
    first.save_pretrained(tmp_path / "base")
    model, inputs, logits = with_an_adapter_on_the_bank(tmp_path / "base", copy.deepcopy(config))
    base = model.get_base_model()
    base.save_assembly("fr", tmp_path / "fr")
    again = MasterASRForCTC.from_pretrained(tmp_path / "base", assemblies=tmp_path / "fr")
    assert torch.allclose(again(**inputs, language="fr").logits, logits, atol=1e-5)
    assert torch.allclose(base.materialize("fr")(**inputs).logits, logits, atol=1e-5)
    base.add_language("de", vocab("abcé"), init="fr")
    assert torch.equal(base.assemblies["de"].head.weight, base.assemblies["fr"].head.weight)
    with model.disable_adapter():
        base.save_assembly("fr", tmp_path / "plain")
    plain = MasterASRForCTC.from_pretrained(tmp_path / "base")
    plain.save_assembly("fr", tmp_path / "before")
    files = [load_file(tmp_path / folder / "assembly.fr.safetensors") for folder in ("plain", "before")]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    with pytest.raises(ValueError, match="A PEFT adapter is on"):
        base.save_pretrained(tmp_path / "whole")


def test_values_of_another_alphabet_of_the_same_size_are_refused(tmp_path):
    models = [tiny_model() for _ in range(3)]
    for model, alphabet in zip(models, (ONE, vocab("abž"), ONE)):
        model.add_language("es", alphabet, parts=("mapping", "head"))
    one, other, same = models
    before = other.assemblies["es"].head.weight.clone()
    torch.save(one.state_dict(), tmp_path / "state.pt")
    for state in (one.state_dict(), torch.load(tmp_path / "state.pt", weights_only=True)):
        with pytest.raises(RuntimeError, match=r"lang_es: the values are of another alphabet of 'es' than this model's.*start without these values"):
            other.load_state_dict(state)
        same.load_state_dict(state)
    with pytest.raises(RuntimeError, match="of another alphabet of 'es'"):
        other.assemblies["es"].load_state_dict(one.assemblies["es"].state_dict())
    assert torch.equal(same.assemblies["es"].head.weight, one.assemblies["es"].head.weight) and torch.equal(other.assemblies["es"].head.weight, before)
    other.load_state_dict(dict(one.state_dict()))  # as safetensors hands it out, which says nothing: as before
    grown = {**ONE, "ž": len(ONE)}
    one.give_parts("es", parts=("mapping", "head", "delta"), vocab=grown)
    another = tiny_model()
    another.add_language("es", grown, parts=("mapping", "head", "delta"))
    another.load_state_dict(one.state_dict())  # the alphabet that it has now


@torch.no_grad()
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "wav2vec2-bert"])
def test_in_training_a_head_hears_what_the_stock_classes_dropout_leaves_it(family):
    model = tiny_model(family, final_dropout=0.5)
    plain, inputs, found = model.materialize("fr").requires_grad_(False).train(), inputs_for(model), []
    assert torch.equal(model(**inputs, language="fr").logits, model(**inputs, language="fr").logits)
    for one in (plain, model.train()):
        torch.manual_seed(0)
        found.append(one(**inputs, **({} if one is plain else {"language": "fr"})).logits)
    assert torch.equal(*found) and not torch.equal(found[0], model.eval()(**inputs, language="fr").logits)
