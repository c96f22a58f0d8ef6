"""Regions: whole inside, gone where the next feature begins, without an edge between."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import BROWS, EYES, LIPS, LOWER_FACE
from talkinghead.motion.regions import Region, region_weights


def test_weights_of_the_regions() -> None:
    lips, brows, everything = (region_weights(region) for region in get_args(Region))
    assert (lips[list(LOWER_FACE)] == 1).all() and set(LIPS) <= set(LOWER_FACE) and not lips[list(EYES)].any()
    assert (brows[list(BROWS)] == 1).all() and not brows[[*EYES, *LOWER_FACE]].any()
    assert (everything == 1).all()
    assert 0 < np.count_nonzero((lips > 0) & (lips < 1)) < 100, "it fades over some vertices"


@pytest.mark.parametrize("region", ["lips", "brows"])
def test_no_tear(region: Region) -> None:
    """Vertices that lie near each other have weights near each other."""
    face, weights = mean_face().vertices, region_weights(region)
    away = np.linalg.norm(face[:, None] - face[None], axis=2)
    assert (np.abs(weights[:, None] - weights[None]) <= 1.01 * away).all(), "a smoothstep over 1.5 cm rises by 1 per cm"


def test_there_is_no_such_region() -> None:
    wrong: Any = "ears"
    with pytest.raises(ValueError, match="no region 'ears'; there are lips, brows, all"):
        region_weights(wrong)
    with pytest.raises(ValueError, match="read-only"):
        region_weights("lips")[0] = 1
