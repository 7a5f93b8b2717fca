"""What the ecosystem's tools do to a model: offload, pruning, quantization, pickling. Right, or refused with the way out."""

import copy
import io
import pickle

import accelerate
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules
from conftest import inputs_for, tiny_model, vocab
from packaging.version import Version
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.two_tensor import TwoTensor

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import _ASSEMBLED
from modeling_master_asr.configuration_master_asr import ALL_PARTS

PRELOADED = {"wavlm": ["WavLMAttention"]}  # reads its layers' weights and never calls them: accelerate has to be told, of the stock model too


def with_a_language_of_all_parts(family="wav2vec2"):
    model = tiny_model(family)
    model.add_language("es", vocab("abñ"), parts=ALL_PARTS, rank=2, targets="all")
    with torch.no_grad():
        for parameter in model.assemblies["es"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------------- offload


@torch.no_grad()
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_answers_as_before_and_after(family, where, tmp_path):
    model, preload = with_a_language_of_all_parts(family), PRELOADED.get(family)
    inputs = inputs_for(model)
    calls = ("fr", "es", ["ru", "es"])
    expected = [model(**inputs, language=language).logits for language in calls]
    if where == "cpu":
        cpu_offload(model, execution_device="cpu", preload_module_classes=preload)
    else:
        disk_offload(model, tmp_path, execution_device="cpu", preload_module_classes=preload)
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert all(torch.equal(model(**inputs, language=language).logits, logits) for language, logits in zip(calls, expected))
    remove_hook_from_submodules(model)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert all(torch.equal(model(**inputs, language=language).logits, logits) for language, logits in zip(calls, expected))


@torch.no_grad()
def test_an_offloaded_model_holds_one_layers_assembled_weights_at_a_time():
    model, held = with_a_language_of_all_parts(), []
    cpu_offload(model, execution_device="cpu")
    for layer in model.master_asr.layout.place:
        layer.register_forward_hook(lambda *_: held.append({module for module, _ in _ASSEMBLED.get()._made}))
    model(**inputs_for(model), language="es")
    assert len(held) == len(model.master_asr.layout.place) and max(map(len, held)) == 1
    assert not model.master_asr.masks._dense and not model.master_asr.masks._masks


@torch.no_grad()
@pytest.mark.parametrize("on_disk", ["master_asr.backbone", "master_asr.assemblies", *([""] if Version(accelerate.__version__) >= Version("1.15") else [])])  # else refused there
def test_a_model_loads_with_a_part_of_it_on_disk(tmp_path, on_disk):
    model = with_a_language_of_all_parts()
    model.save_pretrained(tmp_path / "model")
    parts = ["master_asr.backbone", "master_asr.assemblies", "master_asr.character_bank"]
    places = {part: "disk" if part == on_disk else "cpu" for part in parts} if on_disk else {"": "disk"}
    again = MasterASRForCTC.from_pretrained(tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload"))
    inputs = inputs_for(model)
    for language in ("fr", "es"):
        assert torch.equal(again(**inputs, language=language).logits, model(**inputs, language=language).logits)


def test_what_needs_the_values_of_an_offloaded_base_says_so(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    cpu_offload(model, execution_device="cpu")
    for write in (lambda: model.save_assembly("fr", tmp_path / "fr"), lambda: model.save_pretrained(tmp_path / "again")):
        with pytest.raises(ValueError, match=r"have no values here: they are offloaded.*remove_hook_from_submodules\(model\)"):
            write()


# ---------------------------------------------------------------------- pruning, quantization


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_unstructured(layer, "bias", 0.5),
        lambda layer: parametrizations.weight_norm(layer),
    ],
    ids=["prune weight", "prune bias", "weight_norm"],
)
def test_weights_computed_from_others_are_refused_and_leave_every_layer_as_it_was(change):
    model = tiny_model()
    inputs, state = inputs_for(model), {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(**inputs, language="fr").logits
    layout = model.master_asr.layout
    for layer in (layout.artisan[0], next(m for m in layout.linear if m not in layout.row), layout.norms[0]):
        with pytest.raises(NotImplementedError, match=r"cannot be computed from others.*materialize\(language\)"):
            change(layer)
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(model(**inputs, language="fr").logits, expected)
    plain = model.materialize("fr")
    change(plain.base_model.encoder.layers[0].attention.q_proj)  # the way out
    assert plain(**inputs).logits.shape == expected.shape


@torch.no_grad()
def test_quantized_weights_are_refused_on_artisan_layers_and_serve_on_others():
    """A tensor of two tensors stands for torchao's: `quantize_` puts such a one in the place of each weight."""
    model = tiny_model()
    layers = {type(layer).__name__: layer for layer in model.master_asr.layout.linear}
    for name in ("weight", "specialists"):
        value = layers["ArtisanLinear"]._parameters[name].detach()
        with pytest.raises(NotImplementedError, match=r"cannot be of type TwoTensor.*quantize_\(model.materialize\(language\), ...\).*filter_fn"):
            setattr(layers["ArtisanLinear"], name, torch.nn.Parameter(TwoTensor(value, value), requires_grad=False))
    other, inputs = layers["AssembledLinear"], inputs_for(model)
    expected, value = model(**inputs, language="fr").logits, other._parameters["weight"].detach()
    other.weight = torch.nn.Parameter(TwoTensor(value, value), requires_grad=False)
    assert torch.equal(model(**inputs, language="fr").logits.a, expected)


# ---------------------------------------------------------------------- pickle


def pickled(model) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


def test_a_whole_model_pickles_after_forwards_without_what_it_kept():
    model = with_a_language_of_all_parts("whisper")
    fresh, inputs = len(pickled(model)), inputs_for(model)
    model.train()(**inputs, language="es", labels=torch.tensor([[3, 4], [4, 3]])).loss.backward()
    model.zero_grad()
    with torch.no_grad():
        expected = model.eval()(**inputs, language=["fr", "es"]).logits
        assert model.master_asr.masks._dense and abs(len(pickled(model)) - fresh) < 200  # a flag more, no tensor
        for again in (torch.load(io.BytesIO(pickled(model)), weights_only=False), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(again(**inputs, language=["fr", "es"]).logits, expected)


def test_what_the_stock_model_does_not_pickle_we_do_not_either():
    model = tiny_model("wav2vec2")  # the weight_norm of its positional convolution
    for target in (model, model.materialize("fr")):
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"):
            pickled(target)
