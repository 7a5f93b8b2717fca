"""Normalisation keeps what is spoken, in every script."""

import unicodedata
from collections import Counter

import pytest
from conftest import tiny_model

from modeling_master_asr import MasterASRProcessor
from modeling_master_asr.text_master_asr import build_vocab, normalize, spelled
from training.loop.text import letters_beside, main_script, said_in, without


@pytest.mark.parametrize("raw, clean", [
    ("Où est L\u2019été ?  Là-bas!", "où est l'été là bas"),
    ("Žluťoučký KŮŇ…", "žluťoučký kůň"),
    ("Привет, Ёжик! № 5", "привет ёжик no"),
    ("हिन्दी में लिखो।", "हिन्दी में लिखो"),
    ("ਪੰਜਾਬੀ ਭਾਸ਼ਾ", "ਪੰਜਾਬੀ ਭਾਸ਼ਾ"),
    ("ଓଡ଼ିଆ ଭାଷା", "ଓଡ଼ିଆ ଭାଷା"),
    ("السَّلامُ عليكم؟", "السَّلامُ عليكم"),
    ("สวัสดีค่ะ", "สวัสดีค่ะ"),
    ("'quoted' don't", "quoted don't"),
    ("‘Hello there,’ she said.", "hello there she said"),
    ("Er sagte ‚hallo‘ zu mir", "er sagte hallo zu mir"),
    ("He said 'yes, don't go!' twice", "he said yes don't go twice"),
    ("'s avonds, auto's en 'k zei 'nee'", "'s avonds auto's en 'k zei nee"),
    ("un po' d'acqua, l’été", "un po' d'acqua l'été"),
    ("the boys' toys", "the boys' toys"),
    ("rock 'n' roll, la 'ndrangheta un po'", "rock 'n' roll la 'ndrangheta un po'"),
    ("mar 'l hemm ta' malajr", "mar 'l hemm ta' malajr"),
    ("col·lega a · b", "col·lega a b"), ("in·hèrn des·har", "in·hèrn des·har"), ("tou·te·s kW·h", "tou te s kw h"), ("ήρθε·έφυγε", "ήρθε έφυγε"), ("约翰·史密斯", "约翰 史密斯"), ("He said ''hello'' to me", "he said hello to me"),
    ("‘he said ‘no’ twice’", "he said no twice"), ("rock ‘n’ roll", "rock 'n' roll"), ("צה״ל צה\"ל ג׳ירפה ג'ירפה ר׳", "צהל צהל ג'ירפה ג'ירפה ר'"), ("׳שלום׳ אמר", "שלום אמר"), ("׳שלום לכם׳ אמר", "שלום לכם אמר"), ("ἀλλ᾽ ἐγώ", "ἀλλ' ἐγώ"), ("40°26′46″n", "n"), ("محمـــد", "محمد"), ("l´eau", "l'eau"),
    ("oʻzbek o‘zbek oʼzbek o‛zbek oꞌzbek", "o'zbek o'zbek o'zbek o'zbek o'zbek"), ("п′ять", "п'ять"),
    ("ինչո՞ւ եկար, ո՜վ Հա՛յր", "ինչու եկար ով հայր"), ("և եւ", "և եւ"),
    ("هو ۽ مان گهر ۾", "هو ۽ مان گهر ۾"), ("စာအုပ်၌ရှိ၍သွား၏။", "စာအုပ်၌ရှိ၍သွား၏"), ("၎င်း", "၎င်း"), ("二〇二四年", "二〇二四年"),
    ("ทำน้ำ นํ้า", "ทำน้ำ น้ำ"), ("ນ້ຳ ໝາ", "ນ້ຳ ໝາ"), ("saⁿ san kʷ kw tʰa", "saⁿ san kʷ kw tʰa"), ("ⴽⵯ ⴽⵡ", "ⴽⵯ ⴽⵡ"), ("ㅋㅠ 한", "ㅋㅠ 한"),
    ("दर्‍या दर्या", "दर्‍या दर्या"), ("র‍্যালি র্যালি", "র‍্যালি র্যালি"), ("ශ්‍රී කර්‍ම", "ශ්‍රී කර්‍ම"), ("ක්‍ෂ ක්ෂ ක්‍", "ක්ෂ ක්ෂ ක්"), ("ຫນ ໜ ຫມ ໝ ໂຫນ", "ໜ ໜ ໝ ໝ ໂຫນ"), ("क्‍ष a\u200db", "क्ष ab"), ("അവന്\u200d അവൻ", "അവൻ അവൻ"),
    ("ma˥˩ma a˞ ɓa꞉na", "ma˥˩ma a˞ ɓa꞉na"), ("i̇stanbul", "istanbul"), ("li̇̀", "li̇̀"), ("ＡＢ ｶﾞ ｱｰ", "ab ガ アー"), ("م\ufe76ر", "مَر"), ("ᠮᠣᠩ᠊ᠭ", "ᠮᠣᠩᠭ"),
    ("ᏣᎳᎩ ᏣᎳᎩ".lower(), "ᏣᎳᎩ ᏣᎳᎩ"), ("ΛΟΓΟΣ.ΤΟ", "λογος το"), ("ŉ man, 'n vrou", "'n man 'n vrou"),
    ("ﬁne", "fine"),
    ("‘ ’", ""),
    ("ab \u2764\ufe0f c", "ab c"),  # an emoji's variation selector is a mark by category
    ("a\ufe0fb\U000e0101c", "abc"),
    ("1\ufe0f\u20e3 a", "a"),  # a keycap
    ("a\u034fb \u115fc \u3164", "ab c"),  # a joiner, and fillers that are letters by category
    ("\u0301a + \u0302b", "a b"),  # marks on nothing
    ("e\u0301 q\u0307", "é q\u0307"),  # letters' own marks stay
])  # fmt: skip
def test_letters_marks_and_apostrophes_survive(raw, clean):
    assert normalize(raw) == unicodedata.normalize("NFC", clean) == normalize(normalize(raw))


