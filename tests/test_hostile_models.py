"""Models of strangers: one line a change of what was saved, and what is said when it is loaded."""

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import VOCABS, tiny_backbone_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCTC, BitsAndBytesConfig, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from modeling_master_asr import MasterASRConfig, MasterASRForCTC, MasterASRModel, MasterASRProcessor


def test_a_permuted_alphabet_in_a_models_config_is_refused_and_an_older_config_loads(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    letters = raw["assemblies"]["fr"]["vocab"]
    letters["a"], letters["b"] = letters["b"], letters["a"]
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="alphabet of 'fr' is not the one that its head was saved with.*config.json again"):
        MasterASRForCTC.from_pretrained(tmp_path)
    letters["a"], letters["b"] = letters["b"], letters["a"]
    for entry in raw["assemblies"].values():
        del entry["vocab_sha256"]
    path.write_text(json.dumps(raw))
    assert MasterASRForCTC.from_pretrained(tmp_path).config.assemblies == model.config.assemblies


def of_english(**changes):
    return lambda raw: raw["assemblies"]["en"].update(changes)


# what is given, how config.json is changed, what is said
CONFIGS = [
    ("a language that is null", lambda raw: raw["assemblies"].update(en=None), r"The entry of 'en' in assemblies is a NoneType; .*'vocab'"),
    ("a language without an alphabet", lambda raw: raw["assemblies"]["en"].pop("vocab"), r"The entry of 'en' in assemblies lacks \['vocab'\]"),
    ("a field of nobody's", of_english(foo=1), r"The entry of 'en' in assemblies holds \['foo'\], which this version does not know.*Update"),
    ("languages as a list", lambda raw: raw.update(assemblies=["en", "fr", "ru"]), r"assemblies is a list; \{language: \{"),
    ("parts that are null", of_english(parts=None), "parts must hold 'mapping' and 'head' .*; got None"),
    ("parts of dicts", of_english(parts=[{}]), "parts must hold 'mapping' and 'head' .*; got .\\{\\}"),
    ("a bank shared in words", of_english(shares_bank="no"), "shares_bank of 'en' is true or false; got 'no'"),
    ("sparsity in words", lambda raw: raw.update(sparsity="0.3"), "sparsity is the fraction .*; got '0.3'"),
    ("a number of specialists in words", lambda raw: raw.update(num_specialists="4"), "num_specialists must be a whole number, at least 1; got '4'"),
    ("half a specialist", lambda raw: raw.update(num_specialists=1.5), "num_specialists must be a whole number, at least 1; got 1.5"),
    ("a default language that is not there", lambda raw: raw.update(default_language="zz"), r"default_language is 'zz'; one of \['en', 'fr', 'ru'\]"),
    ("an empty default language", lambda raw: raw.update(default_language=""), r"default_language is ''; one of \['en', 'fr', 'ru'\]"),
]  # fmt: skip


