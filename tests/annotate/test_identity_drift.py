"""The shape of a face tells two persons in one clip, and not one person who moves and speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate.identity_drift import STEADY, identity_drift
from ingest.settings import IngestSettings
from talkinghead.face.model import load_official
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LIPS, LOWER_FACE
from tests.support.ingested_clips import WholeWay, pieces_of


def _person(seed: int) -> np.ndarray:
    """A face of its own, `[468, 3]` in cm: wider or narrower, nose and brow further out or in."""
    random = np.random.default_rng(seed)
    face = mean_face().vertices.astype(np.float64)
    x, y, z = face.T
    face = face * (1 + random.normal(0, 0.04, 3))
    face[:, 2] += random.normal(0, 0.25) * np.exp(-(x**2 + y**2) / 8)
    face[:, 0] += random.normal(0, 0.15) * np.sin(x) * np.cos(y / 3)
    return face + 0 * z[:, None]


def _frames(face: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The person speaks, with the noise of a landmark model that changes slowly as the head turns."""
    random = np.random.default_rng(seed)
    frames = np.repeat(face[None], count, axis=0)
    frames[:, list(LOWER_FACE), 1] -= 0.8 * np.abs(np.sin(np.arange(count) * 0.9))[:, None]
    turn = np.sin(np.arange(count) / 15 + seed)[:, None]
    frames[:, :, 0] += 0.02 * turn * face[:, 2]
    return frames + random.normal(0, 0.03, frames.shape)


def test_two_persons_drift_and_one_does_not() -> None:
    valid = np.ones(150, bool)
    for seed in range(5):
        one, other = _person(seed), _person(seed + 100)
        same = identity_drift(_frames(one, 150, seed), valid)
        both = identity_drift(np.concatenate([_frames(one, 75, seed), _frames(other, 75, seed)]), valid)
        assert same is not None and both is not None
        assert same < 0.05 and both > max(0.09, 4 * same)


@pytest.mark.parametrize("at", [20, 60, 130])
def test_where_the_other_person_comes_does_not_matter(at: int) -> None:
    one, other = _person(1), _person(101)
    joined = np.concatenate([_frames(one, at, 0), _frames(other, 150 - at, 0)])
    drift = identity_drift(joined, np.ones(150, bool))
    assert drift is not None and drift > 0.15


def test_expression_and_place_do_not_count() -> None:
    face = _frames(_person(3), 100, 0)
    speaking = face.copy()
    speaking[50:, list(LIPS), 1] -= 3.0
    speaking[50:] += (0.5, -0.3, 0.2)
    valid = np.ones(100, bool)
    assert identity_drift(speaking, valid) == pytest.approx(identity_drift(face, valid))
    assert not set(STEADY) & set(LIPS)


def test_frames_without_a_face_are_left_out() -> None:
    face = _frames(_person(4), 120, 0)
    valid = np.ones(120, bool)
    valid[::3] = False
    expected = identity_drift(face[valid], np.ones(80, bool))
    face[~valid] = np.nan
    assert expected is not None and identity_drift(face, valid) == pytest.approx(expected)
    assert identity_drift(face[:119], valid[:119]) is None
    assert identity_drift(face, np.zeros(120, bool)) is None


def test_a_long_clip_has_few_windows() -> None:
    drift = identity_drift(np.tile(_frames(_person(5), 50, 0), (60, 1, 1)), np.ones(3000, bool))
    assert drift is not None and drift < 0.08


def test_a_real_person_who_turns_the_head_is_one(shared: Path) -> None:
    """The landmark model bends a face that is turned, and in three seconds no moment may look like the first ones."""
    way = WholeWay(load_official(shared / "models" / "face_landmarker.task"))
    file = shared / "media" / "video" / "Talking-Face_PC-AVS_00086.mp4"
    (piece,) = pieces_of(file, way.detector, IngestSettings(), start_s=1.2, end_s=4.4)
    judged = way.judged(piece)
    assert judged.verdict() is None and (judged.scores["identity_drift"] or 0) > 0.15
