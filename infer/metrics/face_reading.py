"""Reading generated images: landmarks found again by the engine, faces cut upright, and the mouth opening from pixels.

Landmarks. Small images are enlarged first: the engine's networks take 128 and 256 pixels, but cut them bilinearly.
Measured on eight real clips reduced to 128, 96, 64 and 48 pixels (60 frames each, faces 45 to 65 % of the height): a
face in every frame, 0.2, 0.4, 0.8 and 1.2 % of the face's height from the landmarks at 512 pixels, and a mouth opening
that correlates with the opening at 512 pixels by 0.99, 0.98, 0.95 and 0.92 on average.

Mouth. Its opening is also read from the pixels, for images in which no engine finds a face. A linear regression from
the mouth's pixels to the opening is fitted to true images of the same person, whose landmarks are known, and applied
to generated ones. The region is cut upright around the mouth at a size of 24 x 20 pixels, placed by points of the
skull (eyes, forehead, nose) of the landmarks asked for. The lips themselves do not place it: otherwise a still image
under a moving mask would seem to move. No frame is read with a regression that was fitted to the frame itself or to
its neighbours in time.

Measured on 50 frames each of eight real clips reduced to 64 pixels, with at most 125 true ones to fit to: the reading
correlates with the annotated opening by 0.81 to 0.97 (mean 0.89); for blurred images (σ 1.5 pixels) by 0.75 on
average, for noisy ones (σ 15 grey levels) by 0.84, for a still image by 0.05 at most, for images ten frames early by
0.04 at most.

It holds where the landmark engine begins to fail: on two clips at 64 pixels with noise of σ 0.5 in the tiny VAE's
latents (blocks of colour, 23 dB), as early weights leave it, the reading correlates by 0.89 and 0.65, the re-detected
opening by 0.45 and 0.75; at σ 0.7 (20 dB) by 0.83 and 0.53, where the engine finds the first face in 18 % of the
images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from annotate.engines import DEFAULT_ENGINE, make_engine
from annotate.landmarks import LandmarkEngine
from infer.metrics.images import luma
from talkinghead.face.resolve import resolve_face_model
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import NUM_VERTICES, lip_gap

ENLARGED = 512
"""Shorter side to which smaller images are enlarged."""
SIDE = 112
"""Side of an aligned face, in pixels."""

# Where InsightFace puts the eyes, the tip of the nose and the corners of the mouth in 112 x 112 pixels (ArcFace, Deng
# et al., 2019), left to right as seen.
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_RIGHT_EYE, _LEFT_EYE, _NOSE, _MOUTH = (33, 133), (263, 362), 4, (61, 291)

COLUMNS, ROWS = 24, 20
FEWEST_FRAMES = 30
"""Smallest number of true frames that a regression is fitted to; with fewer the mouth is not read."""
APART = 5
"""Frames in time between those a regression is fitted to and those it reads."""
_BLOCK = 10  # frames that are read with one fit
_RIDGE = 0.1  # weight of the penalty, as a share of the mean squared length of the centred patches
_CONTRAST = 8.0  # grey levels; keeps flat patches from becoming noise when they are normalised
_WIDTH_CM, _BELOW_CM = 6.8, 0.8  # width of the region, and how far its middle lies below the middle of the lips
_EYES = (33, 263)  # outer corners
# Points that do not move with the mouth: corners of the eyes, forehead, ridge and tip of the nose.
_SKULL = [33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 10, 151, 9, 8]


# --- landmarks --------------------------------------------------------------------------------------------------------


def face_engine() -> LandmarkEngine:
    """The landmark engine that annotation uses by default, with the face model that is found.

    An engine may be used only in the thread that made it.

    Raises:
        ValueError: There is no face model; the message tells how to get it.
    """
    return make_engine(DEFAULT_ENGINE, resolve_face_model())


def redetect(frames: Iterable[np.ndarray], engine: LandmarkEngine) -> np.ndarray:
    """Landmarks of the face in every image.

    Args:
        frames: RGB uint8 `[H, W, 3]`, all of one size, in order of time.
        engine: Landmark engine, e.g. from `face_engine`.

    Returns:
        `[F, 468, 2]` float32, x/width and y/height; NaN where no face is found.
    """
    # [F, 478, 3] → [F, 468, 2]: the ten points of the irises and the depth are left out.
    return engine(enlarged(frame) for frame in frames).points[:, :NUM_VERTICES, :2]


def enlarged(frame: np.ndarray) -> np.ndarray:
    """The image, enlarged to a shorter side of `ENLARGED` pixels if it is smaller; keeps the aspect to a pixel."""
    height, width = frame.shape[:2]
    factor = ENLARGED / min(height, width)
    if factor <= 1:
        return frame
    size = (round(width * factor), round(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)


# --- the face, cut upright --------------------------------------------------------------------------------------------


def cut_upright(
    image: np.ndarray, points: np.ndarray, template: np.ndarray, width: int, height: int, *, beyond: int
) -> np.ndarray:
    """The part of an image in which points lie as in a template, turned upright by a similarity transform.

    An image that shrinks is blurred first, so that nothing aliases.

    Args:
        image: `[H, W]` or `[H, W, 3]`, uint8 or float32.
        points: Points `[P, 2]` in pixels of the image; pixel edges lie at whole numbers.
        template: Places `[P, 2]` of the points in pixels of the result; pixel edges lie at whole numbers.
        width: Width of the result in pixels.
        height: Height of the result in pixels.
        beyond: Fill outside the image: cv2.BORDER_REPLICATE (its border) or cv2.BORDER_CONSTANT (black).

    Returns:
        `[height, width]` or `[height, width, 3]`, of the image's type.
    """
    matrix = planar_similarity(points - 0.5, template - 0.5)  # OpenCV counts from the middle of the first pixel
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    # Bilinear sampling takes four pixels of the source, whatever the scale: it would skip the others.
    if scale < 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.5 / scale)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=beyond)


def planar_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, scale and shift `[2, 3]` that bring points closest to others, by least squares.

    In complex numbers the best factor is ⟨source, target⟩ / ⟨source, source⟩ of the centred points (Umeyama, 1991, in
    two dimensions and without reflection).

    Args:
        source: Points `[P, 2]`, not all equal.
        target: Points `[P, 2]` that they are brought to.
    """
    start, end = source.mean(axis=0), target.mean(axis=0)
    one, other = (source - start) @ (1, 1j), (target - end) @ (1, 1j)  # [P] complex, x + iy
    # One complex factor holds the rotation (its argument) and the scale (its modulus); `vdot` conjugates the source.
    factor = np.vdot(one, other) / np.vdot(one, one)
    turned = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack((turned, end - turned @ start))


