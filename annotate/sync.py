"""Do these lips say this? The delay between the lips and the sound of a clip, and how well they go together there.

    sync_curve  [1, 31]: correlation of lips and sound at the lags -15 … 15 frames

Sign: at lag L the lips of frame t go with the sound of frame t + L, so a positive lag means that the sound is late.
Real sources are not at lag 0: of 43 clips most lie at 0 … 2 frames, 40 at -2 … 3, two at 6.

Measure: three openings of the mouth (jaw, outer lips, inner lips; on the metric mesh, so that the head's turn does not
count) against the level of two bands of the sound, once as amplitude and once in dB; and the changes of the openings
against the changes of the levels. The correlation is the mean of these 24. What changes slowly (the mean of 15 frames
around a frame) is taken off all of them first: a posture is no speech.

A clip is judged at its own lag, which is found on other frames than those that are judged: each half of the clip at the
best lag of the other half. For a lag picked on the judged frames themselves would make any two signals go together.

It is a weak witness: on seven real clips of 4 to 10 s it puts the true sound above another clip's in 0.88 of all pairs,
and 5 of 7 clips have the same lag in both halves (within a frame). So it warns and shows a delay; no filter uses it by
itself. Large turns of the head, small faces and clips under 5 s make it weaker.

Storage: steps of 1/16384 (at most 0.00004 off).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from talkinghead.column import Column
from talkinghead.derived import ColumnSample, Derived, DerivedColumn, Fit
from talkinghead.features.band_levels import band_levels
from talkinghead.features.feature import AUDIO, Window

MOST_LAG = 15
"""Largest lag of the curve, frames."""
LAGS = np.arange(-MOST_LAG, MOST_LAG + 1)
OWN_LAG = 7
"""Largest lag that a clip can have as its own; those beyond show what chance gives."""
_FLOOR_DB = 50.0  # below the loudest frame of a band; what is quieter is silence
_TREND = 15  # frames whose mean is taken off
_LEAST_FRAMES = 20  # pairs of lips and sound that a correlation is made of
_CHIN, _UPPER_OUTER, _LOWER_OUTER, _UPPER_INNER, _LOWER_INNER = 152, 0, 17, 13, 14

SCORES = (
    "sync_lag",  # frames by which the sound is late, -7 … 7: where the curve of the whole clip is highest
    "sync_correlation",  # mean correlation of each half at the other half's lag: 0.2 in speech, 0 in another's speech
    "sync_confidence",  # height of the curve at the lag above its median over all lags: 0.3, by chance 0.15
    "sync_halves_apart",  # frames between the lags of the two halves: above 1, the lag is not to be trusted
)


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """Settings of the column `sync`; there are none."""


def open_sync(settings: SyncSettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
    """Function that compares lips and sound of a sample; nothing has to be loaded."""
    del settings, fits, device

    def measure(sample: ColumnSample) -> Derived:
        inputs = {AUDIO: sample.audio()}
        levels = band_levels(Window(count=sample.num_frames, before=0, after=0, inputs=inputs))
        return lips_and_sound(sample.column("mesh"), sample.column("valid").astype(bool), levels)

    return measure


def lips_and_sound(mesh: np.ndarray, valid: np.ndarray, levels: np.ndarray) -> Derived:
    """Curve and scores of a clip; all are missing where lips or sound do not move, or are seen too briefly.

    Args:
        mesh: `[F, 468, 3]` cm, NaN in frames without a face.
        valid: `[F]`, frames with a face.
        levels: Levels of the sound, `[F, 2]` dB (`talkinghead.features.band_levels`).
    """
    lips, sound = lip_signals(mesh.astype(np.float64), valid), sound_signals(levels.astype(np.float64))
    half = len(lips) // 2
    frames = np.arange(len(lips))
    curve, first, second = (lag_curve(lips, sound, some) for some in (frames, frames[:half], frames[half:]))
    arrays = {"sync_curve": curve[None]}
    own = np.abs(LAGS) <= OWN_LAG
    if np.isnan(curve[own]).any():
        return Derived(arrays=arrays, scores=dict.fromkeys(SCORES))
    best = int(np.argmax(np.where(own, curve, -np.inf)))
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    scores |= {"sync_lag": float(LAGS[best]), "sync_confidence": float(curve[best] - np.nanmedian(curve))}
    if not np.isnan(np.concatenate([first[own], second[own]])).any():
        one, two = (int(np.argmax(np.where(own, part, -np.inf))) for part in (first, second))
        scores |= {
            "sync_correlation": float((first[two] + second[one]) / 2),
            "sync_halves_apart": float(abs(one - two)),
        }
    return Derived(arrays=arrays, scores=scores)


# --- the signals ------------------------------------------------------------------------------------------------------


def lip_signals(mesh: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """How far the mouth is open, `[F, 3]` in cm, without what changes slowly, smoothed; NaN without a face."""
    jaw = -mesh[:, _CHIN, 1]  # y points up, so the chin of an open mouth has less
    outer = np.linalg.norm(mesh[:, _UPPER_OUTER] - mesh[:, _LOWER_OUTER], axis=-1)
    inner = np.linalg.norm(mesh[:, _UPPER_INNER] - mesh[:, _LOWER_INNER], axis=-1)
    signals = np.stack([jaw, outer, inner], axis=1)
    signals[~valid] = np.nan
    # Landmarks waver from frame to frame; a neighbour that is missing counts with the frame's own value.
    before, after = _shifted(signals, 1), _shifted(signals, -1)
    around = [np.where(np.isnan(side), signals, side) for side in (before, after)]
    return _without_trend(0.5 * signals + 0.25 * (around[0] + around[1]))


def sound_signals(levels: np.ndarray) -> np.ndarray:
    """Levels of the bands as amplitudes and in dB, `[F, 4]`, without what changes slowly."""
    decibels = np.maximum(levels, levels.max(axis=0) - _FLOOR_DB)
    loudest = 10 ** ((levels - levels.max(axis=0)) / 20)  # of any scale: correlations do not see it
    return _without_trend(np.concatenate([loudest, decibels], axis=1))


def _shifted(signals: np.ndarray, by: int) -> np.ndarray:
    """Signals `by` frames earlier or (below 0) later, NaN where there are none, `[F, K]`."""
    shifted = np.full_like(signals, np.nan)
    if by > 0:
        shifted[by:] = signals[:-by]
    else:
        shifted[:by] = signals[-by:]
    return shifted


def _without_trend(signals: np.ndarray) -> np.ndarray:
    """Signals minus the mean of the frames around, of those that have a value, `[F, K]`."""
    reach = _TREND // 2
    there = ~np.isnan(signals)
    sums, counts = (
        np.concatenate([np.zeros((1, signals.shape[1])), np.cumsum(values, axis=0)])
        for values in (np.where(there, signals, 0.0), there)
    )
    frames = np.arange(len(signals))
    first, last = np.maximum(frames - reach, 0), np.minimum(frames + reach + 1, len(signals))
    with np.errstate(invalid="ignore"):  # no value around: NaN
        return signals - (sums[last] - sums[first]) / (counts[last] - counts[first])


def _changes(signals: np.ndarray) -> np.ndarray:
    """Change a frame, over the frames before and after, NaN at the ends, `[F, K]`."""
    return (_shifted(signals, -1) - _shifted(signals, 1)) / 2


# --- their correlation ------------------------------------------------------------------------------------------------


def lag_curve(lips: np.ndarray, sound: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Mean correlation at each of the `LAGS`, `[31]`; NaN where there are too few frames, or something never changes.

    Args:
        lips: `[F, K]`, NaN where there are none.
        sound: `[F, M]`.
        frames: Numbers of the frames whose lips are compared, in order; their sound may lie outside of them.
    """
    pairs = ((lips, sound), (_changes(lips), _changes(sound)))
    curve = np.full(len(LAGS), np.nan)
    for place, lag in enumerate(LAGS):
        seen = frames[(frames + lag >= 0) & (frames + lag < len(sound))]
        curve[place] = np.mean([_correlation(one[seen], two[seen + lag]) for one, two in pairs])
    return curve


def _correlation(lips: np.ndarray, sound: np.ndarray) -> float:
    """Mean of the correlations of each of the lips' signals with each of the sound's; NaN where they say nothing."""
    both = np.concatenate([lips, sound], axis=1)
    both = both[~np.isnan(both).any(axis=1)]
    if len(both) < _LEAST_FRAMES:
        return np.nan
    both = both - both.mean(axis=0)
    sizes = np.sqrt(np.square(both).sum(axis=0))
    if (sizes <= 1e-9 * np.sqrt(len(both))).any():  # a still, or silence; what is left are rounding errors
        return np.nan
    both /= sizes
    return float((both[:, : lips.shape[1]].T @ both[:, lips.shape[1] :]).mean())


SYNC = DerivedColumn(
    name="sync",
    version=1,
    arrays=(Column("sync_curve", (len(LAGS),), "correlation", np.dtype("<i2"), 1 / 16384, rows="clip", optional=True),),
    scores=SCORES,
    needs=("mesh", "valid", "wav"),
    settings=SyncSettings,
    provenance=lambda settings: {},
    open=open_sync,
    frame_seconds=lambda settings: 0.01,
)
