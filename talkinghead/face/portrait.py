"""The portrait: an image, the face in it that is animated, and the box of an image that is cut out for it.

Finding and measuring a face needs networks; here is only what was found. A portrait that is cut out of a larger one
has mesh and pose of its own, because the camera looks at the middle of its image, which is another point then.

Convention: x to the right, y down, both from the image's top left corner; boxes include x0 and y0 and exclude x1 and
y1. Landmarks are x/W, y/H, z/W of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

NUM_LANDMARKS = 478
"""Landmarks of a face: 468 of the mesh, then those of the irises; a face model of 468 points leaves these NaN."""
_MESH = 468  # landmarks of the mesh, the first of all


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Box of whole pixels in an image; it may reach beyond the image, but not lie outside."""

    x0: int
    y0: int
    x1: int
    y1: int
    image_width: int
    """Width of the image in pixels."""
    image_height: int
    """Height of the image in pixels."""

    def __post_init__(self) -> None:
        assert self.x0 < self.x1 and self.y0 < self.y1, f"an empty crop: {self}"
        assert self.x0 < self.image_width and self.y0 < self.image_height and self.x1 > 0 and self.y1 > 0

    @property
    def width(self) -> int:
        """Width of the box in pixels of the image."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Height of the box in pixels of the image."""
        return self.y1 - self.y0

    @property
    def padded(self) -> bool:
        """Whether the box reaches beyond the image."""
        return self.x0 < 0 or self.y0 < 0 or self.x1 > self.image_width or self.y1 > self.image_height

    @property
    def whole(self) -> bool:
        """Whether the box is the whole image."""
        return (self.x0, self.y0, self.x1, self.y1) == (0, 0, self.image_width, self.image_height)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Pixels of the box: `[H, W, 3]` → `[height, width, 3]`; beyond the image the border's pixels are repeated."""
        assert image.shape[:2] == (self.image_height, self.image_width), f"{image.shape} is another image"
        # Rows and columns that lie beyond each side of the image.
        top, left = max(0, -self.y0), max(0, -self.x0)
        bottom, right = max(0, self.y1 - self.image_height), max(0, self.x1 - self.image_width)
        inside = image[max(0, self.y0) : self.y1, max(0, self.x0) : self.x1]
        return cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REPLICATE)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Landmarks, normalised by the image's size, normalised by the crop's size instead.

        Args:
            points: Landmarks `[..., N, 3]`: x/W, y/H, z/W, where W and H are the image's width and height.

        Returns:
            Landmarks `[..., N, 3]` relative to the crop's corner, W and H being the crop's; in the same dtype.
        """
        # Depth z is in pixels of the width, with an origin of its own, so it is scaled but not moved.
        size = np.array([self.image_width, self.image_height, self.image_width], np.float64)
        origin = np.array([self.x0, self.y0, 0.0])
        return ((points * size - origin) / (self.width, self.height, self.width)).astype(points.dtype)


@dataclass(frozen=True, kw_only=True)
class Face:
    """Landmarks and blendshapes of a face in an image of W x H pixels."""

    points: np.ndarray
    """Landmarks `[478, 3]` float32: x/W, y/H, z/W. Iris rows are NaN when the face model has none."""
    blendshapes: np.ndarray | None
    """Blendshape scores `[52]` float32 in MediaPipe's order; None when the face model has no such network."""

    def __post_init__(self) -> None:
        if self.points.shape != (NUM_LANDMARKS, 3):
            raise ValueError(f"a face has landmarks {(NUM_LANDMARKS, 3)}, not {self.points.shape}")

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Box x0, y0, x1, y1 around the landmarks: x/W, y/H."""
        (x0, y0), (x1, y1) = self.points[:_MESH, :2].min(axis=0), self.points[:_MESH, :2].max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def outside(self) -> float:
        """Share of the landmarks that lie beyond the image's border."""
        xy = self.points[:_MESH, :2]
        return float(((xy < 0) | (xy > 1)).any(axis=1).mean())

    def cropped(self, crop: Crop) -> Face:
        """The same face in a crop of the image."""
        return Face(points=crop.points(self.points), blendshapes=self.blendshapes)


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A portrait and the measurements of its face that drivers and renderers use."""

    image: np.ndarray
    """Image RGB uint8 `[H, W, 3]`, upright."""
    face: Face
    """Face that is animated."""
    mesh: np.ndarray
    """Mesh of the face, with the expression it has in the image: `[468, 3]` float32 in canonical space, cm."""
    pose_matrix: np.ndarray
    """Head pose: `[4, 4]` float64, canonical → camera space, cm."""
    turned_deg: int = 0
    """Degrees clockwise by which the file's image was turned so that its face is upright: 0, 90, 180 or 270."""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"a portrait's image is [H, W, 3] uint8, not {self.image.shape} {self.image.dtype}")
        if self.mesh.shape != (_MESH, 3) or self.pose_matrix.shape != (4, 4):
            raise ValueError(
                f"a portrait has a mesh {(_MESH, 3)} and a pose matrix (4, 4), not {self.mesh.shape} and"
                f" {self.pose_matrix.shape}"
            )

    @property
    def width(self) -> int:
        """Width of the image in pixels."""
        return self.image.shape[1]

    @property
    def height(self) -> int:
        """Height of the image in pixels."""
        return self.image.shape[0]

    @property
    def face_px(self) -> tuple[float, float, float, float]:
        """Box x0, y0, x1, y1 around the landmarks in pixels."""
        x0, y0, x1, y1 = self.face.extent
        return x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height
