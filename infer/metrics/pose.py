"""How the predicted head moves: against the true motion, and by itself.

Poses are relative to the clip's rest pose or to its first frame, as `infer.evaluation.motion_evaluation` was asked.
"""

from __future__ import annotations

import numpy as np

from infer.metrics.mesh import mean_acceleration
from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead.geometry.pose import rotation_from_euler

_BOTH = ("predicted_pose", "true_pose")


def _poses(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true pose of the measured frames, `[M, 6]`."""
    assert clip.predicted_pose is not None
    assert clip.true_pose is not None
    return clip.predicted_pose[clip.valid].astype(np.float64), clip.true_pose[clip.valid].astype(np.float64)


@metric("pose_l1", "deg|cm", needs=_BOTH, better="lower")
def pose_l1(clip: Clip) -> float:
    """Mean absolute difference of the six pose numbers, degrees and cm side by side.

    It is the quantity that Audio2Pose's L1 loss minimises (AniPortrait, arXiv 2403.17694).
    """
    predicted, true = _poses(clip)
    return float(np.abs(predicted - true).mean())


@metric("pose_rotation_error", "deg", needs=_BOTH, better="lower")
def pose_rotation_error(clip: Clip) -> float:
    """Mean angle of the rotation between the predicted and the true head.

    The geodesic distance on rotations, arccos((trace(Rᵀ R') - 1) / 2) (Huynh, "Metrics for 3D Rotations", 2009).
    """
    predicted, true = (rotation_from_euler(pose[:, :3]) for pose in _poses(clip))
    # 2 arcsin(‖R - R'‖_F / (2 √2)) is the same angle, and exact where it is small.
    chord = np.linalg.norm(predicted - true, axis=(-2, -1)) / (2 * np.sqrt(2))
    return float(np.degrees(2 * np.arcsin(np.minimum(chord, 1))).mean())


@metric("pose_translation_error", "cm", needs=_BOTH, better="lower")
def pose_translation_error(clip: Clip) -> float:
    """Mean distance between the predicted and the true head position."""
    predicted, true = _poses(clip)
    return float(np.linalg.norm(predicted[:, 3:] - true[:, 3:], axis=1).mean())


@metric("pose_diversity", "deg", needs=("predicted_pose",), better=None)
def pose_diversity(clip: Clip) -> float:
    """How much the predicted head turns: standard deviation over time of the three angles, their mean.

    SadTalker (Zhang et al., 2023) takes the standard deviation of an estimator's features of the frames; here of the
    angles themselves. Compare with the truth's: a still head has 0, a restless one too much.
    """
    assert clip.predicted_pose is not None
    return float(clip.predicted_pose[clip.valid, :3].astype(np.float64).std(axis=0).mean())


@metric("pose_jitter", "deg/s²", needs=("predicted_pose",), better=None)
def pose_jitter(clip: Clip) -> float:
    """Mean length of the predicted angles' acceleration: compare with the truth's."""
    assert clip.predicted_pose is not None
    return mean_acceleration(clip.predicted_pose[:, :3], clip)


@metric("pose_largest_step", "deg", needs=("predicted_pose",), better=None)
def pose_largest_step(clip: Clip) -> float:
    """Largest change of an angle from one frame to the next: shows jumps, e.g. where two pieces were joined."""
    assert clip.predicted_pose is not None
    moving = clip.valid[1:] & clip.valid[:-1]
    if not moving.any():
        raise Unavailable("no two neighbouring frames have a face")
    return float(np.abs(np.diff(clip.predicted_pose[:, :3].astype(np.float64), axis=0)[moving]).max())
