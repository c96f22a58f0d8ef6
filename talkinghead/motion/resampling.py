"""Motion at another frame rate, and of another length.

Convention: frame `k` shows the interval `[k / fps, (k + 1) / fps)`, and its values are those of the interval's middle.
"""

from __future__ import annotations

import math

import numpy as np

from talkinghead.motion.motion import Motion


def resampled(motion: Motion, fps: float, count: int | None = None) -> Motion:
    """The motion at another frame rate, and of another length: cut at its end, or standing still there.

    Head poses are interpolated as angles and positions. A frame between one with a face and one without has none.

    Args:
        motion: Motion.
        fps: Frame rate of the result.
        count: Frames of the result; None: as many as the motion lasts.

    Raises:
        ValueError: A rate that is not positive, or no frames.
    """
    if not fps > 0:
        raise ValueError(f"a motion cannot be resampled to {fps} fps")
    if count is None:
        count = max(1, round(len(motion) * fps / motion.fps))
    if fps == motion.fps and count <= len(motion):
        return motion.part(0, count)
    return motion.over_time(lambda values: resample_frames(values, motion.fps, fps, count), fps=fps)


def played(motion: Motion, fps: float, count: int) -> Motion:
    """The motion for `count` frames at a frame rate, to and fro where it is shorter than that.

    Raises:
        ValueError: A rate that is not positive, or no frames.
    """
    needed = math.ceil(count * motion.fps / fps) if fps > 0 else 0
    if needed > len(motion):
        # One frame more than is shown, so that the last ones are interpolated like the others.
        motion = motion.over_time(lambda values: tile(values, needed + 1))
    return resampled(motion, fps, count)


def resample_frames(values: np.ndarray, fps: float, to_fps: float, count: int) -> np.ndarray:
    """Linear interpolation of motion in time; before the first and after the last frame's middle it is constant.

    Equal rates give the same numbers. Angles are interpolated as numbers, which is right away from ±180 degrees.

    Args:
        values: `[F, …]`, at least one frame.
        fps: Frame rate of `values`.
        to_fps: Frame rate of the result.
        count: Frames of the result.

    Returns:
        `[count, …]` in the dtype of `values`.

    Raises:
        ValueError: No frames, or a rate that is not positive.
    """
    if not len(values) or not (fps > 0 and to_fps > 0):
        raise ValueError(f"{len(values)} frames at {fps} fps cannot be resampled to {to_fps} fps")
    if fps == to_fps and count <= len(values):
        return values[:count]
    before, after, share = interpolation(np.arange(count), len(values), fps, to_fps)
    share = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return values[before] * (1 - share) + values[after] * share


def interpolation(
    frames: np.ndarray, total: int, fps: float, to_fps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Old frames between which new ones lie.

    Args:
        frames: Numbers of the new frames, `[n]`.
        total: Number of old frames.
        fps: Frame rate of the old ones.
        to_fps: Frame rate of the new ones.

    Returns:
        Numbers of the old frames before and after each new one, `[n]` int64, and the share of the second, `[n]`
        float64.
    """
    # Middles of the new frames, counted in old frames from the first one's middle.
    at = np.clip((frames + 0.5) * (fps / to_fps) - 0.5, 0, total - 1)
    before = np.floor(at).astype(np.int64)
    return before, np.minimum(before + 1, total - 1), at - before


def tile(template: np.ndarray, frames: int) -> np.ndarray:
    """Play a template `[T, D]` to and fro until `frames` rows are filled: no jump at the turns, no row twice.

    Raises:
        ValueError: An empty template.
    """
    if not len(template):
        raise ValueError("the pose template is empty")
    # Forwards, then backwards without the two ends: one period of 2T - 2 rows.
    period = np.concatenate((template, template[-2:0:-1]))
    return period[np.arange(frames) % len(period)]
