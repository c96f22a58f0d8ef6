"""Mouth and eyes: distances known by hand, blinks that were put in, clips without faces, and real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate.mouth import MOUTH, SCORES, MouthSettings, eye_opening, mouth_and_eyes
from talkinghead.column import decode_column
from talkinghead.derived import ColumnError, derived_members
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LEFT_EYE, RIGHT_EYE
from talkinghead.geometry.face_regions import eye_opening as mean_eye_opening
from talkinghead.motion.blink import close_eyes
from tests.support.real_clips import OTHER, WOMAN, real_clip


def faces(openings_cm: np.ndarray, shut: np.ndarray) -> np.ndarray:
    """Meshes `[F, 468, 3]` of the mean face, its mouth open so far and its eyes shut so much (0 .. 1)."""
    mesh = np.repeat(mean_face().vertices[None].astype(np.float64), len(openings_cm), axis=0)
    mesh[:, 14] = mesh[:, 13]
    mesh[:, 14, 1] -= openings_cm
    return close_eyes(mesh, shut)


def measured(
    mesh: np.ndarray, valid: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
    """Arrays as they come back from a shard, and scores."""
    valid = np.ones(len(mesh), bool) if valid is None else valid
    derived = mouth_and_eyes(mesh, valid, MouthSettings().blink_below)
    members = derived_members(MOUTH, derived, len(mesh), valid, {})
    return {form.name: decode_column(form, members[form.member]) for form in MOUTH.arrays}, dict(derived.scores)


def test_distances_and_movement_by_hand() -> None:
    openings = np.tile([0.0, 1.0, 2.0, 1.0], 25)
    arrays, scores = measured(faces(openings, np.zeros(100)))
    np.testing.assert_allclose(arrays["mouth"][:, 0], openings, atol=1 / 2048 + 1e-6)
    corners = mean_face().vertices[[61, 291]]
    np.testing.assert_allclose(arrays["mouth"][:, 1], np.linalg.norm(corners[0] - corners[1]), atol=1 / 2048 + 1e-6)
    assert scores["mouth_range_cm"] == pytest.approx(2.0)
    assert scores["mouth_speed_cm_s"] == pytest.approx(25.0), "1 cm from frame to frame"
    assert scores["blinks_per_s"] == 0 and scores["eyes_shut_fraction"] == 0 and not arrays["blink"].any()
    assert np.abs(arrays["z_blink"]).max() < 1e-4


def test_left_and_right_are_the_persons_and_their_mean_is_the_annotations() -> None:
    mesh = faces(np.zeros(3), np.array([0.0, 0.4, 0.9]))
    mesh[1, LEFT_EYE[1:8]] = mesh[0, LEFT_EYE[1:8]]  # the upper lid of the left eye stays up
    mesh[1, LEFT_EYE[9:]] = mesh[0, LEFT_EYE[9:]]
    arrays, _ = measured(mesh)
    left, right = arrays["eyes"].T
    assert left[1] == left[0] and right[1] < 0.8 * right[0] and 0.2 < right[0] < 0.5
    np.testing.assert_allclose(arrays["eyes"].mean(axis=1), mean_eye_opening(mesh), atol=1 / 16384 + 1e-6)
    assert mesh[0, LEFT_EYE[0], 0] > 0 > mesh[0, RIGHT_EYE[0], 0], "+x is the image's right, the person's left"


def test_size_and_place_of_the_head_do_not_change_the_eyes() -> None:
    mesh = faces(np.linspace(0, 2, 50), np.linspace(0, 1, 50) ** 8)
    one, _ = measured(mesh)
    two, _ = measured(1.7 * mesh + (1.0, -2.0, 0.5))
    for name in ("eyes", "blink", "z_blink"):
        np.testing.assert_allclose(one[name], two[name], atol=2e-4)


def test_blinks_are_found_where_they_were_put() -> None:
    shut = np.zeros(250)
    for start in (20, 110, 200):
        shut[start : start + 5] = (0.5, 1.0, 1.0, 0.8, 0.3)
    arrays, scores = measured(faces(np.zeros(250), shut))
    assert np.array_equal(arrays["blink"], (shut > 0.2).astype(np.int8)) and arrays["blink"].dtype == np.int8
    assert scores["blinks_per_s"] == pytest.approx(0.3), "three in ten seconds"
    assert scores["eyes_shut_fraction"] == pytest.approx(9 / 250)
    assert scores["mouth_speed_cm_s"] == scores["mouth_range_cm"] == 0, "a frozen mouth"
    assert (np.argmax(arrays["z_blink"]) - 20) % 90 in (1, 2)


def test_frames_without_a_face_have_no_value_and_count_in_no_score() -> None:
    openings, shut = np.tile([0.2, 0.7], 50), np.zeros(100)
    shut[70:73] = 1
    mesh, valid = faces(openings, shut), np.ones(100, bool)
    valid[40:50] = False
    mesh[40:50] = np.nan
    arrays, scores = measured(mesh, valid)
    for name in ("mouth", "eyes", "z_blink"):
        assert np.array_equal(np.isnan(arrays[name]).reshape(100, -1).any(axis=1), ~valid)
    assert (arrays["blink"][~valid] == -1).all() and set(arrays["blink"][valid]) == {0, 1}
    assert scores["mouth_speed_cm_s"] == pytest.approx(12.5), "no step over the gap"
    assert scores["blinks_per_s"] == pytest.approx(25 / 90)
    assert scores["eyes_shut_fraction"] == pytest.approx(3 / 90)


def test_a_clip_without_a_face_is_no_error() -> None:
    mesh = np.full((7, 468, 3), np.nan, np.float32)
    arrays, scores = measured(mesh, np.zeros(7, bool))
    assert np.isnan(arrays["mouth"]).all() and np.isnan(arrays["eyes"]).all() and np.isnan(arrays["z_blink"]).all()
    assert (arrays["blink"] == -1).all() and scores == dict.fromkeys(SCORES)
    # One face: where it is is known, how it moves is not.
    valid = np.arange(7) == 3
    mesh[3] = mean_face().vertices
    arrays, scores = measured(mesh, valid)
    assert scores["mouth_speed_cm_s"] is None and scores["mouth_range_cm"] == 0 and arrays["blink"][3] == 0


def test_a_mesh_that_is_no_face_is_refused() -> None:
    """A mesh of zeros has eyes without width."""
    with pytest.raises(ColumnError, match="eyes has no value"):
        measured(np.zeros((4, 468, 3)))
    with pytest.raises(ColumnError, match="mouth holds"):
        measured(faces(np.full(4, 50.0), np.zeros(4)))
    with pytest.raises(ValueError, match="blink_below"):
        MouthSettings(blink_below=0.0)


def test_storage_errors_are_those_that_the_module_states() -> None:
    values = {"mouth": 4.123456, "eyes": 0.312345, "z_blink": 0.456789}
    stated = {"mouth": 0.0005, "eyes": 0.00007, "z_blink": 0.00004}
    for form in MOUTH.arrays:
        if form.name in values:
            assert form.rounding(np.full((1,), values[form.name])).max() <= stated[form.name]


@pytest.mark.parametrize(("name", "blinks"), [(WOMAN, 1), (OTHER, 6)])
def test_real_speech_looks_like_speech(shared: Path, name: str, blinks: int) -> None:
    """Blinks were counted by eye in the plotted openings of the first four seconds."""
    clip = real_clip(shared, name)
    arrays, scores = measured(clip.arrays["mesh"], clip.arrays["valid"])
    opening, width = arrays["mouth"].T
    assert 0 <= opening.min() < 0.4 and 1 < opening.max() < 4 and width.min() > 3.5 and width.max() < 7
    assert 0.2 < np.median(arrays["eyes"]) < 0.4
    assert scores["blinks_per_s"] == pytest.approx(blinks / 4)
    ranges = {"mouth_range_cm": (0.7, 2.5), "mouth_speed_cm_s": (2, 7), "eyes_shut_fraction": (0.02, 0.2)}
    for score, (low, high) in ranges.items():
        assert low < (scores[score] or 0) < high, score
    # A still of the same face: no measure of movement is fooled.
    still = np.repeat(clip.arrays["mesh"][50:51], 100, axis=0)
    _, scores = measured(still)
    assert scores["mouth_range_cm"] == scores["mouth_speed_cm_s"] == scores["blinks_per_s"] == 0


def test_eye_opening_of_one_eye() -> None:
    """Corners 2 apart, lids 0.5 apart: 0.25."""
    mesh = np.zeros((1, 468, 3))
    mesh[0, LEFT_EYE[0], 0], mesh[0, LEFT_EYE[8], 0] = -1, 1
    for above, below in ((3, 13), (5, 11)):
        mesh[0, LEFT_EYE[above], 1], mesh[0, LEFT_EYE[below], 1] = 0.25, -0.25
    assert eye_opening(mesh, LEFT_EYE) == pytest.approx(0.25)
