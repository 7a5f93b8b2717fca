"""A language is one file: round trips, and refusals that say what to do."""

import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_model, vocab
from safetensors.torch import load_file, save_file

from modeling_master_asr import MasterASRConfig, MasterASRForCTC, assembly_master_asr, base_master_asr
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.base_master_asr import fingerprint

ALL = ("mapping", "head", "specialist", "delta")


@pytest.fixture
def base(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def with_spanish(base, parts=ALL):
    model = MasterASRForCTC.from_pretrained(base)
    assembly = model.add_language("es", vocab("abñ"), parts=parts, rank=3)
    with torch.no_grad():
        for parameter in assembly.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def edit(path: Path, change) -> None:
    """`change` is done to the object of a JSON file."""
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


@torch.no_grad()
@pytest.mark.parametrize("parts", [("mapping", "head"), ALL])
def test_an_assembly_round_trip_is_bit_exact(base, tmp_path, parts):
    model = with_spanish(base, parts)
    path = model.save_assembly("es", tmp_path / "es", cer=1.5)
    other = MasterASRForCTC.from_pretrained(base)
    assert other.load_assembly(str(tmp_path / "es")) == "es"
    inputs = inputs_for(model)
    assert torch.equal(other(**inputs, language="es").logits, model(**inputs, language="es").logits)
    for code in VOCABS:
        assert torch.equal(other(**inputs, language=code).logits, model(**inputs, language=code).logits)
    assert other.config.assemblies["es"]["parts"] == list(parts)
    assert json.loads((tmp_path / "es/assembly_config.json").read_text())["assemblies"]["es"]["cer"] == 1.5
    state = load_file(path)
    assert parameter_kilobytes({"mapping": state["mapping"]}) < 1  # 8 layers x 4 specialists: bytes, not megabytes


@torch.no_grad()
def test_a_language_that_shares_the_bank_is_saved_complete(base, tmp_path):
    model = MasterASRForCTC.from_pretrained(base)
    model.save_assembly("fr", tmp_path / "fr")
    expected = model(**inputs_for(model), language="fr").logits
    model.remove_language("fr")
    model.load_assembly(str(tmp_path / "fr"))
    assert torch.equal(model(**inputs_for(model), language="fr").logits, expected)


@torch.no_grad()
def test_several_languages_live_in_one_folder(base, tmp_path):
    model = with_spanish(base)
    for code in ("es", "fr"):
        model.save_assembly(code, tmp_path / "both")
    other = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match=r"holds the languages \['es', 'fr'\]; name one"):
        other.load_assembly(str(tmp_path / "both"))
    assert other.load_assembly(str(tmp_path / "both"), language="es") == "es"
    with pytest.raises(ValueError, match="has no language 'de'"):
        other.load_assembly(str(tmp_path / "both"), language="de")


@torch.no_grad()
def test_a_resaved_model_keeps_a_language_that_was_added_and_its_bases_fingerprint(base, tmp_path):
    model = with_spanish(base)
    model.save_pretrained(tmp_path / "again")
    again = MasterASRForCTC.from_pretrained(tmp_path / "again")
    assert again.languages == ["en", "fr", "ru", "es"]
    assert torch.equal(again(**inputs_for(model), language="es").logits, model(**inputs_for(model), language="es").logits)
    assert again.config.fingerprint == MasterASRForCTC.from_pretrained(base).config.fingerprint


def test_a_wrong_base_is_refused_and_nothing_is_left_behind(base, tmp_path):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    torch.manual_seed(1)
    other = tiny_model()
    with torch.no_grad():
        other.master_asr.artisan_layers[0].specialists.add_(1)
    other.save_pretrained(tmp_path / "other")
    other = MasterASRForCTC.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"made for the base .*base' \(fingerprint [0-9a-f]{12}\); this model is .*other'"):
        other.load_assembly(str(tmp_path / "es"))
    assert other.languages == list(VOCABS)


@pytest.mark.parametrize("change", [{"num_specialists": 2}, {"sparsity": 0.5}])
def test_another_k_or_sparsity_is_refused(base, tmp_path, change):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    other = tiny_model(**change)
    other.save_pretrained(tmp_path / "other")
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{name}=.*, this model has {name}={value}"):
        other.load_assembly(str(tmp_path / "es"))


