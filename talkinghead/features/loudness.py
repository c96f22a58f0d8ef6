"""Loudness of the sound at each frame, in decibels below full scale."""

from __future__ import annotations

import numpy as np

from talkinghead.features.feature import AUDIO, Feature, Window
from talkinghead.timebase import SAMPLES_PER_FRAME

FLOOR_DB = -100.0
"""Loudness of silence; a sound of one step of 16 bits has -90."""


def _hann() -> np.ndarray:
    """Hann window over the frame before, the frame itself, and the frame after, `[3, 640]`; no weight is 0."""
    places = np.arange(3 * SAMPLES_PER_FRAME) + 0.5
    return (np.sin(np.pi * places / len(places)) ** 2).reshape(3, SAMPLES_PER_FRAME)


_WEIGHTS = _hann()
_SUMS = _WEIGHTS.sum(axis=1)


def _compute(window: Window) -> np.ndarray:
    """Loudness `[count]`, float32: root of the mean square, weighted by a Hann window of three frames (120 ms).

    L_k = 10 · log10(Σ w_n x_n² / Σ w_n) over the samples of the frames k-1, k, k+1; 0 dB is a square wave of full
    scale. At the ends of a clip the sums are over the two frames that there are, so that a steady tone is as loud there
    as elsewhere.
    """
    # Weighted energy of every frame as the one before, the middle one and the one after, [3, frames].
    squares = np.square(window.inputs[AUDIO].astype(np.float64)).reshape(-1, SAMPLES_PER_FRAME)
    energy = np.stack([(squares * weights).sum(axis=1) for weights in _WEIGHTS])
    # Each wanted frame has three terms; those outside of the clip are 0, with weight 0. Added in one order everywhere.
    total, weight = np.zeros(window.count), np.zeros(window.count)
    for part in range(3):
        frames = np.arange(window.count) + window.before + part - 1
        there = (frames >= 0) & (frames < len(squares))
        total += np.where(there, energy[part][np.clip(frames, 0, len(squares) - 1)], 0.0)
        weight += np.where(there, _SUMS[part], 0.0)
    mean = np.maximum(total / weight, 10 ** (FLOOR_DB / 10))
    return (10 * np.log10(mean)).astype(np.float32)


LOUDNESS = Feature(name="loudness", needs=(AUDIO,), before=1, after=1, compute=_compute)
