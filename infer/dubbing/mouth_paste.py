"""Puts the mouth of a rendered frame into the frame of a video, and measures how well it fits.

What is replaced is the lower face: the convex hull of its landmarks as they were and as they are now (a jaw that opens
covers neck, one that closes uncovers it), and a border of `BORDER` around it, in which the rendered frame fades into
the video's. Beyond the border every pixel is the video's own.

Colours are matched first. On the skin around the border (nose and cheeks, which speech does not move), mean and spread
of each channel are measured in both, averaged over the last frames so that they do not flicker, and the rendered frame
gets the video's. Source of that step: E. Reinhard et al., "Color Transfer between Images", 2001, here in RGB.

Measured, over all frames that are dubbed:

    seam        mean step from pixel to pixel in the border, in grey levels, dubbed and in the untouched video; an edge
                that can be seen makes the first larger
    colour      mean difference of the channels' means on the skin around, before and after matching, in grey levels
    sharpness   variance of the Laplacian, rendered over untouched: inside, where they show different mouths; and on the
                skin around, where they show the same, which tells how soft the renderer is: below 1 it is softer
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from talkinghead.face.portrait import Crop
from talkinghead.geometry.face_regions import LOWER_FACE, NUM_VERTICES
from talkinghead.media.image_size import resize_image

BORDER = 0.06
"""Width of the border, in heights of the face."""
SKIN = 0.15
"""Width of the skin around the border on which colours are compared, in heights of the face."""
_KEPT = 0.8  # share of the statistics so far that stays with each frame: they follow within a fifth of a second
_LEAST_PIXELS = 32  # of skin, for statistics
SOFTEST, SHARPEST = 0.5, 2.0
"""Range of the sharpness on the skin that passes. A blur of 0.6 pixels (a Gaussian's standard deviation) halves it; a
grain of one grey level that the video lacks may double it."""
_LOWEST_GAIN, _HIGHEST_GAIN = 0.5, 2.0  # of the spread; beyond, the two show different things
_LOWER = list(LOWER_FACE)


@dataclass(frozen=True, kw_only=True, eq=False)
class PasteArea:
    """Where a mouth is replaced in a box, and where colours are compared."""

    weight: np.ndarray
    """Share of the rendered frame in each pixel, `[h, w]` float32: 1 inside, 0 beyond the border."""
    skin: np.ndarray
    """Skin around the border, `[h, w]` bool."""
    border_px: float
    """Width of the border in pixels."""
    window: tuple[slice, slice]
    """Rows and columns outside of which both are empty: work is done there only."""

    @property
    def inside(self) -> np.ndarray:
        """Pixels that are the rendered frame's alone, `[h, w]` bool."""
        return self.weight == 1

    @property
    def border(self) -> np.ndarray:
        """Pixels in which both are mixed, `[h, w]` bool."""
        return (self.weight > 0) & (self.weight < 1)

    @property
    def compared(self) -> np.ndarray:
        """Pixels of the window in which the rendered frame and the video's should be alike, bool: the skin.

        All of them where the face is so small that no skin is left between the border and the eyes.
        """
        skin = self.skin[self.window]
        return skin if skin.sum() >= _LEAST_PIXELS else np.ones_like(skin)

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, width: int, height: int) -> PasteArea:
        """Area of a frame.

        Args:
            before: Landmarks of the video's frame, `[≥468, ≥2]`, normalised by the box.
            after: Landmarks of the rendered frame, in the same form.
            width: Width of the box in pixels.
            height: Height of the box in pixels.
        """
        size = (width, height)
        was, now = (points[:NUM_VERTICES, :2] * size for points in (before, after))
        tall = float(np.ptp(was[:, 1]))
        border, skin = max(2.0, BORDER * tall), max(3.0, SKIN * tall)
        # The part of the box around the hull of the mouth that counts.
        lower = np.concatenate((was[_LOWER], now[_LOWER]))
        first = np.clip(np.floor(lower.min(axis=0) - border - skin), 0, size).astype(int)
        end = np.clip(np.ceil(lower.max(axis=0) + border + skin) + 1, first + 1, np.maximum(first + 1, size)).astype(
            int
        )
        window = slice(int(first[1]), int(end[1])), slice(int(first[0]), int(end[0]))
        # Distance of each pixel from the hull: 0 inside. Beyond the box there is nothing to fade into, so the border
        # also runs along its sides.
        outside = _outside(lower - first, *(end - first))
        away = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rows, columns = np.arange(*window[0].indices(height)[:2])[:, None], np.arange(*window[1].indices(width)[:2])
        side = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
        near = np.clip(np.minimum(1 - away / border, side / border), 0, 1)
        weight, around = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
        weight[window] = near * near * (3 - 2 * near)  # smoothstep: no edge where it begins or ends
        around[window] = (_outside(was - first, *(end - first)) == 0) & (near == 0) & (away < border + skin)
        return cls(weight=weight, skin=around, border_px=border, window=window)


