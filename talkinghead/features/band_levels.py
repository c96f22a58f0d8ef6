"""Level of the sound in two bands of speech at each frame: 1 to 3 kHz (vowels), and 3 to 7 kHz (fricatives)."""

from __future__ import annotations

import numpy as np

from talkinghead.features.feature import AUDIO, Feature, Window
from talkinghead.features.loudness import FLOOR_DB
from talkinghead.timebase import SAMPLE_RATE, SAMPLES_PER_FRAME

BANDS_HZ = ((1000, 3000), (3000, 7000))
"""Bands, Hz: from, and below. Both were measured to go with the lips more closely than lower ones do."""

_REACH = SAMPLES_PER_FRAME // 2  # samples before and after a frame that count for it
_SPAN = SAMPLES_PER_FRAME + 2 * _REACH
_WEIGHTS = np.sin(np.pi * (np.arange(_SPAN) + 0.5) / _SPAN) ** 2  # Hann window over 80 ms


def _in_bands() -> np.ndarray:
    """Frequencies of a window's Fourier transform that belong to each band, `[2, 641]` bool."""
    frequencies = np.fft.rfftfreq(_SPAN, 1 / SAMPLE_RATE)
    return np.array([(frequencies >= low) & (frequencies < high) for low, high in BANDS_HZ])


_IN_BANDS = _in_bands()
_AT_ONCE = 1024  # frames; 10 MB


def band_levels(window: Window) -> np.ndarray:
    """Level in each of the `BANDS_HZ`, `[count, 2]` float32, dB: a sine of full scale has -3, silence -100.

    The mean square of the band's part of the sound, weighted by a Hann window of 80 ms around the frame's middle. At
    the ends of a clip it is over the part of the window that there is, so that a steady tone is as loud there.
    """
    sound = window.inputs[AUDIO].astype(np.float64)
    there = np.ones(len(sound))
    # What lies outside of the clip is 0, with weight 0.
    edges = (_REACH if window.before == 0 else 0, _REACH if window.after == 0 else 0)
    sound, there = np.pad(sound, edges), np.pad(there, edges)
    first = SAMPLES_PER_FRAME * window.before - (_REACH if window.before else 0)
    levels = np.empty((window.count, len(BANDS_HZ)), np.float32)
    for start in range(0, window.count, _AT_ONCE):
        frames = np.arange(start, min(start + _AT_ONCE, window.count))
        places = first + SAMPLES_PER_FRAME * frames[:, None] + np.arange(_SPAN)
        power = np.abs(np.fft.rfft(sound[places] * _WEIGHTS)) ** 2
        weight = (there[places] * _WEIGHTS**2).sum(axis=1)
        for band, inside in enumerate(_IN_BANDS):
            # Twice, since only positive frequencies are counted.
            mean = 2 * power[:, inside].sum(axis=1) / (_SPAN * weight)
            levels[frames, band] = 10 * np.log10(np.maximum(mean, 10 ** (FLOOR_DB / 10)))
    return levels


BAND_LEVELS = Feature(name="band_levels", needs=(AUDIO,), before=1, after=1, compute=band_levels)
