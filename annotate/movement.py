"""What moves in a clip: whether its face is a photo, how long its images stand still, how many of them are new.

All of it is measured on small grey images of the frames (`annotate.small_images`) and the landmarks, at the end of the
clip. docs/samples.md has what the measures are on real clips, and where the thresholds of the filters come from.

A photo that is moved before the camera is still a photo. So the faces are laid over each other by the landmarks
outside of mouth and eyes, and what place, turn, size and light leave of the difference is removed to first order:
landmarks that tremble by half a pixel shift the face, and a shift is no change of it. What is left is small for a
photo, even with noise and after two compressions; lips, lids and a head that turns in space leave many times as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from talkinghead.geometry.face_regions import EYES, LOWER_FACE, NUM_VERTICES
from talkinghead.timebase import FPS

Scores = dict[str, float | None]

_LEAST = 10  # frames with a face, below which nothing is said
_SMOOTHED = 5  # frames that are averaged: noise is another one in each frame, movement is not

# Faces that are laid over each other.
_STABLE = np.setdiff1d(np.arange(NUM_VERTICES), [*LOWER_FACE, *EYES])  # vertices that only the head moves
_MOVABLE = np.union1d(LOWER_FACE, EYES)
_SIDE = 48  # width and height in pixels
_WINDOW = 3 * FPS  # frames that are compared: people who listen blink every three to four seconds
_PEAK = 95  # percentile of time: a blink is longer, a single frame whose landmarks are off is not
_CHANGED = 99  # percentile of the pixels: both eyes together are two or three in a hundred
_SURELY_MOVES = 0.7  # change of a few frames that is that of no tilted image
_EACH = 5  # frames, of which one is looked at for that
_LEAST_CONTRAST = 1.0  # grey levels; below, nothing can be seen to change

# The place of the face in the frame.
_PLACE = 64  # width and height in pixels
_BLOCK = 4  # pixels
# Two images in a row are the same one.
_SAME = 1.5  # grey levels in any block: what compressing one image again changes; in real clips nearly always more
_OF_CHANGE = 1 / 3  # of the changes before and after: noise and coarse compression between two changes stay below it
_LONGEST_HOLD = FPS  # frames for which one image is held in a slide show; a longer time is a freeze
# Two averages of `_SMOOTHED` frames show the same image.
_STILL_SHARE = 98  # percentile of the blocks
_STILL = 1.25  # grey levels; a new key frame makes 1, noise of 12 levels 0.9, the stillest 0.4 s of real clips 1.3
# A frame is blended from two others.
_BLEND_REST = 0.15  # of the difference of the two, what the blend leaves: 0.05 in fades, 0.2 .. 0.6 in movement
_BLEND_CHANGE = 1.5  # grey levels between the two, from which on blends are told from movement
_BLEND_WEIGHTS = 0.1, 0.9  # weights of 0 and 1 are no blend: the frame shows one of the two
_BLEND_REACH = (2, 3)  # frames to either side

# --- scores -----------------------------------------------------------------------------------------------------------


def image_scores(images: np.ndarray, landmarks: np.ndarray, damaged: Sequence[int] = ()) -> Scores:
    """Scores of a clip's images; all are None where fewer than ten undamaged frames have a face.

    Args:
        images: Small grey images `[F, h, w]` of `annotate.small_images`.
        landmarks: `[F, ≥468, ≥2]`, x/width and y/height; a frame without a face is NaN.
        damaged: Frames with damaged images. They count for nothing.

    Returns:
        `face_change`: how much the face itself changes, as a share of its contrast. `longest_freeze_s`: seconds for
        which the images stand still at the longest. `source_motion_fps`: new images per second where there is movement.
        `repeated_image_fraction`: share of frames that show the image before.
    """
    scores: Scores = dict.fromkeys(("face_change", "longest_freeze_s", "source_motion_fps", "repeated_image_fraction"))
    points = landmarks[:, :NUM_VERTICES, :2].astype(np.float64)
    intact = np.ones(len(points), bool)
    intact[list(damaged)] = False
    seen = np.isfinite(points[:, 0, 0]) & intact
    if seen.sum() < _LEAST:
        return scores
    points *= images.shape[2], images.shape[1]
    scores["face_change"] = face_change(images[seen], points[seen])
    # The other measures look at one place of the images, where the face is in any of the frames.
    faces = face_place(images, points[seen])
    repeated = repeats(faces)
    scores["longest_freeze_s"] = longest_freeze(faces, intact) / FPS
    scores["source_motion_fps"] = motion_rate(~(repeated | blends(faces))[intact])
    scores["repeated_image_fraction"] = float(repeated[intact].mean())
    return scores


def mesh_scores(mesh: np.ndarray, pose: np.ndarray) -> Scores:
    """How much face and head move by the landmarks: `face_movement_mm` and `head_movement_deg`.

    Both are standard deviations over time of values that are averaged over five frames. Landmarks tremble, most of all
    on noise, and bend when a flat photo is moved: photos reach 0.7 mm and clips begin at 1.1, so no filter uses them.

    Args:
        mesh: Metric mesh `[F, 468, 3]` in cm, without the head's pose; NaN without a face.
        pose: Head pose `[F, 6]`, whose first three are angles in degrees.
    """
    seen = np.isfinite(mesh[:, 0, 0])
    if seen.sum() < _LEAST:
        return {"face_movement_mm": None, "head_movement_deg": None}
    face = _smoothed(10.0 * mesh[seen][:, _MOVABLE].astype(np.float64))
    head = _smoothed(np.unwrap(pose[seen][:, :3].astype(np.float64), axis=0, period=360.0))
    return {
        "face_movement_mm": float(np.sqrt(face.var(axis=0).sum(axis=-1).mean())),
        "head_movement_deg": float(np.sqrt(head.var(axis=0).sum())),
    }


# --- the face itself --------------------------------------------------------------------------------------------------


def face_change(images: np.ndarray, points: np.ndarray) -> float:
    """How much a face changes beyond its place, turn, size, tilt and light, as a share of its contrast.

    Args:
        images: Images with a face `[F, h, w]`.
        points: Landmarks `[F, 468, 2]` in pixels of the images.

    Returns:
        The median over windows of about three seconds, so that a cut from photo to photo is no movement.
    """
    windows = max(1, round(len(images) / _WINDOW))
    parts = zip(np.array_split(images, windows), np.array_split(points, windows), strict=True)
    return float(np.median([_window_change(*part) for part in parts]))


def _window_change(images: np.ndarray, points: np.ndarray) -> float:
    """Change of a face in one window: what is left by the better of two explanations by a flat image.

    A flat image that is tilted needs eight numbers a frame. On one that is only shaken they follow the tremble of the
    landmarks, and leave more than the four of a similarity do.
    """
    change = _change(_laid_over(images, points, tilts=False), tilts=False)
    if change >= _SURELY_MOVES:
        # Laying all faces over each other as tilted images would cost as much again; a few tell most clips.
        few = _laid_over(images[::_EACH], points[::_EACH], tilts=True)
        if _change(few, tilts=True, averaged=1) >= _SURELY_MOVES:
            return change
    return min(change, _change(_laid_over(images, points, tilts=True), tilts=True))


def _laid_over(images: np.ndarray, points: np.ndarray, *, tilts: bool) -> np.ndarray:
    """Faces `[F, _SIDE, _SIDE]` float32, moved so that their stable landmarks lie on one another.

    Args:
        images: Images with a face `[F, h, w]`.
        points: Landmarks `[F, 468, 2]` in pixels of the images.
        tilts: Whether by a homography, as a flat image that is tilted moves; else by place, turn and size.
    """
    centres = points[:, _STABLE].mean(axis=1)
    # In complex numbers a turn and a size are one factor. Each frame's is fitted to the first shape, then to the mean.
    flat = (points - centres[:, None]) @ np.array([1, 1j])
    shape, factors = flat[0], np.ones(len(flat))
    for _ in range(2):
        factors = flat[:, _STABLE] @ shape[_STABLE].conj() / (np.abs(shape[_STABLE]) ** 2).sum()
        shape = (flat / factors[:, None]).mean(axis=0)
    # A square around the shape; from its pixels to those of each image, whose centres lie half a pixel in.
    low, high = shape.real.min() + 1j * shape.imag.min(), shape.real.max() + 1j * shape.imag.max()
    size = max((high - low).real, (high - low).imag)
    steps = factors * size / _SIDE
    starts = (
        centres @ np.array([1, 1j]) + factors * (low + high) / 2 - steps * (1 + 1j) * (_SIDE - 1) / 2 - (0.5 + 0.5j)
    )
    faces = np.empty((len(images), _SIDE, _SIDE), np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if tilts:
        places = (shape - (low + high) / 2) * _SIDE / size + (1 + 1j) * (_SIDE - 1) / 2
        stable = np.stack([places.real, places.imag], axis=1)[_STABLE]
        for face, image, seen in zip(faces, images, points[:, _STABLE] - 0.5, strict=True):
            matrix, _ = cv2.findHomography(stable, seen)
            face[:] = cv2.warpPerspective(image, matrix, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return faces
    for face, image, step, start in zip(faces, images, steps, starts, strict=True):
        matrix = np.array([[step.real, -step.imag, start.real], [step.imag, step.real, start.imag]])
        face[:] = cv2.warpAffine(image, matrix, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return faces


def _change(faces: np.ndarray, *, tilts: bool, averaged: int = _SMOOTHED) -> float:
    """Largest change over time of faces that lie on one another, as a share of their contrast.

    Args:
        faces: Faces `[F, _SIDE, _SIDE]`.
        tilts: Whether they were laid over each other by homographies, else by similarities.
        averaged: Frames that are averaged.
    """
    middle = faces.mean(axis=0)
    contrast = float(middle.std())
    if contrast < _LEAST_CONTRAST:
        return 0.0
    # To first order, light adds the image itself and a constant; a similarity or a tilt adds its gradients, weighted.
    along_y, along_x = np.gradient(middle)
    y, x = np.mgrid[:_SIDE, :_SIDE] - (_SIDE - 1) / 2
    size, turn = x * along_x + y * along_y, x * along_y - y * along_x
    causes = [np.ones_like(middle), middle, along_x, along_y, size, turn]
    if tilts:
        causes += [x * along_x - y * along_y, x * along_y + y * along_x, x / _SIDE * size, y / _SIDE * size]
    basis = np.linalg.qr(np.stack(causes, axis=-1).reshape(-1, len(causes)))[0].astype(np.float32)
    rest = (faces - middle).reshape(len(faces), -1)
    rest -= (rest @ basis) @ basis.T
    # What is left, with less noise: averaged over time and over neighbours.
    rest = _smoothed(rest, averaged).reshape(-1, _SIDE, _SIDE)
    rest = np.abs([cv2.blur(image, (3, 3)) for image in rest])
    peaks = np.partition(rest, last := len(rest) * _PEAK // 100, axis=0)[last]
    return float(np.percentile(peaks, _CHANGED)) / contrast


def _smoothed(values: np.ndarray, averaged: int = _SMOOTHED) -> np.ndarray:
    """Means of `averaged` values in a row along the first axis (of all, where there are fewer)."""
    count = min(averaged, len(values))
    means = values[: len(values) - count + 1] / count
    for at in range(1, count):
        means += values[at : len(values) - count + 1 + at] / count
    return means


# --- images that repeat -----------------------------------------------------------------------------------------------


def face_place(images: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The part of all images that holds the face in any of them, from its landmarks `[N, 468, 2]`: `[F, 64, 64]`."""
    height, width = images.shape[1:]
    (left, top), (right, bottom) = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    x0, y0 = int(np.clip(left, 0, width - 1)), int(np.clip(top, 0, height - 1))
    x1, y1 = int(np.clip(np.ceil(right), x0 + 1, width)), int(np.clip(np.ceil(bottom), y0 + 1, height))
    parts = images[:, y0:y1, x0:x1]
    return np.stack([cv2.resize(part, (_PLACE, _PLACE), interpolation=cv2.INTER_LINEAR) for part in parts])