def test_a_damaged_file_is_refused(base, tmp_path):
    path = with_spanish(base).save_assembly("es", tmp_path / "es")
    path.write_bytes(path.read_bytes()[:-40])
    model = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        model.load_assembly(str(tmp_path / "es"))
    assert model.languages == list(VOCABS)


def test_a_file_that_does_not_fit_its_facts_is_refused_and_undone(base, tmp_path):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    facts = tmp_path / "es/assembly_config.json"
    facts.write_text(facts.read_text().replace('"rank": 3', '"rank": 4'))
    model = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match="does not fit its own assembly_config.json"):
        model.load_assembly(str(tmp_path / "es"))
    assert model.languages == list(VOCABS)


def test_a_language_that_is_already_there_is_refused(base, tmp_path):
    model = with_spanish(base)
    model.save_assembly("es", tmp_path / "es")
    with pytest.raises(ValueError, match="Language 'es' is already there. Remove it first"):
        model.load_assembly(str(tmp_path / "es"))


def test_saving_an_assembly_of_an_unsaved_or_trained_base_asks_to_save_the_base(base, tmp_path):
    fresh = tiny_model()
    with pytest.raises(ValueError, match="Save it first: model.save_pretrained"):
        fresh.save_assembly("en", tmp_path / "en")
    model = with_spanish(base)
    with torch.no_grad():
        model.master_asr.artisan_layers[0].weight.mul_(1.1)
    with pytest.raises(ValueError, match="has been trained or cast since"):
        model.save_assembly("es", tmp_path / "es")
    model.save_pretrained(tmp_path / "new")
    model.save_assembly("es", tmp_path / "es")


def test_a_cast_on_load_keeps_the_fingerprint(tmp_path):
    tiny_model().half().save_pretrained(tmp_path / "base")
    model = with_spanish(tmp_path / "base")
    model.save_assembly("es", tmp_path / "es")
    half = MasterASRForCTC.from_pretrained(tmp_path / "base", dtype=torch.float16)
    assert half.load_assembly(str(tmp_path / "es")) == "es"


@pytest.mark.parametrize("wrong, message", [
    ({"a": 0}, "lacks"), ({"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 4}, "must be 0..3, each once"),
])  # fmt: skip
def test_a_bad_vocab_is_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model.add_language("es", wrong)
    assert "es" not in model.languages and "es" not in model.assemblies


def test_unknown_parts_are_refused(model):
    with pytest.raises(ValueError, match="parts must hold 'mapping' and 'head'"):
        model.add_language("es", vocab("ab"), parts=("mapping", "lora"))


def test_a_base_that_was_written_to_with_its_own_values_is_still_that_base(base, tmp_path):
    """Trainer loads its best checkpoint into the model it trained."""
    model = with_spanish(base)
    model.load_state_dict(model.state_dict())
    model.save_assembly("es", tmp_path / "es")
    assert MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es") == "es"


def test_a_lossy_cast_after_loading_makes_another_base(base, tmp_path):
    """As `compact_checkpoint` does: the cut file once carried the uncut base's fingerprint."""
    model = with_spanish(base)
    model.half()
    with pytest.raises(ValueError, match="never saved, or has been trained or cast since"):
        model.save_assembly("es", tmp_path / "es")
    uncut = model.config.fingerprint
    model.save_pretrained(tmp_path / "half")
    assert MasterASRForCTC.from_pretrained(tmp_path / "half").config.fingerprint != uncut


def test_the_shipped_checkpoint_carries_its_own_fingerprint():
    shipped = MasterASRForCTC.from_pretrained(Path(__file__).parent.parent / "checkpoints/master-asr-whisper-base")
    assert fingerprint(shipped.master_asr.base_tensors()) == shipped.config.fingerprint


# ---------------------------------------------------------------------- the base is known by its values


def step_of_a_fused_optimizer(model):
    model.requires_grad_(True)
    model(**inputs_for(model), labels=torch.tensor([[3, 4], [5, 3]]), language="fr").loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True).step()


def replace_a_parameter(model):
    layer = model.master_asr.artisan_layers[0]
    layer.specialists = torch.nn.Parameter(layer.specialists.detach() * 2)


def write_through_data(model):
    model.master_asr.artisan_layers[0]._parameters["weight"].data.flatten()[7].add_(1)


def write_one_row_through_data(model):
    rows = model.master_asr.artisan_layers[0]._parameters["weight"].data
    rows[[3, 5]] = rows[[5, 3]]  # between the values that a stamp looks at, and of the same sum


def swap_in_an_average(model):
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data * 0.9)


