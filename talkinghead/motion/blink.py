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
from dataclasses import replace

import numpy as np

from talkinghead.geometry.face_regions import LEFT_EYE, RIGHT_EYE
from talkinghead.motion.motion import Motion
from talkinghead.rng import generator

FASTEST_RATE = 60.0
"""Largest number of blinks per minute: one a second, which takes 0.36 s and leaves the eyes open for the rest."""
SHUT_S, HELD_S, OPEN_S = 0.08, 0.08, 0.20
"""Seconds of closing, of being shut, and of opening."""

_LEFT_GAP = 0.1  # share of the gap between the lids that a full blink leaves
_UPPER_SHARE = 0.9  # share of the way that the upper lid goes; the lower lid goes the rest
_FOLD_SHARE = 0.2  # motion of the fold above the upper lid, as a share of the whole way
_SPREAD = 0.5  # standard deviation of an interval's logarithm
_SHORTEST, _LONGEST = 0.35, 3.0  # intervals stay within these multiples of the mean

# The skin fold above each upper lid: seven vertices in the order of the lid's, outer corner to inner.
_RIGHT_FOLD = (247, 30, 29, 27, 28, 56, 190)
_LEFT_FOLD = (467, 260, 259, 257, 258, 286, 414)


def _lids(ring: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lid of a ring (outer corner, upper lid, inner corner, lower lid), vertex over vertex."""
    half = len(ring) // 2
    return np.array(ring[1:half]), np.array(ring[:half:-1])


EYELIDS: tuple[tuple[np.ndarray, np.ndarray], ...] = (_lids(RIGHT_EYE), _lids(LEFT_EYE))
"""For the right and the left eye: vertices of the upper and of the lower lid, `[7]` each, one above the other."""
_FOLDS = (np.array(_RIGHT_FOLD), np.array(_LEFT_FOLD))


def with_blinks(motion: Motion, *, rate: float, seed: int, first: int = 0) -> Motion:
    """The motion with blinks on top of what its eyes do.

    Args:
        motion: Motion with meshes; coefficients are left out, as they hold no blinks.
        rate: Blinks per minute, more than 0 and at most `FASTEST_RATE`.
        seed: Seed of the times.
        first: Number of the motion's first frame in the video, where it is a part of a longer one.

    Raises:
        ValueError: A rate out of that range, or a motion without meshes.
    """
    closure = blink_closure(len(motion), motion.fps, rate=rate, seed=seed, first=first)
    result = motion.with_meshes(close_eyes(motion.meshes(), closure))
    if motion.eyes is None:
        return result
    # An eye that is half shut goes the other half.
    return replace(result, eyes=motion.eyes + (1 - motion.eyes) * closure[:, None].astype(np.float32))


def blink_times(rate: float, seed: int) -> Iterator[float]:
    """Times in seconds at which blinks begin, without end.

    Args:
        rate: Blinks per minute, more than 0 and at most `FASTEST_RATE`.
        seed: Seed of the intervals.

    Raises:
        ValueError: A rate out of that range.
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
            # A log-normal factor of mean 1, cut at both ends; blinks never run into each other.
            stretch = math.exp(_SPREAD * float(draws.standard_normal()) - _SPREAD**2 / 2)
            time += max(mean * min(max(stretch, _SHORTEST), _LONGEST), 1.2 * blink)
        yield time


def blink_closure(frames: int, fps: float, *, rate: float, seed: int, first: int = 0) -> np.ndarray:
    """Closure of the eyes in each frame from `first` on, 0 (as they are) to 1 (shut): `[frames]` float64.

    A frame shows the middle of its interval, whatever the frame rate.

    Raises:
        ValueError: A rate out of range (`blink_times`).
    """
    at = (np.arange(first, first + frames) + 0.5) / fps
    closure = np.zeros(frames)
    for begin in itertools.takewhile(lambda time: time < (first + frames) / fps, blink_times(rate, seed)):
        since = at - begin
        shutting = np.clip(since / SHUT_S, 0, 1)
        opening = np.clip((since - SHUT_S - HELD_S) / OPEN_S, 0, 1)
        closure = np.maximum(closure, _smooth(shutting) - _smooth(opening))
    return closure


def _smooth(share: np.ndarray) -> np.ndarray:
    """Smoothstep, 0 … 1 → 0 … 1: its slope is 0 at both ends, so the lids start and stop without a jerk."""
    return share * share * (3 - 2 * share)


def close_eyes(mesh: np.ndarray, closure: np.ndarray) -> np.ndarray:
    """Meshes with their eyes further shut.

    Args:
        mesh: `[F, 468, 3]` cm, canonical space.
        closure: `[F]`, 0 … 1.

    Returns:
        `[F, 468, 3]`, a copy in the same dtype. Frames with closure 0 are unchanged, and eyes that are shut stay so.
    """
    result = mesh.copy()
    share = closure[:, None, None].astype(mesh.dtype)
    for (upper, lower), fold in zip(EYELIDS, _FOLDS, strict=True):
        # From the upper to the lower lid, [F, 7, 3].
        way = (mesh[:, lower] - mesh[:, upper]) * (1 - _LEFT_GAP) * share
        result[:, upper] += _UPPER_SHARE * way
        result[:, lower] -= (1 - _UPPER_SHARE) * way
        result[:, fold] += _FOLD_SHARE * way
    return result
