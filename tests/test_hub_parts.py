"""Parts of a model that are saved, pushed or loaded by themselves, over real HTTP: processor, tokenizer, collator, assembly."""

import pickle

import pytest
import torch
from conftest import tiny_model, vocab
from huggingface_hub.errors import HfHubHTTPError
from test_hub import MODEL, TOKEN, cache, pushed, with_spanish  # noqa: F401  the fixtures
from test_remote_code import blocked_process
from transformers import AutoModelForCTC, AutoProcessor, AutoTokenizer, Wav2Vec2FeatureExtractor

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.trainer_utils import ClipCollator


def test_a_private_repo_opens_to_its_token_alone(hub, cache, tmp_path):  # noqa: F811
    model = tiny_model()
    model.push_to_hub("tester/secret", private=True, token=TOKEN)
    with pytest.raises(OSError, match="tester/secret"):
        MasterASRForCTC.from_pretrained("tester/secret", token=False, **cache)
    loaded = MasterASRForCTC.from_pretrained("tester/secret", token=TOKEN, **cache)
    loaded.add_language("es", vocab("abñ"), preset="paper")
    loaded.push_assembly_to_hub("es", "tester/secret-es", private=True, token=TOKEN)
    both = MasterASRForCTC.from_pretrained("tester/secret", assemblies="tester/secret-es", token=TOKEN, cache_dir=str(tmp_path / "of its own"))
    assert "es" in both.languages
    fresh = MasterASRForCTC.from_pretrained("tester/secret", token=TOKEN, **cache)
    with pytest.raises(OSError, match="tester/secret-es"):
        fresh.load_assembly("tester/secret-es", token=False, **cache)
    assert fresh.load_assembly("tester/secret-es", token=TOKEN, **cache) == "es"
    with pytest.raises(HfHubHTTPError, match="401"):
        fresh.push_assembly_to_hub("fr", "tester/unwritable", token=False)


@pytest.mark.parametrize("source", ["folder", "tester/own"])
def test_a_models_own_extractor_is_found_in_its_folder_and_its_repo_alike(hub, tmp_path, monkeypatch, source):
    """A model that was made of a config alone does not say which it was."""
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model, feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True))
    model.push_to_hub("tester/own", processor=processor, token=TOKEN)
    model.save_pretrained(tmp_path / "folder")
    processor.save_pretrained(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    loaded = MasterASRForCTC.from_pretrained("./folder" if source == "folder" else source, cache_dir=str(tmp_path / "cache"))
    assert loaded.config.feature_extractor is None and MasterASRProcessor.from_model(loaded).feature_extractor.do_normalize is False
    loaded.push_to_hub("tester/other", token=TOKEN)
    assert MasterASRProcessor.from_pretrained("tester/other", cache_dir=str(tmp_path / "cache")).feature_extractor.do_normalize is False


@pytest.mark.parametrize("languages", [["en", "fr"], ["en"]])
def test_a_repo_of_a_model_a_tokenizer_and_an_extractor_that_were_pushed_apart_has_our_processor(tmp_path, languages):
    """As Trainer's recipe leaves it."""
    model = tiny_model(vocabs={code: vocab("abé") for code in languages})
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "first")
    processor = MasterASRProcessor.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "model")
    processor.feature_extractor.save_pretrained(tmp_path / "model")
    processor.tokenizer.save_pretrained(tmp_path / "model")
    said = blocked_process("AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True).__class__.__name__", tmp_path / "model", tmp_path)
    assert said == "MasterASRProcessor"


def test_a_language_that_the_caller_names_is_the_tokenizers_and_no_other_has_a_default(tmp_path):
    model = tiny_model()
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    ids = [3, 4, 5, 6]
    wanted = MasterASRProcessor.from_pretrained(tmp_path).decode(ids, "fr")
    for auto in (AutoProcessor, AutoTokenizer):
        found = auto.from_pretrained(tmp_path, target_lang="fr", trust_remote_code=True)
        assert getattr(found, "tokenizer", found).decode(ids) == wanted
    with pytest.raises(ValueError, match="zz does not exist"):
        AutoTokenizer.from_pretrained(tmp_path, target_lang="zz", trust_remote_code=True)
    remote = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    composed = MasterASRProcessor(MasterASRProcessor.from_model(model).feature_extractor, remote)
    assert remote.default is None and composed.tokenizer.default is None
    with pytest.raises(ValueError, match="Which language"):
        composed.tokenizer.decode(ids)


def test_a_collator_travels_to_the_workers_that_load_the_data_without_the_model():
    model = tiny_model()  # whose parametrized convolution nobody can pickle
    collator = ClipCollator(MasterASRProcessor.from_model(model), model)
    other = pickle.loads(pickle.dumps(collator))
    model.add_language("es", vocab("zyx"))
    examples = [{"audio": {"array": torch.zeros(16_000).numpy() + 0.1, "sampling_rate": 16_000}, "text": "ab", "language": "en"}]
    assert torch.equal(other(examples)["labels"], collator(examples)["labels"])
    collator.processor.add_language("es", vocab("xyz"))
    with pytest.raises(ValueError, match="es"):  # the model's languages of now are compared
        collator([{**examples[0], "text": "xy", "language": "es"}])


def test_entries_of_the_encoders_config_are_refused_with_the_way_to_set_them(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for load in (MasterASRForCTC.from_pretrained, AutoModelForCTC.from_pretrained):
        with pytest.raises(TypeError, match=r"from_pretrained got \['attention_dropout', 'mask_time_prob'\].*config.backbone_config.attention_dropout = 0.1"):
            load(tmp_path, attention_dropout=0.1, mask_time_prob=0.05)


def test_an_assemblys_repo_does_not_claim_to_be_a_model_that_transformers_loads(hub, pushed, cache):  # noqa: F811
    with_spanish(cache).push_assembly_to_hub("es", "tester/es", token=TOKEN)
    assert "library_name: modeling-master-asr" in hub.files("tester/es")["README.md"].decode()
    assert "library_name: transformers" in hub.files(MODEL)["README.md"].decode()
