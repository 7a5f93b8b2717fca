"""Merging an adapter of PEFT into a weight that languages share leaves what each of them reads as it was, or is refused."""

import copy

import peft
import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from transformers.dynamic_module_utils import get_class_from_dynamic_module

T = ["intermediate_dense", "output_dense"]
ADDING = {
    "LoRA": LoraConfig(target_modules=T, r=2),
    "LoHa": peft.LoHaConfig(target_modules=T, r=2),
    "LoKr": peft.LoKrConfig(target_modules=T, r=2),
    "VeRA": peft.VeraConfig(target_modules=T, r=2),
    "FourierFT": peft.FourierFTConfig(target_modules=T, n_frequency=20),
    "MiSS": peft.MissConfig(target_modules=T, r=2),
    "SHiRA": peft.ShiraConfig(target_modules=T, r=2),
}
MULTIPLYING = {
    "IA3": IA3Config(target_modules=T, feedforward_modules=["output_dense"]),
    "OFT": peft.OFTConfig(target_modules=T, r=0, oft_block_size=4),
    "BOFT": peft.BOFTConfig(target_modules=T, boft_block_size=4),
    "HRA": peft.HRAConfig(target_modules=T, r=2),
    "ROAD": peft.RoadConfig(target_modules=T, group_size=4),
}
NORMS, DELTA = ("mapping", "head", "norms"), ("mapping", "head", "delta")
BY_BIAS = ("IA3", "ROAD")  # the others leave a bias as it is, and merge beside a language that owns norms
MULTIPLYING |= {name: getattr(peft, f"{name.capitalize()}Config")(target_modules=T) for name in ("PEANUT", "DEFT", "HIRA") if hasattr(peft, f"{name.capitalize()}Config")}


def moved(parameters, by=0.2):
    """As if they had trained."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by * torch.randn_like(parameter))


def adapted(config, parts=("mapping", "head", "delta", "norms"), targets="all", **kwargs):
    """`(peft_model, inputs)`: a trained adapter on a model whose "es" owns trained `parts`; "en" owns nothing of these layers."""
    base = tiny_model()
    base.add_language("es", vocab("xyz"), parts=parts, rank=2, targets=targets)
    moved(base.assemblies["es"].parameters())
    model = get_peft_model(base, copy.deepcopy(config), **kwargs).eval()
    moved(parameter for parameter in model.parameters() if parameter.requires_grad)
    return model, inputs_for(base)


def said(model, inputs):
    with torch.no_grad():
        return {language: model(**inputs, language=language).logits for language in ("es", "en")}


def assert_merges(model, inputs):
    before, after = said(model, inputs), said(model.merge_and_unload(), inputs)
    assert all(torch.allclose(after[language], before[language], atol=2e-5, rtol=0) for language in before)


@pytest.mark.parametrize("config", ADDING.values(), ids=ADDING)
def test_what_adds_the_same_to_any_weight_merges_whatever_languages_own(config):
    assert_merges(*adapted(config))


@pytest.mark.parametrize("name, kind", [*((name, "weight") for name in MULTIPLYING), *((name, "bias") for name in BY_BIAS)])
def test_what_changes_a_weight_by_what_it_is_never_merges_beside_a_language_that_reads_another(name, kind):
    model, inputs = adapted(MULTIPLYING[name], DELTA if kind == "weight" else NORMS)
    before, values = said(model, inputs), copy.deepcopy(model.state_dict())
    for merge in (model.merge_and_unload, lambda: model.merge_adapter(adapter_names=["default"])):
        with pytest.raises(NotImplementedError, match=rf"{name} changes a {kind} by what it is.*\['es'\] read another.*Leave the adapter unmerged.*materialize"):
            merge()
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(logits, before[language]) for language, logits in said(model, inputs).items())


@pytest.mark.parametrize("name, parts", [(name, parts) for parts in (("mapping", "head"), DELTA, NORMS) for name in MULTIPLYING if not (parts == NORMS and name in BY_BIAS)])
def test_any_method_merges_where_every_language_reads_the_same_of_its_layers(name, parts):
    assert_merges(*adapted(MULTIPLYING[name], parts, targets="attention"))


def test_an_adapter_that_is_off_or_beside_a_merged_one_is_looked_at_before_it_is_merged_too():
    model, inputs = adapted(MULTIPLYING["IA3"], adapter_name="one")
    model.add_adapter("two", MULTIPLYING["IA3"])  # as it starts it changes nothing: by itself it may be merged
    for merge in (lambda: model.merge_adapter(adapter_names=["one"]), model.merge_adapter):
        model.set_adapter("two")
        with model.disable_adapter(), pytest.raises(NotImplementedError, match="IA3 changes a weight by what it is"):
            merge()


def test_dropout_and_a_base_in_half_precision_hide_no_sum_and_make_none():
    for dtype in (torch.bfloat16, torch.float32):
        model, _ = adapted(LoraConfig(target_modules=T, r=2, lora_dropout=0.5))
        model.get_base_model().master_asr.backbone.to(dtype)
        state = torch.random.get_rng_state()
        model.train().merge_adapter()
        assert model.training and torch.equal(torch.random.get_rng_state(), state)
    model, _ = adapted(MULTIPLYING["IA3"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.sub_(1).mul_(0.02).add_(1)  # a change that bf16 would round away
    model.get_base_model().master_asr.backbone.to(torch.bfloat16)
    with pytest.raises(NotImplementedError, match=r"IA3 changes a weight by what it is.*delete_adapter\('default'\)"):
        model.merge_and_unload()


class Holder(torch.nn.Module):
    """A user's own module around a model."""

    def __init__(self, model):
        super().__init__()
        self.inner = model


