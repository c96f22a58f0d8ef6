"""A portrait without a photo: a ramp of grey levels, and the mean face in front of the camera, a little turned."""

from __future__ import annotations

import numpy as np

from talkinghead.face.portrait import Face, Portrait
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.pose import matrix_from_pose
from tests.support.tiny_pipeline import POSE, tiny_request


def drawn_portrait(width: int = 64, height: int = 64) -> Portrait:
    """The portrait; its landmarks lie where the camera sees its mesh."""
    asked = tiny_request(1, width, height)
    points = np.zeros((478, 3), np.float32)
    points[:468, :2] = asked["reference_landmarks"][:468, :2]
    return Portrait(
        image=asked["reference"],
        face=Face(points=points, blendshapes=None),
        mesh=mean_face().vertices.astype(np.float32),
        pose_matrix=matrix_from_pose(POSE),
    )
