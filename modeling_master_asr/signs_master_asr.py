"""Signs of the world's scripts: what is a letter whatever Unicode calls it, what is not heard, and what people type in several ways."""

from __future__ import annotations

import re
import unicodedata
from functools import partial

# CHOICE: the letters ʼ ʻ ꞌ, the Hebrew geresh and the Greek elision too: who lacks them types ', and one sound is one token
APOSTROPHES = "'\u2018\u2019\u201b\u02bc\u02bb\u02b9\u00b4`\u2032\u055a\u05f3\ua78b\ua78c\u1fbd\u1fbf"
QUOTES = "'\u2018\u2019\u201a\u201b\u00b4`\u05f3"  # those of them that may stand in pairs around words, and the low one, which is never an apostrophe
# Unicode's default ignorables that are no format characters (category Cf): letters and marks by category, and nothing to be seen or heard
INVISIBLE = frozenset(
    chr(code)
    for first, last in ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
                        (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF))  # fmt: skip
    for code in range(first, last + 1)
)
# written inside a word and no sound of it: Hebrew gershayim, the stretches of Arabic, N'Ko and Mongolian, the Quran's signs of pauses, the Armenian marks of stress,
# call, question and abbreviation
WITHIN_WORDS = frozenset("\u05f4\u0640\u07fa\u180a\u055b\u055c\u055e\u055f\u06d6\u06d7\u06d8\u06d9\u06da\u06db\u06dc")
# of what Unicode calls symbols, numbers or punctuation: words of one sign (Sindhi ۽ ۾, Burmese ၌ ၍ ၎ ၏, Chinese 〇), tone letters (˥ to ˩),
# length and rhotic signs (꞉ ˞)
LETTERLIKE = frozenset("\u06fd\u06fe\u104c\u104d\u104e\u104f\u3007") | {
    chr(code) for first, last in ((0x2DE, 0x2DF), (0x2E5, 0x2EB), (0xA700, 0xA716), (0xA720, 0xA721), (0xA789, 0xA78A)) for code in range(first, last + 1)
}
# signs that are letters where they stand: the dot of Catalan col·lega and Occitan in·hèrn (elsewhere a punctuation mark), and the zero-width joiner
# where it makes another letter (Marathi दर्‍या, Bengali র‍্যালি, Sinhala ශ්‍රී and කර්‍ම; elsewhere it says how letters look)
LETTERS_WHERE_THEY_STAND = re.compile(
    "(?<=l)\u00b7(?=l)|(?<=[ns])\u00b7(?=h)|(?<=\u0930\u094d)\u200d(?=[\u0915-\u0939])|(?<=\u09b0)\u200d(?=\u09cd)"
    "|(?<=\u0dca)\u200d(?=[\u0dba\u0dbb])|(?<=\u0dbb\u0dca)\u200d(?=[\u0d9a-\u0dc6])",
    re.IGNORECASE,
)
JOINED_BY_RULE = re.compile("(?<=[\u0900-\u09ff\u0d80-\u0dff])\u200d")  # where the rule above alone says which are letters
SPOKEN = frozenset("'%‰&@#§\u066a")  # of what Unicode calls punctuation: a word, or part of one
UNSAID = "\u2122\u2120"  # ™ ℠: no letters, though NFKC makes some of them

