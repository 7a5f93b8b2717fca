"""Export, cards and the push script."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from huggingface_hub import ModelCard, hf_hub_download
from safetensors.torch import load_file
from transformers import Wav2Vec2ForCTC, pipeline

from modeling_master_asr import MasterASRForCTC, MasterASRPipeline, MasterASRProcessor, upload_master_asr
from modeling_master_asr.cards_master_asr import NEEDS, default_card
from modeling_master_asr.text_master_asr import build_vocab
from training import compact_checkpoint, model_card, push_to_hub
from training.loop import record
from training.loop.pictures import gate_differences

SHIPPED = Path(__file__).parent.parent / "checkpoints/master-asr-whisper-base"


@torch.no_grad()
def test_a_materialized_folder_is_stock_and_needs_no_trust(tmp_path):
    model = tiny_model()
    model.materialize("fr").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in config and not list(tmp_path.glob("*.py"))
    plain = Wav2Vec2ForCTC.from_pretrained(tmp_path)
    clip = torch.randn(1, 4000)
    assert torch.equal(plain(clip).logits, model(clip, language="fr").logits)


def test_the_card_holds_the_figures_of_its_evaluation_and_the_picture(tmp_path, capsys):
    model = tiny_model()
    model.config.base_model = "someone/wav2vec2"
    model.save_pretrained(tmp_path / "model")
    rate = {"cer": 12.345, "wer": 40.0}
    evaluation = {"split": "test", "languages": dict.fromkeys(("en", "fr", "ru"), rate), "macro": rate, "minutes": dict.fromkeys(("en", "fr", "ru"), 3.0)}
    facts = {"title": "T", "repo": "me/t", "license": "mit", "dataset": "D", "training_data": "X", "limits": "Y", "licences": "Z"}
    for name, content in (("evaluation", evaluation), ("facts", facts)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    model_card.main(["--model", str(tmp_path / "model"), "--evaluation", str(tmp_path / "evaluation.json"), "--facts",
                     str(tmp_path / "facts.json"), "--out", str(tmp_path / "a card")])  # fmt: skip
    assert capsys.readouterr().out.endswith(f"--card '{tmp_path}/a card/README.md'\n")
    card = ModelCard.load(tmp_path / "a card/README.md")
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["fr", "cer"] == 12.35 and len(found) == 6 and card.data.base_model == "someone/wav2vec2"
    assert "| `fr` | 12.3 | 40.0 | 3.0 |" in card.text and "versions in `evaluation.json`." in card.text  # the folder is this machine's
    assert "flatter" not in card.text and "(2 of `en`, 1 of `ru`)" in model_card.render(model, {**evaluation, "known": {"en": 2, "ru": 1}}, facts, "evaluation.json", "").text
    assert (tmp_path / "a card/language_similarity.png").stat().st_size > 5_000
    mine = record.digests_of(model, model.languages, with_text=False)
    stale = {"greedy": True, "assemblies": {**mine, "fr": "0" * 12}}
    for wrong, words in ((stale, "has figures of ['fr'] that were read with other values"), ({"greedy": False}, "was read with sentences in mind, of which the model has none"),
                         ({"more_text": {"fr": 3}}, "was made with --more_text of ['fr']"), ({"languages": {"es": rate}}, "has figures of ['es'], and the model has")):
        (tmp_path / "evaluation.json").write_text(json.dumps({**evaluation, **wrong}))
        with pytest.raises(SystemExit):
            model_card.main(["--model", str(tmp_path / "model"), "--evaluation", str(tmp_path / "evaluation.json"), "--facts",
                             str(tmp_path / "facts.json"), "--out", str(tmp_path / "other_card")])  # fmt: skip
        assert words in capsys.readouterr().err
    (tmp_path / "evaluation.json").write_text(json.dumps({**evaluation, "base": "0123456789ab"}))
    with pytest.raises(SystemExit):
        model_card.main(["--model", str(tmp_path / "model"), "--evaluation", str(tmp_path / "evaluation.json"), "--facts",
                         str(tmp_path / "facts.json"), "--out", str(tmp_path / "other_card")])  # fmt: skip
    assert "has the figures of another model (base 0123456789ab; this one is" in capsys.readouterr().err
    assert not (tmp_path / "other_card").exists()


def test_differences_of_gates_are_counted():
    model = tiny_model()
    with torch.no_grad():
        for code, sign in (("en", 1), ("fr", 1), ("ru", -1)):
            model.assemblies[code].mapping.fill_(sign)
        model.assemblies["fr"].mapping[0, 0] = -1
    distances = gate_differences(model)
    gates = model.assemblies["en"].mapping.numel()
    assert distances[0, 1] == pytest.approx(1 / gates) and np.allclose(distances, distances.T)


def test_the_card_names_every_pair_that_is_as_close_as_the_closest():
    distances = np.array([[0.0, 0.2, 0.5], [0.2, 0.0, 0.2], [0.5, 0.2, 0.0]])
    words = model_card.similarity_words(distances, ["en", "fr", "ru"])
    assert words == "Closest: en and fr, fr and ru (20 % of gates differ); farthest: en and ru (50 %)."


@pytest.mark.parametrize("option", [[], ["--private"]])
def test_the_script_leaves_it_to_the_owner_whether_a_repo_is_private_unless_it_is_told(hub, tmp_path, monkeypatch, option):
    """In an organization whose repos are private by default, `False` would ask for a public one."""
    monkeypatch.setenv("HF_TOKEN", "a-token")
    model, asked, create = tiny_model(), [], upload_master_asr.HfApi.create_repo
    model.save_pretrained(tmp_path / "model")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(upload_master_asr.HfApi, "create_repo", lambda api, repo_id, private=None, **kwargs: asked.append(private) or create(api, repo_id, private=private, **kwargs))
    push_to_hub.main(["--model", str(tmp_path / "model"), "--repo", "tester/m", *option])
    assert asked == [True if option else None] and hub.repos["tester/m"].private == bool(option)


def test_the_path_of_a_card_is_never_taken_for_its_text(hub, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# THIS_REPO\n![x](x.png)")
    (tmp_path / "x.png").write_bytes(b"a picture")
    tiny_model().push_to_hub("tester/m", card=str(tmp_path / "README.md"), token="a-token")
    assert hub.files("tester/m")["x.png"] == b"a picture" and b"# tester/m" in hub.files("tester/m")["README.md"]
    tiny_model().push_to_hub("tester/n", card="# A card", token="a-token")
    assert b"# A card" in hub.files("tester/n")["README.md"]
    with pytest.raises(FileNotFoundError, match="No card at elsewhere/README.md. Pass the path"):
        tiny_model().push_to_hub("tester/o", card="elsewhere/README.md", token="a-token")
    assert "tester/o" not in hub.repos


def test_the_script_pushes_a_model_and_then_a_language(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token")
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.add_language("es", vocab("abñ"))
    said = {"cer": 9.8, "wer": 30.1, "greedy": False, "known": 3, "minutes": {"es": 10.0}, "untranscribed_minutes": {"es": 63.0}, "of_a_stranger": "his notes"}
    model.set_text("es", ["ab añ " * 30])
    model.save_assembly("es", tmp_path / "es", **said)
    (tmp_path / "card").mkdir()
    (tmp_path / "card/README.md").write_text("# THIS_REPO\n![x](x.png)")
    (tmp_path / "card/x.png").write_bytes(b"a picture")
    push_to_hub.main(["--model", str(tmp_path / "model"), "--repo", "tester/m", "--card", str(tmp_path / "card/README.md")])
    assert hub.files("tester/m")["x.png"] == b"a picture" and b"# tester/m" in hub.files("tester/m")["README.md"]
    facts = json.loads((tmp_path / "es/assembly_config.json").read_text())
    for size in ("gate_bits", "head_kilobytes", "kilobytes"):  # which an older file does not state
        del facts["assemblies"]["es"][size]
    facts["assemblies"]["es"] |= {"revision": "elsewhere", "token": "theirs", "private": True, "create_pr": True, "repo_id": "other/m"}  # a stranger's file steers no push
    (tmp_path / "es/assembly_config.json").write_text(json.dumps(facts))
    push_to_hub.main(["--model", "tester/m", "--assembly", str(tmp_path / "es"), "--repo", "tester/m-es"])
    assert "Next: model.load_assembly('tester/m-es', language='es')" in capsys.readouterr().out
    assert MasterASRForCTC.from_pretrained("tester/m", assemblies=["tester/m-es"]).languages == ["en", "fr", "ru", "es"]
    facts = json.loads(hub.files("tester/m-es")["assembly_config.json"])["assemblies"]["es"]
    assert {name: facts[name] for name in said} == said and facts["base"] == "tester/m"  # all that was said of it, and the base as others find it
    card = hub.files("tester/m-es")["README.md"].decode()
    assert "| 9.8* | 10.0 + 63.0† |" in card and "the figure flatters" in card and "Minutes that nobody transcribed" in card and "read with these in mind" in card


def test_the_script_names_the_base_of_a_language_made_on_a_folder(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "a-token")
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    model.save_assembly("fr", tmp_path / "fr")
    model.remove_language("fr")
    model.save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--assembly", str(tmp_path / "fr"), "--repo", "tester/m-fr"]
    with pytest.raises(ValueError, match="the folder 'model', which nobody else can find.*--base owner/name"):
        push_to_hub.main(command)
    model.push_to_hub("tester/m")
    push_to_hub.main([*command, "--base", "tester/m"])
    card = ModelCard(hub.files("tester/m-fr")["README.md"].decode())
    assert card.data.base_model == "tester/m" and 'from_pretrained("tester/m", revision="' in card.text
    assert MasterASRForCTC.from_pretrained("tester/m", assemblies="tester/m-fr").languages == ["en", "ru", "fr"]
    with pytest.raises(SystemExit):
        push_to_hub.main(["--model", str(tmp_path / "model"), "--repo", "tester/m", "--base", "tester/m"])
    assert "--base names the base of an --assembly" in capsys.readouterr().err


def test_a_model_is_not_replaced_by_its_lossy_copy(tmp_path, monkeypatch, capsys):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    for out in (str(tmp_path / "model"), "model", "./other/../model"):
        with pytest.raises(SystemExit):
            compact_checkpoint.main(["--model", str(tmp_path / "model"), "--out", out])
        assert "is --model itself: its weights would be replaced by a lossy copy" in capsys.readouterr().err
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    with pytest.raises(SystemExit):
        compact_checkpoint.main(["--model", "model", "--out", "model/config.json"])
    assert "--out model/config.json is a file" in capsys.readouterr().err
    compact_checkpoint.main(["--model", "model", "--out", "small"])
    with pytest.raises(SystemExit):
        compact_checkpoint.main(["--model", "model", "--out", "small"])
    assert "--out small holds a model, which would be replaced" in capsys.readouterr().err
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert MasterASRForCTC.from_pretrained(tmp_path / "small").languages == ["en", "fr", "ru"]


@torch.no_grad()
def test_compacting_leaves_what_languages_own_as_it_was_rounded_and_tested(tmp_path):
    model = tiny_model()
    model.add_language("es", vocab("abñ"), preset="best", rank=2)
    for parameter in model.assemblies["es"].parameters():
        parameter.add_(torch.randn_like(parameter))
    model.round_assembly("es")
    own = {name: value.clone() for name, value in model.assemblies["es"].state_dict().items()}
    compact_checkpoint.compact(model)
    model.save_pretrained(tmp_path)
    for found in (model, MasterASRForCTC.from_pretrained(tmp_path)):
        for name, value in found.assemblies["es"].state_dict().items():
            assert torch.equal(value, own[name]), name


def test_a_compact_file_is_read_in_float32_by_whoever_asks_for_no_type(tmp_path):
    """A pipeline asks for "auto", and half precision on a CPU takes four times as long."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "model")
    compact_checkpoint.main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "small")])
    for folder in (tmp_path / "small", SHIPPED):
        assert pipeline("automatic-speech-recognition", model=str(folder), trust_remote_code=True).model.dtype == torch.float32
    half = pipeline("automatic-speech-recognition", model=str(tmp_path / "small"), trust_remote_code=True, dtype=torch.float16)
    assert half.model.dtype == torch.float16


