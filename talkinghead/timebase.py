"""The project's time base: 25 frames per second, 16 kHz audio, 640 samples per frame.

Frame `k` shows the half-open interval `[k/25, (k+1)/25)` seconds and owns the samples `[640 k, 640 (k+1))`.
All conversions between frames, samples and seconds are here, so that no second rule can appear.
"""

from __future__ import annotations

import math

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
assert SAMPLES_PER_FRAME * FPS == SAMPLE_RATE

MAX_STEP_S = 1.0
"""Largest step of a source's clock from one frame to the next that is a gap in one recording, seconds."""


def frame_time(frame: int) -> float:
    """Start of frame `frame` in seconds."""
    return frame / FPS


def frames_in(duration_s: float) -> int:
    """Number of whole frames in `duration_s` seconds."""
    # The product can come out just below a whole number: 1.16 · 25 = 28.999999999999996.
    return max(0, math.floor(duration_s * FPS + 1e-6))


def samples_in(frames: int) -> int:
    """Number of audio samples that `frames` frames own."""
    return frames * SAMPLES_PER_FRAME


def sample_at(time_s: float) -> int:
    """The audio sample nearest to `time_s` seconds."""
    return round(time_s * SAMPLE_RATE)


def frame_slice_of_samples(first: int, count: int) -> slice:
    """Audio samples that belong to the frames `first .. first + count - 1`."""
    return slice(first * SAMPLES_PER_FRAME, (first + count) * SAMPLES_PER_FRAME)