CHANGES = [step_of_a_fused_optimizer, replace_a_parameter, write_through_data, write_one_row_through_data, swap_in_an_average,
           lambda model: model.half().float()]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=["fused", "replaced", "data", "row", "average", "half-float"])
def test_whatever_changed_the_values_an_assembly_is_neither_saved_for_the_old_base_nor_loaded_into_it(base, tmp_path, change):
    model = with_spanish(base)
    model.save_assembly("es", tmp_path / "es")  # the fingerprint is known from here on
    model.remove_language("es")
    model.master_asr.base_fingerprint()
    change(model)
    with pytest.raises(ValueError, match=r"made for the base 'base' .*Load that base, or train"):
        model.load_assembly(tmp_path / "es")
    with pytest.raises(ValueError, match="never saved, or has been trained or cast since"):
        model.save_assembly("fr", tmp_path / "fr")
    assert model.languages == list(VOCABS)
    model.save_pretrained(tmp_path / "new")
    model.save_assembly("fr", tmp_path / "fr")
    again = MasterASRForCTC.from_pretrained(tmp_path / "new")
    again.remove_language("fr")
    assert again.load_assembly(tmp_path / "fr") == "fr"


@torch.no_grad()
def test_weights_exchanged_beside_an_old_config_are_known_by_their_values(base, tmp_path, warnings):
    with_spanish(base).save_assembly("es", tmp_path / "old-es")
    other = tiny_model()
    other.master_asr.artisan_layers[0].specialists.add_(1)
    other.save_pretrained(tmp_path / "other")
    other.save_assembly("fr", tmp_path / "new-fr")
    shutil.copy(tmp_path / "other/model.safetensors", base)
    model = MasterASRForCTC.from_pretrained(base)
    model.remove_language("fr")
    with pytest.raises(ValueError, match="made for the base 'base'"):
        model.load_assembly(tmp_path / "old-es")
    old, new = model.config.fingerprint[:12], other.config.fingerprint[:12]
    assert f"have the fingerprint {new}, its config.json says {old}" in warnings() and "The values count" in warnings()
    assert model.load_assembly(tmp_path / "new-fr") == "fr"
    with pytest.raises(ValueError, match="never saved, or has been trained or cast since"):
        model.save_assembly("fr", tmp_path / "again")


def test_a_config_without_a_fingerprint_is_read_by_the_values_and_an_assembly_without_one_is_refused(base, tmp_path):
    model = with_spanish(base)
    model.save_assembly("es", tmp_path / "es")
    edit(base / "config.json", lambda config: config.update(fingerprint=None))
    assert MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es") == "es"
    with pytest.raises(ValueError, match="Save it first: model.save_pretrained"):
        MasterASRForCTC.from_pretrained(base).save_assembly("fr", tmp_path / "fr")
    edit(tmp_path / "es/assembly_config.json", lambda whole: whole["assemblies"]["es"].update(fingerprint=None))
    with pytest.raises(ValueError, match=r"es \(es\) names no base \(fingerprint: None\), so it may belong to any. Save it again"):
        MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es")


@torch.no_grad()
def test_a_base_in_a_smaller_type_is_still_the_base_it_was_loaded_from(base, tmp_path):
    """`dtype=torch.bfloat16` on a GPU: what was made for the float32 base fits, and what is made here fits there."""
    with_spanish(base).save_assembly("es", tmp_path / "es")
    small = MasterASRForCTC.from_pretrained(base, dtype=torch.bfloat16)
    assert small.load_assembly(tmp_path / "es") == "es"
    small.save_assembly("fr", tmp_path / "fr")
    model = MasterASRForCTC.from_pretrained(base)
    model.remove_language("fr")
    assert model.load_assembly(tmp_path / "fr") == "fr"
    write_through_data(small)
    with pytest.raises(ValueError, match="never saved, or has been trained or cast since"):
        small.save_assembly("en", tmp_path / "en")
    small.save_pretrained(tmp_path / "small")  # what is written are the rounded values: another base
    assert json.loads((tmp_path / "small/config.json").read_text())["fingerprint"] != model.config.fingerprint


