"""Head pose templates: a real head's motion, to be played under any speech.

A template is relative to its clip's first frame, in that frame's canonical axes: pose of inverse(M[0]) · M[i].
Procedure and numbers are AniPortrait's, so that its template files and ours are interchangeable.
"""

from __future__ import annotations

import numpy as np

from talkinghead.geometry.pose import pose_from_matrix, rigid_inverse
from talkinghead.geometry.smoothing import moving_average

SMOOTHING_WINDOW = 5


def pose_template(pose_matrix: np.ndarray, *, fps: float, template_fps: float) -> np.ndarray:
    """A template from the head motion of a clip.

    Args:
        pose_matrix: `[F, 4, 4]`, a face in every frame.
        fps: Frame rate of the clip.
        template_fps: Frame rate of the template.

    Returns:
        `[int(F · template_fps / fps), 6]` float64, degrees and cm, smoothed.

    Raises:
        ValueError: A frame without a face, or a rate that is not positive.
    """
    return moving_average(resample(relative_pose(pose_matrix), fps=fps, to_fps=template_fps), SMOOTHING_WINDOW)


def relative_pose(pose_matrix: np.ndarray) -> np.ndarray:
    """Pose `[F, 6]` of each frame relative to the first: row 0 is zero.

    Raises:
        ValueError: No frames, or a frame without a face.
    """
    if not len(pose_matrix) or not np.isfinite(pose_matrix).all():
        raise ValueError("a pose template needs a run of frames that all have a face")
    return pose_from_matrix(rigid_inverse(pose_matrix[0]) @ np.asarray(pose_matrix, dtype=np.float64))


def resample(values: np.ndarray, *, fps: float, to_fps: float) -> np.ndarray:
    """Linear interpolation of `[F, D]` to another frame rate; first and last row stay the first and last.

    Raises:
        ValueError: A rate that is not positive, or too few frames for one row.
    """
    frames = len(values)
    count = int(frames * to_fps / fps) if fps > 0 and to_fps > 0 else 0
    if count < 1:
        raise ValueError(f"{frames} frames at {fps} fps cannot be resampled to {to_fps} fps")
    duration = frames / fps
    at = np.linspace(0.0, duration, count)
    known = np.linspace(0.0, duration, frames)
    return np.stack([np.interp(at, known, column) for column in np.asarray(values, dtype=np.float64).T], axis=1)


def tile(template: np.ndarray, frames: int) -> np.ndarray:
    """Play a template `[T, D]` to and fro until `frames` rows are filled: no jump at the turns, no row twice.

    Raises:
        ValueError: An empty template.
    """
    if not len(template):
        raise ValueError("the pose template is empty")
    period = np.concatenate((template, template[-2:0:-1]))
    return period[np.arange(frames) % len(period)]
