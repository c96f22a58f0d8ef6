"""Retargeting: a driving video's expression and head motion put on the reference face.

The neutral mesh is the median of many relaxed frames, the expression is fitted to the reference's proportions, and head
motion is taken about the pose in which the driving head rests, so that a video that begins with a turned head, or with
a smile, does not twist the reference for good. (AniPortrait takes one neutral frame, copies the expression unscaled and
the rotation as it is, and the translation relative to the first frame.)

The expression is the offset from the driving face's neutral mesh. Added unscaled to another face, it would close the
lids of small eyes beyond each other and widen a small mouth beyond its face. So offsets are scaled, in three steps:

1. Along x, y and z by the ratio of the two faces' extents around each vertex (the spread of the neighbours, weighted by
   a Gaussian of 1.5 cm). Metric meshes already have one size in common, so this is about shape alone.
2. Across the eyes by the ratio of the neutral gaps between the lids: a half shut eye gives a half shut eye.
3. Where lips or lids would then pass through each other, they meet in the middle instead.

A face driven by itself gives its own motion again, and the driving neutral mesh gives the reference's mesh.

A reference with an open mouth is not at rest: its motion would be on top of that opening, and its lips would never
meet. `close_mouth` takes the opening out first, in the way in which the driving face's own mouth opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from talkinghead.geometry.face_regions import INNER_LIPS, LOWER_FACE, NUM_VERTICES, lip_gap
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.motion.blink import EYELIDS
from talkinghead.motion.rest_pose import clip_rest_pose, placed_pose, relative_pose
from talkinghead.motion.smoothing import moving_average

SMOOTHING_WINDOW = 3
"""Number of frames of the moving average over the pose."""
PoseMode = Literal["absolute", "relative"]
"""How the head moves. `relative`: the reference's own pose, moved as the driving head moves about its rest pose.
`absolute`: the driving head's angles as they are; its place is still relative."""

REACH_CM = 1.5
"""Standard deviation of the neighbourhood in which two faces are compared."""
_LEAST_SPREAD_CM = 0.2  # below this, spreads along an axis say little; it is added to both
_SMALLEST, _LARGEST = 0.6, 1.6  # bounds of the scale: a ratio beyond them is a wrong measure, not a face
_WIDEST = 3.0  # largest scale of the eyes' opening; the least is 0, where the reference's eyes are shut
_OPENING_RIDGE = 0.01
"""Ridge in cm²: a driving mouth whose opening varies by less than its root (1 mm) shows little of how mouths open."""

_MOUTH = len(INNER_LIPS) // 2
_LIPS = np.array(INNER_LIPS[1:_MOUTH]), np.array(INNER_LIPS[:_MOUTH:-1])
"""Vertices of the upper lip's inner border, and those of the lower lip below each; the corners are left out."""


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """A driving clip's motion on the reference: what a `Motion` in the reference's camera is made of."""

    mesh: np.ndarray
    """`[F, 468, 3]` float64, cm."""
    pose: np.ndarray
    """`[F, 6]` float64, degrees and cm, relative to the reference's pose matrix."""
    rest: np.ndarray
    """`[468, 3]` float64, cm: the reference at rest, which the driving face at rest maps to."""


