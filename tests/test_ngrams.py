"""A language's sentences: n-grams, the search in which they weigh in, its path, and what the model does with them."""

import itertools
import json
import math
import threading
import time
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_model, vocab
from peft import PeftModel, get_peft_model

from modeling_master_asr import MasterASRConfig, MasterASRForCTC, MasterASRPipeline, MasterASRProcessor
from modeling_master_asr import ngrams_master_asr as ngrams
from modeling_master_asr.assembly_master_asr import text_kilobytes
from modeling_master_asr.ngrams_master_asr import GAP, LONGEST, Ngrams, ngrams_of, path, path_of, read, search
from modeling_master_asr.peft_assembly import AssemblyConfig, peft_from_assembly

BLANK, UNK, A, B, C = range(5)
SPACE = 5  # of alphabets that have one


def merged(ids) -> list[int]:
    """What a path reads as: repeats merged, blanks dropped."""
    return [token for token, _ in itertools.groupby(ids) if token != BLANK]


def random_log_probs(frames: int, seed: int = 0, size: int = 5) -> np.ndarray:
    logits = torch.randn(frames, size, generator=torch.Generator().manual_seed(seed)) * 2
    return logits.double().log_softmax(-1).numpy()


def sums_over_paths(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """log p_CTC of every text, by going through every path."""
    found: dict[tuple[int, ...], float] = {}
    for ids in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(merged(ids))
        log_prob = sum(log_probs[t, token] for t, token in enumerate(ids))
        found[text] = np.logaddexp(found.get(text, -math.inf), log_prob)
    return found


def test_probabilities_after_every_history_sum_to_one():
    counted = Ngrams([[A, B, A, C], [A, B]], size=5, boundary=BLANK)
    for history in ("", chr(A), chr(A) + chr(B), chr(C) + chr(C), counted.boundary):
        assert sum(math.exp(counted.log_prob(history, chr(token))) for token in range(5)) == pytest.approx(1.0, abs=1e-12)


def test_an_n_gram_has_witten_and_bells_estimate():
    counted = Ngrams([[A, B]], size=5, boundary=BLANK)
    after_nothing = (1 + 3 * (1 / 5)) / (3 + 3)  # a, b and the boundary, once each
    assert math.exp(counted.log_prob("", chr(B))) == pytest.approx(after_nothing)
    assert math.exp(counted.log_prob(chr(A), chr(B))) == pytest.approx((1 + 1 * after_nothing) / (1 + 1))


def test_what_was_never_seen_keeps_a_probability():
    assert -math.inf < Ngrams([[A, A]], size=5, boundary=BLANK).log_prob(chr(A), chr(C)) < Ngrams([[A, A]], 5, BLANK).log_prob(chr(A), chr(A))


@pytest.mark.parametrize("seed", range(5))
def test_the_search_without_n_grams_finds_the_text_of_the_highest_sum_over_all_paths(seed, monkeypatch):
    monkeypatch.setattr(ngrams, "BEAM", 1000)
    monkeypatch.setattr(ngrams, "FLOOR", -1000.0)
    monkeypatch.setattr(ngrams, "WEIGHT", 0.0)
    monkeypatch.setattr(ngrams, "BONUS", 0.0)
    log_probs = random_log_probs(5, seed)
    sums = sums_over_paths(log_probs)
    assert tuple(map(ord, search(log_probs, Ngrams([[A]], 5, BLANK), BLANK, chr(BLANK)))) == max(sums, key=sums.get)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_text_of_the_highest_sum_of_ctc_n_grams_and_length(seed, monkeypatch):
    monkeypatch.setattr(ngrams, "BEAM", 1000)
    monkeypatch.setattr(ngrams, "FLOOR", -1000.0)
    log_probs, counted = random_log_probs(5, seed), Ngrams([[A, B, A], [C, A, B]], size=5, boundary=BLANK)

    def score(text: tuple[int, ...], of_ctc: float) -> float:
        written = counted.boundary + "".join(map(chr, text)) + counted.boundary
        of_ngrams = sum(counted.log_prob(written[:end], written[end]) for end in range(1, len(written)))
        return of_ctc + ngrams.WEIGHT * of_ngrams + ngrams.BONUS * len(text)

    sums = sums_over_paths(log_probs)
    best = max(sums, key=lambda text: score(text, sums[text]))
    assert tuple(map(ord, search(log_probs, counted, BLANK, counted.boundary))) == best


@pytest.mark.parametrize("ids", [[], [A], [A, A], [A, B, B], [C, C, A]])
def test_the_path_of_a_text_is_the_likeliest_that_reads_as_it(ids):
    log_probs = random_log_probs(6, seed=len(ids))
    ways = [way for way in itertools.product(range(5), repeat=6) if merged(way) == ids]
    best = max(ways, key=lambda way: sum(log_probs[t, token] for t, token in enumerate(way)))
    assert tuple(path_of(log_probs, ids, BLANK)) == best


def test_a_path_says_when_there_are_too_few_frames():
    with pytest.raises(ValueError, match="2 frames are too few for 2 tokens"):
        path_of(random_log_probs(2), [A, A], BLANK)


def test_a_long_clip_is_searched_in_pieces_that_end_in_pauses_and_reads_as_if_it_were_one():
    log_probs = np.full((2 * LONGEST + 700, 5), -12.0)
    log_probs[:, BLANK] = -0.001
    spoken = np.arange(7, len(log_probs), 10)
    log_probs[spoken, BLANK], log_probs[spoken, A] = -12.0, -0.001
    ids = path(log_probs, Ngrams([[A, A]], size=5, boundary=BLANK), BLANK, [UNK])
    assert ids.shape == (len(log_probs),)
    assert np.array_equal(np.nonzero(ids == A)[0], spoken)


LETTERS = 30


def silence(frames: int) -> np.ndarray:
    """A blank with 96 % in every frame and any letter with a thousandth, as the shipped model hears zeros."""
    row = np.full(LETTERS, 0.04 / (LETTERS - 1))
    row[BLANK] = 0.96
    return np.log(np.tile(row, (frames, 1)))


def sentence() -> Ngrams:
    """One that was read so often that a letter leaves no doubt about the next."""
    return Ngrams([[A, B, C, A, C, B]] * 50, size=LETTERS, boundary=BLANK)


@pytest.mark.parametrize("frames", [1, 5, 31, 500, 6000])
def test_in_silence_nothing_is_written_however_long_it_lasts(frames):
    assert np.array_equal(path(silence(frames), sentence(), BLANK, [UNK]), np.full(frames, BLANK))


@pytest.mark.parametrize("pause", [30, 1000, 5000])
def test_in_a_pause_nothing_is_written_and_the_letters_around_it_stay_where_they_are(pause):
    log_probs = silence(pause + 40)
    places = [15, 18, 21, len(log_probs) - 22, len(log_probs) - 19, len(log_probs) - 16]
    for place, token in zip(places, [A, B, C, A, C, B]):
        log_probs[place, [BLANK, token]] = log_probs[place, [token, BLANK]]
    found = path(log_probs, sentence(), BLANK, [UNK])
    assert found.nonzero()[0].tolist() == places and merged(found.tolist()) == [A, B, C, A, C, B]


def test_the_middle_of_a_long_pause_alone_is_not_searched(monkeypatch):
    monkeypatch.setattr(ngrams, "PAUSE", 2)
    of = lambda marks: "".join("x" if searched else "." for searched in ngrams._outside_pauses(np.array([mark == "_" for mark in marks])))  # noqa: E731
    assert of("____a____") == "xxxxxxxxx" and of("_____a______") == "xx.xxxxx..xx"
    assert of("______") == "......" and of("_") == "." and of("") == "" and of("abc") == "xxx" and of("a_____b_") == "xxx.xxxx"


@pytest.mark.parametrize("counted", [None, Ngrams([[A, B, A]] * 20, size=6, boundary=BLANK)])
@pytest.mark.parametrize("frames, has_space, expected", [
    (GAP, False, [A, B, A]), (GAP + 1, False, [A, B, SPACE, A]), (GAP + 1, True, [A, B, SPACE, A]), (20 * GAP, False, [A, B, SPACE, A]),
])  # fmt: skip
def test_two_letters_more_than_a_second_apart_have_one_space_between_them(counted, frames, has_space, expected):
    log_probs = np.full((frames + 100, 6), -12.0)
    log_probs[:, BLANK] = -0.001
    for place, token in [(40, A), (45, B), (45 + frames, A)] + [(47, SPACE)] * has_space:
        log_probs[place, [BLANK, token]] = -12.0, -0.001
    ids = read(torch.from_numpy(log_probs), counted, BLANK, [UNK], SPACE).tolist()
    assert merged(ids) == expected and ids[40] == A and ids[45 + frames] == A


def test_a_token_that_is_never_written_is_not_even_where_it_is_likeliest():
    log_probs = np.log(np.array([[1e-9, 1 - 2e-9, 1e-9]] * 4))
    assert UNK not in path(log_probs, Ngrams([[2]], size=3, boundary=BLANK), BLANK, [UNK])


def test_of_two_letters_that_sound_alike_the_sentences_choose():
    log_probs = np.full((6, 5), -9.0)
    log_probs[:, BLANK] = -0.01
    log_probs[1, [BLANK, A]] = -9.0, -0.01
    log_probs[4, [BLANK, B, C]] = -9.0, -0.70, -0.68  # C by a hair
    logits = torch.from_numpy(log_probs)
    assert merged(read(logits, None, BLANK, [UNK], SPACE).tolist()) == [A, C]
    assert merged(read(logits, Ngrams([[A, B]] * 3, size=5, boundary=BLANK), BLANK, [UNK], SPACE).tolist()) == [A, B]


@pytest.mark.parametrize("counted", [None, Ngrams([[2]], size=5, boundary=0)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_named(value, counted):
    logits = torch.randn(3, 5)
    logits[1] = value
    with pytest.raises(ValueError, match="The logits hold NaN or infinity"):
        read(logits, counted, BLANK, [UNK], SPACE)


def test_a_token_is_weighed_by_the_five_before_it():
    counted = Ngrams([[A, B, B, B, B, A], [C, B, B, B, B, C]], size=5, boundary=BLANK)
    after_a, after_c = (chr(first) + chr(B) * 4 for first in (A, C))
    assert counted.log_prob(after_a, chr(A)) > counted.log_prob(after_c, chr(A)) and counted.log_prob(after_c, chr(C)) > counted.log_prob(after_a, chr(C))
    assert counted.log_prob(chr(A) + after_c, chr(A)) == counted.log_prob(chr(C) + after_c, chr(A))  # the sixth has no say


def test_what_a_recording_said_before_a_cut_weighs_in_behind_it(monkeypatch):
    monkeypatch.setattr(ngrams, "LONGEST", 12)
    monkeypatch.setattr(ngrams, "SHORTEST", 4)
    log_probs = np.full((16, 5), -20.0)
    log_probs[:, BLANK] = -0.01
    log_probs[1, [BLANK, A]] = -20.0, -0.01
    log_probs[13, [BLANK, A, B]] = -20.0, -0.7, -0.7  # either, by what is heard
    after_a, first = (Ngrams([sentence] * 3, size=5, boundary=BLANK) for sentence in ([A, B], [A, A]))
    assert [merged(path(log_probs, counted, BLANK, [UNK])) for counted in (after_a, first)] == [[A, B], [A, A]]
    at_the_start = Ngrams([[B]] * 9 + [[A, A]], size=5, boundary=BLANK)  # B begins sentences, and never follows A
    assert merged(path(log_probs, at_the_start, BLANK, [UNK])) == [A, A]


def test_a_long_recording_is_cut_in_the_middle_of_the_longest_pause_in_reach():
    is_pause = np.zeros(LONGEST + 200, dtype=bool)
    for start, frames in ((ngrams.SHORTEST - 300, 200), (ngrams.SHORTEST + 10, 20), (ngrams.SHORTEST + 100, 50), (LONGEST - 30, 20)):
        is_pause[start : start + frames] = True  # the first, the longest of all, would leave a piece too short
    pieces = list(ngrams._pieces(is_pause))
    assert pieces == [(0, ngrams.SHORTEST + 125), (ngrams.SHORTEST + 125, LONGEST + 200)]


def test_the_beam_keeps_what_ctc_and_n_grams_together_find_likeliest(monkeypatch):
    monkeypatch.setattr(ngrams, "BEAM", 1)
    log_probs = np.full((1, 5), -20.0)
    log_probs[0, [A, B]] = -0.6, -0.8  # A by what is heard, B by what people say
    counted = Ngrams([[B]] * 20, size=5, boundary=BLANK)
    assert search(log_probs, counted, BLANK, counted.boundary) == search(log_probs, counted, BLANK, counted.boundary, is_last=False) == chr(B)


def test_a_frame_in_which_nothing_is_likely_is_read_by_its_likeliest():
    log_probs = np.full((2, 5), ngrams.FLOOR - 2)
    log_probs[:, A] = ngrams.FLOOR - 1
    assert search(log_probs, Ngrams([[A]], 5, BLANK), BLANK, chr(BLANK)) == chr(A)


@pytest.mark.parametrize("counted", [None, Ngrams([[A, B], [A, SPACE, B]], size=6, boundary=BLANK)])
def test_words_are_apart_over_a_long_pause_in_which_the_unknown_is_heard(counted):
    logits = torch.full((GAP + 12, 6), -20.0)
    logits[:, BLANK] = 5.0
    for place, token in ((2, A), (20, UNK), (GAP + 8, B)):
        logits[place, [BLANK, token]] = torch.tensor([-20.0, 5.0])
    assert [token for token in merged(read(logits, counted, BLANK, [UNK], SPACE).tolist()) if token != UNK] == [A, SPACE, B]


def test_where_the_unknown_is_heard_nothing_is_written():
    log_probs = np.full((5, 5), -9.0)
    log_probs[:, UNK] = -0.01
    log_probs[2, [UNK, A]] = -9.0, -0.01
    assert path(log_probs, Ngrams([[A, B, A]], size=5, boundary=BLANK), BLANK, [UNK]).tolist() == [BLANK, BLANK, A, BLANK, BLANK]


def test_of_an_alphabet_of_thousands_the_likeliest_tokens_of_a_frame_are_tried_and_no_others(monkeypatch):
    log_probs = random_log_probs(4, size=3000) * 1e-3 - 5  # all above the floor
    asked = []

    class Watched(Ngrams):
        def log_prob(self, history, token):
            asked.append(ord(token))
            return super().log_prob(history, token)

    text = search(log_probs, Watched([[A]], size=3000, boundary=BLANK), BLANK, chr(BLANK))
    likeliest = {int(i) for row in log_probs for i in np.argsort(row)[-ngrams.WIDEST :]} | {BLANK}
    assert text and set(asked) <= likeliest and len(asked) <= 4 * ngrams.WIDEST * ngrams.BEAM + ngrams.BEAM


def test_logits_of_a_smaller_alphabet_are_not_read_as_a_larger_ones():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"The logits have 3 tokens and 'en' has \d+: they are those of another language"):
        model.paths(torch.zeros(1, 4, 3), "en")
    with pytest.raises(ValueError, match=r"logits: got shape \(4, 3\); allowed: \(clips, frames, tokens\)"):
        model.paths(torch.zeros(4, 3), "en")


def test_logits_of_a_larger_alphabet_are_not_read_as_a_smaller_ones_unless_a_batch_of_both_was_joined():
    model = tiny_model()
    sizes = {code: len(model.config.vocab(code)) for code in model.languages}
    small, large = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    assert sizes[small] < sizes[large]
    with pytest.raises(ValueError, match=rf"The logits have {sizes[large]} tokens and '{small}' has {sizes[small]}: they are those of another language"):
        model.paths(torch.zeros(1, 4, sizes[large]), small)
    joined = torch.zeros(2, 4, sizes[large])
    joined[0, :, sizes[small] :] = float("-inf")
    assert model.paths(joined, [small, large]).shape == (2, 4)


def test_each_clip_of_a_batch_is_read_with_its_own_languages_sentences():
    model = tiny_model()
    small, large = sorted(("en", "fr"), key=lambda code: len(model.config.vocab(code)))
    letters = {code: [token for token in model.config.vocab(code) if len(token) == 1 and token.isalpha()] for code in (small, large)}
    for code, (first, second, *_) in letters.items():
        model.set_text(code, [first * 3, second * 2])
    torch.manual_seed(0)
    logits = torch.randn(2, 40, max(len(model.config.vocab(code)) for code in (small, large)))
    logits[0, :, len(model.config.vocab(small)) :] = float("-inf")
    together = model.paths(logits, [small, large])
    assert all(torch.equal(together[i], model.paths(logits[i : i + 1], code)[0]) for i, code in enumerate((small, large)))
    assert not torch.equal(together, model.paths(logits, [small, large], greedy=True))


def test_each_clip_has_its_own_number_of_frames():
    model = tiny_model()
    with pytest.raises(ValueError, match="3 numbers of frames for 1 clips: each clip has its own"):
        model.paths(torch.zeros(1, 9, len(model.config.vocab("en"))), "en", frames=[3, 9, 9])


# ---------------------------------------------------------------------- the model


def logits_of(model, words: str, language: str = "en") -> torch.Tensor:
    """`(1, T, V)` in which each letter of `words` is surely heard, a blank after each."""
    vocab = model.config.vocab(language)
    ids = [i for letter in words.replace(" ", "|") for i in (vocab[letter], vocab["[PAD]"])]
    return torch.nn.functional.one_hot(torch.tensor([ids]), len(vocab)).float() * 20


def test_a_language_without_sentences_is_read_greedily_bit_for_bit():
    model = tiny_model()
    logits = torch.randn(3, 11, len(model.config.vocab("en")), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.paths(logits, "en"), logits.argmax(-1))


def test_sentences_are_spelled_with_the_alphabet_kept_once_and_those_it_cannot_spell_are_left_out():
    model = tiny_model()
    letters = "".join(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    kept = model.set_text("en", [f"{letters.upper()}!", letters, "語", f"{letters[0]}|{letters[1]}", f"{letters[0]}[PAD]", "", f"{letters[0]}  {letters[1]}"])
    assert kept == 2 and model.config.text("en").splitlines() == [letters, f"{letters[0]} {letters[1]}"]
    with pytest.raises(ValueError, match="None of these 1 sentences can be spelled with the alphabet of 'en'"):
        model.set_text("en", ["語"])
    with pytest.raises(ValueError, match=r"sentences is one text; a list of texts is wanted"):
        model.set_text("en", letters)
    with pytest.raises(KeyError, match="No assembly for language 'xx'"):
        model.set_text("xx", [letters])
    assert len(model.config.text("en").splitlines()) == 2  # what was refused changed nothing
    model.set_text("en", [])
    assert model.config.text("en") == "" and "text" not in model.config.assemblies["en"]


def test_a_text_that_is_too_long_is_refused_and_changes_nothing(monkeypatch):
    model = tiny_model()
    letter = next(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    monkeypatch.setattr("modeling_master_asr.configuration_master_asr.MAX_TEXT", 10)
    with pytest.raises(ValueError, match="at most 10 characters, which every copy of its config holds; got 11 characters"):
        model.set_text("en", [letter * 11])
    assert model.config.text("en") == ""


def test_a_config_with_sentences_that_are_none_or_that_its_alphabet_cannot_spell_is_refused():
    entry = tiny_model().config.assemblies["en"]
    config = MasterASRConfig()
    with pytest.raises(ValueError, match=r"The sentences of 'en' hold \['語'\], which its alphabet lacks"):
        config.add_assembly("en", entry["vocab"], text="語")
    with pytest.raises(ValueError, match="The sentences of 'en' are a text of at most 1,000,000 characters, .* got a list"):
        config.add_assembly("en", entry["vocab"], text=["a"])
    assert config.languages == []


def test_sentences_move_no_logit_and_no_other_languages_text():
    model = tiny_model().eval()
    clip = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    letter = next(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    before = {code: model(clip, language=code).logits for code in model.languages}
    model.set_text("en", [letter * 3])
    for code, logits in before.items():
        assert torch.equal(model(clip, language=code).logits, logits)
        assert code == "en" or torch.equal(model.paths(logits, code), logits.argmax(-1))


def test_new_sentences_are_read_at_once():
    model = tiny_model()
    a, b, c = [token for token in model.config.vocab("en") if len(token) == 1 and token != "|"][:3]
    logits = logits_of(model, a + b)
    vocab = model.config.vocab("en")
    logits[0, 2, vocab[c]] = 20.1  # c by a hair
    assert vocab[c] in model.paths(logits, "en")
    for last in (b, c, b):
        model.set_text("en", [a + last] * 3)
        assert vocab[last] in model.paths(logits, "en") and vocab[{b: c, c: b}[last]] not in model.paths(logits, "en")
    assert vocab[c] in model.paths(logits, "en", greedy=True)


def test_n_grams_are_counted_once_for_as_many_languages_as_there_is_room_for_and_those_last_read_stay(monkeypatch):
    model, counted = tiny_model(), []
    monkeypatch.setattr(ngrams, "Ngrams", lambda *args: (counted.append(args), Ngrams(*args))[1])
    letters = [token for token in model.config.vocab("en") if len(token) == 1 and token != "|"]
    texts = ["".join(sentence) for sentence in itertools.product(letters, repeat=3)][:50]
    tokens = tuple(model.config.vocab("en"))
    ngrams.forget_ngrams()
    for _ in range(2):
        assert [ngrams_of(text, tokens) for text in texts] == [ngrams_of(text, tokens) for text in texts]
    assert len(counted) == len(texts) == 50
    last = [*texts[41:], texts[0]]
    monkeypatch.setattr(ngrams, "KEPT_BYTES", sum(ngrams_of(text, tokens).nbytes for text in last))
    ngrams_of(texts[0], tokens)
    assert [text for text, _ in ngrams._KEPT] == last
    ngrams.forget_ngrams()


@pytest.mark.parametrize("failing", [0, 1])
def test_of_threads_that_ask_at_once_one_counts_and_if_it_fails_the_next(failing, monkeypatch):
    together, began, found = threading.Barrier(8), [], []

    def counted(*_):
        began.append(None)
        time.sleep(0.05)  # the others ask meanwhile
        if len(began) <= failing:
            raise MemoryError
        return Ngrams([[A]], size=5, boundary=BLANK)

    def ask():
        together.wait()
        try:
            found.append(ngrams_of("a", ()))
        except MemoryError as error:
            found.append(error)

    monkeypatch.setattr(ngrams, "_counted", counted)
    ngrams.forget_ngrams()
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ngrams.forget_ngrams()
    assert len(began) == 1 + failing and len(found) == 8  # nobody waits for ever
    assert len(set(found)) == 1 + failing and sum(isinstance(one, MemoryError) for one in found) == failing


@pytest.mark.parametrize("size", [30, 3000])
@pytest.mark.parametrize("sentences", [1, 20])
def test_n_grams_that_have_read_for_long_take_no_more_memory_than_is_counted_of_them_and_no_less_than_half(sentences, size):
    random = np.random.default_rng(0)
    ids = np.minimum(random.zipf(1.3, (sentences, 200)) + 2, size - 1).tolist()
    asked = random.integers(3, size, (2 * ngrams.REMEMBERED, ngrams.ORDER)).tolist()
    tracemalloc.start()
    counted = Ngrams(ids, size, BLANK)
    for *history, token in asked:
        counted.log_prob("".join(map(chr, history)), chr(token))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert counted.nbytes / 2 < taken < counted.nbytes


def test_n_grams_that_are_dropped_leave_the_memory_at_once():
    ngrams = Ngrams([[3, 4, 5]], 6, 0)
    ngrams.log_prob("ab", "c")
    seen = weakref.ref(ngrams)
    del ngrams  # and no collector of circles ran
    assert seen() is None


def test_frames_past_a_clips_own_are_no_part_of_a_path():
    model = tiny_model()
    letter = next(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    logits = logits_of(model, letter * 3).repeat(2, 1, 1)
    for sentences in ([], [letter * 3]):
        model.set_text("en", sentences)
        ids = model.paths(logits, ["en", "en"], frames=torch.tensor([6, 2]))
        assert (ids[1, 2:] == -1).all() and merged(ids[1, :2].tolist()) == [model.config.vocab("en")[letter]]


def test_sentences_outlive_saving_and_loading_of_model_and_assembly(tmp_path):
    model = tiny_model()
    letters = "".join(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    model.set_text("en", [letters])
    model.save_pretrained(tmp_path / "model")
    again = MasterASRForCTC.from_pretrained(tmp_path / "model")
    assert again.config.text("en") == letters and again.config.text("fr") == ""
    again.save_assembly("en", tmp_path / "assembly")
    facts = json.loads((tmp_path / "assembly" / "assembly_config.json").read_text())["assemblies"]["en"]
    assert facts["text_kilobytes"] == round(len(letters) / 1024, 1) and text_kilobytes("é" * 1024) == 2.0
    again.remove_language("en")
    again.load_assembly(tmp_path / "assembly")
    assert again.config.text("en") == letters


def test_a_language_that_is_given_parts_keeps_its_sentences():
    model = tiny_model()
    letter = next(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    model.set_text("en", [letter])
    model.give_parts("en", preset="small")
    assert model.config.text("en") == letter


def test_sentences_outlive_the_way_to_peft_and_back(tmp_path):
    model = tiny_model(vocabs={"en": vocab("ab'"), "fr": vocab("ab")})
    text = "'ab' ba"  # apostrophes that are letters, as ʼ becomes one
    model.set_text("en", [text], raw=False)
    model.save_pretrained(tmp_path / "base")
    model = MasterASRForCTC.from_pretrained(tmp_path / "base")
    model.save_assembly("en", tmp_path / "assembly")
    model.remove_language("en")
    peft_model = peft_from_assembly(model, tmp_path / "assembly")
    assert peft_model.get_base_model().config.text("en") == text
    with pytest.raises(ValueError, match="'en' is a PEFT adapter and has the sentences of its own config"):
        peft_model.get_base_model().set_text("en", [])
    peft_model.save_pretrained(tmp_path / "peft")
    fresh = MasterASRForCTC.from_pretrained(tmp_path / "base")
    fresh.remove_language("en")
    assert PeftModel.from_pretrained(fresh, tmp_path / "peft").get_base_model().config.text("en") == text


def test_a_peft_adapter_is_given_sentences_by_its_config_which_keeps_those_that_it_is_read_with(tmp_path, warnings):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    vocab = model.config.vocab("en")
    letter = next(token for token in vocab if len(token) == 1 and token != "|")
    config = AssemblyConfig(language="xx", vocab=vocab, preset="paper", sentences=[letter.upper(), "a secret: 語"])
    peft_model = get_peft_model(model, config)
    assert peft_model.get_base_model().config.text("xx") == letter
    peft_model.save_pretrained(tmp_path / "adapter")
    assert "adapter_config.json holds the 1 sentences that 'xx' is read with" in warnings()
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["sentences"] == [letter]  # and nothing that is not read


def test_a_peft_adapter_whose_sentences_are_refused_leaves_nothing_behind(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    before, vocab = model.config.to_dict(), model.config.vocab("en")
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="None of these 1 sentences can be spelled with the alphabet of 'xx'"):
        get_peft_model(model, AssemblyConfig(language="xx", vocab=vocab, preset="paper", sentences=["語"]))
    assert model.config.to_dict() == before and set(model.state_dict()) == names
    peft_model = get_peft_model(model, AssemblyConfig(language="xx", vocab=vocab, preset="paper"))
    with pytest.raises(ValueError, match="None of these 1 sentences can be spelled"):
        peft_model.add_adapter("second", AssemblyConfig(language="xx", vocab=vocab, preset="paper", sentences=["語"]))
    base = peft_model.unload()
    assert set(base.state_dict()) == names and base.languages == list(before["assemblies"])


def test_a_pipeline_reads_with_the_sentences_in_mind_and_its_times_lie_where_the_letters_are(monkeypatch):
    model = tiny_model().eval()
    processor = MasterASRProcessor.from_model(model)
    a, b, c = [token for token in model.config.vocab("en") if len(token) == 1 and token != "|"][:3]
    logits = logits_of(model, f"{a}{b} {a}")
    logits[0, 2, model.config.vocab("en")[c]] = 20.1
    asr = MasterASRPipeline(model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor)
    monkeypatch.setattr(model, "forward", lambda *_, **__: SimpleNamespace(logits=logits, frames=torch.tensor([logits.shape[1]])))
    clip = np.zeros(8000, dtype=np.float32)
    assert asr(clip, language="en")["text"] == f"{a}{c} {a}"
    model.set_text("en", [f"{a}{b} {a}", f"{a}{b}"])
    read = asr(clip, language="en", return_timestamps="word")
    second = model.config.inputs_to_logits_ratio / processor.sampling_rate_hz
    assert read["text"] == f"{a}{b} {a}"
    assert [chunk["timestamp"] for chunk in read["chunks"]] == [(0.0, 3 * second), (6 * second, 7 * second)]


def test_a_clip_whose_logits_cannot_be_searched_is_named_and_the_others_keep_their_texts(monkeypatch):
    model = tiny_model().eval()
    processor = MasterASRProcessor.from_model(model)
    letter = next(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    model.set_text("en", [letter])
    good, calls = logits_of(model, letter), itertools.count()
    frames = torch.tensor([good.shape[1]])
    monkeypatch.setattr(model, "forward", lambda *_, **__: SimpleNamespace(logits=good * (math.inf if next(calls) == 1 else 1), frames=frames))
    asr = MasterASRPipeline(model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor)
    clips = [np.zeros(8000, dtype=np.float32)] * 3
    read = asr(clips, language="en", on_error="return")
    assert [clip["text"] for clip in read] == [letter, None, letter] and "Input 1: The logits hold NaN or infinity" in read[1]["error"]
    calls = itertools.count()
    with pytest.raises(ValueError, match="Input 1: The logits hold NaN or infinity"):
        asr(clips, language="en")


def test_facts_of_an_assembly_do_not_take_the_place_of_what_its_file_says(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"facts: got \['text', 'vocab'\], by which the file says what the language is; allowed: other names"):
        model.save_assembly("en", tmp_path / "assembly", text="Read from telephone prompts.", vocab={}, note="fine")
    assert not (tmp_path / "assembly").exists()