# what NFKC takes apart, and people write as it is: Thai ำ, Lao ຳ ໜ ໝ, Armenian և, Korean letters by themselves (ㅋㅋ), and seconds, which are no apostrophes
WHOLE = frozenset("\u0e33\u0eb3\u0edc\u0edd\u0587\u2033\u2034\u2057") | {chr(code) for code in range(0x3131, 0x318F)}
# what is typed in several ways and is one: `(pattern of the other way, the one that is kept)`, of NFC text
NUMERALS = "〇一二三四五六七八九"
ONE_WAY = tuple((re.compile(pattern), kept) for pattern, kept in (
    ("i\u0307(?![\u0300\u0301\u0303])", "i"),  # of an İ that somebody lower-cased by Unicode's rule; the dot of Lithuanian i̇́ stays
    ("\u0140(?=l)", "l\u00b7"), ("\u013f(?=[Ll])", "L\u00b7"), ("(?<=[lL])[\u2022\u2219\u22c5\u2027](?=[lL])", "\u00b7"),  # Catalan, as fonts and keyboards have it
    ("(?<=[\u05b0-\u05bd\u05bf-\u05c7\u05d0-\u05ea])\"(?=[\u05d0-\u05ea])", "\u05f4"),  # צה"ל, with points too
    ("\u05f0", "\u05d5\u05d5"), ("\u05f1", "\u05d5\u05d9"), ("\u05f2", "\u05d9\u05d9"),  # Yiddish װ ױ ײ in one key
    ("\u0e4d([\u0e48-\u0e4b]?)\u0e32", "\\1\u0e33"), ("\u0ecd([\u0ec8-\u0ecb]?)\u0eb2", "\\1\u0eb3"),  # ทํา, นํ้า: ำ in two keys
    (f"(?<=[{NUMERALS}])[\u25cb\u25ef](?=[{NUMERALS}])", "〇"),  # 二○二四
    ("(?<![\u0ec0-\u0ec4])\u0eab\u0e99", "\u0edc"), ("(?<![\u0ec0-\u0ec4])\u0eab\u0ea1", "\u0edd"),  # Lao ຫນ, ຫມ; but ໂຫນ may be ໂ-ຫ-ນ
    *((f"{letter}\u0d4d\u200d", chillu) for letter, chillu in zip("\u0d23\u0d28\u0d30\u0d32\u0d33\u0d15", "\u0d7a\u0d7b\u0d7c\u0d7d\u0d7e\u0d7f")),  # Malayalam
    ("\u09a4\u09cd\u200d", "\u09ce"),  # Bengali ৎ
))  # fmt: skip
# keys in another order, or two for one: no alphabet has it so. Thai ท่ี, its tone first; เเ for แ, Lao ເເ for ແ
MISTYPED = tuple((re.compile(pattern), kept) for pattern, kept in (
    ("([\u0e48-\u0e4b])([\u0e31\u0e34-\u0e37])", "\\2\\1"), ("\u0e40\u0e40", "\u0e41"), ("\u0ec0\u0ec0", "\u0ec1"),
))  # fmt: skip
KANA_VOICING = "\u309b\u309c"  # as keyboards have it, beside its letter
CAPITAL_CHEROKEE = {ord(chr(code).lower()): code for code in range(0x13A0, 0x13F6)}  # the letters that people write; the small ones are of old Bibles


def stands_inside_words(character: str) -> bool:
    """Joiners, direction marks, variation selectors, and marks within a word: not heard, and no gap where they are left out."""
    return unicodedata.category(character) in ("Cf", "Me") or character in INVISIBLE or character in WITHIN_WORDS


def is_spoken(character: str) -> bool:
    """Whether a character that is no letter is a word, or part of one, when it is read aloud: digits, `%`, `€`, `+`; not an emoji."""
    return unicodedata.category(character) in ("Nd", "Nl", "No", "Sc", "Sm") or character in SPOKEN - {"'"} or character == "°"


def in_one_way(text: str, known: frozenset[str] = frozenset()) -> str:
    """NFC text in which what can be typed in several ways is typed in one. With an alphabet's `known` characters: what is made of them stays as it is,
    and so does what the one way would write with a letter that it lacks.
    """
    def in_one(found: re.Match, kept: str, is_mistyped: bool) -> str:
        written = found.expand(kept)
        is_known = not is_mistyped and known.issuperset(found.group())
        stays = known and (is_known or not (known | WITHIN_WORDS | {"\u00b7"}).issuperset(written))
        return found.group() if stays else written

    for patterns in (ONE_WAY, MISTYPED):
        for pattern, kept in patterns:
            text = pattern.sub(partial(in_one, kept=kept, is_mistyped=patterns is MISTYPED), text)
    return text


def in_plain_letters(text: str, known: frozenset[str] = frozenset()) -> str:
    """NFC text without characters that only look otherwise: fullwidth and halfwidth forms, ligatures (ﬁ), Arabic forms, styled letters; NFKC in all
    but what has a sound of its own: `WHOLE` letters, unless an alphabet's `known` characters are their parts and not they, and modifier letters (kʷ is
    not kw, nor saⁿ san).
    """
    if unicodedata.is_normalized("NFKC", text):
        return text
    plain = unicodedata.normalize("NFC", "".join(map(_plain, text)))
    parts = {whole: unicodedata.normalize("NFKC", whole) for whole in WHOLE.intersection(plain) - known}
    return plain.translate({ord(whole): of_it for whole, of_it in parts.items() if known.issuperset(of_it)})


def _plain(character: str) -> str:
    tag, *parts = unicodedata.decomposition(character).split() or [""]
    is_modifier = tag in ("<super>", "<sub>") and unicodedata.category(character) == "Lm"
    if not tag.startswith("<") or is_modifier or character in UNSAID or character in WHOLE or character in APOSTROPHES:
        return character
    if (tag == "<isolated>" or character in KANA_VOICING) and parts[0] == "0020":  # an Arabic vowel sign that stands on nothing; カ゛ is ガ
        parts = parts[1:]
    return "".join(_plain(chr(int(part, 16))) for part in parts)
