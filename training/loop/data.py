"""Clips, their features, and one-language batches bucketed by seconds of audio."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from tqdm import tqdm

from modeling_master_asr.audio_master_asr import check_audio, decode_audio, resample
from training.loop.augment import SPEEDS, THROATS, hears_mels, other_throat, spec_augment
from training.loop.record import write_whole
from training.loop.recordings import identity_of
from training.loop.sources import Clip

MEMORY_BYTES = 4 << 30  # features a process keeps in memory; what comes later is computed again, unless there is a cache on disk
MIN_LOST, MAX_LOST_SHARE = 10, 0.1  # clips of a language that may be lost before a run stops, and never more than half: more say that the data is not what it seems

DURATION_SLACK, DURATION_SLACK_S = 0.1, 0.5  # by which a recording and its entry may differ: rounding, an encoder's padding
DIGEST_BYTES = 32
SILENT_PEAK = 1e-4  # below it nothing was recorded, or the channels of a stereo recording cancel each other
HOP_S = 0.01  # of Whisper's features: what is left beyond the last whole one is not heard


NO_CLIP = "No clip of the data can be used; the lines above say why."


def select(clips: list[Clip], split: str, languages: list[str], minutes: Optional[float] = None, seed: int = 0) -> list[Clip]:
    """The clips of a split, at most `minutes` of audio a language, chosen by the seed among those that come, in their order.

    Raises:
        ValueError: if a language has none, or none that short.
    """
    chosen = []
    for language in dict.fromkeys(languages):
        of_language = [clip for clip in clips if clip.language == language and clip.split == split]
        if not of_language:
            raise ValueError(_why_none(clips, split, language, having(clips, split, languages)))
        random.Random(f"{seed}-{language}").shuffle(of_language)
        total_s = 0.0
        for clip in of_language:
            if minutes is not None and total_s + clip.duration_s > 60 * minutes:
                continue
            total_s += clip.duration_s
            chosen.append(clip)
        if total_s == 0:
            shortest_s = min(clip.duration_s for clip in of_language)
            raise ValueError(f"No {split} clip of {language!r} fits into {minutes} minutes; the shortest lasts {shortest_s} s.")
    return chosen


def _why_none(clips: list[Clip], split: str, language: str, others: list[str]) -> str:
    """What to do about a language without clips of a split, which `others` have: several languages are those of `--languages`."""
    splits = Counter(clip.split for clip in clips if clip.language == language)
    if not clips:
        return NO_CLIP
    if not splits:
        known = sorted({clip.language for clip in clips})
        return f"The data has no {split} clips of {language!r}; it has clips of {known}. Pass the code that its rows name, or name it for the source: --data {language}=PATH."
    return (
        f"The data has no {split} clips of {language!r}; its {splits.total()} clips are all in {' and '.join(sorted(splits))}. Mark some as {split} in a column split, or "
        "name no split at all: texts are then divided by a hash, a tenth each to validation and test, which may miss a few clips: record more, or mark some."
        + (f" Or leave it out: --languages {' '.join(others)}." if others else "")
    )


def having(clips: list[Clip], split: str, languages: list[str]) -> list[str]:
    """Those of `languages` that have clips of a split."""
    there = {clip.language for clip in clips if clip.split == split}
    return [language for language in languages if language in there]


def minutes_of(clips: list[Clip]) -> dict[str, float]:
    """Minutes of audio a language."""
    seconds = Counter()
    for clip in clips:
        seconds[clip.language] += clip.duration_s
    return {language: round(total / 60, 2) for language, total in seconds.items()}


class Features:
    """The model's inputs of clips, computed once and kept in memory (4 GB), or in a folder that several processes may share.

    Args:
        cache: folder of files, keyed by the recording, the speed and the feature extractor's settings; each begins with the
            SHA-256 of the rest, and one that is damaged is made again.
    """

    def __init__(self, processor, cache: Optional[Path] = None):
        self.processor, self.cache = processor, cache
        self._kept: dict[tuple[Path, float, float], np.ndarray] = {}
        self._bytes_left, self._said = MEMORY_BYTES, False
        self._settings = json.dumps(processor.feature_extractor.to_dict(), sort_keys=True, default=str)

    def silence(self) -> np.ndarray:
        """Features of a second of silence."""
        return self.processor.features(np.zeros(self.processor.sampling_rate_hz, dtype=np.float32))

    def __call__(self, clip: Clip, speed: float = 1.0) -> np.ndarray:
        """Features of one clip, `(samples,)`, `(mels, frames)` (Whisper) or `(frames, features)` (wav2vec2-BERT), played at `speed` times its rate.

        Raises:
            ValueError, OSError: if the recording cannot be read, is silent, or is longer than the clip says.
        """
        if self.cache is not None:
            return self._from_cache(clip, speed)
        key = (clip.audio, clip.duration_s, speed)  # as in the folder: another duration is another entry, which is checked
        if key in self._kept:
            return self._kept[key]
        features = self._compute(clip, speed)
        if features.nbytes <= self._bytes_left:
            self._kept[key] = features
            self._bytes_left -= features.nbytes
        return features

    def _from_cache(self, clip: Clip, speed: float) -> np.ndarray:
        key = f"{identity_of(clip.audio)}|{clip.duration_s}|{speed}|{self._settings}|{SILENT_PEAK}"
        path = Path(self.cache) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.features"
        features = read_array(path)
        if features is None:
            features = self._compute(clip, speed)
            try:
                write_array(path, features)
            except OSError as error:  # a full disk costs time, not the clip
                if not self._said:
                    tqdm.write(f"Features are not kept in {self.cache}: {error}")
                self._said = True
        return features

    def _compute(self, clip: Clip, speed: float) -> np.ndarray:
        rate_hz = self.processor.sampling_rate_hz
        samples = check_audio(decode_audio(clip.audio, rate_hz), None, rate_hz, str(clip.audio))
        lasts_s = len(samples) / rate_hz
        shorter_s, longer_s = sorted((lasts_s, clip.duration_s))
        if longer_s > shorter_s * (1 + DURATION_SLACK) + DURATION_SLACK_S:  # cut short, or a part of a recording: not what the text says
            raise ValueError(f"{clip.audio} lasts {lasts_s:.1f} s, and its entry in the data says {clip.duration_s:.1f} s.")
        if (peak := float(np.abs(samples).max())) < SILENT_PEAK:
            raise ValueError(f"{clip.audio} is silent: its peak is {peak:.1g}, at least {SILENT_PEAK:g} is needed. Record it again, or keep one channel alone.")
        longest_s = self.longest_s()
        if lasts_s >= longest_s + HOP_S:
            raise ValueError(f"{clip.audio} lasts {lasts_s:.1f} s, and this encoder hears {longest_s:g} s at once. Cut it.")
        if speed != 1.0 and lasts_s / speed <= longest_s:  # else slower than the encoder can hear to its end: left as it is
            samples = resample(samples, int(rate_hz * speed), rate_hz)
        return self.processor.features(samples)

    def longest_s(self) -> float:
        """Seconds that the encoder takes at once: Whisper's 30, no limit for others."""
        return getattr(self.processor.feature_extractor, "n_samples", math.inf) / self.processor.sampling_rate_hz