def transfer(
    mesh: np.ndarray,
    pose_matrix: np.ndarray,
    neutral: np.ndarray,
    *,
    reference_mesh: np.ndarray,
    reference_pose_matrix: np.ndarray,
    pose_mode: PoseMode = "relative",
    pose_gain: float = 1.0,
    window: int = SMOOTHING_WINDOW,
    relax_mouth: bool = True,
) -> Transferred:
    """Carry a driving clip's motion over to another face.

    Args:
        mesh: Driving meshes `[F, 468, 3]` cm; frames without a face are NaN and stay NaN.
        pose_matrix: Driving pose matrices `[F, 4, 4]` canonical → camera.
        neutral: Driving face at rest, `[468, 3]` cm (`neutral_mesh` of these meshes).
        reference_mesh: Reference face `[468, 3]` cm, assumed to be at rest.
        reference_pose_matrix: Pose matrix of the reference `[4, 4]`.
        pose_mode: How the head moves (`PoseMode`).
        pose_gain: Factor of the angles: those relative to rest, or the absolute ones; 0 holds the head's angles still.
        window: Number of frames of the moving average over the pose, odd.
        relax_mouth: Close a reference's open mouth first (`close_mouth`).

    Returns:
        The motion on the reference, and the reference at rest.

    Raises:
        ValueError: No frame has a face, or shapes that do not fit.
    """
    # Both faces at rest; all offsets below are from here.
    if relax_mouth:
        reference_mesh = close_mouth(reference_mesh, mesh, neutral)
    # The expression, in the reference's proportions.
    moved = transfer_expression(mesh, neutral, reference_mesh)
    # The head, relative to the reference's pose, and smoothed, since jitter of a pose shakes the whole face.
    pose = transfer_pose(pose_matrix, reference_pose_matrix, pose_mode)
    pose = moving_average(pose, window)
    # The gain belongs to the angles of the chosen mode: absolute ones are scaled in camera space, then made relative.
    if pose_mode == "relative":
        pose[:, :3] *= pose_gain
    else:
        reference = np.asarray(reference_pose_matrix, dtype=np.float64)
        absolute = pose_from_matrix(placed_pose(pose, reference))
        absolute[:, :3] *= pose_gain
        pose = relative_pose(matrix_from_pose(absolute), reference)
    return Transferred(mesh=moved, pose=pose, rest=np.asarray(reference_mesh, np.float64))


def transfer_pose(pose_matrix: np.ndarray, reference_pose_matrix: np.ndarray, mode: PoseMode) -> np.ndarray:
    """Head motion `[F, 6]` relative to the reference's pose.

    Convention: `placed_pose(result, reference_pose_matrix)` is the pose matrix to draw.

    Args:
        pose_matrix: Driving pose matrices `[F, 4, 4]`; NaN stays NaN.
        reference_pose_matrix: Pose matrix of the reference `[4, 4]`.
        mode: `relative` gives inverse(rest) · driving, so the motion is in the head's own axes. `absolute` gives the
            driving rotation, and the driving place relative to where the driving head rests, in the camera's axes.

    Raises:
        ValueError: No frame has a pose.
    """
    rest = clip_rest_pose(pose_matrix, np.all(np.isfinite(pose_matrix), axis=(1, 2)))
    if mode == "relative":
        return relative_pose(pose_matrix, rest)
    reference = np.asarray(reference_pose_matrix, dtype=np.float64)
    pose = pose_from_matrix(pose_matrix)
    pose[:, 3:] += reference[:3, 3] - rest[:3, 3]
    return relative_pose(matrix_from_pose(pose), reference)