@pytest.mark.parametrize("change, said", [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
def test_a_config_that_says_what_cannot_be_is_refused_by_what_it_says(tmp_path, change, said):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=said):
        MasterASRForCTC.from_pretrained(tmp_path)


# what is given, the fields of an assembly's entry, what is said
FACTS = [
    ("parts that are null", {"parts": None}, "parts must hold 'mapping' and 'head' .*; got None"),
    ("parts of dicts", {"parts": [{}]}, "parts must hold 'mapping' and 'head' .*; got .\\{\\}"),
    ("a number of specialists in words", {"num_specialists": "4"}, "made with num_specialists='4', this model has num_specialists=4"),
    ("a revision that is a number", {"base_revision": 7, "fingerprint": "0" * 64}, "was made for the base .* at 7 "),
]  # fmt: skip


@pytest.mark.parametrize("changes, said", [case[1:] for case in FACTS], ids=[case[0] for case in FACTS])
def test_facts_of_an_assembly_that_cannot_be_are_refused_and_nothing_is_added(tmp_path, changes, said):
    tiny_model().save_pretrained(tmp_path / "base")
    model = MasterASRForCTC.from_pretrained(tmp_path / "base")
    model.save_assembly("fr", tmp_path / "fr")
    model.remove_language("fr")
    path = tmp_path / "fr/assembly_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"assemblies": {"fr": raw["assemblies"]["fr"] | changes}}))
    with pytest.raises(ValueError, match=said):
        model.load_assembly(tmp_path / "fr")
    path.write_text(json.dumps(raw))
    assert model.load_assembly(tmp_path / "fr") == "fr"


def test_values_of_a_language_that_are_no_numbers_are_refused_by_name(tmp_path):
    """As in an assembly's own file."""
    model = tiny_model()
    with torch.no_grad():
        model.assemblies["fr"].mapping[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds values that are NaN or infinite in what \['fr'\] own"):
        MasterASRForCTC.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/model", "a/b/c", "~/nothing-of-ours"])
def test_a_folder_that_is_not_there_is_said_to_be_none_and_no_hub_is_asked(name, hub):
    model = tiny_model()
    asked = len(hub.requests)
    for load in (MasterASRForCTC.from_pretrained, model.load_assembly, lambda name: MasterASRForCTC.from_backbone(name, languages=VOCABS)):
        with pytest.raises(FileNotFoundError, match=f"No folder at {name}"):
            load(name)
    assert len(hub.requests) == asked


def test_a_weight_file_cut_short_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=f"The weights of {tmp_path} are not a whole safetensors file .*Download or save them again"):
        MasterASRForCTC.from_pretrained(tmp_path)


@pytest.mark.parametrize("default", ["en", None])
def test_a_vocab_file_that_lacks_a_language_is_named(tmp_path, default):
    model = tiny_model()
    model.set_language(default)
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path)
    path = tmp_path / "vocab.json"
    vocabs = json.loads(path.read_text())
    path.write_text(json.dumps({code: vocab for code, vocab in vocabs.items() if code != "en"}))
    words = f"The processor of {tmp_path} lacks 'en'. Does its vocab.json hold the language" if default else r"Processor and model disagree on the alphabets of \['en'\]"
    with pytest.raises(ValueError, match=words):
        MasterASRProcessor.from_pretrained(tmp_path).check_model(model)


@pytest.mark.parametrize("setting, value", [("sampling_rate", 8_000), ("do_normalize", True), ("feature_size", 2)])
def test_a_processor_with_other_settings_than_the_encoder_was_trained_with_is_refused(setting, value, tmp_path):
    Wav2Vec2Model(tiny_backbone_config("wav2vec2")).save_pretrained(tmp_path / "base")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "base")
    MasterASRForCTC.from_backbone(tmp_path / "base", VOCABS).save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    processor = MasterASRProcessor.from_model(model)  # from the config alone: no file of an extractor lies in the folder
    assert processor.feature_extractor.to_dict() == Wav2Vec2FeatureExtractor(do_normalize=False).to_dict()
    processor.check_model(model)
    setattr(processor.feature_extractor, setting, value)
    with pytest.raises(ValueError, match=f"is not the one that the model was trained with: {setting} {value} instead of .*from_model"):
        processor.check_model(model)


def test_a_processor_of_another_rate_is_refused_also_where_the_config_does_not_say(model):
    processor = MasterASRProcessor.from_model(model)
    assert model.config.feature_extractor is None
    processor.feature_extractor.do_normalize = not processor.feature_extractor.do_normalize  # nobody knows
    processor.check_model(model)
    processor.feature_extractor.sampling_rate = 48_000
    with pytest.raises(ValueError, match="sampling_rate 48000 instead of 16000"):
        processor.check_model(model)


def swapped(bank: list) -> list:
    return [*bank[:3], bank[4], bank[3], *bank[5:]]


