"""What PyTorch offers beside training and reading: averages, hooks, pruning, copies of parts, quantization. Right, or refused in words."""

import copy

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from modeling_master_asr import MasterASRForCTC


@pytest.fixture
def grown():
    """A model with a language of the preset `best`, all of whose values say something."""
    model = tiny_model("whisper")
    model.add_language("es", vocab("ab"), preset="best", rank=2)
    with torch.no_grad():
        for parameter in model.assemblies["es"].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) / 3)
    return model.eval()


def logits(model, code):
    with torch.no_grad():
        return model(**inputs_for(model), language=code).logits


def doubled(model):
    model.assemblies["es"].delta.register_forward_hook(lambda module, inputs, pairs: [(2 * up, down) for up, down in pairs])


def pruned(model):
    prune.random_unstructured(model.assemblies["es"], "mapping", 0.6)


def halved(model):
    parametrize.register_parametrization(model.assemblies["es"].delta.up, "0", Halved())


class Halved(torch.nn.Module):
    def forward(self, value):
        return value / 2


def ablated(model):
    model.assemblies["es"].delta.register_forward_hook(lambda module, inputs, pairs: [(up[:, :1], down[:1]) for up, down in pairs])


@pytest.mark.parametrize("change", [doubled, pruned, halved, ablated])
def test_what_is_put_around_a_languages_parts_is_read_at_once(grown, change):
    before = logits(grown, "es")
    change(grown)
    after = logits(grown, "es")
    assert not torch.equal(after, before)
    grown.master_asr._forget()
    assert torch.equal(logits(grown, "es"), after)


def test_a_recomputation_has_the_parts_that_the_forward_had(grown):
    """Dropout on a language's own change: another draw in the recomputation would be the gradient of another forward."""
    grown.assemblies["es"].delta.register_forward_hook(lambda module, inputs, pairs: [(functional.dropout(up, 0.5), down) for up, down in pairs])
    grown.freeze_except("es")
    grown.train()
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            grown.activation_checkpointing_enable()
        grown.zero_grad()
        torch.manual_seed(0)
        grown(**inputs_for(grown), language="es").logits.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in grown.assemblies["es"].delta.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)


def test_a_model_that_was_loaded_and_read_in_inference_mode_trains(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = MasterASRForCTC.from_pretrained(tmp_path)
    with torch.inference_mode():
        model(**inputs_for(model), language="fr")
    model.train()(**inputs_for(model), language="fr", labels=torch.tensor([[3, 4], [4, 3]])).loss.backward()
    assert model.master_asr.character_bank.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("decay", [0.9, 0.9995])
def test_an_average_of_a_model_that_stands_still_reads_as_it_does_and_is_saved_as_it_is(decay, tmp_path):
    model = tiny_model().eval()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(5):
        average.update_parameters(model)
    model.save_pretrained(tmp_path / "own")
    average.module.save_pretrained(tmp_path / "mean")
    loaded = MasterASRForCTC.from_pretrained(tmp_path / "mean")
    for one in (average.module, loaded):
        torch.testing.assert_close(logits(one, "fr"), logits(model, "fr"), atol=1e-4, rtol=0)  # its values are rounded by their mean


def test_a_mean_of_state_dicts_is_loaded(tmp_path):
    model = tiny_model().eval()
    mean = {name: sum(value * weight for weight in (1 / 3, 1 / 3, 1 / 3)) for name, value in model.state_dict().items()}
    other = tiny_model(seed=5).eval()
    other.load_state_dict(mean)
    torch.testing.assert_close(logits(other, "fr"), logits(model, "fr"), atol=1e-4, rtol=0)
    mean[next(name for name in mean if name.endswith("head.rows"))] += 1
    for wrong in (lambda rows: rows, lambda rows: rows * float("nan"), lambda rows: rows[None], lambda rows: rows[0]):
        with pytest.raises(RuntimeError, match="a mean of models is of values alone, not of rows"):
            other.load_state_dict({name: wrong(value) if name.endswith("head.rows") else value for name, value in mean.items()})


def test_a_language_that_is_copied_and_put_back_reads_its_models_bank(tmp_path):
    model = tiny_model().eval()
    model.assemblies["fr"] = copy.deepcopy(model.assemblies["fr"])
    assert model.assemblies["fr"].head._model[0] is model.master_asr
    whole = copy.deepcopy(model)
    assert whole.assemblies["fr"].head._model[0] is whole.master_asr
    with torch.no_grad():
        model.master_asr.character_bank.weight.add_(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(MasterASRForCTC.from_pretrained(tmp_path), "fr"), logits(model, "fr")) and not torch.equal(logits(whole, "fr"), logits(model, "fr"))


def test_languages_that_were_added_or_loaded_are_not_drawn_again(grown, tmp_path):
    grown.save_pretrained(tmp_path / "model")
    grown.save_assembly("es", tmp_path / "es")
    other = MasterASRForCTC.from_pretrained(tmp_path / "model")
    other.remove_language("es")
    other.load_assembly(tmp_path / "es")
    for model in (grown, other):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.init_weights()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_would_set_the_statistics_of_a_pretrained_batchnorm_to_nothing_is_refused():
    model = tiny_model("wav2vec2-conformer")
    model.set_language("en")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NotImplementedError, match="set a BatchNorm's statistics to nothing.*update_bn"):
        update_bn([inputs_for(model)["input_values"]], model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of quantize_dynamic
def test_a_head_that_was_quantized_says_what_can_be(grown):
    quantized = torch.ao.quantization.quantize_dynamic(grown, {torch.nn.Linear})
    with pytest.raises(NotImplementedError, match=r"The head of 'es' is a .*Linear. Quantize one language: quantize_dynamic\(model.materialize\('es'\)"):
        logits(quantized, "es")


def test_an_edit_of_a_model_that_was_made_in_inference_mode_is_seen():
    with torch.inference_mode():
        model = tiny_model().eval()
        inputs = inputs_for(model)
        before = model(**inputs, language="fr").logits
        model.master_asr.artisan_layers[-1].weight[0, 1] = 100
        assert not torch.equal(model(**inputs, language="fr").logits, before)
