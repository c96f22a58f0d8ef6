"""Blinks: when they come, and how they close the eyes of a face mesh.

Shape. Measured on real clips, a blink leaves a tenth of the gap between the lids, nine tenths of the way are the upper
lid's, and the fold above it follows by a fifth; brows and cheeks do not belong to it. The eyes shut within two frames
at 25 fps, stay shut for two, and open in five.

Times. The intervals between blinks are drawn from a log-normal distribution about the mean: never regular, mostly a
little shorter than the mean, now and then much longer. Each comes from a generator of its own, so a longer video has
the same blinks at its beginning.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from talkinghead.geometry.face_regions import LEFT_EYE, RIGHT_EYE
from talkinghead.rng import generator

FASTEST_RATE = 60.0
"""Most blinks per minute: one a second, with all of its 0.36 s and a look between."""
SHUT_S, HELD_S, OPEN_S = 0.08, 0.08, 0.20
"""Seconds of closing, of being shut, and of opening."""

_LEFT_GAP = 0.1
_UPPER_SHARE = 0.9
_FOLD_SHARE = 0.2
_SPREAD = 0.5  # standard deviation of an interval's logarithm
_SHORTEST, _LONGEST = 0.35, 3.0  # intervals stay within these multiples of the mean

# The skin fold above each lid, next to the lid's vertices of the same order (outer corner to inner).
_RIGHT_FOLD = (247, 30, 29, 27, 28, 56, 190)
_LEFT_FOLD = (467, 260, 259, 257, 258, 286, 414)


def _lids(ring: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lid of a ring (outer corner, upper lid, inner corner, lower lid), vertex over vertex."""
    half = len(ring) // 2
    return np.array(ring[1:half]), np.array(ring[:half:-1])


EYELIDS: tuple[tuple[np.ndarray, np.ndarray], ...] = (_lids(RIGHT_EYE), _lids(LEFT_EYE))
"""For the right and the left eye: vertices of the upper and of the lower lid, `[7]` each, one above the other."""
_FOLDS = (np.array(_RIGHT_FOLD), np.array(_LEFT_FOLD))


def blink_times(rate: float, seed: int) -> Iterator[float]:
    """When blinks begin, in seconds, without end.

    Args:
        rate: Blinks per minute, more than 0 and at most `FASTEST_RATE`.
        seed: Draws the intervals.

    Raises:
        ValueError: Another rate.
    """
    if not 0 < rate <= FASTEST_RATE:
        raise ValueError(f"{rate} blinks per minute are not possible, must be more than 0 and at most {FASTEST_RATE:g}")
    mean = 60.0 / rate
    blink = SHUT_S + HELD_S + OPEN_S
    time = 0.0
    for number in itertools.count():
        draws = generator(seed, "blink", number)
        if number == 0:
            time = mean * float(draws.random())  # the video begins anywhere between two blinks
        else:
            stretch = math.exp(_SPREAD * float(draws.standard_normal()) - _SPREAD**2 / 2)
            time += max(mean * min(max(stretch, _SHORTEST), _LONGEST), 1.2 * blink)
        yield time


def blink_closure(frames: int, fps: float, *, rate: float, seed: int) -> np.ndarray:
    """How far the eyes are shut in each frame, 0 (as they are) to 1 (shut): `[frames]` float64.

    A frame shows the middle of its interval, whatever the frame rate.

    Raises:
        ValueError: A rate that is not possible (`blink_times`).
    """
    at = (np.arange(frames) + 0.5) / fps
    closure = np.zeros(frames)
    for begin in itertools.takewhile(lambda time: time < frames / fps, blink_times(rate, seed)):
        since = at - begin
        shutting = np.clip(since / SHUT_S, 0, 1)
        opening = np.clip((since - SHUT_S - HELD_S) / OPEN_S, 0, 1)
        closure = np.maximum(closure, _smooth(shutting) - _smooth(opening))
    return closure


def _smooth(share: np.ndarray) -> np.ndarray:
    """0 … 1 → 0 … 1, without a jerk at either end."""
    return share * share * (3 - 2 * share)


def close_eyes(mesh: np.ndarray, closure: np.ndarray) -> np.ndarray:
    """Meshes with their eyes further shut.

    Args:
        mesh: `[F, 468, 3]` cm, canonical space.
        closure: `[F]`, 0 … 1.

    Returns:
        `[F, 468, 3]`, a copy in the same dtype. Frames with closure 0 are the same, and eyes that are shut stay so.
    """
    result = mesh.copy()
    share = closure[:, None, None].astype(mesh.dtype)
    for (upper, lower), fold in zip(EYELIDS, _FOLDS, strict=True):
        way = (mesh[:, lower] - mesh[:, upper]) * (1 - _LEFT_GAP) * share
        result[:, upper] += _UPPER_SHARE * way
        result[:, lower] -= (1 - _UPPER_SHARE) * way
        result[:, fold] += _FOLD_SHARE * way
    return result