def read_array(path: Path) -> Optional[np.ndarray]:
    """What `write_array` wrote, or None if it is not there, not whole, or a shared folder does not hand it over."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[DIGEST_BYTES:]).digest() != content[:DIGEST_BYTES]:
        return None
    return np.load(io.BytesIO(content[DIGEST_BYTES:]))


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array after its SHA-256, see `write_whole`."""
    opened = io.BytesIO()
    np.save(opened, array)
    write_whole(path, hashlib.sha256(opened.getvalue()).digest() + opened.getvalue())


def drop_impossible(clips: list[Clip], processor, model) -> tuple[list[Clip], list[Clip]]:
    """Splits clips into those whose frames can spell their text, played at the fastest, and the others: (kept, dropped).

    Raises:
        ValueError: with the list, if that many of a language are dropped that texts and recordings cannot belong together.
    """
    kept, dropped = [], []
    for clip in clips:
        (kept if has_frames(clip, processor, model) else dropped).append(clip)
    there_of = by_language(clips)
    for code, of_language in by_language(dropped).items():
        if len(of_language) > allowed_losses(there := there_of[code]):
            named = [f"{clip.audio} ({clip.duration_s} s): {clip.text!r}" for clip in of_language[:5]]
            raise ValueError(f"The texts of {len(of_language)} of {len(there)} clips of {code!r} need more frames than there are. Do they belong together? Such as: {named}")
    return kept, dropped