def test_a_card_names_no_folder_as_its_base(tmp_path):
    model = tiny_model()
    model.config.base_model = str(tmp_path)
    rate = {"cer": 12.345, "wer": 40.0}
    evaluation = {"split": "test", "languages": {"en": rate}, "macro": rate, "minutes": {"en": 3.0}}
    facts = {"title": "T: x", "repo": "me/t", "license": "mit", "dataset": "D: |", "training_data": "X", "limits": "Y", "licences": "Z"}
    card = model_card.render(model, evaluation, facts, "evaluation.json", "")
    assert card.data.base_model is None and str(tmp_path) not in str(card) and "None" not in card.text
    assert ModelCard(str(card)).data.model_name == "T: x"


def test_a_card_names_a_language_once_that_is_there_in_two_scripts_and_as_the_hub_writes_it():
    model = tiny_model(vocabs={"pa-IN": vocab("ab"), "pa_PK": vocab("ac"), "PA": vocab("ad")})
    rate = {"cer": 12.345, "wer": 40.0}
    evaluation = {"split": "test", "languages": dict.fromkeys(model.languages, rate), "macro": rate, "minutes": dict.fromkeys(model.languages, 3.0)}
    facts = {"title": "T", "repo": "me/t", "license": "mit", "dataset": "D", "training_data": "X", "limits": "Y", "licences": "Z"}
    assert model_card.render(model, evaluation, facts, "evaluation.json", "").data.language == ["pa"]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, "auto", torch.float16])
