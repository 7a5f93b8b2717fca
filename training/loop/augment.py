"""What training clips are made to sound like: other rates, other throats, other lines, with parts missing."""

from __future__ import annotations

import random

import numpy as np

from modeling_master_asr.backbone_master_asr import family_reading

SPEEDS = (0.9, 1.0, 1.1)  # speed perturbation
VARIED_SHARE = 0.5  # of the clips whose voices vary: the others sound as they were recorded
THROATS = (0.82, 1.22)  # formants, as their share of the clip's own
LINE_HZ, NARROW_SHARE = (300.0, 3400.0), 0.3  # what a telephone line lets through, and how many clips come over one


def hears_mels(feature_extractor) -> bool:
    """Whether its features are `(mels, frames)`. Encoders of raw audio, or of stacked frames, mask their own hidden states instead."""
    return hasattr(feature_extractor, "mel_filters") and family_reading(feature_extractor).time_axis == -1


def mel_centres_hz(feature_extractor) -> np.ndarray:
    """The frequency at the middle of each band, `(mels,)`.

    Raises:
        ValueError: for an encoder that hears something else.
    """
    if not hears_mels(feature_extractor):
        raise ValueError(f"--vary_voices: got {type(feature_extractor).__name__}; allowed: an encoder that hears mel bands, such as Whisper.")
    filters = np.asarray(feature_extractor.mel_filters)  # (frequencies, mels)
    frequencies_hz = np.linspace(0, feature_extractor.sampling_rate / 2, len(filters))
    return frequencies_hz @ filters / filters.sum(0)


def vary_voice(features: np.ndarray, centres_hz: np.ndarray, rng: random.Random) -> np.ndarray:
    """Log-mel features `(mels, frames)`, half of them of a throat of another length (VTLP, Jaitly and Hinton 2013), some over a narrow line."""
    if rng.random() >= VARIED_SHARE:
        return features
    heard_at = np.interp(centres_hz * rng.uniform(*THROATS), centres_hz, np.arange(len(centres_hz)))  # (mels,): the band that sounds there now
    below = np.minimum(heard_at.astype(int), len(centres_hz) - 2)
    share = (heard_at - below)[:, None].astype(features.dtype)
    varied = (1 - share) * features[below] + share * features[below + 1]
    if rng.random() < NARROW_SHARE:
        varied[(centres_hz < LINE_HZ[0]) | (centres_hz > LINE_HZ[1])] = features.min()
    return varied


def spec_augment(features: np.ndarray, rng: random.Random, spec_masks: int = 1) -> np.ndarray:
    """SpecAugment on log-mel features `(mels, frames)`: so many bands of at most 12 mels, and times at most 0.2 s in every 2 s."""
    features = features.copy()
    mels, frames = features.shape
    quiet = features.mean()
    for _ in range(spec_masks):
        width = rng.randint(0, 12)
        start = rng.randint(0, mels - width)
        features[start : start + width] = quiet
    for _ in range(spec_masks * (frames // 200)):
        width = rng.randint(0, 20)
        start = rng.randint(0, frames - width)
        features[:, start : start + width] = quiet
    return features
