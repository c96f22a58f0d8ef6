"""Metrics of images: exact on made-up images; on real faces each fault costs what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.metrics import Clip, Unavailable
from infer.metrics.images import box_of, flicker, mouth_psnr, psnr, sharpness, ssim, temporal_change, temporal_noise
from tests.support.real_clips import OTHER, WOMAN, RealClip, blurred, noisy, real_clip

SIDE = 64
WINDOW = slice(30, 60)


def of(predicted: np.ndarray, true: np.ndarray | None = None, points: np.ndarray | None = None, **more: object) -> Clip:
    known = {"valid": np.ones(len(predicted), bool)} | more
    return Clip(key="a", predicted_video=predicted, true_video=true, asked_landmarks=points, **known)  # type: ignore[arg-type]


def flat(*levels: int) -> np.ndarray:
    """Grey images `[F, 16, 16, 3]`."""
    return np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels])


def test_decibels_of_a_known_error() -> None:
    assert psnr(of(flat(100, 100), flat(100, 110))) == pytest.approx(10 * np.log10(255**2 / 50))
    assert ssim(of(flat(100), flat(100))) == pytest.approx(1.0)
    with pytest.raises(Unavailable, match="equal"):
        psnr(of(flat(7), flat(7)))
    with pytest.raises(Unavailable, match="smaller"):
        ssim(of(flat(7)[:, :8, :8], flat(7)[:, :8, :8]))


def test_only_valid_frames_count() -> None:
    valid = np.array([True, False, True])
    assert psnr(of(flat(0, 255, 0), flat(1, 0, 1), valid=valid)) == pytest.approx(10 * np.log10(255**2))
    with pytest.raises(Unavailable, match="neighbouring"):
        flicker(of(flat(0, 255, 0), flat(1, 0, 1), valid=valid))


@given(st.lists(st.integers(0, 255), min_size=3, max_size=8), st.integers(0, 50))
def test_a_constant_error_does_not_flicker(levels: list[int], off: int) -> None:
    true = flat(*(level // 2 for level in levels))
    assert flicker(of(true + np.uint8(off), true)) == 0
    still = of(np.repeat(true[:1], len(true), axis=0), true)
    assert temporal_change(still) == 0
    assert flicker(still) == pytest.approx(temporal_change(of(true)))


def test_even_motion_is_no_noise() -> None:
    assert temporal_noise(of(flat(10, 20, 30, 40))) == 0
    assert temporal_noise(of(flat(10, 20, 10, 20))) == pytest.approx(10)


def test_the_region_of_the_mouth() -> None:
    points = np.array([[0.25, 0.5], [0.75, 0.75]])
    assert box_of(points, 16, 32) == (slice(16, 24), slice(4, 12))
    assert box_of(points, 16, 32, 0.5) == (slice(12, 28), slice(0, 16))
    with pytest.raises(Unavailable, match="outside"):
        box_of(points + 1, 16, 32)


@pytest.fixture(scope="module")
def woman(shared: Path) -> RealClip:
    return real_clip(shared, WOMAN)


def test_each_fault_costs_what_it_should(woman: RealClip, shared: Path) -> None:
    """Measured at 64 pixels; each list goes from the best to the worst."""
    whole = woman.at(SIDE)
    true, points = whole[WINDOW], woman.landmarks[WINDOW]
    videos = {
        "almost": np.clip(true.astype(int) + 1, 0, 255).astype(np.uint8),
        "blurred": blurred(true, 1.5),
        "noisy": noisy(true, 12),
        "late": whole[WINDOW.start - 5 : WINDOW.stop - 5],
        "frozen": np.repeat(whole[:1], len(true), axis=0),
        "other": real_clip(shared, OTHER).at(SIDE)[WINDOW],
    }
    clips = {name: of(video, true, points) for name, video in videos.items()}

    quality = {name: psnr(clip) for name, clip in clips.items()}
    alike = {name: ssim(clip) for name, clip in clips.items()}
    assert quality["other"] < 12 < quality["frozen"] < 20 < 25 < quality["late"] < 30 < 48 < quality["almost"]
    assert 25 < quality["blurred"] < 28 and 25 < quality["noisy"] < 28
    assert alike["other"] < 0.2 < alike["frozen"] < 0.5 < 0.7 < alike["blurred"] < 0.9 < 0.99 < alike["almost"]
    # A video that does not follow the speech is worst at the mouth.
    assert mouth_psnr(clips["frozen"]) < psnr(clips["frozen"]) - 1
    assert mouth_psnr(clips["late"]) < psnr(clips["late"]) - 2

    # Flicker: a frozen video gets the true change, blur much of it, noise and late motion more.
    change = temporal_change(of(true))
    assert flicker(clips["almost"]) < 0.05 < 1 < change
    assert flicker(clips["frozen"]) == pytest.approx(change)
    assert flicker(clips["blurred"]) < change < 1.3 * change < flicker(clips["late"])
    assert flicker(clips["noisy"]) > 4 * change
    assert 1.5 * temporal_noise(clips["blurred"]) < temporal_noise(of(true)) < temporal_noise(clips["noisy"]) / 4

    detail = sharpness(of(true))
    assert sharpness(clips["blurred"]) < 0.5 * detail < detail < 1.5 * detail < sharpness(clips["noisy"])
