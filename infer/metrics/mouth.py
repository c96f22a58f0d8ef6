"""Whether the mouth opens when it should: the opening |13 - 14| over time against the true one and the speech."""

from __future__ import annotations

import numpy as np

from infer.metrics.mesh import MM_PER_CM
from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead import timebase
from talkinghead.geometry.face_regions import mouth_opening
from talkinghead.motion.smoothing import moving_average

MOST_LAG_S = 0.6
"""Lags are looked for in -0.6 … 0.6 s: 15 frames at 25 fps, as SyncNet does (Chung and Zisserman, 2016)."""
ACTIVITY_S = 0.36
"""Over which the mouth's speed and the speech's level are averaged: about a syllable to each side."""
FEWEST_PAIRS = 10
"""Frames that two signals must share for their correlation to be worth a number."""
_BOTH = ("predicted_mesh", "true_mesh")
_STILL_CM = 1e-4  # a mouth whose opening varies less than this (standard deviation) does not move


def _openings(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true opening `[F]` in cm, NaN where the frame is not measured."""
    assert clip.predicted_mesh is not None
    assert clip.true_mesh is not None
    return _opening(clip.predicted_mesh, clip), _opening(clip.true_mesh, clip)


def _opening(mesh: np.ndarray, clip: Clip) -> np.ndarray:
    return np.where(clip.valid, mouth_opening(mesh.astype(np.float64)), np.nan)


@metric("mouth_opening_error", "mm", needs=_BOTH, better="lower")
def mouth_opening_error(clip: Clip) -> float:
    """Mean absolute difference of the mouth opening."""
    predicted, true = _openings(clip)
    return float(MM_PER_CM * np.nanmean(np.abs(predicted - true)))


@metric("mouth_opening_correlation", "", needs=_BOTH, better="higher")
def mouth_opening_correlation(clip: Clip) -> float:
    """Pearson correlation of the predicted with the true mouth opening over time."""
    predicted, true = _openings(clip)
    _check_moves(predicted, "the predicted mouth")
    _check_moves(true, "the true mouth")
    return correlation(predicted, true)


@metric("mouth_opening_lag", "frames", needs=_BOTH, better=None)
def mouth_opening_lag(clip: Clip) -> float:
    """Delay at which the predicted mouth opening correlates best with the true one; above 0: it comes late.

    The maximum of the normalised cross-correlation, each delay over the frames that both signals have, as the offset
    of SyncNet (Chung and Zisserman, 2016) but on mouth openings. 0 is best; where the correlation is weak it says
    little.
    """
    return float(_lag(clip))


@metric("mouth_opening_lag_ms", "ms", needs=_BOTH, better=None)
def mouth_opening_lag_ms(clip: Clip) -> float:
    """The same delay in milliseconds."""
    return 1000 * _lag(clip) / clip.fps


@metric("mouth_speech_correlation", "", needs=("predicted_mesh", "audio"), better=None)
def mouth_speech_correlation(clip: Clip) -> float:
    """Pearson correlation of how fast the predicted mouth moves with the level of the speech: compare with the truth's.

    Speed of the opening and level in dB, both averaged over 0.36 s: a mouth that rests in the pauses and works while
    there is speech. (The opening itself does not follow the loudness: on real clips the two correlate between -0.3 and
    0.4, speed and level between 0.2 and 0.6.) Needs no true mesh; 1 is not the goal.
    """
    assert clip.predicted_mesh is not None
    assert clip.audio is not None
    level = frame_level(clip.audio, len(clip.valid), clip.fps)
    if np.ptp(level) < 1:
        raise Unavailable("the loudness does not vary")
    opening = _opening(clip.predicted_mesh, clip)
    _check_moves(opening, "the predicted mouth")
    if len(opening) < FEWEST_PAIRS:
        raise Unavailable(f"fewer than {FEWEST_PAIRS} frames")
    window = 2 * round(ACTIVITY_S * clip.fps / 2) + 1
    speed = np.abs(np.gradient(opening))
    return correlation(moving_average(speed, window), moving_average(level, window))


def frame_level(audio: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """Level of the audio that each frame owns, `[F]` dB below full scale, at least -60."""
    borders = np.rint(np.arange(num_frames + 1) * timebase.SAMPLE_RATE / fps).astype(int)
    energy = np.concatenate(([0.0], np.cumsum(np.square(audio, dtype=np.float64))))
    borders = np.minimum(borders, len(audio))
    power = np.diff(energy[borders]) / np.maximum(np.diff(borders), 1)
    return 10 * np.log10(np.maximum(power, 1e-6))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of `[F]` and `[F]` over the frames in which both are finite.

    Raises:
        Unavailable: Too few such frames, or a signal that is constant over them.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < FEWEST_PAIRS:
        raise Unavailable(f"fewer than {FEWEST_PAIRS} frames")
    one, other = one[both] - one[both].mean(), other[both] - other[both].mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    if size < 1e-12:
        raise Unavailable("a signal is constant")
    return float(np.clip(one @ other / size, -1, 1))


def _lag(clip: Clip) -> int:
    predicted, true = _openings(clip)
    _check_moves(predicted, "the predicted mouth")
    _check_moves(true, "the true mouth")
    most = round(MOST_LAG_S * clip.fps)
    found: dict[int, float] = {}
    for lag in sorted(range(-most, most + 1), key=abs):  # of equal correlations the smaller lag counts
        late = predicted[max(lag, 0) : len(predicted) + min(lag, 0)]
        there = true[max(-lag, 0) : len(true) - max(lag, 0)]
        try:
            found[lag] = correlation(late, there)
        except Unavailable:
            continue
    if len(found) < 2 * most + 1:
        raise Unavailable(f"the clip is too short to look for a lag of {MOST_LAG_S:g} s")
    return max(found, key=lambda lag: round(found[lag], 9))


def _check_moves(opening: np.ndarray, what: str) -> None:
    if np.isfinite(opening).any() and np.nanstd(opening) < _STILL_CM:
        raise Unavailable(f"{what} does not move")
