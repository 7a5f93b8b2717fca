"""A language is one file: round trips, and refusals that say what to do."""

import json
from pathlib import Path

import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_model, vocab
from safetensors.torch import load_file

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.base_master_asr import fingerprint

ALL = ("mapping", "head", "specialist", "delta")


@pytest.fixture
def base(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def with_spanish(base, parts=ALL):
    model = MasterASRForCTC.from_pretrained(base)
    assembly = model.add_language("es", vocab("abñ"), parts=parts, rank=3)
    with torch.no_grad():
        for parameter in assembly.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
@pytest.mark.parametrize("parts", [("mapping", "head"), ALL])
def test_an_assembly_round_trip_is_bit_exact(base, tmp_path, parts):
    model = with_spanish(base, parts)
    path = model.save_assembly("es", tmp_path / "es", cer=1.5)
    other = MasterASRForCTC.from_pretrained(base)
    assert other.load_assembly(str(tmp_path / "es")) == "es"
    inputs = inputs_for(model)
    assert torch.equal(other(**inputs, language="es").logits, model(**inputs, language="es").logits)
    for code in VOCABS:
        assert torch.equal(other(**inputs, language=code).logits, model(**inputs, language=code).logits)
    assert other.config.assemblies["es"]["parts"] == list(parts)
    assert json.loads((tmp_path / "es/assembly_config.json").read_text())["assemblies"]["es"]["cer"] == 1.5
    state = load_file(path)
    assert parameter_kilobytes({"mapping": state["mapping"]}) < 1  # 8 layers x 4 specialists: bytes, not megabytes


@torch.no_grad()
def test_a_language_that_shares_the_bank_is_saved_complete(base, tmp_path):
    model = MasterASRForCTC.from_pretrained(base)
    model.save_assembly("fr", tmp_path / "fr")
    expected = model(**inputs_for(model), language="fr").logits
    model.remove_language("fr")
    model.load_assembly(str(tmp_path / "fr"))
    assert torch.equal(model(**inputs_for(model), language="fr").logits, expected)


@torch.no_grad()
def test_several_languages_live_in_one_folder(base, tmp_path):
    model = with_spanish(base)
    for code in ("es", "fr"):
        model.save_assembly(code, tmp_path / "both")
    other = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match=r"holds the languages \['es', 'fr'\]; name one"):
        other.load_assembly(str(tmp_path / "both"))
    assert other.load_assembly(str(tmp_path / "both"), language="es") == "es"
    with pytest.raises(ValueError, match="has no language 'de'"):
        other.load_assembly(str(tmp_path / "both"), language="de")


@torch.no_grad()
def test_a_resaved_model_keeps_the_loaded_languages(base, tmp_path):
    model = with_spanish(base)
    model.save_pretrained(tmp_path / "again")
    again = MasterASRForCTC.from_pretrained(tmp_path / "again")
    assert again.languages == ["en", "fr", "ru", "es"]
    assert torch.equal(again(**inputs_for(model), language="es").logits, model(**inputs_for(model), language="es").logits)
    assert again.config.fingerprint == MasterASRForCTC.from_pretrained(base).config.fingerprint


def test_a_wrong_base_is_refused_and_nothing_is_left_behind(base, tmp_path):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    torch.manual_seed(1)
    other = tiny_model()
    with torch.no_grad():
        other.master_asr.artisan_layers[0].specialists.add_(1)
    other.save_pretrained(tmp_path / "other")
    other = MasterASRForCTC.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"made for the base .*base' \(fingerprint [0-9a-f]{12}\); this model is .*other'"):
        other.load_assembly(str(tmp_path / "es"))
    assert other.languages == list(VOCABS)


@pytest.mark.parametrize("change", [{"num_specialists": 2}, {"sparsity": 0.5}])
def test_another_k_or_sparsity_is_refused(base, tmp_path, change):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    other = tiny_model(**change)
    other.save_pretrained(tmp_path / "other")
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{name}=.*, this model has {name}={value}"):
        other.load_assembly(str(tmp_path / "es"))


