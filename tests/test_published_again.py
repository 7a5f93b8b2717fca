"""The second push, and the third: what is published stays as small as it was stored, and cards say what is there now."""

import json

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import pipeline

from modeling_master_asr import MasterASRForCTC, MasterASRPipeline, MasterASRProcessor
from modeling_master_asr.base_master_asr import types_in
from training import push_to_hub, transcribe
from training.compact_checkpoint import compact


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token")


def folder_of(model, folder):
    model.save_pretrained(folder)
    MasterASRProcessor.from_model(model).save_pretrained(folder)
    return folder


def card_of(repo, revision=None):
    return ModelCard.load(hf_hub_download(repo, "README.md", revision=revision))


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_small_checkpoint_is_published_as_it_is_stored_also_again_and_with_a_further_language(hub, tmp_path, shard):
    model = tiny_model("whisper")
    compact(model)
    folder_of(model, tmp_path / "small")
    stored = types_in([tmp_path / "small" / "model.safetensors"])
    assert {torch.float16, torch.float8_e5m2} <= set(stored.values())
    loaded = MasterASRForCTC.from_pretrained(tmp_path / "small")
    for repo in ("tester/first", "tester/second"):
        loaded.push_to_hub(repo, **({} if shard is None else {"max_shard_size": shard}))
        pulled = MasterASRForCTC.from_pretrained(repo)
        assert pulled.base_model._types == stored and pulled.config.fingerprint == model.config.fingerprint
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in pulled.state_dict().items())
        assert pulled.dtype == torch.float32
    with torch.no_grad():
        loaded.master_asr.artisan_layers[0].weight[0, 0] = 1 / 3  # which half precision does not hold
    loaded.add_language("es", vocab("ab"))
    loaded.push_to_hub("tester/trained")
    trained = MasterASRForCTC.from_pretrained("tester/trained")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())
    assert len(stored) - len(trained.base_model._types) == 1


def test_an_index_says_how_large_its_shards_are(hub, tmp_path):
    model = tiny_model("whisper")
    compact(model)
    model.save_pretrained(tmp_path)
    MasterASRForCTC.from_pretrained(tmp_path).push_to_hub("tester/shards", max_shard_size="20KB")
    index = json.loads(open(hf_hub_download("tester/shards", "model.safetensors.index.json")).read())
    total = 0
    for shard in set(index["weight_map"].values()):
        with safe_open(hf_hub_download("tester/shards", shard), "pt") as opened:
            total += sum(opened.get_tensor(name).nbytes for name in opened.keys())
    assert index["metadata"]["total_size"] == total


def test_our_part_of_a_models_card_follows_its_languages_and_what_people_wrote_stays(hub):
    model = tiny_model()
    model.push_to_hub("tester/card")
    written = hf_hub_download("tester/card", "README.md")
    text = open(written).read().replace("# Master-ASR", "# Ours\n\nBy hand.") + "\nThanks.\n"
    HfApi(token="a-token").upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="tester/card")
    model.add_language("es", vocab("ab"))
    model.remove_language("en")
    model.push_to_hub("tester/card")
    card = card_of("tester/card")
    assert card.data.language == ["fr", "ru", "es"] and "Languages: `fr`, `ru`, `es`." in card.text and 'language="fr"' in card.text
    assert "By hand." in card.text and "Thanks." in card.text and "`en`" not in card.text and "tester/card" in card.text
    model.push_to_hub("tester/card", card="# All by hand")
    model.remove_language("fr")
    model.push_to_hub("tester/card")
    assert card_of("tester/card").text.strip() == "# All by hand"


def test_a_card_that_is_not_utf8_stays_as_it_is(hub, warnings):
    model = tiny_model()
    model.push_to_hub("tester/latin")
    hub.repos["tester/latin"].commits[-1].files["README.md"] = "# \xe9".encode("latin1")  # by git: the Hub's client refuses it
    model.push_to_hub("tester/latin", tags=["x"])
    assert open(hf_hub_download("tester/latin", "README.md"), "rb").read() == b"# \xe9" and "is not UTF-8, so it stays as it is" in warnings()


