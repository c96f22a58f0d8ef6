"""A mouth that is shut where nobody speaks, whatever a driver makes of breaths, noise and what is left of a word.

Speech activity says when (`talkinghead.models.speech.pauses`), this module what happens then. A pause counts from
`LEAST_SILENCE_S` on: mouths do not close in shorter ones. The mouth begins to close where the sound ends, and is back
in motion where the sound begins again, so frames with speech keep every bit.

Only the region `lips` moves (mouth, jaw, chin, lower cheeks): eyes, brows and the head's pose stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from talkinghead.motion.at_rest import lips_closed
from talkinghead.motion.compose import SEAM_S, compose, crossfade, seam
from talkinghead.motion.gaps import gaps
from talkinghead.motion.motion import Motion

LEAST_SILENCE_S = 0.5
"""Shortest silence in which the mouth is shut, seconds; twice what closing and opening takes must fit into it."""


def still_in_silence(motion: Motion, active: np.ndarray, rest_mesh: np.ndarray) -> Motion:
    """The motion with the mouth shut in each long silence.

    Args:
        motion: Motion with meshes; coefficients are left out, as they stand for the old mouth.
        active: Frames in which somebody speaks, `[F]` bool.
        rest_mesh: Face whose mouth is shown in silence, `[468, 3]` cm; where its lips are apart, they are closed.

    Raises:
        ValueError: The motion has no meshes, or another number of frames.
    """
    return mouth_shut(motion, silence_share(active, motion.fps), rest_mesh)


def silence_share(active: np.ndarray, fps: float) -> np.ndarray:
    """How far the mouth is shut in each frame of a sound, for a motion that comes in parts.

    Args:
        active: Frames in which somebody speaks, `[F]` bool, the whole sound at once.
        fps: Frame rate.

    Returns:
        `[F]` float64: 0 in speech and in short silence; 1 in long silence, which it reaches and leaves smoothly within
        `SEAM_S` after its beginning and before its end. At both ends of the sound it does not move.
    """
    active = np.asarray(active, bool)
    shut = np.zeros(len(active), bool)
    # The seam reaches half its width beyond what is shut: so much of the silence is left to it on either side.
    margin = round(SEAM_S * fps / 2) + 1
    for begin, end in gaps(active):
        if end - begin >= LEAST_SILENCE_S * fps:
            first = begin if begin == 0 else begin + margin
            last = end if end == len(active) else end - margin
            shut[first:last] = True
    return seam(shut, fps) if shut.any() else np.zeros(len(active))


def mouth_shut(motion: Motion, share: np.ndarray, rest_mesh: np.ndarray) -> Motion:
    """The motion with the mouth shut by a share in each frame.

    Args:
        motion: Motion with meshes, or a part of one; coefficients are left out.
        share: How far the mouth is shut in each frame, `[F]`, 0 … 1 (`silence_share`).
        rest_mesh: As for `still_in_silence`.

    Raises:
        ValueError: As for `still_in_silence`.
    """
    if share.shape != (len(motion),):
        raise ValueError(f"speech activity of {len(share)} frames does not fit a motion of {len(motion)} frames")
    mesh = motion.meshes()
    if not share.any():
        return motion
    closed = np.broadcast_to(lips_closed(rest_mesh), mesh.shape)
    shut = compose(mouth=motion.with_meshes(closed), eyes=motion)
    # The head's pose is the same in both, but mixing it as angles would round it.
    return replace(crossfade(motion, shut, share), pose_matrix=motion.pose_matrix, eyes=motion.eyes)
