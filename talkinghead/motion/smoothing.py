"""Centred moving average over frames."""

from __future__ import annotations

import math

import numpy as np

TEMPLATE_WINDOW = 5
"""Number of frames over which AniPortrait averages a head pose template."""


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