def test_the_card_of_assemblies_names_the_base_that_they_are_of_now_and_its_code_runs(hub, tmp_path):
    model = tiny_model()
    model.push_to_hub("tester/base")
    model.push_assembly_to_hub("fr", "tester/fr")
    assert card_of("tester/fr").data.base_model == "tester/base"
    code = card_of("tester/fr").text.partition("```python\n")[2].partition("```")[0]
    exec(code, scope := {})  # the base has a language of that code itself
    assert torch.equal(scope["model"].assemblies["fr"].mapping, model.assemblies["fr"].mapping)
    with torch.no_grad():
        model.master_asr.artisan_layers[0].weight.add_(1)
    model.push_to_hub("tester/base2")
    model.push_assembly_to_hub("fr", "tester/fr")
    card = card_of("tester/fr")
    assert card.data.base_model == "tester/base2" and card.data.base_model_relation == "adapter" and "`tester/base2`" in card.text


def test_figures_that_a_push_leaves_out_are_said(hub, warnings):
    model = tiny_model()
    model.push_to_hub("tester/base")
    model.push_assembly_to_hub("fr", "tester/fr", cer=3.0, minutes=10)
    assert "figures" not in warnings()
    model.push_assembly_to_hub("fr", "tester/fr", cer=2.9)
    assert "The repo says minutes of 'fr', and this push does not" in warnings()


def test_nothing_is_made_on_the_hub_for_a_model_with_an_adapter_on_it(hub):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).get_base_model()
    with pytest.raises(ValueError, match="A PEFT adapter is on"):
        model.push_to_hub("tester/none")
    assert "tester/none" not in hub.repos


def test_a_language_of_the_models_own_whose_alphabet_grew_is_read_by_the_pipeline_of_its_folder(tmp_path):
    base = tiny_model()
    folder_of(base, tmp_path / "base")
    base.give_parts("fr", "small", vocab=vocab("abcéñ"))
    base.save_assembly("fr", tmp_path / "fr")
    asr = pipeline("automatic-speech-recognition", str(tmp_path / "base"), trust_remote_code=True, model_kwargs={"assemblies": [str(tmp_path / "fr")]})
    clip = torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy()
    for code in ("en", "fr"):
        assert asr(clip, language=code) == MasterASRPipeline(base)(clip, language=code)
    lone = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("xyz")}))
    with pytest.raises(ValueError, match=r"disagree on the alphabets of \['en'\]"):  # a tokenizer of another model's is still refused
        MasterASRPipeline(asr.model, tokenizer=lone.tokenizer)
    flat = MasterASRProcessor.from_model(tiny_model(vocabs={"xx": vocab("xyz")})).tokenizer_of("xx")
    flat.vocab = flat.encoder
    with pytest.raises(ValueError, match="This tokenizer holds one alphabet of 6 tokens, and none of this model's languages"):
        MasterASRPipeline(asr.model, tokenizer=flat)


def test_two_assemblies_of_one_language_are_refused_in_words_for_a_command_line(tmp_path):
    base = tiny_model()
    folder_of(base, tmp_path / "base")
    for name in ("a", "b"):
        base.save_assembly("fr", tmp_path / name)
    with pytest.raises(ValueError, match=r"b holds 'fr', and so does one of the assemblies before it. Name one of the two."):
        MasterASRForCTC.from_pretrained(tmp_path / "base", assemblies=[tmp_path / "a", tmp_path / "b"])


def test_a_model_that_was_saved_alone_is_read_and_pushed_by_the_commands(hub, tmp_path, capsys):
    base = tiny_model("whisper")
    base.config.feature_extractor = MasterASRProcessor.from_model(base).feature_extractor.to_dict()  # as from_backbone says it
    folder_of(base, tmp_path / "whole")
    MasterASRForCTC.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "alone")
    assert not (tmp_path / "alone" / "preprocessor_config.json").exists() and not (tmp_path / "alone" / "processor_config.json").exists()
    model, processor = (asr := transcribe.load(str(tmp_path / "alone"), [])).model, asr
    assert processor.feature_extractor.to_dict() == MasterASRProcessor.from_pretrained(tmp_path / "whole").feature_extractor.to_dict()
    push_to_hub.main(["--model", str(tmp_path / "alone"), "--repo", "tester/alone"])
    assert MasterASRProcessor.from_pretrained("tester/alone").languages == ["en", "fr", "ru"]
    assert model(**inputs_for(model), language="fr").logits.isfinite().all()