# what is given, how the bank is changed, what is said
BANKS = [
    ("two characters in each other's place", swapped, "character_bank in config.json .*rows were saved with.*config.json again|heads of .* rows of the character bank .*again"),
    ("a character for another", lambda bank: [*bank[:-1], "z"], r"character_bank lacks \['в'\], which the head of 'ru' takes from it"),
    ("a character less", lambda bank: bank[:-1], r"character_bank lacks \['в'\], which the head of 'ru' takes from it"),
    ("none", lambda bank: None, r"character_bank is None; .*The heads of \['en', 'fr', 'ru'\] are rows of it"),
    ("a text", lambda bank: "".join(bank[3:]), "character_bank is a str; a list of characters, each once, is wanted"),
    ("a character twice", lambda bank: [*bank, bank[-1]], r"character_bank holds \['в'\] more than once"),
    ("a number", lambda bank: [*bank[:-1], 7], r"character_bank holds \[7\], which are no text"),
]  # fmt: skip


@pytest.mark.parametrize("with_digest", [True, False])
@pytest.mark.parametrize("change, said", [case[1:] for case in BANKS], ids=[case[0] for case in BANKS])
def test_a_character_bank_other_than_it_was_saved_is_refused_by_name(tmp_path, change, said, with_digest):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["character_bank"] = change(raw["character_bank"])
    if not with_digest:
        del raw["character_bank_sha256"]
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=said):
        MasterASRForCTC.from_pretrained(tmp_path)


def test_rows_of_the_bank_that_are_not_those_of_an_alphabet_are_refused(tmp_path):
    """What older files say of their bank: the rows of their heads."""
    model = tiny_model()
    state = model.state_dict()
    rows = next(name for name in state if name.endswith("lang_fr.head.rows"))
    state[rows] = state[rows][[0, 1, 2, 4, 3, *range(5, len(state[rows]))]]
    model.save_pretrained(tmp_path, state_dict=state)
    for loaded in (MasterASRForCTC, MasterASRModel):
        with pytest.raises(ValueError, match=r"the heads of \['fr'\] were saved with other rows of the character bank than .*config.json"):
            loaded.from_pretrained(tmp_path)


def test_a_missing_bank_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("modeling_master_asr"), "propagate", True)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in state.items() if "character_bank" not in name}, tmp_path / "model.safetensors", {"format": "pt"})
    MasterASRForCTC.from_pretrained(tmp_path)
    assert "lacks 2 tensors that its config.json promises, master_asr.character_bank.bias, master_asr.character_bank.weight" in caplog.text


def test_an_older_config_without_the_banks_digest_loads_and_gets_it_when_it_is_saved(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "new")
    raw = json.loads((tmp_path / "new/config.json").read_text())
    digest = raw.pop("character_bank_sha256")
    (tmp_path / "new/config.json").write_text(json.dumps(raw))
    older = MasterASRForCTC.from_pretrained(tmp_path / "new")
    assert older.config.character_bank == model.config.character_bank
    older.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["character_bank_sha256"] == digest
    assert "character_bank_sha256" not in MasterASRConfig(backbone_config=model.config.backbone_config).to_dict()  # no bank, nothing to say


def test_the_shipped_checkpoint_says_how_its_alphabets_and_its_bank_were_saved():
    raw = json.loads(Path("checkpoints/master-asr-whisper-base/config.json").read_text())
    config = MasterASRConfig.from_dict(json.loads(json.dumps(raw))).to_dict()
    assert raw["character_bank_sha256"] == config["character_bank_sha256"]
    of_file, of_code = ({code: entry.get("vocab_sha256") for code, entry in whole["assemblies"].items()} for whole in (raw, config))
    assert of_file == of_code and all(of_file.values())


def test_a_model_is_not_loaded_quantized_since_every_language_masks_its_weights(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for load in (AutoModelForCTC.from_pretrained, MasterASRForCTC.from_pretrained):
        with pytest.raises(NotImplementedError, match=r"quantization_config: got a BitsAndBytesConfig; allowed: none. .* Quantize one language: model.materialize"):
            load(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}))
    for load in (AutoModelForCTC.from_pretrained, MasterASRForCTC.from_pretrained):
        with pytest.raises(NotImplementedError, match="quantization_config: got a dict; allowed: none"):
            load(tmp_path)