def transfer_expression(mesh: np.ndarray, neutral: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The reference face with the driving face's expression.

    Args:
        mesh: Driving meshes `[F, 468, 3]` cm, canonical space; frames with NaN stay NaN.
        neutral: Driving face at rest, `[468, 3]` cm.
        reference: Reference face, `[468, 3]` cm, assumed to be at rest.

    Returns:
        `[F, 468, 3]` float64, cm.

    Raises:
        ValueError: Shapes that do not fit, or a neutral or reference mesh that is not finite.
    """
    if mesh.shape[1:] != (NUM_VERTICES, 3) or neutral.shape != mesh.shape[1:] or reference.shape != mesh.shape[1:]:
        raise ValueError(
            f"a driving mesh [F, {NUM_VERTICES}, 3] with a neutral and a reference mesh is wanted, not {mesh.shape},"
            f" {neutral.shape} and {reference.shape}"
        )
    if not (np.isfinite(neutral).all() and np.isfinite(reference).all()):
        raise ValueError("the neutral or the reference mesh is not finite")
    neutral, reference = np.asarray(neutral, np.float64), np.asarray(reference, np.float64)
    offsets = np.asarray(mesh, np.float64) - neutral
    moved = reference + _on_reference(offsets, neutral, reference)
    return uncrossed(moved, reference, mesh)


def close_mouth(reference: np.ndarray, mesh: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """The reference with its lips no further apart than those of the driving face at rest.

    Args:
        reference: Reference face `[468, 3]` cm.
        mesh: Driving meshes `[F, 468, 3]` cm, which show how a mouth opens; frames with NaN are ignored.
        neutral: Driving face at rest, `[468, 3]` cm.

    Returns:
        `[468, 3]` float64, cm; unchanged where its mouth is closed, or where the driving mouth never moves.
    """
    reference, neutral = np.asarray(reference, np.float64), np.asarray(neutral, np.float64)
    # Distance by which the lips are too far apart, cm.
    excess = float(lip_gap(reference) - lip_gap(neutral))
    seen = np.asarray(mesh[np.isfinite(mesh).all(axis=(1, 2))], np.float64)
    if excess <= 0 or not len(seen):
        return reference.copy()
    # Motion of the driving face for each centimetre of its mouth's opening, [468, 3], by ridge regression.
    opening = lip_gap(seen) - lip_gap(seen).mean()
    moves = (opening @ (seen - seen.mean(axis=0)).reshape(len(seen), -1)).reshape(neutral.shape)
    # Not scaled by the faces' ratio of shape: an open mouth is also a tall one, and would close too far.
    per_cm = moves / (opening @ opening + len(seen) * _OPENING_RIDGE)
    # As much of that motion as closes the lips, in the lower face only: the nose and the eyes stay.
    closed = reference.copy()
    lower = list(LOWER_FACE)
    closed[lower] -= excess * per_cm[lower]
    return closed


def shape_ratio(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Extent of the target face around each vertex over that of the source face, along each axis.

    Args:
        source: Mesh `[468, 3]` cm.
        target: Mesh `[468, 3]` cm.

    Returns:
        Ratios `[468, 3]` float64, all 1 for equal shapes.
    """
    # Neighbourhoods on the mean of both faces, so that swapping the two gives the reciprocal ratio. [468, 468]
    middle = (source + target) / 2
    squared = ((middle[:, None] - middle[None]) ** 2).sum(axis=-1)
    weights = np.exp(-squared / (2 * REACH_CM**2))
    weights /= weights.sum(axis=1, keepdims=True)
    ratio = (_spread(target, weights) + _LEAST_SPREAD_CM) / (_spread(source, weights) + _LEAST_SPREAD_CM)
    return np.clip(ratio, _SMALLEST, _LARGEST)


def _spread(mesh: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard deviation of each vertex's neighbours along each axis, `[468, 3]`."""
    # Centred first: the difference of two squares below would lose digits to the distance from the origin.
    centred = mesh - mesh.mean(axis=0)
    return np.sqrt(np.maximum(weights @ centred**2 - (weights @ centred) ** 2, 0))


def _on_reference(offsets: np.ndarray, neutral: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Offsets `[F, 468, 3]` in the reference's proportions: steps 1 and 2 of the module's description."""
    scale = shape_ratio(neutral, reference)
    result = offsets * scale
    for upper, lower in EYELIDS:
        # What brings the lids together, by the ratio of the eyes' own openings.
        ratio = _gap(reference, upper, lower) / np.maximum(_gap(neutral, upper, lower), 1e-3)
        towards = (offsets[:, upper] - offsets[:, lower]) / 2 * np.clip(ratio, 0, _WIDEST)[:, None]
        # What both lids do together (a look up or down, a raised cheek) has the shape's ratio.
        together = (result[:, upper] + result[:, lower]) / 2
        result[:, upper], result[:, lower] = together + towards, together - towards
    return result


def _gap(face: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Distance between the vertices of an upper lid and those of the lower lid below them, `[7]` cm."""
    return np.linalg.norm(face[upper] - face[lower], axis=-1)


def uncrossed(moved: np.ndarray, *faces: np.ndarray) -> np.ndarray:
    """Faces whose lips and lids pass through each other no further than in the faces that they come from.

    Landmarks of closed lips cross by a hair's breadth in any detection: that much stays.

    Args:
        moved: Meshes `[F, 468, 3]` cm; changed in place.
        faces: Meshes `[F, 468, 3]` or `[468, 3]` cm that `moved` comes from.

    Returns:
        `moved`.
    """
    for upper, lower in (_LIPS, *EYELIDS):
        # Height of the upper over the lower vertex, negative where they cross: [F, n] or [n].
        gap, *own = (face[..., upper, 1] - face[..., lower, 1] for face in (moved, *faces))
        allowed = 0.0
        for crossing in own:
            allowed = np.minimum(allowed, crossing)
        # Both sides go half the way back.
        excess = np.maximum(allowed - gap, 0) / 2
        moved[:, upper, 1] += excess
        moved[:, lower, 1] -= excess
    return moved
