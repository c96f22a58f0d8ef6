"""Driven clips: which frames are driven, measured and learnt from; and how one clip drives another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.evaluation.driven_clip import (
    DRIVER_COLUMNS,
    measured_window,
    read_cross_driven,
    read_driven_clips,
    reference_frame,
)
from shards.reader import Sample, ShardReader
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.media.image_size import fit_images
from tests.support.real_clips import FRAMES, OTHER, SIDE, WOMAN, build_real_data, real_clip

FACES = st.lists(st.booleans(), min_size=1, max_size=60).filter(any).map(np.array)


@given(FACES, st.integers(1, 70))
def test_the_window_shows_as_many_faces_as_can_be(valid: np.ndarray, frames: int) -> None:
    window = measured_window(valid, frames)
    count = min(frames, len(valid))
    assert len(window) == count and window.start >= 0 and window.stop <= len(valid)
    best = max(valid[first : first + count].sum() for first in range(len(valid) - count + 1))
    assert valid[window.start : window.stop].sum() == best
    still = reference_frame(valid, window)
    assert valid[still]
    if valid.all() and count < len(valid) - 1:
        assert window.start == (len(valid) - count) // 2 and still not in window


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, Sample]:
    root = tmp_path_factory.mktemp("real") / "data"
    build_real_data(root, shared)
    reader = ShardReader(root, split=None, columns=DRIVER_COLUMNS)
    return {key.removeprefix("folder-"): reader.find(key) for key in reader.keys}


def test_a_clip_drives_itself(samples: dict[str, Sample], shared: Path) -> None:
    (clip,) = read_driven_clips([samples[WOMAN]], 64, 64, frames=30)
    real = real_clip(shared, WOMAN)
    assert clip.num_frames == 30 and clip.valid.all() and clip.frames is not None and clip.truth is not None
    np.testing.assert_array_equal(clip.frames, np.arange(35, 65))
    np.testing.assert_allclose(clip.landmarks, real.landmarks[35:65], atol=1e-3)
    assert np.abs(clip.truth.astype(float) - real.at(64)[35:65]).mean() < 3  # what the packed file's codec costs
    assert np.abs(clip.reference.astype(float) - real.at(64)[0]).mean() < 3
    np.testing.assert_allclose(clip.reference_landmarks, real.landmarks[0], atol=1e-3)
    assert len(clip.audio) == 30 * 640 and len(clip.mouth.frames) == FRAMES
    (whole,) = read_driven_clips([samples[WOMAN]], 64, 64)
    assert whole.num_frames == FRAMES
    np.testing.assert_array_equal(np.flatnonzero(~whole.valid), [0])  # the reference is not measured


def test_another_aspect_is_the_middle(samples: dict[str, Sample]) -> None:
    (square,) = read_driven_clips([samples[WOMAN]], SIDE, SIDE, frames=5)
    (narrow,) = read_driven_clips([samples[WOMAN]], 96, 192, frames=5)
    assert square.truth is not None and narrow.truth is not None
    assert narrow.truth.shape == (5, 192, 96, 3)
    expected = fit_images(np.moveaxis(square.truth, 3, 1), 96, 192)
    np.testing.assert_array_equal(np.moveaxis(narrow.truth, 3, 1), expected)
    np.testing.assert_allclose(narrow.landmarks[..., 0], square.landmarks[..., 0] * 2 - 0.5, atol=1e-5)
    np.testing.assert_allclose(narrow.landmarks[..., 1], square.landmarks[..., 1], atol=1e-5)


def test_one_clip_drives_another(samples: dict[str, Sample], shared: Path) -> None:
    clip = read_cross_driven(samples[WOMAN], samples[OTHER], 64, 64, frames=60)
    (own,) = read_driven_clips([samples[WOMAN]], 64, 64, frames=60)
    assert clip.truth is None and clip.frames is None and clip.key.endswith(f"by folder-{OTHER}")
    np.testing.assert_array_equal(clip.reference, own.reference)
    # The mouth opens as the driver's does, on the face and at the place of the reference.
    asked = lip_gap(clip.landmarks)
    driver = lip_gap(real_clip(shared, OTHER).landmarks[20:80])
    assert np.corrcoef(asked, driver)[0, 1] > 0.9
    still = own.reference_landmarks
    assert np.linalg.norm(clip.landmarks.mean(axis=(0, 1)) - still.mean(axis=0)) < 0.1
    extent = np.ptp(clip.landmarks, axis=1).mean(axis=0) / np.ptp(still, axis=0)
    np.testing.assert_allclose(extent, 1, atol=0.15)
