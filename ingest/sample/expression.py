"""Posing of the portrait's face: the mouth opens and rounds with the jaw, the eyes close.

The mouth is moved by a mesh whose rows are the contours of the face (nose base, lips, jaw, collar) and whose columns
are the image's. Each row moves by its own amount and everything between two rows stretches in proportion. Between
the inner lips the mesh is torn open, and there the inside of the mouth shows: the image's own upper teeth, which hang
from the upper lip, with a dark cavity and the tongue below them.

Convention: coordinates and lengths are pixels of the image, y down; [H, W] is the size of a patch of the texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ingest.sample import portrait as face
from ingest.sample.portrait import TEXTURE_SCALE, Eye, smoothstep

MOST_OPEN = 3.4
"""Gap of the inner lips at opening 1, as a multiple of their gap in the image's smile."""
CLOSED = 0.1
"""Gap of closed lips in the same unit: they still leave a thin dark line."""
ROUNDING = 0.3
"""Share by which columns are sampled further from the mouth's centre when it is pursed, so that it is narrower."""
_LIP_EDGE = 0.6  # image pixels of lip next to the teeth that have the teeth's colour, and are not drawn
_TINY = 1e-3  # image pixels; keeps closed gaps from dividing by zero
# Colours in RGB levels.
_CAVITY = np.array([46.0, 16.0, 16.0], np.float32)
_TONGUE = np.array([136.0, 66.0, 64.0], np.float32)


@dataclass(frozen=True, kw_only=True)
class Expression:
    """Expression of the face at one moment; every number from 0 to 1."""

    opening: float
    """Opening of the mouth; 0: lips closed, 1: wide open."""
    rounding: float
    """Rounding of the lips; 0: as wide as the smile, 1: pursed as in `oo`."""
    blink: float
    """Closing of the eyes; 0: open, 1: closed."""


@dataclass(frozen=True)
class _Patch:
    """A part of the texture, with the image coordinates of its pixels, `[H, W]` each."""

    rows: slice
    columns: slice
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def around(cls, x0: float, y0: float, x1: float, y1: float) -> _Patch:
        scale = TEXTURE_SCALE
        columns, rows = slice(int(x0 * scale), int(x1 * scale)), slice(int(y0 * scale), int(y1 * scale))
        # Centres of the texture's pixels in image coordinates, [H, W] each.
        y, x = np.mgrid[rows, columns].astype(np.float32)
        return cls(rows, columns, (x + 0.5) / scale, (y + 0.5) / scale)


# Patches large enough for everything that moves: mouth to collar, and each eye with its crease.
_MOUTH = _Patch.around(176, 118, 271, 211)
_EYES = tuple(
    _Patch.around(eye.span[0] - 3, eye.upper(np.array(eye.span)).min() - 12, eye.span[1] + 3, 112) for eye in face.EYES
)


def pose_face(texture: np.ndarray, expression: Expression) -> np.ndarray:
    """A copy of the portrait's texture with the face in `expression`, same shape."""
    posed = texture.copy()
    posed[_MOUTH.rows, _MOUTH.columns] = _pose_mouth(texture, expression)
    if expression.blink > 0:
        for eye, patch in zip(face.EYES, _EYES, strict=True):
            posed[patch.rows, patch.columns] = _pose_eye(texture, eye, patch, expression.blink)
    return posed


