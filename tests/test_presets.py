"""What a language owns, by the name of a preset, and what that weighs."""

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from safetensors.torch import load_file

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.configuration_master_asr import PRESETS, from_preset, preset_of


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_a_language_owns_and_is_recognised_again(preset, tmp_path):
    model = tiny_model()
    model.add_language("es", vocab("abñ"), preset=preset)
    assert set(model.assemblies["es"].parts) == set(PRESETS[preset]["parts"]) and model.assemblies["es"].targets == PRESETS[preset]["targets"]
    model.save_pretrained(tmp_path)
    assert preset_of(MasterASRForCTC.from_pretrained(tmp_path).config.assemblies["es"]) == preset


def test_what_a_call_names_overrides_its_preset():
    assert from_preset("best", rank=2) == {**PRESETS["best"], "rank": 2}
    entry = tiny_model().add_language("es", vocab("ab"), preset="small", parts=("mapping", "head", "scales"))
    assert entry.parts == ("mapping", "head", "scales")
    assert preset_of({"parts": ["mapping", "head", "scales"], "rank": 8, "targets": "attention"}) is None
    with pytest.raises(ValueError, match=r"preset must be one of \['paper', 'small', 'best'\]; got 'huge'"):
        from_preset("huge")


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
def test_a_rounded_assembly_is_half_as_large_and_comes_back_bit_for_bit(preset, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    model.add_language("es", vocab("abñ"), preset=preset, rank=2)
    for parameter in model.assemblies["es"].parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = inputs_for(model)
    whole = load_file(model.save_assembly("es", tmp_path / "whole"))
    model.round_assembly("es")
    expected = model(**inputs, language="es").logits
    half = load_file(model.save_assembly("es", tmp_path / "half"))
    assert all(whole[name].dtype == torch.float32 and half[name].dtype == torch.float16 for name in whole)
    again = MasterASRForCTC.from_pretrained(tmp_path / "base")
    again.load_assembly(tmp_path / "half")
    assert torch.equal(again(**inputs, language="es").logits, expected)
    assert {p.dtype for p in again.assemblies["es"].parameters()} == {torch.float32}


@torch.no_grad()
def test_what_half_precision_cannot_hold_stays_whole(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    model.add_language("es", vocab("ab"), preset="paper")
    model.assemblies["es"].head.bias.fill_(1e6)
    model.round_assembly("es")
    assert float(model.assemblies["es"].head.bias.max()) == 1e6
    state = load_file(model.save_assembly("es", tmp_path))
    assert state["head.bias"].dtype == torch.float32 and state["head.weight"].dtype == torch.float16