def test_a_damaged_file_is_refused(base, tmp_path):
    path = with_spanish(base).save_assembly("es", tmp_path / "es")
    path.write_bytes(path.read_bytes()[:-40])
    model = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        model.load_assembly(str(tmp_path / "es"))
    assert model.languages == list(VOCABS)


def test_a_file_that_does_not_fit_its_facts_is_refused_and_undone(base, tmp_path):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    facts = tmp_path / "es/assembly_config.json"
    facts.write_text(facts.read_text().replace('"rank": 3', '"rank": 4'))
    model = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match="does not fit its own assembly_config.json"):
        model.load_assembly(str(tmp_path / "es"))
    assert model.languages == list(VOCABS)


def test_a_language_that_is_already_there_is_refused(base, tmp_path):
    model = with_spanish(base)
    model.save_assembly("es", tmp_path / "es")
    with pytest.raises(ValueError, match="Language 'es' is already there. Remove it first"):
        model.load_assembly(str(tmp_path / "es"))


def test_saving_an_assembly_of_an_unsaved_or_trained_base_asks_to_save_the_base(base, tmp_path):
    fresh = tiny_model()
    with pytest.raises(ValueError, match="Save it first: model.save_pretrained"):
        fresh.save_assembly("en", tmp_path / "en")
    model = with_spanish(base)
    with torch.no_grad():
        model.master_asr.artisan_layers[0].weight.mul_(1.1)
    with pytest.raises(ValueError, match="has been trained since"):
        model.save_assembly("es", tmp_path / "es")
    model.save_pretrained(tmp_path / "new")
    model.save_assembly("es", tmp_path / "es")


def test_a_cast_on_load_keeps_the_fingerprint(tmp_path):
    tiny_model().half().save_pretrained(tmp_path / "base")
    model = with_spanish(tmp_path / "base")
    model.save_assembly("es", tmp_path / "es")
    half = MasterASRForCTC.from_pretrained(tmp_path / "base", dtype=torch.float16)
    assert half.load_assembly(str(tmp_path / "es")) == "es"


@pytest.mark.parametrize("wrong, message", [
    ({"a": 0}, "lacks"), ({"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 4}, "must be 0..3, each once"),
])  # fmt: skip
def test_a_bad_vocab_is_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model.add_language("es", wrong)
    assert "es" not in model.languages and "es" not in model.assemblies


def test_unknown_parts_are_refused(model):
    with pytest.raises(ValueError, match="parts must hold 'mapping' and 'head'"):
        model.add_language("es", vocab("ab"), parts=("mapping", "lora"))


def test_a_base_that_was_written_to_with_its_own_values_is_still_that_base(base, tmp_path):
    """Trainer loads its best checkpoint into the model it trained."""
    model = with_spanish(base)
    model.load_state_dict(model.state_dict())
    model.save_assembly("es", tmp_path / "es")
    assert MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es") == "es"


def test_a_lossy_cast_after_loading_makes_another_base(base, tmp_path):
    """As `compact_checkpoint` does: the cut file once carried the uncut base's fingerprint."""
    model = with_spanish(base)
    model.half()
    with pytest.raises(ValueError, match="never saved, or has been trained since"):
        model.save_assembly("es", tmp_path / "es")
    uncut = model.config.fingerprint
    model.save_pretrained(tmp_path / "half")
    assert MasterASRForCTC.from_pretrained(tmp_path / "half").config.fingerprint != uncut


def test_the_shipped_checkpoint_carries_its_own_fingerprint():
    shipped = MasterASRForCTC.from_pretrained(Path(__file__).parent.parent / "checkpoints/master-asr-whisper-base")
    assert fingerprint(shipped.master_asr.base_tensors()) == shipped.config.fingerprint
