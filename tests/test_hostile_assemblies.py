"""Assemblies of strangers, and what they may cost those who serve them beside others."""

import json
import logging
import os
import time

import pytest
import torch
from conftest import tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_master_asr import MasterASRForCTC, MasterASRPipeline
from modeling_master_asr.cards_master_asr import assembly_part
from modeling_master_asr.configuration_master_asr import MAX_CLUSTERS, MAX_TOKEN, MAX_VOCAB, SPECIAL_TOKENS, check_vocab
from modeling_master_asr.ngrams_master_asr import MOST_ENTRIES, ORDER, Ngrams
from modeling_master_asr.text_master_asr import normalize, tokens_of


def vocab_of(tokens) -> dict[str, int]:
    return {token: i for i, token in enumerate([*SPECIAL_TOKENS, *tokens])}


def saved_base(folder) -> MasterASRForCTC:
    tiny_model().save_pretrained(folder)
    return MasterASRForCTC.from_pretrained(folder)


TOO_MUCH = [
    ("more tokens than any script has", [chr(0x4E00 + i) for i in range(MAX_VOCAB)]),
    ("more tokens of several characters than a tokenizer learns in seconds", [f"q{i}" for i in range(MAX_CLUSTERS)]),
    ("a token as long as a text", ["a" * (MAX_TOKEN + 1)]),
]


@pytest.mark.parametrize("tokens", [case[1] for case in TOO_MUCH], ids=[case[0] for case in TOO_MUCH])
def test_an_alphabet_that_would_cost_other_languages_is_refused_before_anything_is_added(tokens):
    model = tiny_model()
    with pytest.raises(ValueError, match="The vocab of 'xx' has [0-9,]+ tokens, .*allowed: 32,768, 4,000 and 32. CTC writes letters or syllables"):
        model.add_language("xx", vocab_of(tokens))
    assert "xx" not in model.languages and "xx" not in model.config.languages


def test_alphabets_of_every_script_fit():
    hangul, han = [chr(0xAC00 + i) for i in range(11_172)], [chr(0x4E00 + i) for i in range(20_992)]
    assert len(check_vocab(vocab_of([*hangul, *han]), "ko")) == 3 + len(hangul) + len(han)


def test_tokens_are_the_longest_whatever_their_order_and_what_no_token_is_stays_a_character():
    alphabet = vocab_of(["c", "h", "ch", "chh", "a b", "a"])
    assert tokens_of("chhchca bz", alphabet) == ["chh", "ch", "c", "a", "|", "b", "z"]
    assert tokens_of("ca\n", vocab_of("ac")) == ["c", "a", "\n"]


def test_a_syllabary_of_thousands_is_spelled_in_a_moment():
    alphabet = vocab_of([*"abcdefghijklmnopqrstuvwxyz", *("a" * 31 + chr(0x4E00 + i) for i in range(3000))])
    begun = time.monotonic()
    assert len(tokens_of("a" * 100_000, alphabet)) == 100_000
    assert time.monotonic() - begun < 20  # 50 s where every token was tried in every place; less than a tenth of a second else


def test_one_language_in_a_batch_is_read_as_wide_as_its_own_alphabet(monkeypatch):
    model = tiny_model()
    model.add_language("xx", vocab_of(chr(0x4E00 + i) for i in range(2000)), preset="paper")
    asked, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **named: (asked.append((out := forward(*args, **named)).logits.shape[-1]), out)[1])
    clip = {"raw": torch.randn(16_000).numpy(), "sampling_rate": 16_000}
    pipe = MasterASRPipeline(model)
    pipe([clip, clip], language="fr", batch_size=2)
    assert set(asked) == {len(model.config.vocab("fr"))}


def test_values_that_overflow_once_they_are_unpacked_are_refused(tmp_path):
    model = saved_base(tmp_path / "base")
    model.add_language("xx", vocab_of("abc"), preset="best")
    model.round_assembly("xx")
    model.save_assembly("xx", tmp_path / "xx")
    model.remove_language("xx")
    path = tmp_path / "xx/assembly.xx.safetensors"
    with safe_open(path, "pt") as opened:
        said = opened.metadata()
    state = load_file(path)
    scaled = next(name for name in state if name.endswith(".scales"))
    save_file(state | {scaled: torch.full_like(state[scaled], 3e38, dtype=torch.float32)}, path, metadata=said)
    with pytest.raises(ValueError, match="holds values that are infinite in"):
        model.load_assembly(tmp_path / "xx")
    assert "xx" not in model.languages


def test_a_repo_that_takes_the_place_of_the_models_own_language_says_so(tmp_path, caplog, monkeypatch):
    model = saved_base(tmp_path / "base")
    model.save_assembly("fr", tmp_path / "fr")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    MasterASRForCTC.from_pretrained(tmp_path / "base", assemblies=[tmp_path / "fr"])
    assert "takes the place of the model's own 'fr'" in caplog.text


def test_no_link_of_a_strangers_folder_is_written_through(tmp_path):
    model = saved_base(tmp_path / "base")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "fr").mkdir()
    os.symlink(precious, tmp_path / "fr/assembly.fr.safetensors")
    model.save_assembly("fr", tmp_path / "fr")
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in (tmp_path / "fr").iterdir() if not path.is_symlink()) == ["README.md", "assembly.fr.safetensors", "assembly_config.json"]
    assert saved_base(tmp_path / "again").load_assembly(tmp_path / "fr", replace=True) == "fr"


def test_a_config_nested_without_end_is_said_to_be_broken(tmp_path):
    model = saved_base(tmp_path / "base")
    (tmp_path / "assembly_config.json").write_text('{"assemblies": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ValueError, match="is not a whole assembly_config.json"):
        model.load_assembly(tmp_path)


def test_facts_of_a_stranger_stand_in_a_card_as_code_and_no_number_is_too_large_for_it(tmp_path):
    model = saved_base(tmp_path / "base")
    model.save_assembly("fr", tmp_path)
    facts = json.loads((tmp_path / "assembly_config.json").read_text())["assemblies"]["fr"]
    row = next(line for line in assembly_part({"fr": facts | {"cer": 10**400, "gate_bits": "[x](http://evil) <script>"}}, "me/x").splitlines() if "`fr`" in line)
    assert "`[x](http://evil) <script>`" in row and "| ? |" in row


def test_a_code_that_a_terminal_would_obey_is_refused():
    with pytest.raises(ValueError, match="non-empty code of printable signs"):
        tiny_model().add_language("x\x1b[2J", vocab_of("ab"))


def test_sentences_of_noise_are_counted_less_far_instead_of_filling_memory(monkeypatch):
    monkeypatch.setattr("modeling_master_asr.ngrams_master_asr.MOST_ENTRIES", 1000)
    noise = torch.randint(1, 500, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert max(map(len, Ngrams([noise], 500, 0)._counts)) == 2  # some 500 single tokens, 4,000 pairs
    assert max(map(len, Ngrams([[1, 2, 3] * 1000], 500, 0)._counts)) == ORDER and MOST_ENTRIES >= 2_000_000


@pytest.mark.parametrize("levels", [3, 3000])
def test_quotes_within_quotes_cost_no_run(levels):
    text = normalize("‘aa " * levels + "bb’ " * levels)
    assert text.replace("'", "").split() == ["aa"] * levels + ["bb"] * levels
    assert levels > 100 or "'" not in text
