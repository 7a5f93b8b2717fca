"""What a linguist of thirty scripts found: texts mean the same whichever way they come in, by transcript, by sentence, or by an alphabet."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_model

from modeling_master_asr.signs_master_asr import is_spoken
from modeling_master_asr.text_master_asr import build_vocab, normalize, spell_sentences, spelled
from training.adapt_language import letters_beyond
from training.loop import text as texts_of_a_corpus
from training.loop import untranscribed
from training.loop.report import SHOWN, Clip, Report
from training.loop.text import script_of


@pytest.mark.parametrize("known, text, beyond", [
    ("kwas nth", "kʷa saⁿ tʰa", ["ʰ", "ʷ", "ⁿ"]), ("ⴽⵡ", "ⴽⵯ", ["ⵯ"]), ("տունեւ", "տուն և ես", ["ս"]), ("ทํา", "ทำ", []), ("한", "한ㅋㅋ", ["ㅋ"]),
])  # fmt: skip
def test_letters_with_sounds_of_their_own_are_never_spelled_by_others(known, text, beyond):
    """kʷ is not kw, and an alphabet that lacks ʷ grows by it; but ำ is written by its parts where an alphabet has these."""
    assert letters_beyond(build_vocab([known]), [text], "xx") == beyond


@pytest.mark.parametrize("written", [
    "ක්‍ෂේත්‍රය ශ්‍රී ලංකාව.", "ท่ี เเม่ แม่ ที่", "ເເມ່ ແມ່", "Lego™ set", "col·lega · punt", "hola ' mar", "'hola' mar", "م\ufe76ر مَ", "ශ්‍රී ක්‍ෂ", "kʷa ʼa", "カ゛ス ガ", "二○二四〇", "װו ווי",
])  # fmt: skip
def test_a_sentence_is_spelled_as_a_transcript_of_it_is_normalised(written):
    normal = normalize(written)
    vocab = build_vocab([normal, "ශ්‍රී col·lega abc'"])
    assert " ".join(spelled(written, {" ", *vocab} - {"|"}).split()) == normal
    model = tiny_model(vocabs={"xx": vocab})
    assert texts_of_a_corpus.spelled(model, "xx", [normal], [written], [], 1000)[2] == [normal]
    assert spell_sentences([written], "xx", vocab) == [normal]


@pytest.mark.parametrize("written", ["ರ‍್ಯ", "zhang·wei", "ɛ̃·t", "की·मी"])
def test_a_joiner_or_a_dot_that_a_given_alphabet_holds_stays_where_no_rule_of_ours_says_when_it_is_a_letter(written):
    assert spelled(written, {" ", *written}) == written


def test_further_sentences_that_an_alphabet_cannot_spell_cost_no_others():
    model = tiny_model(vocabs={"xx": build_vocab(["abc"])})
    assert texts_of_a_corpus.spelled(model, "xx", ["ab"], ["жук"], [], 1000)[1:] == (["ab", "жук"], ["ab"], ["ab"])
    assert texts_of_a_corpus.spelled(model, "xx", [], [], [], 1000) == ([], [], [], [])
    with pytest.raises(ValueError, match="None of these 1 sentences can be spelled"):
        texts_of_a_corpus.spelled(model, "xx", [], ["жук"], [], 1000)


@pytest.mark.parametrize("raw, clean", [
    ("Lego™ Set, Land™℠ rover", "lego set land rover"), ("ߒߞߏߺߺߞߊ߲", "ߒߞߏߞߊ߲"), ("قۖ قۚل", "ق قل"), ("カ゛ス ハ゜ン", "ガス パン"), ("רַמְטְכָּ\"ל", "רַמְטְכָּל"),
    ("二○二四年 ○一", "二〇二四年 一"), ("เเม่ แม่", "แม่ แม่"), ("ท่ี ที่", "ที่ ที่"), ("ເເມ່", "ແມ່"), ("װאָס וואָס ױ ײַ", "וואָס וואָס וי ייַ"),
])  # fmt: skip
def test_one_word_has_one_spelling_and_what_is_not_said_has_none(raw, clean):
    assert normalize(raw) == normalize(clean) == clean


def test_a_percent_sign_of_another_script_is_spoken():
    dropped = Counter()
    normalize("خمسون ٪", dropped)
    assert dropped == {"٪": 1} and is_spoken("٪")


def test_what_a_language_wrote_down_means_the_same_when_it_comes_back_as_data(tmp_path):
    """Glottal stops at a word's ends are quotation marks to who reads a raw transcript."""
    written = "'ashdla' dóó naaki 'áłts'ę́ę'"
    clips = [Clip(Path(f"/{i}.wav"), "nv", text, 1.0, "train") for i, text in enumerate((written, "l'été"))]
    untranscribed.save(tmp_path / "u.jsonl", [SimpleNamespace(clip=clip, disagreement=0.0) for clip in clips], clips)
    assert untranscribed.read_trained(tmp_path / "u.jsonl") == clips
    rows = untranscribed.read_jsonl(tmp_path / "u.jsonl")
    assert [normalize(row["text"], language="nv") for row in rows] == [written, "l'été"] and rows[1]["text"] == "l'été"


def test_letters_among_dropped_characters_are_shown_before_punctuation_and_the_rest_is_counted(tmp_path):
    report, audio = Report(), tmp_path / "a.wav"
    audio.write_bytes(b"a")
    report.dropped_characters["ja"].update({sign: 9 for sign in "、。！？（）「」『』【】〜…"} | {"☃": 1})
    line = next(line for line in report.lines([Clip(audio, "ja", "か", 1.0, "train")]) if "dropped characters" in line)
    assert line.startswith("    dropped characters {'☃': 1, ") and line.endswith(f"and {15 - SHOWN} more kinds")


@pytest.mark.parametrize("letter", "ⁿⁱˇʷ")
def test_modifiers_are_of_no_script(letter):
    assert script_of(letter) is None
