"""Regions of a moving face: how much each vertex belongs to one, fading over its border.

What moves together is edited together: the lips take jaw and chin along, the brows the skin around them. A hard border
would tear the mesh, so weights fall from 1 in the region to 0 at a distance from it, measured on the mean face.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import BROWS, LOWER_FACE, NUM_VERTICES

Region = Literal["lips", "brows", "all"]
"""Part of the face whose expression is edited: `lips` with jaw, chin and lower cheeks; `brows`; or the whole face."""

FADE_CM = 1.5
"""Distance from a region over which its weight falls to 0: less than from the brows to the lids, 1.7 cm."""

_VERTICES: dict[str, tuple[int, ...]] = {"lips": LOWER_FACE, "brows": BROWS}


@cache
def region_weights(region: Region) -> np.ndarray:
    """Weight of each vertex in a region, `[468]` float32: 1 inside, falling to 0 over `FADE_CM`.

    Raises:
        ValueError: There is no such region.
    """
    if region not in get_args(Region):
        raise ValueError(f"a face has no region {region!r}; there are {', '.join(get_args(Region))}")
    if region == "all":
        weights = np.ones(NUM_VERTICES, np.float32)
    else:
        face = mean_face().vertices
        inside = face[list(_VERTICES[region])]
        away = np.linalg.norm(face[:, None] - inside[None], axis=2).min(axis=1)  # cm
        near = np.clip(1 - away / FADE_CM, 0, 1)
        weights = (near * near * (3 - 2 * near)).astype(np.float32)  # smoothstep: no edge where it begins or ends
    # The cached array is shared by all callers.
    weights.setflags(write=False)
    return weights
