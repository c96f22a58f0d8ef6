"""Composed motion: the mouth of one driver, the head pose of a second, the eyes of a third; or one after another.

The parts lie in the camera of the same portrait, so a head pose is taken over as it is. Meshes are joined where the
lower face ends, with weights that fade over the cheeks (`regions`): only there does a vertex move with both drivers.
Frame rates and lengths become those of the mouth; a shorter head pose, or shorter eyes, are played to and fro.

A motion composed with itself is itself, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.motion import Motion
from talkinghead.motion.regions import region_weights
from talkinghead.motion.resampling import played
from talkinghead.motion.smoothing import moving_average

SEAM_S = 0.2
"""Seconds that it takes to go over from one motion to another."""


def compose(*, mouth: Motion, pose: Motion | None = None, eyes: Motion | None = None) -> Motion:
    """Motion of one face, put together from up to three.

    Args:
        mouth: Gives mouth, jaw, chin and lower cheeks, the frame rate and the length; and what is not given.
        pose: Gives the head's pose; it needs no meshes.
        eyes: Gives the rest of the face: eyes, brows, nose and upper cheeks.

    Returns:
        Motion with the neutral mesh of `mouth`; a frame is valid where it is in all that was given. Coefficients are
        those of `mouth` where the whole face is its own.

    Raises:
        ValueError: The motions are not of the same portrait or face, meshes are missing, or coefficients hold a head
            pose of their own.
    """
    result = mouth
    if eyes is not None and eyes is not mouth:
        _check_face(mouth, eyes)
        eyes = played(eyes, mouth.fps, len(mouth))
        mesh = _mixed(eyes.meshes(), mouth.meshes(), region_weights("lips")[:, None])
        result = replace(
            mouth,
            mesh=mesh,
            coefficients=None,
            eyes=mouth.eyes if eyes.eyes is None else eyes.eyes,
            valid=mouth.valid & eyes.valid,
        )
    if pose is not None and pose is not mouth:
        _check_camera(mouth, pose)
        pose = played(pose, mouth.fps, len(mouth))
        result = replace(result, valid=result.valid & pose.valid).with_pose_matrix(pose.pose_matrix)
    return result


def crossfade(one: Motion, other: Motion, share: np.ndarray) -> Motion:
    """One motion where `share` is 0, another one where it is 1, and between them where it is between.

    So a mouth is shut in silence: `crossfade(speech, still, seam(silent, fps))`.

    Args:
        one: Motion with meshes; it gives frame rate and length.
        other: Motion of the same face in the same image; shorter ones are played to and fro.
        share: Share of the other motion in each frame, `[F]`, 0 … 1.

    Returns:
        Motion without coefficients, valid where all that it is made of is.

    Raises:
        ValueError: The motions are not of the same portrait or face, meshes are missing, or the shares do not fit.
    """
    if share.shape != (len(one),) or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"a share in 0 … 1 is wanted for each of {len(one)} frames, not an array {share.shape}")
    _check_face(one, other)
    other = played(other, one.fps, len(one))
    mesh = _mixed(one.meshes(), other.meshes(), share.astype(np.float32)[:, None, None])
    # Head poses are mixed as angles and positions; where a frame is one motion's alone, its matrix stays.
    pose = matrix_from_pose(_mixed(one.pose, other.pose, share[:, None]))
    pose[share == 0], pose[share == 1] = one.pose_matrix[share == 0], other.pose_matrix[share == 1]
    eyes = None
    if one.eyes is not None and other.eyes is not None:
        eyes = _mixed(one.eyes, other.eyes, share.astype(np.float32)[:, None])
    valid = (one.valid | (share == 1)) & (other.valid | (share == 0))
    return replace(one, pose_matrix=pose, mesh=mesh, coefficients=None, eyes=eyes, valid=valid)


def seam(there: np.ndarray, fps: float) -> np.ndarray:
    """Shares that go over smoothly wherever a yes becomes a no, or a no a yes.

    Args:
        there: Whether each frame is wanted, `[F]` bool.
        fps: Frame rate.

    Returns:
        `[F]` float64, 0 … 1: 0 or 1 from half of `SEAM_S` away from each change on.
    """
    window = 2 * round(SEAM_S * fps / 2) + 1  # odd
    share = np.clip(moving_average(there.astype(np.float64), window), 0, 1)
    return share * share * (3 - 2 * share)  # smoothstep


def _mixed(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`one` moved by a share of the way to `other`: exactly one of them at 0 and 1, and where both are equal."""
    share = np.broadcast_to(share, one.shape)
    way = one + share * (other - one)
    # Also where the one that does not count is NaN.
    return np.where(share == 0, one, np.where(share == 1, other, way))


def _check_camera(mouth: Motion, other: Motion) -> None:
    if (mouth.width, mouth.height) != (other.width, other.height):
        raise ValueError(
            f"motions of images of {mouth.width}x{mouth.height} and {other.width}x{other.height} pixels are not of the"
            " same portrait: make both for one crop of it"
        )


def _check_face(mouth: Motion, other: Motion) -> None:
    _check_camera(mouth, other)
    if not np.array_equal(mouth.neutral, other.neutral):
        raise ValueError("motions of two faces cannot be put into one: transfer one to the other's face first")
