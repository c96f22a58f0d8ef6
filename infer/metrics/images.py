"""Metrics of images: how close a predicted video is to the true one, per image and from frame to frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead.geometry.face_regions import LIPS

WHITE = 255.0
MOUTH_MARGIN = 0.25
"""Margin of the mouth's region around the box of the lips on each side, as a share of the box."""
_SIGMA, _WINDOW = 1.5, 11  # standard deviation and width of Wang et al.'s Gaussian weights, in pixels
_BOTH = ("predicted_video", "true_video")


@metric("psnr", "dB", needs=_BOTH, better="higher")
def psnr(clip: Clip) -> float:
    """Peak signal to noise ratio of the images, from the squared error over the whole clip.

    10 log10(255² / mean squared error). The error is averaged before the logarithm, so that a single frame without
    error does not make the value infinite.
    """
    return _decibels([_squared(one, other).mean() for one, other in _pairs(clip)])


@metric("mouth_psnr", "dB", needs=(*_BOTH, "asked_landmarks"), better="higher")
def mouth_psnr(clip: Clip) -> float:
    """Peak signal to noise ratio within the box of the lips, which is where a copy of the reference fails.

    The box surrounds the lips of the landmarks asked for in each frame, with a margin of a quarter on each side.
    """
    assert clip.asked_landmarks is not None
    errors = []
    for (one, other), points in zip(_pairs(clip), clip.asked_landmarks[clip.valid], strict=True):
        # The boxes differ in size; the mean below counts each frame once, however many pixels its box has.
        rows, columns = box_of(points[list(LIPS)], one.shape[1], one.shape[0], MOUTH_MARGIN)
        errors.append(_squared(one[rows, columns], other[rows, columns]).mean())
    return _decibels(errors)


@metric("ssim", "", needs=_BOTH, better="higher")
def ssim(clip: Clip) -> float:
    """Structural similarity of the images, 1 where they are equal; mean over frames and colours.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, with its
    Gaussian weights (σ = 1.5 pixels), as computed by scikit-image. It is computed at the video's own size: values at
    different sizes do not compare.
    """
    assert clip.predicted_video is not None
    if min(clip.predicted_video.shape[1:3]) < _WINDOW:
        raise Unavailable(f"the images are smaller than the measure's window of {_WINDOW} pixels")
    return float(np.mean([_similarity(one, other) for one, other in _pairs(clip)]))


@metric("sharpness", "", needs=("predicted_video",), better=None)
def sharpness(clip: Clip) -> float:
    """How much detail the images have: compare with the truth's. Blurred ones have less, noisy ones more.

    Mean absolute Laplacian of the luma, in grey levels (the focus measure of Nayar and Nakagawa, 1994, in its simplest
    form). PSNR and SSIM alone prefer blur to detail that is not quite in place.
    """
    assert clip.predicted_video is not None
    frames = clip.predicted_video[clip.valid]
    return float(np.mean([np.abs(cv2.Laplacian(luma(frame), cv2.CV_32F)).mean() for frame in frames]))


def luma(image: np.ndarray) -> np.ndarray:
    """Luma of an image: RGB uint8 `[H, W, 3]` → float32 `[H, W]`, 0 to 255."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def box_of(points: np.ndarray, width: int, height: int, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of the pixels around normalised points.

    Args:
        points: Points `[P, 2]`, x/width, y/height, finite.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        margin: Margin on each side, as a share of the box.

    Raises:
        Unavailable: The box lies outside the image.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    grown = margin * (high - low)
    (left, top), (right, bottom) = (low - grown) * (width, height), (high + grown) * (width, height)
    # Outwards to whole pixels, then cut at the borders of the image.
    rows = slice(max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), height))
    columns = slice(max(int(np.floor(left)), 0), min(int(np.ceil(right)), width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise Unavailable("the region lies outside the image")
    return rows, columns


def _pairs(clip: Clip) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true image of every measured frame, each `[H, W, 3]` uint8."""
    assert clip.predicted_video is not None
    assert clip.true_video is not None
    for frame in np.flatnonzero(clip.valid):
        yield clip.predicted_video[frame], clip.true_video[frame]


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    # In float32: the difference of two uint8 numbers would wrap around.
    return np.square(one.astype(np.float32) - other)


def _decibels(errors: list[float]) -> float:
    error = float(np.mean(errors, dtype=np.float64))
    if error == 0:
        raise Unavailable("the images are equal, there is no error to express")
    return float(10 * np.log10(WHITE**2 / error))


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    from skimage.metrics import structural_similarity  # takes longer to import than all the other metrics together

    # With these settings scikit-image agrees with the published code: it takes the covariance of the window as a
    # population, not as a sample.
    found: Any = structural_similarity(
        one, other, data_range=WHITE, channel_axis=2, gaussian_weights=True, sigma=_SIGMA, use_sample_covariance=False
    )
    return float(found)


# --- from frame to frame ----------------------------------------------------------------------------------------------


@metric("flicker", "grey levels", needs=("predicted_video", "true_video"), better="lower")
def flicker(clip: Clip) -> float:
    """Temporal difference error: how far the change to the next frame is from the true change.

    Mean over pixels of |(p(t+1) - p(t)) - (v(t+1) - v(t))| in grey levels of 255; both images of a pair must be
    measured. An error that is constant over time costs nothing, one that comes and goes does. A video that never
    changes gets the mean size of the true change (the reference copy's value): below it, the changes are right; above
    it, they are mostly flicker.
    """
    assert clip.predicted_video is not None
    assert clip.true_video is not None
    # Both generators pass over the same pairs of frames; one change [H, W, 3] of each is held at a time.
    steps = zip(_changes(clip.predicted_video, clip), _changes(clip.true_video, clip), strict=True)
    return _mean(float(np.abs(predicted - true).mean()) for predicted, true in steps)


@metric("temporal_change", "grey levels", needs=("predicted_video",), better=None)
def temporal_change(clip: Clip) -> float:
    """How much a pixel changes to the next frame: compare with the truth's, above it lies flicker."""
    assert clip.predicted_video is not None
    return _mean(float(np.abs(step).mean()) for step in _changes(clip.predicted_video, clip))


@metric("temporal_noise", "grey levels", needs=("predicted_video",), better=None)
def temporal_noise(clip: Clip) -> float:
    """How far an image is from the mean of the ones before and after: compare with the truth's.

    Even motion cancels out, a flash in a single frame stays: so it shows flicker even where the motion is fast.
    """
    assert clip.predicted_video is not None
    # Middle frames of three measured ones in a row; entry k of the slices is about frame k + 1.
    inner = 1 + np.flatnonzero(clip.valid[2:] & clip.valid[1:-1] & clip.valid[:-2])
    video = clip.predicted_video
    return _mean(
        float(np.abs(video[t].astype(np.float32) - (video[t - 1].astype(np.float32) + video[t + 1]) / 2).mean())
        for t in inner
    )


def _changes(video: np.ndarray, clip: Clip) -> Iterator[np.ndarray]:
    """Change `[H, W, 3]` from each measured frame to the next one, where that is measured, too."""
    for frame in np.flatnonzero(clip.valid[1:] & clip.valid[:-1]):
        yield video[frame + 1].astype(np.float32) - video[frame]


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    if not found:
        raise Unavailable("no neighbouring frames are measured")
    return float(np.mean(found))