def test_a_compact_file_loads_and_adapts_as_what_it_was_cut_to(dtype, tmp_path):
    """The feed-forward layers are stored in 8 bits unless a layer would lose by it; loaded, they are of the type of the others."""
    model = tiny_model()
    layers = model.master_asr.layout.linear
    spared, cut = (next(m for m in reversed(layers) if not hasattr(m, "specialists")), next(m for m in layers if not hasattr(m, "specialists")))
    spared.weight[0, 0] = 1000.0  # beyond the range of float8_e4m3fn
    names = {module: name for name, module in model.named_modules()}
    model.save_pretrained(tmp_path / "whole")
    compact_checkpoint.compact(model)
    model.save_pretrained(tmp_path / "small")
    stored = load_file(tmp_path / "small/model.safetensors")
    assert stored[f"{names[cut]}.weight"].dtype == torch.float8_e4m3fn and stored[f"{names[spared]}.weight"].dtype == torch.float16

    loaded = MasterASRForCTC.from_pretrained(tmp_path / "small", **({} if dtype is None else {"dtype": dtype}))
    wanted = torch.float16 if dtype else torch.float32
    assert {value.dtype for value in loaded.master_asr.base_tensors().values()} == {wanted}
    assert all(torch.equal(value, stored[f"master_asr.backbone.{name}"].to(wanted)) for name, value in loaded.master_asr.base_tensors().items())
    loaded.add_language("es", build_vocab(["sí"]))
    loaded.save_assembly("es", tmp_path / "es")
    again = MasterASRForCTC.from_pretrained(tmp_path / "small", assemblies=tmp_path / "es")
    assert again.languages == ["en", "fr", "ru", "es"]
    with pytest.raises(ValueError, match="was made for the base .small.*Load that base"):
        MasterASRForCTC.from_pretrained(tmp_path / "whole").load_assembly(tmp_path / "es")