def _sample(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Texture at image coordinates `[H, W]`, bilinear: uint8 RGB `[H, W, 3]`."""
    columns, rows = ((value * TEXTURE_SCALE - 0.5).astype(np.float32) for value in (x, y))
    return cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _unfold(y: np.ndarray, source: list[np.ndarray], moved: list[np.ndarray]) -> np.ndarray:
    """Inverse of a vertical stretch: `y` before the rows `source` went to `moved`.

    Linear between two rows; beyond the outer two, shifted with them.
    """
    # Sum of the parts of each interval that lie above y: 0 before it, its whole height after it.
    before = source[0] + np.minimum(y - moved[0], 0)
    for row in range(len(source) - 1):
        height = np.maximum(moved[row + 1] - moved[row], _TINY)
        before += np.clip((y - moved[row]) / height, 0, 1) * (source[row + 1] - source[row])
    return before + np.maximum(y - moved[-1], 0)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel inside an edge at `distance` image pixels (positive: inside)."""
    return np.clip(distance * TEXTURE_SCALE * 0.5 + 0.5, 0, 1)


def _pose_mouth(texture: np.ndarray, expression: Expression) -> np.ndarray:
    """The mouth patch, uint8 `[H, W, 3]`: skin and lips above and below the tear, the inside of the mouth between."""
    # Rounding: columns are sampled further from the centre, most at the lips, so the mouth gets narrower.
    centre_x, centre_y = face.MOUTH_CENTRE
    y = _MOUTH.y
    offset = _MOUTH.x - centre_x
    pull = ROUNDING * expression.rounding * np.exp(-((offset / 30) ** 2) - ((y - centre_y) / 22) ** 2)
    x = centre_x + offset * (1 + pull)

    # Contours on columns a quarter of a pixel apart, and the column of each pixel: [columns], [H, W].
    columns = face.MOUTH_CENTRE[0] + np.arange(-60, 60, 0.25)
    place = np.clip(((x - columns[0]) * 4 + 0.5).astype(np.int32), 0, len(columns) - 1)
    upper_outer, upper, lower, lower_outer, jaw = (
        contour(columns).astype(np.float32)
        for contour in (
            face.UPPER_LIP_OUTER,
            face.UPPER_LIP_INNER,
            face.LOWER_LIP_INNER,
            face.LOWER_LIP_OUTER,
            face.JAW,
        )
    )
    # How far each row moves, as multiples of the smile's gap: the upper lip a little, the lower lip with the jaw,
    # the jaw most in the middle and not at all at its hinges.
    times = CLOSED + (MOST_OPEN - CLOSED) * expression.opening
    smile = lower - upper
    upper_shift = smile * (0.35 * max(0.0, 1 - times) - 0.06 * max(0.0, times - 1))
    lower_shift = smile * (times - 1) + upper_shift
    hinge = np.cos(np.pi / 2 * np.clip((columns - centre_x) / face.JAW_HALF_WIDTH, -1, 1)).astype(np.float32)
    jaw_shift = 0.7 * face.SMILE_GAP * (times - 1) * hinge

    # Rows of the mesh above and below the tear, as they are and as moved; nose base and collar stay.
    nose, collar = np.full_like(upper, face.NOSE_BASE), np.full_like(upper, face.COLLAR)
    jaw = np.maximum(jaw, lower_outer + 2)
    above = [nose, upper_outer, upper], [nose, upper_outer + upper_shift, upper + upper_shift]
    below = (
        [lower, lower_outer, jaw, collar],
        [lower + lower_shift, lower_outer + lower_shift, jaw + jaw_shift, collar],
    )
    top, bottom = above[1][-1][place], below[1][0][place]
    # Where each pixel comes from, if it belongs to the upper or to the lower part; never from the teeth.
    in_upper = _unfold(y, *([row[place] for row in rows] for rows in above))
    in_lower = _unfold(y, *([row[place] for row in rows] for rows in below))
    in_upper = np.minimum(in_upper, upper[place] - _LIP_EDGE)
    in_lower = np.maximum(in_lower, lower[place] + _LIP_EDGE)
    skin = _sample(texture, x, np.where(y < (top + bottom) / 2, in_upper, in_lower))
    # The inside of the mouth is laid over where the lips have parted, with soft edges: [H, W, 1].
    inside = (_coverage(y - top) * _coverage(bottom - y) * (bottom - top > 0.05))[..., None]
    interior = _interior(texture, x, y, top, bottom, upper[place], lower[place])
    return np.clip(skin + inside * (interior - skin) + 0.5, 0, 255).astype(np.uint8)


def _interior(
    texture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    top: np.ndarray,
    bottom: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
) -> np.ndarray:
    """Teeth, cavity and tongue, `[H, W, 3]` float32, right where `top <= y <= bottom`.

    Args:
        texture: Texture of the portrait.
        x: x of the image that each pixel shows, `[H, W]`.
        y: y of each pixel, `[H, W]`.
        top: Moved inner edge of the upper lip, `[H, W]`.
        bottom: Moved inner edge of the lower lip, `[H, W]`.
        upper: Inner edge of the upper lip in the image, `[H, W]`.
        lower: Inner edge of the lower lip in the image, `[H, W]`.
    """
    gap = np.maximum(bottom - top, _TINY)
    depth = y - top
    # Cavity, and the tongue at its bottom, which shows once the mouth is open by more than 5 px.
    tongue = 0.75 * smoothstep((y - bottom) / 5 + 1) * smoothstep((gap - 5) / 6)
    result = _CAVITY + tongue[..., None] * (_TONGUE - _CAVITY)
    # The upper teeth, sampled from the smile: they hang from the upper lip and darken as the mouth closes.
    length = lower - upper - 0.9  # visible length of the teeth in the smile, image pixels
    teeth = _sample(texture, x, upper + np.clip(depth, 0, np.maximum(length, 0))).astype(np.float32)
    shade = 0.2 + 0.72 * smoothstep(gap / 5)
    shown = smoothstep((length - depth) / 0.9 + 0.5) * smoothstep((length - 1.0) / 2.5)
    return result + (shown[..., None]) * (teeth * shade[..., None] - result)


def _pose_eye(texture: np.ndarray, eye: Eye, patch: _Patch, blink: float) -> np.ndarray:
    """The eye patch, uint8 `[H, W, 3]`: the upper lid, with its lashes, drawn down over the eye."""
    # Lid edges with their lashes, [W]; the skin between crease and lid is what stretches.
    upper, lower = eye.upper(patch.x[0]) + 0.6, eye.lower(patch.x[0]) + 0.9
    crease = upper - 6.5
    lid = upper + blink * np.maximum(lower - upper, 0)
    before = _unfold(patch.y, [crease[None], upper[None]], [crease[None], lid[None]])
    covered = _coverage(lid[None] - patch.y)[..., None]
    skin = _sample(texture, patch.x, np.minimum(before, upper[None])).astype(np.float32)
    eyeball = texture[patch.rows, patch.columns]
    return np.clip(eyeball + covered * (skin - eyeball) + 0.5, 0, 255).astype(np.uint8)