@pytest.mark.parametrize("part", [lambda base: base.master_asr.backbone, Holder], ids=["the encoder alone", "a module around it"])
def test_an_adapter_on_a_part_of_a_model_or_around_it_merges_where_it_adds(part):
    base = tiny_model()
    base.add_language("es", vocab("xyz"), parts=DELTA, rank=2, targets="all")
    moved(base.assemblies["es"].parameters())
    inputs = inputs_for(base)
    adapter = get_peft_model(part(base), LoraConfig(target_modules=T, r=2)).eval()
    moved(parameter for parameter in adapter.parameters() if parameter.requires_grad)
    before = said(base, inputs)
    adapter.merge_adapter()
    assert all(torch.allclose(logits, before[language], atol=2e-5, rtol=0) for language, logits in said(base, inputs).items())
    other = get_peft_model(part(tiny_model()) if part is not Holder else Holder(base), copy.deepcopy(MULTIPLYING["IA3"]))
    moved(parameter for parameter in other.parameters() if parameter.requires_grad)
    with pytest.raises(NotImplementedError, match="IA3 changes a weight by what it is"):
        other.merge_adapter()


def test_copies_of_layer_norms_are_refused_in_words_where_a_language_owns_norms_and_where_they_merge():
    norms = LNTuningConfig(target_modules=["layer_norm", "final_layer_norm"])
    model, inputs = adapted(norms)
    assert model(**inputs, language="en").logits.isfinite().all()
    with pytest.raises(NotImplementedError, match=r"'es' owns changes of the layer itself.*copy.*LNTuning.*\"norms\""):
        model(**inputs, language="es")
    with pytest.raises(NotImplementedError, match=r"A copy in the place of an AssembledLayerNorm would be no language's.*LNTuning merges by copies: leave it unmerged.*\"norms\""):
        model.merge_and_unload()
    assert torch.equal(model(**inputs, language="en").logits, adapted(norms)[0](**inputs, language="en").logits)


@torch.no_grad()
def test_a_copy_of_the_code_that_was_loaded_from_a_folder_leaves_the_check_of_merges_as_it_is(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    theirs = get_class_from_dynamic_module("modeling_master_asr.MasterASRForCTC", tmp_path).from_pretrained(tmp_path)
    assert not isinstance(theirs, type(tiny_model()))
    for base in (tiny_model(), theirs):
        model = get_peft_model(base, LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(NotImplementedError, match="An adapter on Artisan layers cannot be merged"):
            model.merge_and_unload()
        after = model.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in after.items())
