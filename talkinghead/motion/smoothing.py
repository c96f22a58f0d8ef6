"""Centred moving average over frames."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from talkinghead.motion.motion import Motion

TEMPLATE_WINDOW = 5
"""Number of frames over which AniPortrait averages a head pose template."""
_COLUMNS = 108
"""Number of columns averaged at once: float64 copies of all meshes would cost several times their memory."""


def smoothed(motion: Motion, *, face: int = 1, pose: int = 1) -> Motion:
    """The motion with moving averages over what the face does and over where the head is.

    Args:
        motion: Motion.
        face: Number of frames, odd, for meshes, coefficients and eyes; 1: none.
        pose: Number of frames, odd, for head poses, as angles and positions; 1: none.

    Raises:
        ValueError: An even or non-positive window; or poses are to be smoothed, and the coefficients hold their own.
    """
    result = motion
    if face != 1:
        averaged = motion.over_time(lambda values: narrow_average(values, face))
        result = replace(averaged, pose_matrix=motion.pose_matrix)
        if motion.coefficients is not None and averaged.coefficients is not None:
            result = replace(result, coefficients=replace(averaged.coefficients, pose=motion.coefficients.pose))
    return result if pose == 1 else result.with_pose(moving_average(motion.pose, pose))


def narrow_average(values: np.ndarray, window: int) -> np.ndarray:
    """`moving_average` in the dtype of the values, in little more memory than theirs; raises like it."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    result = np.empty_like(flat)
    # Columns are averaged independently, so a few at a time give the same numbers.
    for first in range(0, flat.shape[1], _COLUMNS):
        part = slice(first, first + _COLUMNS)
        result[:, part] = moving_average(flat[:, part], window)
    return result.reshape(values.shape)


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window of frames.

    At the ends the window is cut, and the sum divided by the number of frames actually in it. A frame with NaN (no
    face) stays NaN and does not count for its neighbours. Euler angles are averaged as numbers, which is right as long
    as they stay away from ±180 degrees.

    Args:
        values: `[F, ...]`, one row per frame.
        window: Number of frames, odd.

    Returns:
        float64, same shape.

    Raises:
        ValueError: An even or non-positive window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window {window} must be odd and positive, so that it has a middle frame")
    values = np.asarray(values, dtype=np.float64)
    frames = len(values)
    flat = values.reshape(frames, math.prod(values.shape[1:]))
    # Missing frames add nothing to a sum and nothing to its count.
    present = np.all(np.isfinite(flat), axis=1)
    filled = np.where(present[:, None], flat, 0.0)
    total = np.zeros_like(filled)
    count = np.zeros(frames)
    # One shifted addition per place in the window. A cumulative sum would be fewer operations, but it loses digits.
    half = min(window // 2, max(frames - 1, 0))
    for shift in range(-half, half + 1):
        to = slice(max(0, -shift), frames - max(0, shift))
        source = slice(max(0, shift), frames - max(0, -shift))
        total[to] += filled[source]
        count[to] += present[source]
    mean = total / np.maximum(count, 1)[:, None]
    mean[~present] = np.nan
    return mean.reshape(values.shape)
