"""Models of strangers: one line a change of what was saved, and what is said when it is loaded."""

import json
import logging
from pathlib import Path

import pytest
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from modeling_master_asr import MasterASRConfig, MasterASRForCTC, MasterASRModel


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
    rows = model.assemblies["fr"].head.rows
    rows[3], rows[4] = rows[4].clone(), rows[3].clone()
    model.save_pretrained(tmp_path)
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
