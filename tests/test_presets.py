"""What a language owns, by the name of a preset, and what that weighs."""

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.configuration_master_asr import ALL_PARTS, PRESETS, from_preset
from modeling_master_asr.packing_master_asr import packed, rounded, unpacked


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_a_language_owns_and_its_config_says_so(preset, tmp_path):
    model = tiny_model()
    model.add_language("es", vocab("abñ"), preset=preset)
    assert set(model.assemblies["es"].parts) == set(PRESETS[preset]["parts"]) and model.assemblies["es"].targets == PRESETS[preset]["targets"]
    model.save_pretrained(tmp_path)
    entry = MasterASRForCTC.from_pretrained(tmp_path).config.assemblies["es"]
    assert (set(entry["parts"]), entry["targets"]) == (set(PRESETS[preset]["parts"]), PRESETS[preset]["targets"])
    assert "delta" not in entry["parts"] or entry["rank"] == PRESETS[preset]["rank"]


def test_what_a_call_names_overrides_its_preset():
    assert from_preset("best", rank=2) == {**PRESETS["best"], "rank": 2}
    entry = tiny_model().add_language("es", vocab("ab"), preset="small", parts=("mapping", "head", "scales"))
    assert entry.parts == ("mapping", "head", "scales")
    with pytest.raises(ValueError, match=r"preset must be one of \['paper', 'small', 'best'\]; got 'huge'"):
        from_preset("huge")


@torch.no_grad()
@pytest.mark.parametrize("parts", [*(preset["parts"] for preset in PRESETS.values()), ALL_PARTS])
def test_a_rounded_assembly_is_small_and_comes_back_bit_for_bit(parts, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    model.add_language("es", vocab("abñ"), parts=parts, rank=2)
    for parameter in model.assemblies["es"].parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = inputs_for(model)
    whole = load_file(model.save_assembly("es", tmp_path / "whole"))
    model.round_assembly("es")
    expected = model(**inputs, language="es").logits
    small = load_file(model.save_assembly("es", tmp_path / "small"))
    matrices = [name for name in whole if name.startswith(("head.weight", "delta", "specialist"))]
    assert all(value.dtype == torch.float32 for value in whole.values()) and all(small[name].dtype == torch.int8 for name in matrices)
    assert all(small[name].dtype == torch.float16 for name in set(whole) - set(matrices))
    again = MasterASRForCTC.from_pretrained(tmp_path / "base")
    again.load_assembly(tmp_path / "small")
    assert torch.equal(again(**inputs, language="es").logits, expected)
    assert {p.dtype for p in again.assemblies["es"].parameters()} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("size", [(3, 700), (700, 3), (1, 1)])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 0.01, 1.0, 1e6])
def test_rounding_to_8_bits_moves_no_value_by_more_than_a_step_and_is_packed_exactly(size, scale):
    value = scale * torch.randn(size, generator=torch.Generator().manual_seed(0))
    near = rounded("head.weight", value)
    step = value.abs().amax(0 if size[0] > size[1] else 1, keepdim=True) / 127
    assert bool(((value - near).abs() <= 0.5001 * step).all()) and torch.equal(rounded("head.weight", near), near)
    content = packed({"head.weight": near})
    assert content["head.weight"].dtype == torch.int8 and torch.equal(unpacked(content)["head.weight"], near)
    assert torch.equal(unpacked(packed({"head.weight": value}))["head.weight"], value)