@pytest.mark.parametrize("raw", ["chữ 'ế' này", "l\u0387l l·l", "ŉ ŀl", "Å Å", "'ạ́' b", "ά ΐ", "য় ড়", "שׁלום", "한국", "ガ"])
def test_canonically_equal_texts_are_one(raw):
    assert len({normalize(unicodedata.normalize(form, raw)) for form in ("NFC", "NFD")}) == 1


@pytest.mark.parametrize("code", ["tr", "TR", "tr-TR", "tr_tr", "az_AZ", "zza", "kk-Latn", "az-Latn"])
def test_turkish_is_lower_cased_by_its_own_rule_however_its_code_is_written(code):
    assert normalize("IŞIK", language=code) == "ışık" and normalize("IŞIK", language="en") == "işik"
    assert normalize("Intel", language="kk") == normalize("Intel", language="az-Cyrl") == "intel"


def test_an_alphabet_of_capitals_has_them_as_its_language_does():
    assert spelled("iyi şık", set("ABCIİYŞK "), "tr") == "İYİ ŞIK" and spelled("iyi", set("IY"), "en") == "IYI"


def test_every_dropped_character_is_counted():
    dropped = Counter()
    normalize("a, b, c! \u200d5", dropped)
    assert dropped == {",": 2, "!": 1, "\u200d": 1, "5": 1}
    dropped = Counter()
    normalize("'ąą' b ' ‘cd’", dropped)  # quotation marks
    assert dropped == {"'": 3, "‘": 1, "’": 1}


def test_what_a_model_wrote_is_scored_as_it_is_written():
    assert normalize("ाका ' A", raw=False) == "ाका ' a" and normalize("ाका ' A") == "का a"


@pytest.mark.parametrize("text", [
    "ทำน้ำ", "saⁿ san kʷ w", "col·lega", "दर्‍या दर्या", "ശ അവൻ", "ㅋㅠ 한", "二〇", "هو ۽ مان", "ma˥˩ma", "ינצהל ג'ירפה", "ᏣᎳᎩ", "ինչու և եւ", "λογος", "ışık i", "ශ්‍රී",
])  # fmt: skip
def test_a_normalised_text_is_spelled_as_it_is_by_an_alphabet_of_its_letters(text):
    code = "tr" if "ı" in text else "xx"
    assert spelled(text, {" ", *text}, code, raw=False) == text == spelled(text, {" ", *text}, code)
    assert spelled(unicodedata.normalize("NFD", text), {" ", *text}, code) == text


@pytest.mark.parametrize("text, known, written", [
    ("ᏣᎳᎩ", "ꮳꮃꭹ", "ꮳꮃꭹ"), ("അവന്\u200d", "അവന്", "അവന്"), ("অত্\u200d", "অত্", "অত্"), ("\u09df", "\u09df\u09af\u09bc", "\u09df"), ("ג׳ירפה", "גירפה", "גירפה"),
    ("צה\"ל", "צהל", "צהל"), ("col•lega", "colega", "collega"), ("ทํา", "ทํา", "ทํา"), ("ทำ", "ทํา", "ทํา"), ("ἀλλ᾽", "ἀλ'", "ἀλλ'"), ("i̇stanbul", "i\u0307stanbul", "i\u0307stanbul"),
])  # fmt: skip
def test_an_alphabet_that_knows_others_of_the_signs_for_a_letter_has_its_own(text, known, written):
    assert spelled(text, {" ", *known}, "xx") == written


