"""Metrics of the face that the images show, by our own landmark engine: is it the face that was asked for?

"Asked" are the landmarks that drove the pipeline, "shown" those that the engine finds in the generated images
(`infer.metrics.face_reading`). Distances are in % of the face's size, the square root of the area of the box around the
asked landmarks (as in face alignment, e.g. Bulat and Tzimiropoulos, 2017), so that they do not depend on the size of
the images.
"""

from __future__ import annotations

import numpy as np

from infer.metrics.mesh import FEWEST_PAIRS, correlation
from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead.geometry.face_regions import LIPS, lip_gap

PERCENT = 100.0
_STILL = 0.05  # % of the face's size: standard deviation of the opening below which a mouth does not move
_FACES = ("asked_landmarks", "shown_landmarks", "predicted_video")


@metric("face_found", "%", needs=("shown_landmarks",), better="higher")
def face_found(clip: Clip) -> float:
    """Share of the images in which the landmark engine finds a face."""
    return PERCENT * float(_seen(clip)[clip.valid].mean())


@metric("landmark_distance", "% of face", needs=_FACES, better="lower")
def landmark_distance(clip: Clip) -> float:
    """Mean distance of the shown landmarks from the asked ones, where a face is found."""
    return _distance(clip, slice(None))


@metric("lip_landmark_distance", "% of face", needs=_FACES, better="lower")
def lip_landmark_distance(clip: Clip) -> float:
    """Mean distance of the shown landmarks of the lips from the asked ones, where a face is found."""
    return _distance(clip, list(LIPS))


@metric("mouth_shown_correlation", "", needs=_FACES, better="higher")
def mouth_shown_correlation(clip: Clip) -> float:
    """Pearson correlation of the shown mouth opening with the asked one over time, by re-detected landmarks."""
    asked, shown = _openings(clip)
    return correlation(shown, asked)


@metric("mouth_shown_gain", "", needs=_FACES, better=None)
def mouth_shown_gain(clip: Clip) -> float:
    """How far the shown mouth opens for each unit of asked opening: 1 is right, 0 a mouth that does not follow.

    Slope of the shown opening over the asked one, by least squares.
    """
    asked, shown = _openings(clip)
    both = np.isfinite(shown) & np.isfinite(asked)
    if not both.any() or np.std(asked[both]) < _STILL:
        raise Unavailable("the asked mouth does not move where a face is found")
    # Slope through the means: lips that are always a little further apart do not change it.
    asked, shown = asked[both] - asked[both].mean(), shown[both] - shown[both].mean()
    return float(asked @ shown / (asked @ asked))


@metric("mouth_read_correlation", "", needs=("asked_landmarks", "mouth_reading", "predicted_video"), better="higher")
def mouth_read_correlation(clip: Clip) -> float:
    """Pearson correlation of the asked mouth opening with the one read from the pixels, without finding a face.

    It also serves images that are too small or too coarse for the landmark engine (`infer.metrics.face_reading`).
    """
    assert clip.mouth_reading is not None
    reading = np.where(clip.valid, clip.mouth_reading, np.nan)
    if not np.isfinite(reading).any():
        raise Unavailable("there are too few true frames to learn to read the mouth from")
    return correlation(reading, _asked_opening(clip))


def face_size(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Square root of the area of the box around landmarks, in pixels: `[..., P, 2]` x/width, y/height → `[...]`."""
    extent = (points.max(axis=-2) - points.min(axis=-2)) * (width, height)
    return np.sqrt(extent[..., 0] * extent[..., 1])


def _seen(clip: Clip) -> np.ndarray:
    """Measured frames in which a face was found, `[F]` bool."""
    assert clip.shown_landmarks is not None
    return clip.valid & np.isfinite(clip.shown_landmarks).all(axis=(1, 2))


def _size(clip: Clip) -> tuple[int, int]:
    assert clip.predicted_video is not None
    return clip.predicted_video.shape[2], clip.predicted_video.shape[1]


def _distance(clip: Clip, rows: slice | list[int]) -> float:
    """Mean distance in % of the face's size over some rows of the landmarks, in frames in which a face is found."""
    assert clip.asked_landmarks is not None
    assert clip.shown_landmarks is not None
    seen = _seen(clip)
    if not seen.any():
        raise Unavailable("no face is found in the images")
    # Shares of the width and of the height become pixels before lengths are taken.
    asked, shown, size = clip.asked_landmarks[seen], clip.shown_landmarks[seen], _size(clip)
    away = np.linalg.norm((shown[:, rows].astype(np.float64) - asked[:, rows]) * size, axis=-1).mean(axis=1)  # [M]
    return PERCENT * float((away / _checked_size(asked, size)).mean())


def _checked_size(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`face_size` of landmarks `[..., P, 2]`; `Unavailable` for a face without extent."""
    found = face_size(points, *size)
    if not (found > 0).all():
        raise Unavailable("the face that was asked for has no extent")
    return found


def _asked_opening(clip: Clip) -> np.ndarray:
    """Asked opening `[F]` in % of the face's mean size; NaN where the frame is not measured."""
    assert clip.asked_landmarks is not None
    size = _size(clip)
    # One size for the whole clip: the box of a single frame grows with the opening mouth itself.
    whole = _checked_size(clip.asked_landmarks[clip.valid], size).mean()
    opening = PERCENT * lip_gap(clip.asked_landmarks * size) / whole
    if np.std(opening[clip.valid]) < _STILL:
        raise Unavailable("the mouth is not asked to move")
    return np.where(clip.valid, opening, np.nan)


def _openings(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Asked and shown opening `[F]` in % of the face's mean size; NaN in frames without a value."""
    assert clip.asked_landmarks is not None
    assert clip.shown_landmarks is not None
    seen, size = _seen(clip), _size(clip)
    if seen.sum() < FEWEST_PAIRS:
        raise Unavailable(f"a face is found in fewer than {FEWEST_PAIRS} images")
    whole = _checked_size(clip.asked_landmarks[clip.valid], size).mean()
    shown = np.where(seen, PERCENT * lip_gap(clip.shown_landmarks * size) / whole, np.nan)
    # A mouth that does not move has no correlation: unavailable, not 0.
    if np.nanstd(shown) < _STILL:
        raise Unavailable("the shown mouth does not move")
    return _asked_opening(clip), shown
