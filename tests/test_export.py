"""One language leaves Python: torch.export and ONNX, at lengths it was not exported at."""

import pytest
import torch
from conftest import TWO_FAMILIES, inputs_for, tiny_model

from training.export_onnx import EXAMPLE_S, OTHER_S, example_of, export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporters' own


@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_an_onnx_file_of_one_language_answers_as_pytorch_does_at_another_length(family, tmp_path):
    assert export(tiny_model(family), "fr", tmp_path / "fr.onnx") < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["fr.onnx"]


@torch.no_grad()
def test_a_materialized_whisper_goes_through_torch_export_with_a_dynamic_length():
    plain = tiny_model("whisper").materialize("fr")
    dynamic = {"input_features": {2: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(plain, (), {"input_features": example_of(plain, EXAMPLE_S)}, dynamic_shapes=dynamic)
    for length_s in (OTHER_S, 0.31, 30.0):  # an odd number of mel frames too
        clip = example_of(plain, length_s)
        torch.testing.assert_close(exported.module()(input_features=clip).logits, plain(clip).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_an_assembled_model_refuses_to_be_exported_and_says_what_is(strict):
    model = tiny_model("whisper").eval()
    with pytest.raises(Exception, match=r"(?s)cannot select masks. Export one language.*model.materialize\(language\)"):
        torch.export.export(model, (), {**inputs_for(model), "language": "fr"}, strict=strict)


@torch.no_grad()
def test_a_padded_batch_of_a_materialized_whisper_exports_with_its_mask():
    plain = tiny_model("whisper").materialize("fr")
    shape = {0: torch.export.Dim.DYNAMIC, -1: torch.export.Dim.DYNAMIC}
    dynamic = {"input_features": {0: shape[0], 2: shape[-1]}, "attention_mask": {0: shape[0], 1: shape[-1]}}
    example = {"input_features": torch.randn(2, 8, 100), "attention_mask": torch.ones(2, 100, dtype=torch.long)}
    exported = torch.export.export(plain, (), example, dynamic_shapes=dynamic)
    inputs = {"input_features": torch.randn(3, 8, 80), "attention_mask": torch.ones(3, 80, dtype=torch.long)}
    inputs["attention_mask"][1, 50:] = 0
    torch.testing.assert_close(exported.module()(**inputs).logits, plain(**inputs).logits, atol=1e-5, rtol=1e-5)
