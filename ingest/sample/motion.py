"""Motion of the sample's head (turns, nods, shifts, blinks), and the map from an output frame to the portrait.

The head turns as a solid in front of the camera, with a depth that bulges like a head; how much a place follows the
head falls off smoothly towards the shoulders and the background.

Convention: F frames; [H, W] of an output frame; image pixels of the portrait, x to the right, y down, depth to the
camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ingest.sample import portrait as face
from ingest.sample.portrait import smoothstep
from talkinghead.rng import generator

_HEAD_DEPTH = 52.0  # pixels of the image between the tip of the face and the plane in which the head turns
_NOSE_DEPTH = 9.0  # pixels of the image by which the nose stands out further
_HEAD_RADIUS = 88.0  # pixels of the image up to which everything follows the head fully
_COARSE = 8  # the displacement is smooth: it is worked out on every 8th pixel
_ROUNDS = 3  # rounds of the fixed-point iteration that inverts the displacement
_BLINK_SECONDS = 0.3  # from open over closed to open


@dataclass(frozen=True)
class HeadMotion:
    """Motion of the head per frame, `[F]` each."""

    yaw: np.ndarray
    """Turn in radians; positive turns the face to the right of the image."""
    pitch: np.ndarray
    """Nod in radians; positive nods down."""
    roll: np.ndarray
    """Tilt in radians; positive tilts clockwise in the image."""
    shift: np.ndarray
    """Shift x, y in pixels of the image, `[F, 2]`."""
    growth: np.ndarray
    """Factor of size, around 1: the head leans to the camera and back."""
    blink: np.ndarray
    """Closing of the eyes: 0 open … 1 closed."""


def head_motion(seed: int, name: str, times: np.ndarray, stress: np.ndarray) -> HeadMotion:
    """Random motion: slow wandering, nods on stressed syllables, and a blink every two to four seconds.

    Args:
        seed: Seed of the sample.
        name: Name of the clip; another name gives another motion.
        times: Time of each frame in seconds, `[F]`.
        stress: Slow loudness of the speech, 0 .. 1, `[F]`.
    """
    noise = generator(seed, "sample-motion", name)

    # The order of the draws below is part of the sample: another one would give other videos.
    def wander(amplitude: float) -> np.ndarray:
        # Four sines below 0.6 Hz with random phases: [F, 4], summed.
        rates, phases = noise.uniform(0.12, 0.6, 4), noise.uniform(0, 2 * np.pi, 4)
        weights = np.array([0.5, 0.3, 0.2, 0.15])
        return amplitude * (weights * np.sin(2 * np.pi * rates * times[:, None] + phases)).sum(axis=1)

    # Blinks: quick to close, slower to open.
    blink = np.zeros_like(times)
    start = noise.uniform(0.6, 1.4)
    while start < times[-1]:
        phase = np.clip((times - start) / _BLINK_SECONDS, 0, 1)
        blink = np.maximum(blink, np.sin(np.pi * phase**0.8) ** 1.5)
        start += noise.uniform(1.8, 3.6)
    return HeadMotion(
        yaw=wander(np.radians(15)),
        pitch=wander(np.radians(4)) + np.radians(3) * stress,
        roll=wander(np.radians(4.5)),
        shift=np.stack([wander(4.0), wander(2.0)], axis=1),
        growth=1 + wander(0.02),
        blink=np.clip(blink, 0, 1),
    )


@dataclass(frozen=True)
class View:
    """Part of the portrait that a frame shows: `zoom` output pixels per image pixel, upper left corner `x0`, `y0`."""

    width: int
    height: int
    zoom: float
    x0: float
    y0: float

    def coarse(self) -> tuple[np.ndarray, np.ndarray]:
        """Image coordinates of the centres of cells of `_COARSE` pixels, `[H/8, W/8]` each."""
        rows, columns = -(-self.height // _COARSE), -(-self.width // _COARSE)
        y, x = np.mgrid[:rows, :columns].astype(np.float32)
        return tuple(corner + (value + 0.5) * _COARSE / self.zoom for value, corner in ((x, self.x0), (y, self.y0)))

    def fine(self) -> tuple[np.ndarray, np.ndarray]:
        """Image coordinates of the output pixels, `[1, W]` and `[H, 1]`."""
        x = self.x0 + (np.arange(self.width, dtype=np.float32)[None] + 0.5) / self.zoom
        y = self.y0 + (np.arange(self.height, dtype=np.float32)[:, None] + 0.5) / self.zoom
        return x, y


def _displacement(x: np.ndarray, y: np.ndarray, motion: HeadMotion, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Displacement x, y of the image's points (x, y) by the head's motion, pixels, same shape."""
    # Depth of the head: a wide bulge, and the nose on it.
    centre_x, centre_y = face.HEAD_CENTRE
    from_centre = ((x - centre_x) / 46) ** 2 + ((y - centre_y) / 58) ** 2
    from_nose = ((x - centre_x + 1) / 9) ** 2 + ((y - centre_y - 12) / 9) ** 2
    depth = _HEAD_DEPTH * np.exp(-from_centre / 2) + _NOSE_DEPTH * np.exp(-from_nose / 2)

    # Rotation about the neck: first pitch, then yaw, then roll; camera along the depth, far away.
    along_x, along_y = x - face.NECK[0], y - face.NECK[1]
    sin, cos = np.sin(motion.pitch[frame]), np.cos(motion.pitch[frame])
    turned_y, turned_z = along_y * cos + depth * sin, depth * cos - along_y * sin
    sin, cos = np.sin(motion.yaw[frame]), np.cos(motion.yaw[frame])
    turned_x = along_x * cos + turned_z * sin
    sin, cos = np.sin(motion.roll[frame]), np.cos(motion.roll[frame])
    growth = motion.growth[frame]
    moved_x = growth * (turned_x * cos - turned_y * sin) + motion.shift[frame, 0]
    moved_y = growth * (turned_x * sin + turned_y * cos) + motion.shift[frame, 1]

    # Points outside the head follow less, the shoulders not at all.
    distance = np.hypot(x - centre_x, (y - centre_y) * 0.95) / _HEAD_RADIUS
    follows = (1 - smoothstep((distance - 1) / 0.9)) * (1 - smoothstep((y - 172) / 62))
    return follows * (moved_x - along_x), follows * (moved_y - along_y)


def portrait_map(view: View, motion: HeadMotion, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates of each output pixel: `cv2.remap`'s two maps, `[H, W]` float32 each."""
    # The displacement is known at the source, but wanted at the target: solve x + d(x) = target by iteration.
    out_x, out_y = view.coarse()
    x, y = out_x, out_y
    for _ in range(_ROUNDS):
        dx, dy = _displacement(x, y, motion, frame)
        x, y = out_x - dx, out_y - dy
    # Enlarge the smooth part to every pixel, add the exact grid, and go from image to texture pixels.
    maps = []
    for whole, moved, exact in zip((out_x, out_y), (x, y), view.fine(), strict=True):
        rows, columns = whole.shape
        smooth = cv2.resize(
            (moved - whole).astype(np.float32),
            (columns * _COARSE, rows * _COARSE),
            interpolation=cv2.INTER_LINEAR,
        )
        maps.append((smooth[: view.height, : view.width] + exact) * face.TEXTURE_SCALE - np.float32(0.5))
    return maps[0], maps[1]
