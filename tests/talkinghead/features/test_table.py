"""Every feature there is: a window has the bits of the same frames of the whole clip, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.annotation import COLUMN
from talkinghead.features.feature import AUDIO, Feature, Window, read_feature
from talkinghead.features.table import FEATURES, find_feature
from tests.support.feature_samples import ClipInMemory

LENGTHS = st.integers(1, 60)


def clip(seed: int, length: int, feature: Feature) -> ClipInMemory:
    """A clip of noise with pauses of digital silence; its columns have frames without a face."""
    rng = np.random.default_rng(seed)
    audio = (rng.integers(-32768, 32768, length * 640) / 32768).astype(np.float32)
    audio *= np.repeat(rng.random(length) < 0.7, 640) * np.repeat(10 ** rng.uniform(-5, 0, length), 640)
    valid = rng.random(length) < 0.8
    columns = {}
    for name in feature.columns:
        values = rng.normal(size=(length, *COLUMN[name].row_shape)).astype(np.float32)
        values[~valid] = np.nan
        columns[name] = valid if name == "valid" else values
    return ClipInMemory(audio.astype(np.float32), columns)


def windows(length: int, feature: Feature) -> Iterable[tuple[int, int]]:
    """Windows at and near both ends, of one frame, and of all."""
    near = range(feature.before + 2)
    for first in (*near, *(length - 1 - place for place in range(feature.after + 2))):
        for count in (1, 2, length - first):
            if first >= 0 and count >= 1 and first + count <= length:
                yield first, count


@pytest.mark.parametrize("name", FEATURES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_window_is_a_slice_of_the_whole_clip(name: str, data: st.DataObject) -> None:
    feature = find_feature(name)
    sample = clip(data.draw(st.integers(0, 10_000)), length := data.draw(LENGTHS), feature)
    whole = read_feature(sample, feature)
    assert len(whole) == length * feature.rows
    first = data.draw(st.integers(0, length - 1))
    drawn = (first, data.draw(st.integers(1, length - first)))
    for start, count in (drawn, *windows(length, feature)):
        rows = read_feature(sample, feature, start, count)
        expected = whole[start * feature.rows : (start + count) * feature.rows]
        assert rows.dtype == whole.dtype and rows.shape == expected.shape
        assert rows.tobytes() == expected.tobytes(), f"frames {start} … {start + count - 1} of {length}"


def test_a_context_that_is_too_short_is_noticed() -> None:
    """The test above notices what it is for: a feature that looks further than it says."""

    def mean(window: Window) -> np.ndarray:
        energy = np.square(window.inputs[AUDIO].reshape(-1, 640).astype(np.float64)).sum(axis=1)
        padded = np.pad(energy, 1)
        around = padded[:-2] + padded[1:-1] + padded[2:]
        return around[window.before : window.before + window.count]

    honest = Feature(name="mean", needs=(AUDIO,), before=1, after=1, compute=mean)
    sample = clip(0, 20, honest)
    for first, count in windows(20, honest):
        assert np.array_equal(read_feature(sample, honest, first, count), read_feature(sample, honest)[first:][:count])
    short = Feature(name="mean", needs=(AUDIO,), compute=mean)
    assert not np.array_equal(read_feature(sample, short, 4, 3), read_feature(sample, short)[4:7])


def test_unknown_features_and_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="no feature 'pitch', only loudness"):
        find_feature("pitch")
    feature = find_feature("loudness")
    for first, count in ((0, 0), (-1, 2), (3, 3), (5, None)):
        with pytest.raises(ValueError, match="not in a clip of 5 frames"):
            read_feature(clip(0, 5, feature), feature, first, count)
    for wrong in ({"before": -1}, {"rows": 0}, {"needs": ()}, {"name": "a b"}):
        with pytest.raises(ValueError):
            Feature(**{"name": "mean", "needs": (AUDIO,), "compute": lambda window: window.inputs[AUDIO], **wrong})
