"""What is laid over a motion before it is drawn: a gain of the expression, and blinks."""

from __future__ import annotations

import numpy as np

from infer.request import PortraitOptions
from talkinghead.motion.blink import blink_closure, close_eyes
from talkinghead.motion.expression_transfer import uncrossed
from talkinghead.motion.landmark_motion import LandmarkMotion, place


def edited(
    motion: LandmarkMotion,
    request: PortraitOptions,
    *,
    reference_mesh: np.ndarray,
    reference_pose_matrix: np.ndarray,
    width: int,
    height: int,
    compat: bool,
) -> LandmarkMotion:
    """The motion with the request's `expression_gain` and `blink`; itself where neither is asked for.

    Args:
        motion: As the models or the driving video give it.
        request: What is asked for.
        reference_mesh: `[468, 3]` cm: what the motion's mesh is relative to.
        reference_pose_matrix: `[4, 4]`, with which the motion was placed.
        width: Of the portrait, in pixels.
        height: Of the portrait.
        compat: As the motion was placed.
    """
    rate = request.blink_rate
    if request.expression_gain == 1 and rate is None:
        return motion
    mesh = motion.mesh
    if request.expression_gain != 1:
        reference = np.asarray(reference_mesh, np.float32)
        mesh = uncrossed(reference + np.float32(request.expression_gain) * (mesh - reference), reference, mesh)
    if rate is not None:
        closure = blink_closure(len(motion), motion.fps, rate=rate, seed=request.seed)
        mesh = close_eyes(mesh, closure)
    return place(
        mesh,
        motion.pose,
        reference_pose_matrix=reference_pose_matrix,
        width=width,
        height=height,
        fps=motion.fps,
        compat=compat,
    )
