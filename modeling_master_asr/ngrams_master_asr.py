"""Reading logits: greedily, or with a language's own sentences in mind, by shallow fusion of a character n-gram language model in a CTC beam search.

    logits -> log probabilities -> `search`: tokens, by n-grams -> `path_of`: a token for every frame, as greedy reading gives
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Optional

import numpy as np
import torch

from .configuration_master_asr import PAD_TOKEN, UNK_TOKEN
from .text_master_asr import tokens_of

# CHOICE: the paper reads greedily. All five by validation CER, the same for every language (RESULTS.md).
ORDER = 6  # tokens that are counted together
WEIGHT, BONUS = 0.7, 1.5  # of an n-gram's log probability beside CTC's, and what each token gets for being one more
BEAM = 8  # texts that are kept from frame to frame
FLOOR = -8.0  # log probability below which a frame's token is not tried
PAUSE = 15  # frames at both ends of a pause that are searched, 0.3 s in most families; nothing is written in what lies between
GAP = 50  # frames, 1 s in most families: two letters so far apart are of two words
WIDEST = 64  # tokens that are tried in a frame, at most: of an alphabet of thousands, where the model is unsure, nearly all lie above the floor

LONGEST = 1500  # frames that are searched at once, 30 s in most families: texts, and the path's table, stay short
SHORTEST = 1000  # from here on a search may end, in the middle of a pause

REMEMBERED = 1 << 12  # answers: a beam asks for those of the frames before, 70 % of all; sixteen times as many hold 77 % and take 15 to 21 MB a language, or more
OF_ENTRY, OF_ANSWER = 110, 400  # bytes of memory: measured 77 to 86 an entry of the counts and 226 to 295 an answer; in alphabets of over 256 tokens 93 to 99, and 325 or more
MOST_ENTRIES = 2_000_000  # of a language, beyond which no longer n-grams are counted: 200 MB. A million characters of Czech, Russian or Italian have 0.5 to 0.6 million; noise may have six
KEPT_BYTES = 1_750_000_000  # of n-grams: some 50 languages of 200,000 characters, or 350 of 10,000, in alphabets of letters, where they take 1.3 GB in truth


class Ngrams:
    """What a language's sentences say of a token after the five before it.

    p(c | h) = (count(h c) + kinds(h) p(c | h')) / (count(h) + kinds(h)), h' being h without its first token and kinds(h) how many
    tokens were seen after h (Witten and Bell, 1991); nothing seen: 1 / size.

    Args:
        sentences: token ids of each.
        size: of the alphabet.
        boundary: the id that stands before and after a sentence, [PAD], which no sentence holds.
    """

    def __init__(self, sentences: Iterable[list[int]], size: int, boundary: int):
        self.boundary = chr(boundary)
        self._counts: Counter[str] = Counter()  # of histories with their tokens
        # a token is the character of its id, so that a history is a slice of a text
        written = [self.boundary + "".join(map(chr, ids)) + self.boundary for ids in sentences]
        for sentence in written:
            self._counts.update(sentence[1:])  # nothing comes before the first boundary, so it is no token
        for length in range(2, ORDER + 1):
            if len(self._counts) > MOST_ENTRIES:
                break
            for sentence in written:
                self._counts.update(sentence[start : start + length] for start in range(len(sentence) - length + 1))
        self._totals: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter(gram[:-1] for gram in self._counts)
        for gram, count in self._counts.items():
            self._totals[gram[:-1]] += count
        self.nbytes = OF_ENTRY * (len(self._counts) + len(self._totals) + len(self._kinds)) + OF_ANSWER * REMEMBERED
        counted = partial(_log_prob_after, self._counts, self._kinds, self._totals, 1 / size)  # without `self`: a circle would outlive its last user
        self._log_prob_after = lru_cache(maxsize=REMEMBERED)(counted)  # texts of a beam ask for the same again and again

    def log_prob(self, history: str, token: str) -> float:
        """log p(token | the end of history)."""
        return self._log_prob_after(history[1 - ORDER :], token)


def _log_prob_after(counts: Counter, kinds: Counter, totals: Counter, prob: float, history: str, token: str) -> float:
    for start in range(len(history), -1, -1):
        seen = history[start:]
        total = totals.get(seen)
        if total is None:
            break
        kind = kinds[seen]
        prob = (counts.get(seen + token, 0) + kind * prob) / (total + kind)  # `get`: a Counter's own answer to what it lacks is slow
    return math.log(prob)


class _Kept:
    """The n-grams of a language, and whose turn it is to count them."""

    def __init__(self):
        self.lock, self.ngrams = threading.Lock(), None


_KEPT: OrderedDict[tuple[str, tuple[str, ...]], _Kept] = OrderedDict()  # the last used are the last
_LOCK = threading.Lock()


def ngrams_of(text: str, tokens: tuple[str, ...]) -> Ngrams:
    """What is counted in a language's sentences: once, by one thread, and anew where others of `KEPT_BYTES` were read since, so at every request where
    languages that take more are read in turn.

    Args:
        text: a line a sentence, as `config.text`.
        tokens: of the alphabet, in the order of their ids.
    """
    with _LOCK:
        kept = _KEPT.setdefault((text, tokens), _Kept())
        _KEPT.move_to_end((text, tokens))
    with kept.lock:  # who asks for it meanwhile waits, and counts if this fails
        if kept.ngrams is None:
            kept.ngrams = _counted(text, tokens)
    with _LOCK:
        while len(_KEPT) > 1 and sum(of.ngrams.nbytes for of in _KEPT.values() if of.ngrams is not None) > KEPT_BYTES:
            _KEPT.popitem(last=False)
    return kept.ngrams


def forget_ngrams() -> None:
    """Drops all that is kept."""
    with _LOCK:
        _KEPT.clear()


def _counted(text: str, tokens: tuple[str, ...]) -> Ngrams:
    vocab = {token: i for i, token in enumerate(tokens)}
    sentences = [[vocab.get(token, vocab[UNK_TOKEN]) for token in tokens_of(line, vocab)] for line in text.splitlines()]
    return Ngrams(sentences, len(vocab), vocab[PAD_TOKEN])


def path(log_probs: np.ndarray, ngrams: Ngrams, blank: int, silent: Iterable[int]) -> np.ndarray:
    """The token of every frame, `(T,)`, on the way through `log_probs` `(T, V)` that the search finds best.

    Args:
        blank: CTC's.
        silent: ids that are never written, [UNK]: where the model hears one, nothing is written, as in a blank.
    """
    log_probs = np.array(log_probs, dtype=np.float64)
    for i in silent:
        log_probs[:, blank] = np.logaddexp(log_probs[:, blank], log_probs[:, i])
        log_probs[:, i] = -np.inf
    is_pause = log_probs.argmax(-1) == blank
    history, paths = ngrams.boundary, []
    for start, end in _pieces(is_pause):
        spoken = log_probs[start:end][_outside_pauses(is_pause[start:end])]
        text = search(spoken, ngrams, blank, history, is_last=end == len(log_probs))
        paths.append(path_of(log_probs[start:end], [ord(token) for token in text], blank))
        history = (history + text)[1 - ORDER :]
    return np.concatenate(paths) if paths else np.zeros(0, dtype=np.int64)


def _outside_pauses(is_pause: np.ndarray) -> np.ndarray:
    """Which frames are searched: all but the middles of long pauses, and none where nothing else is heard.

    A text's probability is a sum over all the frames in which its letters may stand. In seconds of silence, each frame of which is a blank
    with 96 %, that sum makes words of nothing.
    """
    searched = np.full(len(is_pause), not is_pause.all())
    edges = np.flatnonzero(np.diff(is_pause, prepend=False, append=False))  # where pauses begin and end, in turn
    for start, end in zip(edges[::2], edges[1::2]):
        searched[start + PAUSE : max(end - PAUSE, 0)] = False
    return searched


def _pieces(is_pause: np.ndarray) -> Iterable[tuple[int, int]]:
    """`(start, end)` of consecutive frames of at most `LONGEST`, cut in the middle of the longest pause between `SHORTEST` and there."""
    start, total = 0, len(is_pause)
    while total - start > LONGEST:
        best, run = (0, LONGEST), 0
        for place in range(SHORTEST, LONGEST):
            run = run + 1 if is_pause[start + place] else 0
            best = max(best, (run, place + 1 - run // 2), key=lambda found: found[0])
        yield start, start + best[1]
        start += best[1]
    if total > start:
        yield start, total


def search(log_probs: np.ndarray, ngrams: Ngrams, blank: int, history: str, is_last: bool = True) -> str:
    """The text, a character for each token id, that CTC and the n-grams together find likeliest: a prefix beam search.

    log p_CTC(text) + `WEIGHT` log p_ngrams(text) + `BONUS` |text|; p_CTC sums over the paths of a text (Graves et al., 2006), of
    which those that end in a blank and those that do not are kept apart.

    Args:
        log_probs: `(T, V)`.
        history: what was written before; at the start of a sentence its boundary.
        is_last: whether the text ends here, which the n-grams have a word on too.
    """
    beams = {"": (0.0, -math.inf, 0.0)}  # text -> (log p of its paths that end in a blank, of the others, what the n-grams add)
    for row in log_probs:
        ids = np.nonzero(row >= min(FLOOR, row.max()))[0]
        if len(ids) > WIDEST:
            ids = np.sort(ids[np.argpartition(row[ids], -WIDEST)[-WIDEST:]])
        tried = [(i, chr(i), float(row[i])) for i in ids.tolist()]
        grown: dict[str, tuple[float, float, float]] = {}
        for text, (in_blank, in_token, added) in beams.items():
            whole, last = _log_add(in_blank, in_token), text[-1:]
            for i, token, log_prob in tried:
                if i == blank:
                    _collect(grown, text, whole + log_prob, -math.inf, added)
                    continue
                if token == last:
                    _collect(grown, text, -math.inf, in_token + log_prob, added)
                before = in_blank if token == last else whole  # a token twice needs a blank between
                if before > -math.inf:
                    more = WEIGHT * ngrams.log_prob(history + text[1 - ORDER :], token) + BONUS
                    _collect(grown, text + token, -math.inf, before + log_prob, added + more)
        beams = dict(sorted(grown.items(), key=lambda item: -_score(item[1]))[:BEAM])
    if is_last:
        return max(beams, key=lambda text: _score(beams[text]) + WEIGHT * ngrams.log_prob(history + text[1 - ORDER :], ngrams.boundary))
    return max(beams, key=lambda text: _score(beams[text]))


def _score(found: tuple[float, float, float]) -> float:
    return _log_add(found[0], found[1]) + found[2]


def _collect(grown: dict, text: str, in_blank: float, in_token: float, added: float) -> None:
    before = grown.get(text)
    if before is not None:
        in_blank, in_token = _log_add(before[0], in_blank), _log_add(before[1], in_token)
    grown[text] = in_blank, in_token, added


def _log_add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def path_of(log_probs: np.ndarray, ids: list[int], blank: int) -> np.ndarray:
    """The likeliest path `(T,)` of `log_probs` `(T, V)` that reads as the tokens `ids` (Viterbi).

    Raises:
        ValueError: if there are too few frames for them.
    """
    states = np.full(2 * len(ids) + 1, blank)  # blank, token, blank, token, ..., blank
    states[1::2] = ids
    may_skip = np.zeros(len(states), dtype=bool)  # the blank between two tokens, unless they are the same
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    scores = np.full(len(states), -np.inf)
    scores[:2] = log_probs[0, states[:2]]
    came = np.zeros((len(log_probs), len(states)), dtype=np.int8)  # by how many states the best way moved on
    for t in range(1, len(log_probs)):
        by_one, by_two = np.full_like(scores, -np.inf), np.full_like(scores, -np.inf)
        by_one[1:] = scores[:-1]
        by_two[2:] = np.where(may_skip[2:], scores[:-2], -np.inf)
        ways = np.stack([scores, by_one, by_two])
        came[t] = ways.argmax(0)
        scores = ways.max(0) + log_probs[t, states]
    ends = [len(states) - 1] + [len(states) - 2] * bool(ids)
    state = max(ends, key=lambda end: scores[end])
    if scores[state] == -np.inf:
        raise ValueError(f"{len(log_probs)} frames are too few for {len(ids)} tokens.")
    path = np.empty(len(log_probs), dtype=np.int64)
    for t in range(len(log_probs) - 1, -1, -1):
        path[t] = states[state]
        state -= int(came[t, state])
    return path


def read(logits: torch.Tensor, ngrams: Optional[Ngrams], blank: int, silent: Iterable[int], space: int) -> torch.Tensor:
    """The token of every frame of one clip's logits `(T, V)`: its likeliest, or with n-grams those of `path`; words are apart where a pause is long.

    Raises:
        ValueError: for logits that are no numbers.
    """
    log_probs = logits.detach().float().log_softmax(-1).cpu().numpy()
    if np.isnan(log_probs).any():
        raise ValueError("The logits hold NaN or infinity, in which nothing can be read. Is the audio finite, and half precision wide enough for this model?")
    ids = logits.argmax(-1).cpu().numpy() if ngrams is None else path(log_probs, ngrams, blank, silent)
    return torch.from_numpy(with_gaps(ids, [blank, *silent], space)).to(logits.device)


def with_gaps(ids: np.ndarray, unwritten: list[int], space: int) -> np.ndarray:
    """A path with a space in the middle of every pause of more than `GAP` frames between two letters.

    CHOICE: the paper's clips are sentences. In a longer recording the pause between two is all that says that a word has ended.
    """
    ids, written = ids.copy(), np.flatnonzero(~np.isin(ids, unwritten))
    for i in np.flatnonzero(np.diff(written) > GAP):
        before, after = written[i], written[i + 1]
        if space not in (ids[before], ids[after]):
            ids[(before + after) // 2] = space
    return ids
