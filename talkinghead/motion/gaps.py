"""Gaps: frames in which no face was found, and how motion is carried over them.

Drivers bridge short gaps by interpolation, because a renderer needs every frame; a gap in which the face may have done
anything is for the caller to refuse. Evaluations hold the last face instead, because such frames do not count there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from talkinghead.motion.motion import Motion


def gaps(valid: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of frames without a face: the first frame of each, and the first frame after it.

    Args:
        valid: Frames with a face, `[F]` bool.
    """
    # With a valid frame added at both ends, falling and rising edges alternate.
    edges = np.flatnonzero(np.diff(np.concatenate(([True], valid, [True])).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def bridged(motion: Motion) -> Motion:
    """The motion with every frame valid: gaps are interpolated between their neighbours, ends stand still.

    Head poses are interpolated as angles and positions, because a mean of rotation matrices is no rotation.

    Raises:
        ValueError: No frame is valid.
    """
    if motion.valid.all():
        return motion
    valid = motion.valid
    return motion.over_time(lambda values: interpolated(values, valid))


def held(motion: Motion) -> Motion:
    """The motion in which each frame without a face repeats the last one before it; at the beginning the first.

    These frames stay marked as not valid.

    Raises:
        ValueError: No frame is valid.
    """
    if motion.valid.all():
        return motion
    frames = held_frames(motion.valid)
    return replace(
        motion,
        pose_matrix=motion.pose_matrix[frames],
        mesh=None if motion.mesh is None else motion.mesh[frames],
        coefficients=motion.coefficients and motion.coefficients.changed(lambda values: values[frames]),
        eyes=None if motion.eyes is None else motion.eyes[frames],
    )


def held_frames(valid: np.ndarray) -> np.ndarray:
    """For each frame the last valid one up to it, `[F]` int64; before the first valid one, that.

    Args:
        valid: Frames with a face, `[F]` bool.

    Raises:
        ValueError: No frame is valid.
    """
    if not valid.any():
        raise ValueError("no frame has a face, so there is none to hold")
    last = np.maximum.accumulate(np.where(valid, np.arange(len(valid)), -1))
    return np.where(last < 0, valid.argmax(), last)


def interpolated(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Values `[F, …]` in which frames that are not valid are interpolated linearly in time, in the same dtype.

    Raises:
        ValueError: No frame is valid.
    """
    # For each frame, the nearest valid frames at or before it and at or after it; at the ends both are the same.
    frames, seen = np.arange(len(values)), np.flatnonzero(valid)
    if not len(seen):
        raise ValueError("no frame has a face, so there is none to interpolate from")
    after = np.searchsorted(seen, frames).clip(0, len(seen) - 1)
    before = np.where(seen[after] > frames, np.maximum(after - 1, 0), after)
    low, high = seen[before], seen[after]
    share = np.where(high > low, (frames - low) / np.maximum(high - low, 1), 0.0).clip(0, 1)
    # Broadcast over the trailing dimensions: [F, 1, …].
    share = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - share) + values[high] * share