def _outside(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Whether each pixel is outside of the convex hull of points `[N, 2]` in pixels, `[height, width]` uint8."""
    outside = np.ones((int(height), int(width)), np.uint8)
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    cv2.fillConvexPoly(outside, np.rint(hull).astype(np.int32), 0)
    return outside


@dataclass(kw_only=True)
class PasteReport:
    """How well the mouths fit that were put in so far."""

    frames: int = 0
    _sums: dict[str, float] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Count a frame with its measures."""
        self.frames += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def describe(self) -> dict[str, float | None]:
        """Means over the frames; None where no frame was dubbed."""
        names = ("seam", "seam_untouched", "colour_rendered", "colour_matched", "sharpness_ratio", "sharpness_skin")
        return {name: round(self._sums[name] / self.frames, 4) if self.frames else None for name in names}

    def mismatch(self) -> str | None:
        """One line that says that the mouths are softer or sharper than the video around them; None where they fit."""
        ratio = self.describe()["sharpness_skin"]
        if ratio is None or SOFTEST <= ratio <= SHARPEST:
            return None
        kind = f"softer, below {SOFTEST:g}" if ratio < SOFTEST else f"sharper, above {SHARPEST:g}"
        return f"the generated face has {ratio:.2g} of the sharpness of the video around it ({kind}, which shows)"


class MouthPaste:
    """Function that puts rendered mouths into the frames of a video, one after the other."""

    def __init__(self) -> None:
        self.report = PasteReport()
        self._statistics: np.ndarray | None = None  # [2 images, 2 (mean, spread), 3 channels], averaged over frames

    def __call__(
        self, image: np.ndarray, rendered: np.ndarray, crop: Crop, *, before: np.ndarray, after: np.ndarray
    ) -> np.ndarray:
        """Put in one mouth.

        Args:
            image: Frame of the video, RGB uint8 `[H, W, 3]`.
            rendered: Rendered frame of the box, RGB uint8 `[h, w, 3]` in any size.
            crop: Box in the frame.
            before: Landmarks of the video's frame, `[≥468, ≥2]`, normalised by the box.
            after: Landmarks of the rendered frame, in the same form.

        Returns:
            RGB uint8 `[H, W, 3]`, a new array. Where the weight is 0, the pixels of `image`.
        """
        area = PasteArea.of(before, after, crop.width, crop.height)
        if not area.inside.any():
            return image.copy()  # a face at the image's border, whose mouth is beyond it
        blended, window = crop.cut(image), area.window
        own, fitted = blended[window].copy(), resize_image(rendered, crop.width, crop.height)[window]
        matched, colours = self._matched(fitted, own, area)
        weight = area.weight[window][:, :, None]
        blended[window] = np.rint(np.clip(own + weight * (matched - own), 0, 255)).astype(np.uint8)
        self.report.add(**_fit(blended[window], own, matched, area), **colours)

        result = image.copy()
        top, left = max(0, crop.y0), max(0, crop.x0)
        bottom, right = min(image.shape[0], crop.y1), min(image.shape[1], crop.x1)
        result[top:bottom, left:right] = blended[top - crop.y0 : bottom - crop.y0, left - crop.x0 : right - crop.x0]
        return result

    def skip(self) -> None:
        """Note a frame that is not dubbed: colours may have changed when the next one is."""
        self._statistics = None

    def _matched(self, fitted: np.ndarray, own: np.ndarray, area: PasteArea) -> tuple[np.ndarray, dict[str, float]]:
        """The rendered pixels with the video's colours, float32, and how far these were apart before and after.

        Both images are the area's window, `[h, w, 3]` uint8.
        """
        skin = area.compared
        # Shades count and texture does not: a soft frame is not one of low contrast.
        shades = [cv2.GaussianBlur(image, (0, 0), area.border_px / 2)[skin] for image in (fitted, own)]
        pixels = np.stack(shades).astype(np.float64)  # [2, N, 3]
        found = np.stack((pixels.mean(axis=1), pixels.std(axis=1)), axis=1)
        kept = self._statistics
        kept = found if kept is None else _KEPT * kept + (1 - _KEPT) * found
        self._statistics = kept
        (mean, spread), (own_mean, own_spread) = kept
        gain = np.clip((own_spread + 1) / (spread + 1), _LOWEST_GAIN, _HIGHEST_GAIN)
        matched = fitted * gain.astype(np.float32) + (own_mean - mean * gain).astype(np.float32)
        now = (found[0, 0] - mean) * gain + own_mean
        return matched, {
            "colour_rendered": float(np.abs(found[0, 0] - found[1, 0]).mean()),
            "colour_matched": float(np.abs(now - found[1, 0]).mean()),
        }


def _fit(blended: np.ndarray, own: np.ndarray, matched: np.ndarray, area: PasteArea) -> dict[str, float]:
    """Measures of one frame, see the module's description.

    All images are the area's window, uint8: the result, the video's frame, and the rendered frame in its colours.
    """
    border, inside = area.border[area.window], area.inside[area.window]
    result, video, drawn = (_grey(image) for image in (blended, own, matched))
    return {
        "seam": _steps(result, border),
        "seam_untouched": _steps(video, border),
        "sharpness_ratio": _sharpness(result, inside) / _sharpness(video, inside),
        "sharpness_skin": _sharpness(drawn, area.compared) / _sharpness(video, area.compared),
    }


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.clip(image, 0, 255).astype(np.float32), cv2.COLOR_RGB2GRAY)


def _steps(grey: np.ndarray, where: np.ndarray) -> float:
    """Mean step from pixel to pixel in grey levels, across and down."""
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    return float(across[where[:, 1:]].mean() + down[where[1:]].mean()) / 2


def _sharpness(grey: np.ndarray, where: np.ndarray) -> float:
    """Variance of the Laplacian; never 0, as it is divided by."""
    return float(cv2.Laplacian(grey, cv2.CV_32F)[where].var()) + 1e-6
