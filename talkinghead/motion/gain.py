"""Gains: how strongly a face moves, for the whole expression, a region of it, or the head."""

from __future__ import annotations

import numpy as np

from talkinghead.motion.motion import Motion
from talkinghead.motion.regions import Region, region_weights
from talkinghead.motion.rest_pose import clip_rest_pose, placed_pose
from talkinghead.motion.retarget import uncrossed


def expression_gain(motion: Motion, gain: float, region: Region = "all") -> Motion:
    """The motion with the expression of a region scaled about the neutral mesh.

    Lips and lids that would pass through each other are put back.

    Args:
        motion: Motion with meshes; coefficients are left out, as they stand for the old expression.
        gain: Factor: 0 keeps the region at rest, 1 leaves it as it is, more exaggerates.
        region: Part of the face; over its border the factor goes back to 1.

    Raises:
        ValueError: A negative gain, no such region, or a motion without meshes.
    """
    if not gain >= 0:
        raise ValueError(f"an expression cannot have the gain {gain}, must be 0 or more")
    weights = region_weights(region)
    if gain == 1:
        return motion
    mesh, neutral = motion.meshes(), motion.neutral
    # Each vertex's factor, [468, 1]; written so that a weight of 1 gives the gain to the bit, and 0 gives 1.
    factor = np.where(weights == 1, np.float32(gain), 1 + weights * np.float32(gain - 1))[:, None]
    scaled = neutral + factor * (mesh - neutral)
    # Vertices out of the region keep their bits.
    scaled[:, weights == 0] = mesh[:, weights == 0]
    return motion.with_meshes(uncrossed(scaled, neutral, mesh))


def head_gain(motion: Motion, gain: float, rest: np.ndarray | None = None) -> Motion:
    """The motion with the head's angles scaled about a rest pose; the head's place stays.

    Args:
        motion: Motion.
        gain: Factor of the angles: 0 holds them still.
        rest: Pose matrix `[4, 4]` that they are scaled about, such as the portrait's; None: the motion's own rest pose.

    Raises:
        ValueError: No frame is valid, or coefficients hold a head pose of their own.
    """
    if gain == 1:
        return motion
    if rest is None:
        rest = clip_rest_pose(motion.pose_matrix, motion.valid)
    pose = motion.pose_about(rest)
    pose[:, :3] *= gain
    return motion.with_pose_matrix(placed_pose(pose, rest))