@torch.no_grad()
@pytest.mark.parametrize("changed", ["the scales of another", "8 bits without scales", "scales without 8 bits", "NaN among the scales"])
def test_a_file_in_8_bits_that_does_not_fit_together_is_refused(changed, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    model.add_language("es", vocab("ab"), preset="paper")
    model.round_assembly("es")
    path = model.save_assembly("es", tmp_path / "es")
    with safe_open(path, "pt") as opened:
        content, facts = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
    scales = content.pop("head.weight.scales")
    content |= {
        "the scales of another": {"head.weight.scales": scales[:-1].clone()}, "8 bits without scales": {},
        "scales without 8 bits": {"head.weight.scales": scales, "head.weight": content["head.weight"].float()},
        "NaN among the scales": {"head.weight.scales": scales * torch.nan},
    }[changed]  # fmt: skip
    save_file(content, path, metadata=facts)
    model.remove_language("es")
    with pytest.raises(ValueError, match="does not fit its own|of no type that belongs there in"):
        model.load_assembly(tmp_path / "es")
    assert "es" not in model.languages


@torch.no_grad()
def test_what_half_precision_cannot_hold_stays_whole(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    model.add_language("es", vocab("ab"), preset="paper")
    model.assemblies["es"].head.bias.fill_(1e6)
    model.round_assembly("es")
    assert float(model.assemblies["es"].head.bias.max()) == 1e6
    state = load_file(model.save_assembly("es", tmp_path))
    assert state["head.bias"].dtype == torch.float32 and state["head.weight"].dtype == torch.int8


@torch.no_grad()
def test_a_language_given_parts_reads_as_before_in_its_old_place_and_so_do_the_others(tmp_path):
    model = tiny_model().eval()
    inputs, languages = inputs_for(model), list(model.languages)
    before = {code: model(**inputs, language=code).logits for code in languages}
    assembly = model.give_parts("fr", preset="best", rank=2)
    assert model.languages == languages == list(model.config.assemblies)
    assert set(assembly.parts) == set(PRESETS["best"]["parts"]) and not model.config.assemblies["fr"]["shares_bank"]
    model.save_pretrained(tmp_path)
    for same in (model, MasterASRForCTC.from_pretrained(tmp_path).eval()):
        assert same.languages == languages and all(torch.equal(same(**inputs, language=code).logits, before[code]) for code in languages)


@torch.no_grad()
def test_an_alphabet_that_grows_keeps_the_rows_of_its_letters_and_new_ones_start_from_their_base_letter():
    model = tiny_model().eval()
    inputs, vocab = inputs_for(model), dict(model.config.vocab("fr"))
    before = model(**inputs, language="fr").logits
    others = {code: model(**inputs, language=code).logits for code in ("en", "ru")}
    with pytest.raises(ValueError, match=r"vocab: \['b'\] of 'fr' would be lost or get other ids"):
        model.give_parts("fr", preset="small", vocab={token: i for token, i in vocab.items() if token != "b"})
    assert model.config.vocab("fr") == vocab
    model.give_parts("fr", preset="small", vocab={**vocab, "ç": len(vocab), "ж": len(vocab) + 1})
    after = model(**inputs, language="fr").logits
    assert torch.allclose(after[..., : len(vocab)], before, atol=1e-6) and torch.allclose(after[..., vocab["c"]], after[..., len(vocab)], atol=1e-6)
    assert all(torch.equal(model(**inputs, language=code).logits, logits) for code, logits in others.items())


def test_what_was_given_trains_and_moves_no_bit_of_what_others_use(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.give_parts("fr", preset="best", rank=2)
    model.freeze_except("fr")
    inputs = inputs_for(model)
    others = {code: model.eval()(**inputs, language=code).logits for code in ("en", "ru")}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in trained} == {"mapping", "head", "delta", "norms"}
    optimizer = torch.optim.Adam(trained.values(), lr=0.1)
    for _ in range(2):  # down moves once up is no longer zero
        optimizer.zero_grad()
        model.train()(**inputs, language="fr", labels=torch.tensor([[2, 3], [3, 2]])[: len(next(iter(inputs.values())))]).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model.round_assembly("fr")
        mine = model(**inputs, language="fr").logits
        assert all(torch.equal(model(**inputs, language=code).logits, others[code]) for code in others)
        model.save_assembly("fr", tmp_path / "fr")
        loaded = MasterASRForCTC.from_pretrained(tmp_path / "model").eval()
        loaded.remove_language("fr")
        loaded.load_assembly(tmp_path / "fr")
        assert torch.equal(loaded(**inputs, language="fr").logits, mine)
        at_once = MasterASRForCTC.from_pretrained(tmp_path / "model", assemblies=[tmp_path / "fr"]).eval()
        assert at_once.languages == ["en", "fr", "ru"] and torch.equal(at_once(**inputs, language="fr").logits, mine)
        served = MasterASRForCTC.from_pretrained(tmp_path / "model").eval()
        assert not torch.equal(served(**inputs, language="fr").logits, mine)
        served.load_assembly(tmp_path / "fr", replace=True)  # what was made of the one before is not used again
        assert torch.equal(served(**inputs, language="fr").logits, mine)
    with pytest.raises(ValueError, match="holds 'fr', and so does one of the assemblies before it"):
        MasterASRForCTC.from_pretrained(tmp_path / "model", assemblies=[tmp_path / "fr", tmp_path / "fr"])


@pytest.mark.parametrize("owned", [{"preset": "paper"}, {"preset": "best", "rank": 1}, {"preset": "best", "rank": 2, "targets": "attention"}])
def test_a_language_that_would_lose_what_it_owns_stays_as_it_is(owned):
    model = tiny_model()
    model.add_language("es", vocab("ab"), preset="best", rank=2)
    before, entry = {name: value.clone() for name, value in model.state_dict().items()}, dict(model.config.assemblies["es"])
    with pytest.raises(ValueError, match=r"'es' would lose something that it owns: it has .*and would get .*Give it as much or more"):
        model.give_parts("es", **owned)
    with pytest.raises(KeyError, match="xx"):
        model.give_parts("xx")
    with pytest.raises(ValueError, match="rank"):
        model.give_parts("es", preset="best", rank=10_000)
    after = model.state_dict()
    assert model.config.assemblies["es"] == entry and before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
