from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.canonical import PROCRUSTES_WEIGHTS, CanonicalFace, canonical_face, mean_face


def numbers(text: str, key: str) -> np.ndarray:
    return np.array([float(value) for value in re.findall(rf"\b{key}: ([^\s}}]+)", text)])


def test_bundle_equals_mediapipes_text_form(official_face: CanonicalFace, mediapipe_data: Path) -> None:
    text = (mediapipe_data / "geometry_pipeline_metadata_landmarks.pbtxt").read_text()
    vertices = numbers(text, "vertex_buffer").reshape(-1, 5)[:, :3]
    np.testing.assert_allclose(official_face.vertices, vertices, atol=1e-6)
    assert official_face.triangles is not None
    np.testing.assert_array_equal(official_face.triangles.ravel(), numbers(text, "index_buffer"))
    weights = np.zeros(468)
    weights[numbers(text, "landmark_id").astype(int)] = numbers(text, "weight")
    np.testing.assert_allclose(official_face.weights, weights, atol=1e-8)
    np.testing.assert_allclose([weights[i] for i in PROCRUSTES_WEIGHTS], list(PROCRUSTES_WEIGHTS.values()), atol=1e-14)


def test_mean_face_lives_in_the_same_space(official_face: CanonicalFace) -> None:
    mean = canonical_face(None)
    assert mean is mean_face()
    assert mean.name == "mean"
    np.testing.assert_allclose(mean.weights, official_face.weights, atol=1e-8)
    # A face of ordinary size, within a centimetre of MediaPipe's at every point and centred on it where it has weight.
    offset = mean.vertices - official_face.vertices
    assert np.linalg.norm(offset, axis=1).mean() < 0.5
    assert np.linalg.norm(offset, axis=1).max() < 1.5
    assert np.abs(mean.weights @ offset).max() < 0.05
    # Symmetric, so that no person's habitual gaze defines what straight ahead is.
    np.testing.assert_allclose(mean.vertices[263] * (-1, 1, 1), mean.vertices[33], atol=1e-5)
    np.testing.assert_allclose(mean.vertices[[10, 4, 152], 0], 0.0, atol=1e-5)


def test_metadata_cut_short_is_refused_wherever_it_is_cut(geometry_metadata: bytes) -> None:
    for size in (0, 1, 3, 100, 9000, 19000, len(geometry_metadata) - 300):
        with pytest.raises(ValueError, match="geometry_pipeline_metadata"):
            canonical_face(geometry_metadata[:size])


@given(st.binary(max_size=400))
def test_any_bytes_end_as_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        canonical_face(data)


def test_canonical_face_checks_its_arrays(official_face: CanonicalFace) -> None:
    with pytest.raises(ValueError, match="vertices"):
        CanonicalFace(name="mean", vertices=official_face.vertices[:400], weights=official_face.weights)
    with pytest.raises(ValueError, match="positive weight"):
        CanonicalFace(name="mean", vertices=official_face.vertices, weights=np.zeros(468))
    with pytest.raises(ValueError, match="triangle"):
        CanonicalFace(
            name="mean",
            vertices=official_face.vertices,
            weights=official_face.weights,
            triangles=np.array([[0, 1, 468]]),
        )