def test_a_base_in_a_smaller_type_keeps_its_name_over_its_checkpoints(base, tmp_path):
    small = MasterASRForCTC.from_pretrained(base, dtype=torch.bfloat16)
    small.save_pretrained(tmp_path / "checkpoint-100")  # as Trainer does
    small.save_assembly("fr", tmp_path / "fr")
    assert MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "fr", replace=True) == "fr"
    assert small.load_assembly(tmp_path / "fr", replace=True) == "fr"
    shutil.rmtree(tmp_path / "checkpoint-100")  # as Trainer does
    small.save_assembly("en", tmp_path / "fr")
    assert {facts["base"] for facts in json.loads((tmp_path / "fr/assembly_config.json").read_text())["assemblies"].values()} == {base.name}
    write_through_data(small)
    small.save_pretrained(tmp_path / "trained")
    small.save_assembly("fr", tmp_path / "other")
    assert json.loads((tmp_path / "other/assembly_config.json").read_text())["assemblies"]["fr"]["base"] == "trained"


@torch.no_grad()
def test_a_given_state_dict_is_what_the_saved_fingerprint_is_of(base, tmp_path):
    model = with_spanish(base)
    other = {name: value * 2 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", state_dict=dict(other))
    saved = MasterASRForCTC.from_pretrained(tmp_path / "other")
    assert saved.config.fingerprint == fingerprint(saved.master_asr.base_tensors())
    with pytest.raises(ValueError, match="never saved, or has been trained or cast since"):
        model.save_assembly("es", tmp_path / "es")  # this model is not what lies there
    saved.save_assembly("es", tmp_path / "es")


def test_values_are_hashed_once_for_many_loads_and_anew_for_every_save(base, tmp_path, monkeypatch):
    model = with_spanish(base)
    for code in VOCABS:
        model.save_assembly(code, tmp_path / "all")
    hashed = []
    monkeypatch.setattr(base_master_asr, "fingerprint", lambda tensors: hashed.append(1) or fingerprint(tensors))
    other = MasterASRForCTC.from_pretrained(base)
    for code in VOCABS:
        other.remove_language(code)
        other.load_assembly(tmp_path / "all", code)
    assert len(hashed) == 1
    other.save_assembly("en", tmp_path / "again")
    other.save_assembly("fr", tmp_path / "again")
    assert len(hashed) == 3


@pytest.mark.parametrize("event", [
    lambda model: model.train(), lambda model: model.double(), lambda model: model.load_state_dict(model.state_dict()),
])  # fmt: skip
def test_what_may_write_drops_the_kept_fingerprint_and_a_copy_starts_without_one(base, event):
    model = MasterASRForCTC.from_pretrained(base).eval()
    found = model.master_asr.base_fingerprint()
    assert model.master_asr._kept.value == found and copy.deepcopy(model).master_asr._kept.value is None
    assert pickle.loads(pickle.dumps(model.master_asr._kept)).value is None  # a stock wav2vec2 as a whole cannot be pickled
    event(model)
    assert model.master_asr._kept.value is None and model.master_asr.base_fingerprint() == found


@torch.no_grad()
def test_the_recorded_base_is_the_one_saved_last(base, tmp_path):
    model = with_spanish(base)
    model.master_asr.artisan_layers[0].specialists.add_(1)
    model.save_pretrained(tmp_path / "second")
    model.save_assembly("es", tmp_path / "es")
    facts = json.loads((tmp_path / "es/assembly_config.json").read_text())["assemblies"]["es"]
    assert facts["base"] == "second" and facts["fingerprint"] == MasterASRForCTC.from_pretrained(tmp_path / "second").config.fingerprint


def test_a_copy_of_a_base_keeps_the_name_that_others_find_it_by(base, tmp_path):
    model = with_spanish(base)
    model.save_pretrained(tmp_path / "runs/checkpoint-200")  # as a Trainer's step does: W and M as they were
    model.save_assembly("es", tmp_path / "es")
    facts = json.loads((tmp_path / "es/assembly_config.json").read_text())["assemblies"]["es"]
    assert facts["base"] == "base" and "checkpoint-200" not in (tmp_path / "es/README.md").read_text()
    fresh = tiny_model()
    for folder in ("checkpoint-300", "my-base"):  # the last checkpoint of its own training, which is soon deleted
        fresh.save_pretrained(tmp_path / folder)
    fresh.save_assembly("fr", tmp_path / "fr")
    assert json.loads((tmp_path / "fr/assembly_config.json").read_text())["assemblies"]["fr"]["base"] == "my-base"


@torch.no_grad()
def test_a_living_model_does_not_change_with_its_file(base, tmp_path):
    first, second = with_spanish(base), with_spanish(base)
    for model, value in ((first, 1.0), (second, 2.0)):
        model.assemblies["es"].mapping.fill_(value / 3)  # of more digits than half precision holds
        model.save_assembly("es", tmp_path / str(value))
    served = MasterASRForCTC.from_pretrained(base)
    served.load_assembly(tmp_path / "1.0")
    before = {name: value.clone() for name, value in served.assemblies["es"].state_dict().items()}
    shutil.copyfile(tmp_path / "2.0/assembly.es.safetensors", tmp_path / "1.0/assembly.es.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in served.assemblies["es"].state_dict().items())


@torch.no_grad()
def test_tensors_beside_the_facts_of_another_base_are_refused(base, tmp_path, monkeypatch):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    other = with_spanish(base)
    other.master_asr.artisan_layers[0].specialists.add_(1)
    other.save_pretrained(tmp_path / "other")

    def killed(part, path, rename=os.replace):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        rename(part, path)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        other.save_assembly("es", tmp_path / "es")
    with pytest.raises(ValueError, match="was saved for another base than its assembly_config.json says"):
        MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es")


# ---------------------------------------------------------------------- files from strangers


def all_or_nothing(model, good: Path) -> None:
    """After a refusal nothing of the language is left: the good file loads, and the model can be saved and loaded."""
    assert model.languages == list(VOCABS) and "es" not in model.assemblies
    model.load_assembly(good)
    model.remove_language("es")
    model.save_pretrained(good.parent / "after")
    assert MasterASRForCTC.from_pretrained(good.parent / "after").languages == list(VOCABS)


@pytest.mark.parametrize("field, value, message", [
    ("rank", -1, r"rank is a whole number, at least 1; got -1"),
    ("rank", 2.5, r"rank is a whole number, at least 1; got 2.5"),
    ("rank", 10**12, r"rank is 1000000000000; the smallest matrix it is for has 32 rows or columns, so it is 1 to 32"),
    ("rank", 4, r"does not fit its own assembly_config.json on this model, in 40 tensors: delta.down.0: \(3, 32\), not \(4, 32\)"),
    ("parts", ["mapping", "head"], r"does not fit its own assembly_config.json on this model, in 40 tensors: delta.down.0: \(3, 32\), not wanted"),
    ("parts", ["mapping", "head", "lora"], "parts must hold 'mapping' and 'head'"),
    ("vocab", {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": "3"}, r"must give each token, a text, a whole number; got \{'a': '3'\}"),
    ("vocab", {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 7}, "must be 0..3, each once"),
    ("vocab", ["a"], r"must be \{token: id\}; got list"),
    ("vocab", vocab("ab"), r"head.bias: \(6,\), not \(5,\)"),
    ("vocab", vocab("bañ"), r"The alphabet of .* is not the one its head was saved with: its letters would come out as others"),
])  # fmt: skip
def test_facts_that_are_wrong_are_named_and_adding_is_all_or_nothing(base, tmp_path, field, value, message):
    with_spanish(base).save_assembly("es", tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    edit(tmp_path / "bad/assembly_config.json", lambda whole: whole["assemblies"]["es"].update({field: value}))
    model = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match=message):
        model.load_assembly(tmp_path / "bad")
    all_or_nothing(model, tmp_path / "good")


def test_shapes_are_refused_by_the_header_before_a_tensor_is_read(base, tmp_path, monkeypatch):
    with_spanish(base).save_assembly("es", tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    file = tmp_path / "bad/assembly.es.safetensors"
    save_file({**load_file(file), "mapping": torch.zeros(9, 4)}, file)
    read = []

    class Watched:
        def __init__(self, path, framework):
            self.opened = assembly_safe_open(path, framework)

        def __enter__(self):
            self.opened.__enter__()
            return self

        def __exit__(self, *args):
            return self.opened.__exit__(*args)

        def __getattr__(self, name):
            read.append(name)
            return getattr(self.opened, name)

    assembly_safe_open = assembly_master_asr.safe_open
    monkeypatch.setattr(assembly_master_asr, "safe_open", Watched)
    model = MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match=r"in 1 tensors: mapping: \(9, 4\), not \(8, 4\)"):
        model.load_assembly(tmp_path / "bad")
    assert "get_slice" in read and "get_tensor" not in read
    all_or_nothing(model, tmp_path / "good")
    assert "get_tensor" in read


def test_a_bad_rank_or_alphabet_adds_nothing_to_a_model(model):
    for wrong in ({"rank": 0}, {"rank": 33}, {"rank": True}, {"vocab": {**vocab("a"), "b": 1.5}}, {"init": "de"}):
        with pytest.raises((ValueError, KeyError)):
            model.add_language("es", **{"vocab": vocab("ab"), "parts": ALL, **wrong})
        assert "es" not in model.config.assemblies and "es" not in model.assemblies
    model.add_language("es", vocab("ab"), parts=ALL)


def test_later_formats_are_refused_and_unknown_fields_are_not(base, tmp_path):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    facts = tmp_path / "es/assembly_config.json"
    assert json.loads(facts.read_text())["format_version"] == "2.0"
    edit(facts, lambda whole: (whole.update(format_version="2.7", extra={}), whole["assemblies"]["es"].update(dialect="x")))
    assert MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es") == "es"
    edit(facts, lambda whole: whole.pop("format_version"))  # written before there was one
    assert MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es") == "es"
    edit(facts, lambda whole: whole.update(format_version="3.0"))
    with pytest.raises(ValueError, match="has format version 3.0; this release of modeling-master-asr reads up to 2.0. Update it: git pull"):
        MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es")
    edit(facts, lambda whole: whole.update(format_version="x"))
    with pytest.raises(ValueError, match="is not a whole assembly_config.json"):
        MasterASRForCTC.from_pretrained(base).load_assembly(tmp_path / "es")


@torch.no_grad()
def test_one_folder_serves_one_base(base, tmp_path):
    model = with_spanish(base)
    model.save_assembly("es", tmp_path / "both")
    model.master_asr.artisan_layers[0].specialists.add_(1)
    model.save_pretrained(tmp_path / "second")
    before = {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()}
    with pytest.raises(ValueError, match=r"holds languages of another base, \{'es': 'base'\}; 'fr' was made for 'second'"):
        model.save_assembly("fr", tmp_path / "both")
    assert {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()} == before
    model.save_assembly("es", tmp_path / "both")  # the same language, made anew


def test_a_language_order_that_drops_a_language_is_refused(base):
    edit(base / "config.json", lambda config: config.update(language_order=["en", "fr"]))
    with pytest.raises(ValueError, match=r"language_order is \['en', 'fr'\], but assemblies holds \['en', 'fr', 'ru'\]"):
        MasterASRForCTC.from_pretrained(base)
    with pytest.raises(ValueError, match="language_order is"):
        MasterASRConfig(assemblies={"en": {"vocab": vocab("a")}}, language_order=["en", "en"])


def test_tensors_that_a_checkpoint_lacks_are_named(base, warnings):
    state = load_file(base / "model.safetensors")
    dropped = {name for name in state if name.endswith("lang_fr.mapping") or name.endswith("0.attention.k_proj.specialists")}
    assert len(dropped) == 2
    save_file({name: value for name, value in state.items() if name not in dropped}, base / "model.safetensors", metadata={"format": "pt"})
    MasterASRForCTC.from_pretrained(base)
    assert "lacks 2 tensors that its config.json promises" in warnings() and all(name in warnings() for name in dropped)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_an_assembly_fits_its_base_also_after_that_was_cast(tmp_path, variant):
    tiny_model().save_pretrained(tmp_path / "base", variant=variant)
    made = MasterASRForCTC.from_pretrained(tmp_path / "base", variant=variant)
    made.add_language("es", vocab("abñ"))
    made.save_assembly("es", tmp_path / "es")
    cast = MasterASRForCTC.from_pretrained(tmp_path / "base", variant=variant).to(torch.bfloat16)
    cast.load_assembly(tmp_path / "es")
    assert "es" in cast.languages
    small = MasterASRForCTC.from_pretrained(tmp_path / "base", variant=variant, dtype=torch.bfloat16, assemblies=[str(tmp_path / "es")])
    assert "es" in small.languages
    other = MasterASRForCTC.from_pretrained(tmp_path / "base", variant=variant)
    with torch.no_grad():
        next(other.master_asr.backbone.parameters()).add_(0.5)
    with pytest.raises(ValueError, match="was made for the base"):
        other.to(torch.bfloat16).load_assembly(tmp_path / "es")


def test_facts_that_no_json_holds_change_no_file(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = MasterASRForCTC.from_pretrained(tmp_path / "base")
    model.save_assembly("fr", tmp_path / "fr", cer=np.float32(5))
    before = {path.name: path.read_bytes() for path in (tmp_path / "fr").iterdir()}
    assert json.loads(before["assembly_config.json"])["assemblies"]["fr"]["cer"] == 5.0
    with torch.no_grad():
        model.assemblies["fr"].mapping.neg_()
    with pytest.raises(TypeError, match="is no fact that JSON holds.*Nothing was written"):
        model.save_assembly("fr", tmp_path / "fr", cer=object())
    assert {path.name: path.read_bytes() for path in (tmp_path / "fr").iterdir()} == before


@torch.no_grad()
@pytest.mark.parametrize("letters", ["ab", "abñ", "abcdefghij"])
@pytest.mark.parametrize("codes", ["es", ["es", "es", "fr"]])
def test_a_call_reads_the_assemblies_that_were_there_when_it_began(base, tmp_path, letters, codes):
    """Encoder, head and all groups of a batch, though another thread replaces the language while the first group is read."""
    model, new = with_spanish(base), MasterASRForCTC.from_pretrained(base)
    new.add_language("es", vocab(letters))
    new.save_assembly("es", tmp_path / "new")
    inputs = inputs_for(model, (4000, 3000, 4000))
    expected = model(**inputs, language=codes).logits
    with model.master_asr.backbone.register_forward_hook(lambda *_: model.load_assembly(tmp_path / "new", replace=True) and None):
        found = model(**inputs, language=codes).logits
    width = expected.shape[-1]
    assert torch.equal(found[..., :width], expected) and found[..., width:].isneginf().all()  # as wide as the largest head of now
    assert not torch.equal(model(**inputs, language="es").logits[..., :5], expected[..., :5])


@torch.no_grad()
def test_a_call_reads_the_adapter_that_was_on_when_it_began(base):
    peft = pytest.importorskip("modeling_master_asr.peft_assembly")
    model = peft.get_peft_model(MasterASRForCTC.from_pretrained(base), peft.AssemblyConfig(language="es", vocab=vocab("abñ")), adapter_name="one")
    model.add_adapter("two", peft.AssemblyConfig(language="es", vocab=vocab("abcdefg")))
    model.eval().set_adapter("one")
    inputs = inputs_for(model.get_base_model(), (4000, 3000))
    expected = model(**inputs, language="es").logits
    with model.get_base_model().master_asr.backbone.register_forward_hook(lambda *_: model.set_adapter("two")):
        assert torch.equal(model(**inputs, language="es").logits, expected)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_a_base_in_a_smaller_type_finds_its_files_from_any_folder(base, tmp_path, monkeypatch, shards):
    with_spanish(base).save_assembly("es", tmp_path / "es")
    MasterASRForCTC.from_pretrained(base).save_pretrained(tmp_path / "shards", **shards)
    monkeypatch.chdir(tmp_path)
    model = MasterASRForCTC.from_pretrained("shards", dtype=torch.bfloat16)
    assert len(model.master_asr._files) == len(list((tmp_path / "shards").glob("*.safetensors")))
    monkeypatch.chdir("/")
    assert model.load_assembly(tmp_path / "es") == "es"