def repeats(faces: np.ndarray) -> np.ndarray:
    """Which frames show the image of the frame before, `[F]` bool, from faces `[F, 64, 64]` of one place.

    Where noise or coarse compression changes an image that is repeated, the change is still far less than those to
    other images. So frames between two changes repeat the first one's image where their changes are a third of either
    at most. Movement swells and fades over frames, and hardly ever looks so.
    """
    changes, largest_parts = np.empty(len(faces) - 1), np.empty(len(faces) - 1)
    for number, (one, two) in enumerate(itertools.pairwise(faces)):
        squares = np.square(cv2.subtract(two, one, dtype=cv2.CV_32F))
        blocks = cv2.resize(squares, (_PLACE // _BLOCK, _PLACE // _BLOCK), interpolation=cv2.INTER_AREA)
        changes[number], largest_parts[number] = np.sqrt(blocks.mean()), np.sqrt(blocks.max())
    repeated = largest_parts < _SAME
    for first in range(1, len(changes) - 1):
        largest = 0.0
        for last in range(first, min(first + _LONGEST_HOLD, len(changes) - 1)):
            largest = max(largest, changes[last])
            if largest > _OF_CHANGE * changes[first - 1]:
                break
            if largest <= _OF_CHANGE * changes[last + 1]:
                repeated[first : last + 1] = True
    return np.concatenate(([False], repeated))


def blends(faces: np.ndarray) -> np.ndarray:
    """Which frames are blends of one before and one after, `[F]` bool, from faces `[F, 64, 64]` of one place.

    A slide show that fades from image to image has as few images as one that jumps.
    """
    blended = np.zeros(len(faces), bool)
    values = faces.reshape(len(faces), -1).astype(np.float32)
    values -= values.mean(axis=0)
    for reach in _BLEND_REACH:
        if len(faces) <= 2 * reach:
            continue
        before, middle, after = values[: -2 * reach], values[reach:-reach], values[2 * reach :]
        # From products of the images alone: the differences of both ends (squared), of the frame and the first end
        # (squared), and the product of these two differences.
        own, near, far = _products(values, values), _products(before, middle), _products(before, after)
        length = own[2 * reach :] + own[: -2 * reach] - 2 * far
        part = own[reach:-reach] + own[: -2 * reach] - 2 * near
        shared = _products(middle, after) - far - near + own[: -2 * reach]
        changed = length > _BLEND_CHANGE**2 * values.shape[1]
        weight = shared / np.where(changed, length, 1.0)
        low, high = _BLEND_WEIGHTS
        rest = part - weight * shared
        blended[reach:-reach] |= changed & (low < weight) & (weight < high) & (rest < _BLEND_REST**2 * length)
    return blended


def _products(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Sums of the products of rows, `[F, N]` twice → `[F]`."""
    return np.einsum("fn,fn->f", one, two)


def motion_rate(new: np.ndarray) -> float:
    """New images per second where there is movement, from which frames have one, `[F]` bool.

    The longest fifth of the times between new images is left out: a face may rest.
    """
    numbers = np.flatnonzero(new)
    if len(numbers) < 2:
        return 0.0
    waits = np.sort(np.diff(numbers))
    return FPS / float(waits[: len(waits) - len(waits) // 5].mean())


def longest_freeze(faces: np.ndarray, intact: np.ndarray) -> int:
    """Number of frames of the longest run that shows one image; 0 where none has ten frames.

    Averages of five frames are compared with those of the five frames before, which takes most of the noise away.

    Args:
        faces: Faces `[F, 64, 64]`, all of one place.
        intact: Frames that count, `[F]` bool. Others end a run.
    """
    compared = 2 * _SMOOTHED
    if len(faces) < compared:
        return 0
    size = _PLACE // _BLOCK, _PLACE // _BLOCK
    small = np.stack([cv2.resize(face, size, interpolation=cv2.INTER_AREA) for face in faces])
    means = _smoothed(small.reshape(len(small), -1).astype(np.float32))
    changes = np.percentile(np.abs(means[_SMOOTHED:] - means[:-_SMOOTHED]), _STILL_SHARE, axis=1)
    whole = np.convolve(intact, np.ones(compared), "valid") == compared
    run = longest_run((changes < _STILL) & whole)
    # A run of comparisons is one of frames: those of the first comparison, and one for each that follows.
    return run + compared - 1 if run else 0


def longest_run(valid: np.ndarray) -> int:
    """Length of the longest run of true values in `[F]`."""
    # Edges come in pairs: where a run begins, and the first frame after it.
    edges = np.flatnonzero(np.diff(np.concatenate(([False], valid.astype(bool), [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
