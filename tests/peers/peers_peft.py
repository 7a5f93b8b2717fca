"""PEFT's common suite on our models, with the assembly and with LoRA as the method. Run by `make test-peers`."""

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import inspect

import pytest
import torch
from conftest import HUB, inputs_for, tiny_model, vocab
from peft import LoraConfig
from suites import suite
from verdicts import verdict_of

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from modeling_master_asr.peft_assembly import AssemblyConfig

common = suite("peft", "testing_common")
common.hub_online_once = lambda model_id: nullcontext()  # the hub is on loopback

MORE = {"dtype": torch.bfloat16, "use_reentrant": False, "raises_err": True, "safe_serialization": True}  # what some tests ask for
TESTS = {  # helpers that take a model instead of a folder are no tests
    name: [argument for argument in inspect.signature(test).parameters if argument in MORE]
    for name, test in vars(common.PeftCommonTester).items()
    if name.startswith("_test_") and "model_id" in inspect.signature(test).parameters
}
METHODS = {
    "assembly": (AssemblyConfig, {"language": "es", "vocab": vocab("abcñ"), "parts": list(ALL_PARTS), "rank": 2, "targets": "all"}),
    "lora": (LoraConfig, {"target_modules": ["q_proj", "v_proj"], "r": 8, "init_lora_weights": False}),
}


class Peft(common.PeftCommonTester):
    transformers_class = MasterASRForCTC

    def prepare_inputs_for_testing(self):
        return inputs_for(tiny_model(), lengths=(1600, 1600))


@pytest.fixture(scope="module")
def repo():
    """The base on the loopback hub: the card of an adapter names its base, and never a folder of this machine."""
    model = tiny_model()
    model.set_language("fr")
    model.push_to_hub("tester/base", token="a-token")
    yield "tester/base"
    HUB.repos.clear()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TESTS)
def test_peft(name, method, repo, request):
    verdict, reason = verdict_of(name, "peft", f"peft {method}")
    if verdict == "skip":
        pytest.skip(reason)
    if verdict == "open":
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    config_class, kwargs = METHODS[method]
    getattr(Peft(), name)(repo, config_class, dict(kwargs), **{argument: MORE[argument] for argument in TESTS[name]})