def by_language(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """`{code: its clips}`, in their order."""
    found = defaultdict(list)
    for clip in clips:
        found[clip.language].append(clip)
    return dict(found)


def has_frames(clip: Clip, processor, model) -> bool:
    """Whether a clip's frames, played at the fastest of `SPEEDS`, can spell its text, one a letter and a blank between two of the same, and are as
    many as a mask of an encoder that masks its own states."""
    frames = int(clip.duration_s / max(SPEEDS) * processor.sampling_rate_hz / model.config.inputs_to_logits_ratio) - 1
    return frames >= max(len(clip.text) + sum(a == b for a, b in zip(clip.text, clip.text[1:])), masked_frames(model))


def masked_frames(model) -> int:
    """How many frames at once an encoder masks as it trains: a batch of shorter clips is an error in it; 0 where it masks none."""
    encoder = model.config.backbone_config
    return encoder.mask_time_length if getattr(encoder, "apply_spec_augment", False) and encoder.mask_time_prob > 0 else 0


def allowed_losses(clips: list[Clip]) -> int:
    """How many of a language's `clips` may be lost before a run stops."""
    return min(max(MIN_LOST, int(MAX_LOST_SHARE * len(clips))), len(clips) // 2)


def bucket(clips: list[Clip], batch_s: float, rng: random.Random) -> list[list[Clip]]:
    """One-language batches of clips of like length, each at most `batch_s` seconds with its padding, in random order.

    CHOICE: the paper names neither a batch's size nor its languages; a batch of one language assembles its weights once.
    """
    batches = []
    for _, of_language in sorted(by_language(clips).items()):
        # a little noise in the sort, so batches differ between epochs
        ordered = sorted(of_language, key=lambda clip: clip.duration_s * rng.uniform(0.9, 1.1))
        batch: list[Clip] = []
        longest_s = 0.0
        for clip in ordered:
            longest_s = max(longest_s, clip.duration_s)
            if batch and longest_s * (len(batch) + 1) > batch_s:
                batches.append(batch)
                batch, longest_s = [], clip.duration_s
            batch.append(clip)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def tempered(batches: list[list[Clip]], temperature: float, rng: random.Random) -> list[list[Clip]]:
    """An epoch of as many batches, a language's share of them n_l^(1 / temperature): above 1, small languages are heard more often."""
    if temperature == 1:
        return batches
    of_language = defaultdict(list)
    for batch in batches:
        of_language[batch[0].language].append(batch)
    most = max(map(len, of_language.values()))  # shares of it: powers of counts overflow
    weights = {code: (len(of_code) / most) ** (1 / temperature) for code, of_code in of_language.items()}
    drawn = []
    for code, of_code in sorted(of_language.items()):
        wanted = len(batches) * weights[code] / sum(weights.values())
        count = max(1, int(wanted) + (rng.random() < wanted % 1))  # in the mean of many epochs as many
        drawn += of_code * (count // len(of_code)) + rng.sample(of_code, count % len(of_code))
    rng.shuffle(drawn)
    return drawn


def bucket_of_step(clips: list[Clip], batch_s: float, seed: int, temperature: float = 1.0) -> Callable[[int], list[Clip]]:
    """`batch_of(step)`, endless and the same for the same seed: epoch e is shuffled by (seed, e).

    Raises:
        ValueError: if there are no clips.
    """
    if not clips:
        raise ValueError("No clips to train on are left.")

    def epoch(number: int) -> list[list[Clip]]:
        rng = random.Random(f"{seed}-{number}")
        return tempered(bucket(clips, batch_s, rng), temperature, rng)

    number, start, batches = 0, 0, epoch(0)

    def batch_of(step: int) -> list[Clip]:
        nonlocal number, start, batches
        if step < start:  # back to the start, as a new pass over a data set does
            number, start, batches = 0, 0, epoch(0)
        while step >= start + len(batches):
            number, start, batches = number + 1, start + len(batches), epoch(number + 1)
        return batches[step - start]

    return batch_of


class Collator:
    """A batch of clips as `forward` wants it: tensors first, the list of languages last.

    Args:
        full_augment_step: CHOICE, the paper names no augmentation. None: none. Else speed and SpecAugment reach every clip from this step on, and fewer
            before: from the first step they keep CTC on its blank plateau (RESULTS.md).
        spec_masks: of `spec_augment`.
        vtlp: share of the augmented clips that are heard through another throat (`other_throat`), of log-mel features.
        spares: training clips; one of the same language stands in for a clip that cannot be decoded, which is named in `broken`.
            Without them (in evaluation) a second of silence does, and the clip is left out of the figures.

    Raises:
        ValueError: for a `vtlp` where there are no log-mel features.
    """

    def __init__(
        self, features: Features, processor, full_augment_step: Optional[int] = None, seed: int = 0, spares: Iterable[Clip] = (), spec_masks: int = 1,
        vtlp: float = 0.0,
    ):  # fmt: skip
        self.features, self.processor, self.full_augment_step, self.seed = features, processor, full_augment_step, seed
        self.spares, self.spec_masks, self.vtlp, self.broken = by_language(dict.fromkeys(spares)), spec_masks, vtlp, {}
        self.hears_mels = hears_mels(processor.feature_extractor)
        if vtlp and not self.hears_mels:
            heard = type(processor.feature_extractor).__name__
            raise ValueError(f"vtlp: got {vtlp:g} with a {heard}; allowed: 0, since formants are moved in log-mel features, as Whisper's. Leave it out.")

    def __call__(self, clips: list[Clip], step: int = 0) -> dict:
        rng = random.Random(f"{self.seed}-{step}")
        share = 0.0 if self.full_augment_step is None else min(1.0, step / max(self.full_augment_step, 1))
        features, read = [], []
        for clip in clips:
            augment = rng.random() < share
            clip, feature = self._readable(clip, rng.choice(SPEEDS) if augment else 1.0, step)
            read.append(clip)
            if augment and self.hears_mels and self.vtlp and rng.random() < self.vtlp:
                feature = other_throat(feature, self.processor.feature_extractor.mel_filters, rng.uniform(*THROATS))
            if augment and self.hears_mels:
                feature = spec_augment(feature, rng, self.spec_masks)
            features.append(feature)
        batch = dict(self.processor.pad(features))
        languages = [clip.language for clip in read]
        if any(clip.text for clip in read):  # what nobody transcribed has none
            batch["labels"] = self.processor.encode([clip.text for clip in read], languages, raw=False)
        batch["language"] = languages
        return batch

    def _readable(self, clip: Clip, speed: float, step: int) -> tuple[Clip, np.ndarray]:
        """The clip and its features, or what stands in for it.

        Raises:
            ValueError: if too many clips, or all of a language, cannot be read.
        """
        first_error = None
        for candidate in self._candidates(clip, step):
            if candidate.audio in self.broken:
                continue
            try:
                return candidate, self.features(candidate, speed)
            except (ValueError, OSError) as error:
                first_error = first_error or error
                self.broken[candidate.audio] = str(error)
                tqdm.write(f"Left out: {error}")
                self.check_losses(clip.language)
        if not self.spares:
            return clip, self.features.silence()
        raise ValueError(f"No clip of {clip.language!r} can be read any more; the first error: {first_error or self.broken[clip.audio]}")

    def _candidates(self, clip: Clip, step: int) -> Iterator[Clip]:
        """The clip, then its language's spares: in any order those that are no longer, so that a batch stays within its seconds, then the shortest first."""
        yield clip
        rng = random.Random(f"{self.seed}-{step}-{clip.audio.name}")  # as long as recordings have their names they may move
        yield from sorted(self.spares.get(clip.language, []), key=lambda spare: (max(spare.duration_s, clip.duration_s), rng.random()))

    def check_losses(self, language: str) -> None:
        """Checks that a language's training clips can be read, but for a few.

        Raises:
            ValueError: with the reasons of five, if more than `allowed_losses` cannot.
        """
        spares = self.spares.get(language, [])
        lost = [self.broken[spare.audio] for spare in spares if spare.audio in self.broken]
        if spares and len(lost) > allowed_losses(spares):
            raise ValueError(f"{len(lost)} of {len(spares)} clips of {language!r} cannot be read, such as: {lost[:5]}")


def there_now(path: Path, clips: Iterable[Clip]) -> Path:
    """Where a recording of a run that goes on lies now, among its clips: that of its name, and of its folders' names as far as possible."""
    found = [clip.audio for clip in clips if clip.audio.name == path.name]

    def alike(other: Path) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(other.parts), reversed(path.parts))))

    return path if path in found else max(found, key=alike, default=path)


def without_broken(clips: list[Clip], log: dict) -> list[Clip]:
    """The clips that a training, whose log this is, could read."""
    return [clip for clip in clips if str(clip.audio) not in log["broken_clips"]]


def to_device(batch: dict, device) -> dict:
    """The batch's tensors on a device; the languages as they are."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