def aligned_faces(video: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Faces turned and scaled to ArcFace's template.

    Args:
        video: `[F, H, W, 3]` uint8.
        landmarks: `[F, 468, 2]` x/width, y/height, finite.

    Returns:
        `[F, 112, 112, 3]` uint8; black beyond the image.
    """
    size = (video.shape[2], video.shape[1])
    faces = np.empty((len(video), SIDE, SIDE, 3), np.uint8)
    for row, (image, points) in enumerate(zip(video, five_points(landmarks) * size, strict=True)):
        faces[row] = cut_upright(image, points, _TEMPLATE, SIDE, SIDE, beyond=cv2.BORDER_CONSTANT)
    return faces


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Middles of the eyes, tip of the nose, corners of the mouth: `[..., 468, 2]` → `[..., 5, 2]`."""
    eyes = [landmarks[..., corners, :].mean(axis=-2) for corners in (list(_RIGHT_EYE), list(_LEFT_EYE))]
    return np.stack((*eyes, *(landmarks[..., number, :] for number in (_NOSE, *_MOUTH))), axis=-2).astype(np.float64)


# --- the mouth --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MouthReader:
    """Reads the mouth opening from pixels, by regressions fitted to K true images of the same person."""

    patches: np.ndarray
    """Mouth regions of the true images, `[K, 480]` float32, normalised in brightness and contrast."""
    opening: np.ndarray
    """Mouth opening over the distance of the outer corners of the eyes, `[K]`."""
    frames: np.ndarray
    """Frame numbers of the true images in their clip, `[K]`."""

    @classmethod
    def of(cls, video: np.ndarray, landmarks: np.ndarray, frames: np.ndarray) -> MouthReader:
        """A reader that learns from true images.

        Args:
            video: True images `[K, H, W, 3]`, RGB uint8, of the size of the images that will be read.
            landmarks: Their landmarks `[K, ≥468, ≥2]`, x/width, y/height; frames with NaN are left out.
            frames: Their frame numbers in their clip, `[K]`.
        """
        points = _in_pixels(landmarks, video)
        seen = _eyes_apart(points) > 0
        return cls(
            # Both in measures of the face itself, so that its distance from the camera does not matter.
            patches=_patches(video[seen], points[seen]),
            opening=lip_gap(points[seen]) / _eyes_apart(points[seen]),
            frames=np.asarray(frames)[seen],
        )

    def read(self, video: np.ndarray, landmarks: np.ndarray, frames: np.ndarray | None) -> np.ndarray:
        """Read the mouth opening of generated images.

        Args:
            video: Generated images `[F, H, W, 3]`, RGB uint8.
            landmarks: Landmarks asked for, `[F, ≥468, ≥2]`, x/width, y/height.
            frames: Numbers `[F]` of the true frames that the images should show: these and the frames up to `APART`
                before and after them are not fitted to. None: another clip drives, and all true frames are used.

        Returns:
            `[F]`, in units of `opening`; NaN where landmarks are NaN, or where too few true frames are left.
        """
        reading = np.full(len(video), np.nan)
        points = _in_pixels(landmarks, video)
        seen = np.flatnonzero(_eyes_apart(points) > 0)
        if not len(seen):
            return reading
        patches = _patches(video[seen], points[seen])
        # One fit serves a block of neighbouring frames: it leaves out the true frames around all of them.
        for first in range(0, len(seen), _BLOCK):
            block = slice(first, first + _BLOCK)
            own = None if frames is None else np.asarray(frames)[seen[block]]
            reading[seen[block]] = self._read(patches[block], own)
        return reading

    def _read(self, patches: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Openings of one block of frames, by ridge regression on the frames that may be used, in its dual form."""
        # Leave out the true frames that are read, and their neighbours in time, which look almost the same.
        used = np.ones(len(self.frames), bool)
        if own is not None:
            used = np.abs(self.frames[:, None] - own).min(axis=1) > APART
        if used.sum() < FEWEST_FRAMES:
            return np.full(len(patches), np.nan)
        # Fit: with fewer frames than the 480 pixels of a patch, the dual system of [K, K] is the smaller one.
        middle, mean = self.patches[used].mean(axis=0), self.opening[used].mean()
        known = (self.patches[used] - middle).astype(np.float64)
        products = known @ known.T  # [K, K]
        penalty = _RIDGE * np.trace(products) / len(known) * np.eye(len(known))
        weights = known.T @ np.linalg.solve(products + penalty, self.opening[used] - mean)  # [480]
        return (patches - middle) @ weights + mean


def _in_pixels(landmarks: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Landmarks `[F, ≥468, ≥2]` in shares of images `[F, H, W, 3]` → `[F, 468, 2]` in pixels."""
    return landmarks[:, :NUM_VERTICES, :2].astype(np.float64) * (video.shape[2], video.shape[1])


def _eyes_apart(points: np.ndarray) -> np.ndarray:
    """Distance of the outer corners of the eyes, `[F, 468, 2]` → `[F]`; 0 in frames where any point is not finite."""
    apart = np.linalg.norm(points[:, _EYES[0]] - points[:, _EYES[1]], axis=-1)
    return np.where(np.isfinite(points).all(axis=(1, 2)), apart, 0.0)


def _patches(video: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The region of the mouth of every image, normalised in brightness and contrast: `[F, 480]` float32.

    Args:
        video: `[F, H, W, 3]` RGB uint8.
        points: Landmarks `[F, 468, 2]` in pixels, finite.
    """
    target = _target()
    patches = np.empty((len(video), ROWS * COLUMNS), np.float32)
    for row, (image, known) in enumerate(zip(video, points, strict=True)):
        cut = cut_upright(luma(image), known[_SKULL], target, COLUMNS, ROWS, beyond=cv2.BORDER_REPLICATE)
        # Brightness and contrast are taken out: changing light must not pass for a moving mouth.
        patches[row] = ((cut - cut.mean()) / (cut.std() + _CONTRAST)).ravel()
    return patches


def _target() -> np.ndarray:
    """Places of the skull's points in the mouth's region, `[14, 2]` pixels, by the mean face seen from the front."""
    face = mean_face().vertices
    scale = COLUMNS / _WIDTH_CM
    # 13 and 14 are the inner lips. The mean face is in cm with y upwards, rows of pixels run downwards.
    middle = (face[13, 1] + face[14, 1]) / 2 - _BELOW_CM
    return np.stack((face[_SKULL, 0] * scale + COLUMNS / 2, (middle - face[_SKULL, 1]) * scale + ROWS / 2), axis=1)
