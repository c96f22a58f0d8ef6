"""Parts of the face mesh against MediaPipe's own topology, and openings computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.canonical import CanonicalFace, mean_face
from talkinghead.geometry.face_regions import (
    EYES,
    INNER_LIPS,
    LEFT_EYE,
    LIPS,
    LOWER_FACE,
    OUTER_LIPS,
    RIGHT_EYE,
    eye_opening,
    lip_gap,
    mouth_opening_ratio,
    mouth_width,
)
from talkinghead.geometry.guidance import STROKES
from talkinghead.geometry.pose import rotation_from_euler


def mirrored(face: CanonicalFace) -> np.ndarray:
    """Vertex → the vertex on the other side of the face."""
    other = face.vertices * [-1, 1, 1]
    return np.linalg.norm(other[:, None] - face.vertices, axis=-1).argmin(axis=1)


def test_contours_are_those_that_are_drawn() -> None:
    drawn = {word: set() for word in ("lips outer", "lips inner", "left eye", "right eye")}
    for stroke in STROKES:
        for word, vertices in drawn.items():
            if stroke.name.startswith(word) and "brow" not in stroke.name:
                vertices.update(vertex for chain in stroke.chains for vertex in chain)
    assert drawn == {
        "lips outer": set(OUTER_LIPS),
        "lips inner": set(INNER_LIPS),
        "left eye": set(LEFT_EYE),
        "right eye": set(RIGHT_EYE),
    }


def test_lips_are_what_lies_between_their_borders(official_face: CanonicalFace) -> None:
    assert official_face.triangles is not None
    touching: dict[int, set[int]] = {vertex: set() for vertex in range(468)}
    for triangle in official_face.triangles.tolist():
        for vertex in triangle:
            touching[vertex].update(triangle)
    inside, border = {0, 17, *INNER_LIPS}, set(OUTER_LIPS)
    grown = {11, 16}  # just inside the outer border, above and below
    while new := {near for vertex in grown - border for near in touching[vertex]} - grown:
        grown |= new
    assert grown | inside == set(LIPS)


@pytest.mark.parametrize("region", [LIPS, LOWER_FACE, EYES])
def test_regions_are_symmetric_and_without_repeats(region: tuple[int, ...], official_face: CanonicalFace) -> None:
    assert len(set(region)) == len(region)
    assert set(mirrored(official_face)[list(region)]) == set(region)


def test_lower_face_lies_below_the_nose(official_face: CanonicalFace) -> None:
    height = official_face.vertices[:, 1]
    assert set(LOWER_FACE) == set(np.flatnonzero(height < height[2]))
    assert set(LIPS) < set(LOWER_FACE)
    assert not set(EYES) & set(LOWER_FACE)


def test_openings_by_hand() -> None:
    mesh = np.zeros((468, 3))
    mesh[13], mesh[14] = (0, 1, 2), (0, -0.5, 4)
    mesh[61], mesh[291] = (-2, 0, 0), (3, 0, 0)
    assert lip_gap(mesh) == pytest.approx(2.5)
    assert mouth_width(mesh) == pytest.approx(5.0)
    # Right eye 4 wide, lids 1 and 2 apart: 3/8; left eye 2 wide, lids 0.5 and 0.5 apart: 1/4.
    for corner, x in ((33, 0), (133, 4), (263, 0), (362, 2)):
        mesh[corner] = (x, 0, 0)
    for upper, lower, gap in ((160, 144, 1), (158, 153, 2), (387, 373, 0.5), (385, 380, 0.5)):
        mesh[upper], mesh[lower] = (1, gap / 2, 0), (1, -gap / 2, 0)
    assert eye_opening(mesh) == pytest.approx((3 / 8 + 1 / 4) / 2)


def test_mouth_opening_is_a_ratio() -> None:
    mesh = np.zeros((2, 468, 3))
    mesh[:, 61], mesh[:, 291] = (-2.5, 0, 0), (2.5, 0, 0)
    mesh[1, 13], mesh[1, 14] = (0, 1.5, 0), (0, -1, 0)
    np.testing.assert_allclose(mouth_opening_ratio(mesh), [0, 0.5])


@given(st.tuples(*[st.floats(-180, 180)] * 3), st.floats(0.5, 3))
def test_openings_do_not_depend_on_the_head(angles: tuple[float, float, float], scale: float) -> None:
    face = mean_face().vertices
    moved = scale * face @ rotation_from_euler(np.array(angles)).T + [1, 2, -30]
    assert eye_opening(moved) == pytest.approx(float(eye_opening(face)))
    assert lip_gap(moved) == pytest.approx(scale * float(lip_gap(face)), abs=1e-9)
    assert mouth_width(moved) == pytest.approx(scale * float(mouth_width(face)))


def test_frames_and_missing_faces() -> None:
    mesh = np.stack([mean_face().vertices, np.full((468, 3), np.nan)])[None]
    for measure in (lip_gap, mouth_width, eye_opening):
        found = measure(mesh)
        assert found.shape == (1, 2)
        assert np.isfinite(found[0]).tolist() == [True, False]
