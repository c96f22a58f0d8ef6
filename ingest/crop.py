"""Crops: where a clip is cut out of the frame, and the cutting itself. The aspect never changes.

Convention: pixels of the upright frame, x to the right, y down, ends exclusive.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ingest.faces import Box, Track
from ingest.settings import IngestSettings
from talkinghead.schema import CatalogRow


@dataclass(frozen=True)
class Crop:
    """A box of whole pixels in the upright frame, and the size to which it is resized."""

    x0: int
    y0: int
    x1: int
    y1: int
    """Lower end, exclusive as `x1`. The box may leave the frame: there the border is repeated."""
    width: int
    height: int
    """Height of the result in pixels, even as `width`."""
    rule: str
    """Source of the box: `box` (the data set), `face`, or `none` (the whole frame)."""
    notes: tuple[str, ...] = ()
    """Changes to a listed box, for the clip's provenance."""

    @property
    def box(self) -> Box:
        """Box x0, y0, x1, y1 as the clip's provenance stores it."""
        return float(self.x0), float(self.y0), float(self.x1), float(self.y1)

    @property
    def side(self) -> int:
        """Shorter side of the box in pixels of the source."""
        return min(self.x1 - self.x0, self.y1 - self.y0)


def listed_crop(row: CatalogRow, width: int, height: int, settings: IngestSettings) -> Crop:
    """The data set's own box as a crop of a real frame of `width` x `height`.

    The box is scaled from the frame size that it was made for, moved inside the frame, and made smaller when it is
    larger than the frame. With a fixed clip size it becomes a square about the same centre.
    """
    assert row.box is not None
    # From the frame size that the box refers to (normalised boxes: 1 x 1; HDTF lists the height only) to this frame.
    scale_y = height / row.box_height if row.box_height else 1.0
    scale_x = width / row.box_width if row.box_width else scale_y
    x0, y0, x1, y1 = (value * scale for value, scale in zip(row.box, (scale_x, scale_y) * 2, strict=True))
    wanted_w, wanted_h = max(2, round(x1 - x0)), max(2, round(y1 - y0))
    notes = []
    if json.loads(row.attributes).get("box_square") == "min":
        # CelebV-HQ's own rule: round the box, then a square of its shorter side about its centre, all in whole pixels.
        x0, y0, x1, y1 = round(x0), round(y0), round(x1), round(y1)
        half = max(1, min(x1 - x0, y1 - y0) // 2)
        center_x, center_y = (x0 + x1) // 2, (y0 + y1) // 2
        x0, y0, x1, y1 = center_x - half, center_y - half, center_x + half, center_y + half
        wanted_w = wanted_h = 2 * half
    # A clip of fixed size is square: the longer side counts, so that the whole box is inside.
    if settings.size and wanted_w != wanted_h:
        side = max(wanted_w, wanted_h)
        if abs(wanted_w - wanted_h) > 2:
            notes.append(f"box of {wanted_w}x{wanted_h} made square")
        wanted_w = wanted_h = side
    # Shrink to fit, then shift inside. 1e-6 keeps a side that fits exactly from being rounded down by a pixel.
    shrink = min(1.0, width / wanted_w, height / wanted_h)
    crop_w, crop_h = max(2, int(wanted_w * shrink + 1e-6)), max(2, int(wanted_h * shrink + 1e-6))
    if shrink < 1:
        notes.append(f"box of {wanted_w}x{wanted_h} is larger than the frame, made {crop_w}x{crop_h}")
    left, top = round((x0 + x1 - crop_w) / 2), round((y0 + y1 - crop_h) / 2)
    inside_left, inside_top = min(max(left, 0), width - crop_w), min(max(top, 0), height - crop_h)
    # A pixel is rounding, and a shrunk box has its note already.
    if max(abs(inside_left - left), abs(inside_top - top)) > 1 and shrink == 1:
        notes.append(f"box moved by {inside_left - left}, {inside_top - top} px to lie inside the frame")
    return _crop(inside_left, inside_top, crop_w, crop_h, "box", settings, tuple(notes))


def face_crop(face: Track, first: int, end: int, width: int, height: int, settings: IngestSettings) -> Crop:
    """A square around the face, the same for all frames `first .. end - 1` of a piece.

    It is shifted to lie inside the frame, and made smaller when it does not fit, but never smaller than the face's own
    boxes: where those leave no other choice, the square leaves the frame.
    """
    # Union of the face's boxes in the piece; a piece between two detections takes those of the whole track.
    boxes = np.array([s.box for s in face.sightings if first <= s.frame < end] or [s.box for s in face.sightings])
    x0, y0 = boxes[:, :2].min(axis=0)
    x1, y1 = boxes[:, 2:].max(axis=0)
    # Square with a margin: no larger than the frame, no smaller than the union itself.
    union = max(x1 - x0, y1 - y0)
    side = max(2, round(max(min(settings.margin * union, width, height), union)))
    # Centred across; lower than the middle in height, so that the hair is inside.
    left = round((x0 + x1) / 2 - side / 2)
    top = round((y0 + y1) / 2 - settings.face_center_y * side)
    left, top = (_inside(start, side, length) for start, length in ((left, width), (top, height)))
    return _crop(left, top, side, side, "face", settings)


def whole_frame(width: int, height: int, settings: IngestSettings) -> Crop:
    """The whole frame, resized so that its shorter side has the fixed clip size (or at native size)."""
    if not settings.size:
        return _crop(0, 0, width, height, "none", settings)
    scale = settings.size / min(width, height)
    out_w, out_h = (2 * max(8, round(length * scale / 2)) for length in (width, height))
    return Crop(0, 0, width, height, out_w, out_h, "none")


def cut_out(part_of: Callable[[int, int, int, int], np.ndarray], width: int, height: int, crop: Crop) -> np.ndarray:
    """The crop of a frame as RGB uint8 `[crop.height, crop.width, 3]`.

    Averages when it shrinks, cubic when it enlarges; outside the frame the border is repeated.

    Args:
        part_of: Function from x0, y0, x1, y1 inside the frame to its pixels `[y1 - y0, x1 - x0, 3]`.
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.
        crop: Crop to cut out.
    """
    # Only the part inside the frame has pixels; the rest of the box is filled from the border.
    x0, y0, x1, y1 = max(0, crop.x0), max(0, crop.y0), min(width, crop.x1), min(height, crop.y1)
    part = part_of(x0, y0, x1, y1)
    if (x0, y0, x1, y1) != (crop.x0, crop.y0, crop.x1, crop.y1):
        beyond = (y0 - crop.y0, crop.y1 - y1, x0 - crop.x0, crop.x1 - x1)
        part = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REPLICATE)
    if part.shape[:2] == (crop.height, crop.width):
        return part
    method = cv2.INTER_AREA if crop.height <= part.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(part, (crop.width, crop.height), interpolation=method)


def _inside(start: int, side: int, length: int) -> int:
    """Shift an interval into `0 .. length`, or centre the excess when it is longer."""
    if side > length:
        return (length - side) // 2
    return min(max(start, 0), length - side)


def _crop(
    left: int, top: int, width: int, height: int, rule: str, settings: IngestSettings, notes: tuple[str, ...] = ()
) -> Crop:
    """A crop with its result size. Native size drops an odd column or row: yuv420p needs even sides."""
    if settings.size:
        return Crop(left, top, left + width, top + height, settings.size, settings.size, rule, notes)
    width, height = max(2, width - width % 2), max(2, height - height % 2)
    return Crop(left, top, left + width, top + height, width, height, rule, notes)
