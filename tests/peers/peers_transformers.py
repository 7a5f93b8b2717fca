"""Transformers' common suites on our classes. Run by `make test-peers`."""

import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from conftest import inputs_for, tiny_backbone_config, tiny_model, vocab
from suites import suite
from verdicts import apply_verdicts

from modeling_master_asr import MasterASRConfig, MasterASRForCTC, MasterASRModel, MasterASRProcessor

common = suite("transformers", "test_modeling_common")
ProcessorTesterMixin = suite("transformers", "test_processing_common").ProcessorTesterMixin
ConfigTester = suite("transformers", "test_configuration_common").ConfigTester

# their suite knows by these names which model gives a loss
common.MODEL_MAPPING_NAMES["master_asr"] = MasterASRModel.__name__
common.MODEL_FOR_CTC_MAPPING_NAMES["master_asr"] = MasterASRForCTC.__name__

VOCAB = vocab("abcdefg")  # ten tokens: ids up to 9 are decoded, and ours refuses those that no alphabet has


class Tester:
    """What their suite asks a model for: a config and inputs."""

    batch_size, hidden_size, num_hidden_layers, num_attention_heads, is_training = 2, 32, 2, 2, True

    def __init__(self, family: str):
        self.config = lambda: MasterASRConfig(
            backbone_config=tiny_backbone_config(family), num_specialists=3, sparsity=0.3,
            assemblies={"en": {"vocab": VOCAB, "shares_bank": True}}, character_bank=list(VOCAB),
        )  # fmt: skip
        self.inputs = inputs_for(tiny_model(family), lengths=(1600, 1200))
        frames = MasterASRModel(self.config()).frame_counts(next(iter(self.inputs.values())), None)
        self.seq_length = self.encoder_seq_length = self.key_length = int(frames[0])

    def prepare_config_and_inputs_for_common(self):
        return self.config(), {name: value.clone() for name, value in self.inputs.items()}

    get_config = property(lambda self: self.config)


class Models:
    all_model_classes = (MasterASRModel, MasterASRForCTC)
    test_resize_embeddings = False
    _is_composite = True
    family = ""

    def setUp(self):
        self.model_tester = Tester(self.family)
        self.config_tester = ConfigTester(
            self, config_class=MasterASRConfig, has_text_modality=False,
            backbone_config=json.loads(self.model_tester.config().to_json_string())["backbone_config"], num_specialists=3,
        )  # fmt: skip

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is MasterASRForCTC:
            inputs["labels"] = torch.tensor([[3, 4], [5, 3]])
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()


@apply_verdicts("models", "models wav2vec2")
class Wav2Vec2ModelsTest(Models, common.ModelTesterMixin, unittest.TestCase):
    family = "wav2vec2"


@apply_verdicts("models", "models whisper")
class WhisperModelsTest(Models, common.ModelTesterMixin, unittest.TestCase):
    family = "whisper"


class Processors:
    """Of a model with one language: their suite knows no `language=`."""

    processor_class = MasterASRProcessor
    text_input_name = "labels"  # what texts beside clips are called, as in Transformers' own processor of wav2vec 2.0
    family = ""

    @classmethod
    def _setup_from_components(cls):
        return MasterASRProcessor.from_model(tiny_model(cls.family, vocabs={"en": VOCAB}))


@apply_verdicts("processors", "processors wav2vec2")
class Wav2Vec2ProcessorTest(Processors, ProcessorTesterMixin, unittest.TestCase):
    family = "wav2vec2"


@apply_verdicts("processors", "processors whisper")
class WhisperProcessorTest(Processors, ProcessorTesterMixin, unittest.TestCase):
    family = "whisper"