@pytest.mark.parametrize("options, words", [(["--language", "es"], "--language names one of an --assembly"), (["--card", "c.md", "--assembly", str(SHIPPED)], "--card is a model's")])
def test_pushing_refuses_what_it_would_not_do(options, words, capsys):
    with pytest.raises(SystemExit):
        push_to_hub.main(["--model", str(SHIPPED), "--repo", "me/x", *options])
    assert words in capsys.readouterr().err


def test_a_pipeline_is_published_as_its_model_is(hub, warnings):
    model = tiny_model()
    model.set_text("en", ["a b", "c"])
    asr = MasterASRPipeline(model)
    model.config.note = "hf_" + "a" * 34
    with pytest.raises(ValueError, match="config.json holds an access token"):
        asr.push_to_hub("tester/m", token="a-token")
    assert "This publishes the sentences that its languages are read with, so many of each: {'en': 2}" in warnings()
    del model.config.note
    asr.push_to_hub("tester/m", token="a-token", commit_message="Ours", max_shard_size="1GB", tags=["x"])
    assert model.master_asr.stored.name == "tester/m" and "x" in ModelCard(hub.files("tester/m")["README.md"].decode()).data.tags
    again = pipeline("automatic-speech-recognition", model="tester/m", trust_remote_code=True)
    assert again.model.languages == ["en", "fr", "ru"] and again.model.config.text("en") == "a b\nc"
    assert set(MasterASRProcessor.from_pretrained("tester/m").languages) == {"en", "fr", "ru"}
    peft = pytest.importorskip("modeling_master_asr.peft_assembly")
    adapted = peft.get_peft_model(again.model, peft.AssemblyConfig(language="es", vocab=vocab("abñ")))
    MasterASRPipeline(adapted).push_to_hub("tester/es", token="a-token")
    assert "adapter_config.json" in hub.files("tester/es") and "model.safetensors" not in hub.files("tester/es")


