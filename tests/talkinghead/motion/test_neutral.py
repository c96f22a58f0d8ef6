"""The neutral mesh: the rule, its bounded memory, and faces at rest of real clips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.blendshapes import NAMES
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.motion import neutral
from talkinghead.motion.neutral import NeutralEstimator, neutral_mesh

Clip = tuple[np.ndarray, np.ndarray, np.ndarray]


def face_with_opening(centimetres: float) -> np.ndarray:
    """The mean face with its inner lips so many centimetres apart."""
    mesh = mean_face().vertices.astype(np.float32)
    mesh[14] = mesh[13] - np.float32([0, centimetres, 0])
    return mesh


def talking(frames: int, seed: int = 0) -> Clip:
    """A clip that opens and closes its mouth, with scores that follow, noise, and some frames without a face."""
    rng = np.random.default_rng(seed)
    opening = np.abs(np.sin(np.arange(frames) / 3)) * 2
    mesh = np.stack([face_with_opening(value) for value in opening]) + rng.normal(0, 0.01, (frames, 468, 3))
    blendshapes = rng.uniform(0, 0.02, (frames, 52)).astype(np.float32)
    blendshapes[:, NAMES.index("jawOpen")] += opening / 4
    valid = rng.random(frames) > 0.2
    mesh[~valid], blendshapes[~valid] = np.nan, np.nan
    return mesh.astype(np.float32), blendshapes, valid


def test_the_lowest_tenth_is_taken() -> None:
    """100 frames of rising tension: the median of the first ten is between the fifth and the sixth."""
    mesh = np.stack([face_with_opening(frame / 100) for frame in range(100)])
    found = neutral_mesh(mesh[::-1], np.zeros((100, 52)), np.ones(100, bool))
    assert (found.num_frames, found.rule) == (10, "blendshapes and lip opening")
    assert lip_gap(found.mesh) == pytest.approx(0.045, abs=1e-6)


@pytest.mark.parametrize(("name", "counts"), [("mouthSmileLeft", True), ("eyeBlinkRight", True), ("_neutral", False)])
def test_which_scores_count(name: str, counts: bool) -> None:
    """Twenty frames, in ten of which the score is high and the mesh is 1 cm to the right."""
    mesh = np.stack([face_with_opening(0)] * 20)
    blendshapes = np.zeros((20, 52), np.float32)
    mesh[:10, :, 0] += 1
    blendshapes[:10, NAMES.index(name)] = 0.9
    found = neutral_mesh(mesh, blendshapes, np.ones(20, bool)).mesh
    assert (found == mesh[10 if counts else 0]).all()


def test_lip_opening_alone_where_there_are_no_scores() -> None:
    mesh, blendshapes, valid = talking(60)
    without = neutral_mesh(mesh, None, valid)
    assert without.rule == "lip opening"
    nan = neutral_mesh(mesh, np.full_like(blendshapes, np.nan), valid)
    assert (nan.mesh == without.mesh).all()
    assert lip_gap(without.mesh) < 0.2


def test_scored_frames_win_over_others() -> None:
    mesh, blendshapes, valid = talking(60)
    alone = neutral_mesh(mesh, blendshapes, valid)
    estimator = NeutralEstimator()
    estimator.add(mesh + 5, None, valid)
    estimator.add(mesh, blendshapes, valid)
    assert (estimator.result().mesh == alone.mesh).all()


def test_few_frames() -> None:
    mesh, blendshapes, _ = talking(3)
    mesh, blendshapes = np.nan_to_num(mesh), np.nan_to_num(blendshapes)
    assert neutral_mesh(mesh, blendshapes, np.array([True, True, True])).num_frames == 3
    one = neutral_mesh(mesh, blendshapes, np.array([False, True, False]))
    assert one.num_frames == 1
    assert (one.mesh == mesh[1]).all()


def test_no_face_and_wrong_shapes() -> None:
    mesh, blendshapes, valid = talking(10)
    with pytest.raises(ValueError, match="no frame has a face"):
        neutral_mesh(mesh, blendshapes, np.zeros(10, bool))
    with pytest.raises(ValueError, match=r"\(10, 51\)"):
        neutral_mesh(mesh, blendshapes[:, :51], valid)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_clip_by_clip_is_all_at_once(lengths: list[int], seed: int) -> None:
    """Holds also when more frames come than are kept."""
    mesh, blendshapes, _ = talking(sum(lengths), seed)
    valid = np.isfinite(mesh).all(axis=(1, 2))
    valid[0] = True
    mesh, blendshapes = np.nan_to_num(mesh), np.nan_to_num(blendshapes)
    most = neutral.MOST_FRAMES
    try:
        neutral.MOST_FRAMES = 4
        estimator = NeutralEstimator()
        for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
            piece = slice(start, start + length)
            estimator.add(mesh[piece], blendshapes[piece], valid[piece])
        pieces, whole = estimator.result(), neutral_mesh(mesh, blendshapes, valid)
    finally:
        neutral.MOST_FRAMES = most
    assert pieces.num_frames == whole.num_frames <= 4
    assert (pieces.mesh == whole.mesh).all()
