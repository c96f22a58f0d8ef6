"""How far the predicted mesh is from the true one. Distances in mm; the clips' meshes are in cm."""

from __future__ import annotations

import numpy as np

from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead.geometry.face_regions import LIPS

MM_PER_CM = 10.0
_BOTH = ("predicted_mesh", "true_mesh")


def _difference(clip: Clip) -> np.ndarray:
    """Predicted minus true mesh of the measured frames, `[M, 468, 3]` mm."""
    assert clip.predicted_mesh is not None
    assert clip.true_mesh is not None
    return MM_PER_CM * (clip.predicted_mesh[clip.valid].astype(np.float64) - clip.true_mesh[clip.valid])


@metric("mesh_l1", "mm", needs=_BOTH, better="lower")
def mesh_l1(clip: Clip) -> float:
    """Mean absolute difference of the coordinates of all vertices.

    It is the quantity that Audio2Mesh's L1 loss minimises (AniPortrait, arXiv 2403.17694).
    """
    return float(np.abs(_difference(clip)).mean())


@metric("mesh_error", "mm", needs=_BOTH, better="lower")
def mesh_error(clip: Clip) -> float:
    """Mean distance of all vertices from the true ones.

    Known as mean vertex error, e.g. in MeshTalk (Richard et al., 2021).
    """
    return float(np.linalg.norm(_difference(clip), axis=-1).mean())


@metric("lip_error", "mm", needs=_BOTH, better="lower")
def lip_error(clip: Clip) -> float:
    """Mean distance of the lip vertices from the true ones."""
    return float(np.linalg.norm(_difference(clip)[:, LIPS], axis=-1).mean())


@metric("lip_vertex_error", "mm", needs=_BOTH, better="lower")
def lip_vertex_error(clip: Clip) -> float:
    """Largest distance of a lip vertex in a frame, mean over the frames.

    Source: MeshTalk (Richard et al., 2021) and FaceFormer (Fan et al., 2022). The distance itself, as the papers'
    text says, not its square, which some published scripts average.
    """
    return float(np.linalg.norm(_difference(clip)[:, LIPS], axis=-1).max(axis=1).mean())


@metric("velocity_error", "mm/s", needs=_BOTH, better="lower")
def velocity_error(clip: Clip) -> float:
    """Mean length of the difference of the vertices' velocities.

    Velocities are differences of neighbouring frames that both have a face; the distance that the velocity loss of
    VOCA (Cudeiro et al., 2019) squares.
    """
    assert clip.predicted_mesh is not None
    assert clip.true_mesh is not None
    moving = clip.valid[1:] & clip.valid[:-1]
    if not moving.any():
        raise Unavailable("no two neighbouring frames have a face")
    steps = [np.diff(mesh.astype(np.float64), axis=0)[moving] for mesh in (clip.predicted_mesh, clip.true_mesh)]
    return float(MM_PER_CM * clip.fps * np.linalg.norm(steps[0] - steps[1], axis=-1).mean())


@metric("mesh_jitter", "mm/s²", needs=("predicted_mesh",), better=None)
def mesh_jitter(clip: Clip) -> float:
    """Mean length of the predicted vertices' acceleration: compare with the truth's, where it is noise and speech.

    Second differences of three neighbouring frames that all have a face; the acceleration of human motion papers
    (HMMR, Kanazawa et al., 2019; SmoothNet, Zeng et al., 2022).
    """
    assert clip.predicted_mesh is not None
    return MM_PER_CM * mean_acceleration(clip.predicted_mesh, clip)


def mean_acceleration(values: np.ndarray, clip: Clip) -> float:
    """Mean length of the second difference of `[F, …, D]` over the measured frames, in units per second squared.

    Raises:
        Unavailable: No three neighbouring frames have a face.
    """
    valid = clip.valid
    inner = valid[2:] & valid[1:-1] & valid[:-2]
    if not inner.any():
        raise Unavailable("no three neighbouring frames have a face")
    second = np.diff(values.astype(np.float64), n=2, axis=0)[inner]
    return float(clip.fps**2 * np.linalg.norm(second, axis=-1).mean())