def test_an_apostrophe_alone_in_what_was_written_down_is_no_quote_and_stays_a_label():
    assert spelled("a ' b", set("ab' "), raw=False) == "a ' b" and spelled("a ' b", set("ab' ")) == "a b"


def test_an_alphabet_with_a_modifier_letter_alone_does_not_make_one_of_every_letter_that_looks_like_it():
    assert spelled("wa kʷa", set("kʷa ")) == "wa kʷa"


def test_a_vocab_has_its_special_tokens_and_every_character_once():
    assert build_vocab(["ab ba", "ñ'", "a|b"]) == {"[PAD]": 0, "[UNK]": 1, "|": 2, "'": 3, "a": 4, "b": 5, "ñ": 6}


@pytest.mark.parametrize("text, script, beside", [
    ("привет", "CYRILLIC", {}), ("сайт www", "CYRILLIC", {"LATIN": {"w"}}), ("первoe", "CYRILLIC", {"LATIN": {"o", "e"}}),
    ("où l'été", "LATIN", {}), ("हिन्दी में", "DEVANAGARI", {}), ("東京へ行くメール 々", "CJK", {}), ("한국 漢字", "CJK", {}),
    ("oʻzbek", "LATIN", {}), ("สวัสดีค่ะ", "THAI", {}), ("", None, {}), ("' '", None, {}),
])  # fmt: skip
def test_letters_of_another_script_are_found_and_marks_belong_to_any(text, script, beside):
    assert main_script([text]) == script and letters_beside(text, script) == beside


@pytest.mark.parametrize("code, text", [
    ("hy", "տուն \u0587 ես"), ("th", "\u0e19\u0e49\u0e33"), ("lo", "\u0e99\u0ec9\u0eb3"), ("bn", "\u09df\u09dc"), ("or", "\u0b5c"), ("pa", "\u0a36\u0a5b"),
    ("hi", "\u0958"), ("ca", "a\u0301 b"), ("uk", "п\u2019ять"),
])  # fmt: skip
def test_an_alphabets_own_letters_become_labels_also_those_that_nfkc_takes_apart(code, text):
    known = set(text)
    for written in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text), text.replace("’", "'"), text.upper() if code == "ca" else text):
        assert spelled(written, known, code) == text


@pytest.mark.parametrize("text", ["J\u030c", "\u0399\u0308\u0301", "Ä b ﬁ", "آشزَـًٌ"])
def test_a_text_that_was_normalised_stays_as_it_is(text):
    assert normalize(normalize(text)) == normalize(text)


def test_the_catalan_letter_with_a_dot_is_spelled_as_the_two_signs_for_it():
    assert len({normalize(f"co{dotted}ega") for dotted in ("\u0140l", "l\u00b7l", "l\u2022l", "l\u2027l", "l\u0387l")}) == 1
    assert normalize("co\u0140lega") == "col\u00b7lega" == spelled("co\u0140lega", set("col\u00b7ega "), "ca") and spelled("co\u0140lega", set("colega "), "ca") == "collega"


def test_the_token_of_a_space_is_a_gap_where_a_text_has_it():
    processor = MasterASRProcessor.from_model(tiny_model())
    assert processor.encode_rows(["a | b|a"], "en")[0].tolist() == processor.encode_rows(["a b a"], "en")[0].tolist()


@pytest.mark.parametrize("language, held, sentence, other", [
    ("zh", "今天天气很好", "今天天气很好，我们去公园。", "我们去公园，天气很好。"), ("th", "สวัสดีตอนเช้า", "สวัสดีตอนเช้าครับ", "สวัสดีครับ"),
    ("es", "hola buenos dias", "Hola, buenos dias a todos.", "buenos dias"), ("de", "gesundheit", "Gesundheitswesen", "gut"),
])  # fmt: skip
def test_sentences_that_hold_what_held_out_clips_say_are_left_out_in_scripts_without_spaces_too(language, held, sentence, other):
    kept = [sentence, other] if language == "de" else [other]  # one word is no sentence
    assert without([sentence, other, held], [normalize(held, language=language)], language) == kept


def test_a_text_is_said_by_its_sentence_and_from_three_words_on_by_one_that_holds_it():
    sentences = ["fulano ha dejado la conferencia", "sí"]
    texts = ["ha dejado la conferencia", "la conferencia", "sí", "no", "dejado la conferencia", "ejado la conferencia"]
    assert said_in(texts, sentences) == [True, False, True, False, True, False] and said_in(texts, []) == [False] * 6
    assert said_in(["天気がいいですね", "天気"], ["今日は天気がいいですね"]) == [True, False]