def test_shards_take_the_place_of_weights_in_one_file(hub, tmp_path):
    """Transformers reads the one file where both are there."""
    model, more = tiny_model(), tiny_model()
    with torch.no_grad():
        more.master_asr.character_bank.weight.mul_(3)
    inputs = inputs_for(model)
    for name, save in ((str(tmp_path), lambda model, **how: model.save_pretrained(tmp_path, **how)), ("me/m", lambda model, **how: model.push_to_hub("me/m", token="a-token", **how))):
        save(model)
        save(more, max_shard_size="60KB")
        again = MasterASRForCTC.from_pretrained(name)
        assert torch.equal(again(**inputs, language="fr").logits, more(**inputs, language="fr").logits)
        assert again.config.fingerprint == again.master_asr.base_fingerprint()
        save(model)
        assert torch.equal(MasterASRForCTC.from_pretrained(name)(**inputs, language="fr").logits, model(**inputs, language="fr").logits)


def test_a_card_has_the_models_own_tags(hub):
    model = tiny_model()
    model.add_model_tags(["foo-tag"])
    model.push_to_hub("me/tagged", token="a-token", tags=["bar-tag"])
    card = Path(hf_hub_download("me/tagged", "README.md")).read_text()
    assert "foo-tag" in card and "bar-tag" in card


def test_an_assemblys_file_may_be_read_by_whom_its_config_may(tmp_path):
    """safetensors makes files that nobody else can read."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    model.save_assembly("fr", tmp_path / "fr")
    assert len({path.stat().st_mode for path in (tmp_path / "fr").glob("assembly*")}) == 1 and len(list((tmp_path / "fr").glob("assembly*"))) == 2


def test_cards_name_the_packages_that_reading_needs_as_the_project_does():
    needs = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())["project"]["dependencies"]
    versions = {re.match(r"[\w-]+", need)[0]: need for need in needs}
    torch_version = versions["torch"].removeprefix("torch>=")
    assert f'"{versions["transformers"]}" soundfile soxr' in NEEDS and f"torch {torch_version} or newer" in NEEDS
    brought = {"huggingface-hub", "safetensors", "numpy"}  # by Transformers
    assert versions.keys() == {"torch", "transformers", "soundfile", "soxr"} | brought
    assert NEEDS in default_card(tiny_model().config)
