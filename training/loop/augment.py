"""What training clips are made to sound like: other rates, other throats, with parts missing."""

from __future__ import annotations

import random

import numpy as np

from modeling_master_asr.backbone_master_asr import family_reading

SPEEDS = (0.9, 1.0, 1.1)  # speed perturbation
THROATS = 0.84, 1.2  # what formants are divided by: from a short throat to a long one


def hears_mels(feature_extractor) -> bool:
    """Whether its features are `(mels, frames)`. Encoders of raw audio, or of stacked frames, mask their own hidden states instead."""
    return hasattr(feature_extractor, "mel_filters") and family_reading(feature_extractor).time_axis == -1


def spec_augment(features: np.ndarray, rng: random.Random, spec_masks: int) -> np.ndarray:
    """SpecAugment on log-mel features `(mels, frames)`: so many bands of at most 12 mels, and times at most 0.2 s in every 2 s."""
    features = features.copy()
    mels, frames = features.shape
    quiet = features.mean()
    for _ in range(spec_masks):
        width = rng.randint(0, min(12, mels))
        start = rng.randint(0, mels - width)
        features[start : start + width] = quiet
    for _ in range(spec_masks * (frames // 200)):
        width = rng.randint(0, 20)
        start = rng.randint(0, frames - width)
        features[:, start : start + width] = quiet
    return features


def other_throat(features: np.ndarray, mel_filters: np.ndarray, factor: float) -> np.ndarray:
    """Log-mel features `(mels, frames)` with their formants divided by `factor`, `(mels, frames)`: vocal tract length perturbation (Jaitly and Hinton, 2013).

    Args:
        mel_filters: the extractor's, `(frequencies, mels)`.
    """
    mels = np.arange(mel_filters.shape[1])
    centres = mel_filters.argmax(0) + 1e-5 * mels  # in steps of its frequencies; the lowest filters share theirs
    moved = np.interp(np.minimum(centres * factor, len(mel_filters) - 1), centres, mels)
    low = np.floor(moved).astype(int)
    part = (moved - low)[:, None].astype(features.dtype)
    return features[low] * (1 - part) + features[np.minimum(low + 1, mels[-1])] * part
