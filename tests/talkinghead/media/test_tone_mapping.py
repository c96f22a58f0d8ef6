"""High dynamic range: known pictures come back, and the formulas give the standards' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.media_file import probe
from talkinghead.media.tone_mapping import (
    BT709,
    BT2020,
    KNEE,
    P3_D65,
    WHITE_CODE,
    ToneMapper,
    hlg_light,
    pq_light,
    primaries_matrix,
    rolled_off,
)
from talkinghead.media.video_source import VideoSource
from tests.support.hdr_pictures import PATCH, hdr_signal, patches, write_hdr

X265 = {"crf": "4", "x265-params": "log-level=error:pools=1:frame-threads=1"}
ENCODERS = {
    "libx265": X265,
    "libsvtav1": {"crf": "4", "preset": "10", "svtav1-params": "lp=1"},
}


def _centres(image: np.ndarray) -> np.ndarray:
    """Mean of the inner half of each patch: no chroma of its neighbours."""
    height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
    split = image.reshape(height, PATCH, width, PATCH, 3).astype(float)
    return split[:, PATCH // 4 : -PATCH // 4, :, PATCH // 4 : -PATCH // 4].mean((1, 3))


def _first(file: Path) -> np.ndarray:
    with VideoSource(file) as source:
        return next(source.frames()).image


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_a_known_picture_comes_back(tmp_path: Path, transfer: str, codec: str) -> None:
    """Stated error of grey, colours and skin: 0.3 levels on average, 2 at most up to the knee, 5 at level 244."""
    signal = hdr_signal(patches(), transfer)
    file = write_hdr(tmp_path / "v.mp4", signal, transfer, codec=codec, options=ENCODERS[codec])
    assert probe(file).video.hdr == transfer
    truth = _centres(patches())
    error = np.abs(_centres(_first(file)) - truth)
    assert error.mean() < 0.5, error.round(1)
    assert error[truth < 255 * KNEE].max() <= 2, error.round(1)
    assert error.max() <= 6, error.round(1)


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_every_reading_of_a_frame_is_mapped(tmp_path: Path, transfer: str) -> None:
    file = write_hdr(tmp_path / "v.mp4", hdr_signal(patches(), transfer), transfer, options=X265)
    with VideoSource(file) as source:
        frame = next(source.frames())
        image = frame.image.astype(int)
        assert np.abs(frame.part(13, 21, 99, 67) - image[21:67, 13:99]).max() <= 2
        small = image.reshape(64, 2, 80, 2, 3).mean((1, 3))
        assert np.abs(frame.reduced(80, 64) - small).mean() < 3


def test_eight_bits_and_a_missing_matrix(tmp_path: Path) -> None:
    """8-bit HLG is mapped too, and PQ or HLG without a colour matrix is taken as BT.2020."""
    signal = hdr_signal(patches(), "HLG")
    eight = write_hdr(tmp_path / "eight.mp4", signal, "HLG", pixel_format="yuv420p", options=X265)
    assert np.abs(_centres(_first(eight)) - _centres(patches())).mean() < 1.5
    unlabelled = write_hdr(tmp_path / "unlabelled.mp4", signal, "HLG", labelled_matrix=False, options=X265)
    assert np.abs(_centres(_first(unlabelled)) - _centres(patches())).mean() < 0.7


def test_light_of_the_standards() -> None:
    # BT.2408-7, table 1: reference white; BT.2100 and ST 2084: 100, 1000 and 10000 cd/m².
    np.testing.assert_allclose(203 * pq_light(np.array([0.58, 0.5081, 0.7518, 1])), [203, 100, 1000, 10000], rtol=0.01)
    np.testing.assert_allclose(hlg_light(np.array([0, 0.5, 0.75, 1])), [0, 1 / 12 / 0.265, 1, 1 / 0.265], rtol=1e-3)
    # BT.2407-0, section 2.
    expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    np.testing.assert_allclose(primaries_matrix(BT2020, BT709), expected, atol=1e-4)
    for source in (BT709, BT2020, P3_D65):
        np.testing.assert_allclose(primaries_matrix(source, BT709) @ np.ones(3), 1)


def test_highlights_are_rolled_off() -> None:
    signal = np.linspace(0, 2, 20001)
    mapped = rolled_off(signal, 1.9)
    low = signal <= KNEE
    np.testing.assert_array_equal(mapped[low], signal[low])
    slope = np.diff(mapped) / np.diff(signal)
    assert slope.min() >= 0, "never falls"
    assert np.abs(np.diff(slope[signal[1:] < 1.9])).max() < 0.01, "no kink"
    assert mapped[signal >= 1.9].min() == pytest.approx(1) and mapped.max() <= 1


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_grey_stays_grey_and_white_leaves_room(transfer: str) -> None:
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    codes = np.round(hdr_signal(grey, transfer) * WHITE_CODE).astype(np.uint16)
    mapped = ToneMapper("PQ" if transfer == "PQ" else "HLG", BT2020)(codes)[0].astype(int)
    assert np.ptp(mapped, axis=1).max() <= 1
    assert np.abs(mapped[:230, 0] - np.arange(230)).max() <= 1
    assert mapped[255, 0] == 242


def test_what_is_not_labelled_as_high_dynamic_range_is_not_mapped(tmp_path: Path) -> None:
    """BT.2020 in standard range (H.273 transfer 14) keeps its code values: only the matrix is undone."""
    file = write_hdr(tmp_path / "v.mp4", patches() / 255, "standard", options=X265)
    assert probe(file).video.hdr is None
    assert np.abs(_centres(_first(file)) - _centres(patches())).max() < 2
