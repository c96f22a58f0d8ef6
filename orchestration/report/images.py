"""Images of samples for the report: a frame with the mesh drawn on it, a strip of frames, the sound's envelope."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from shards.reader import read_column, read_media
from talkinghead.annotation import QUALITY_FIELDS
from talkinghead.files.storage import Storage
from talkinghead.media.audio import decode_wav
from talkinghead.media.clip import decode_window
from talkinghead.schema import SampleIndex
from talkinghead.timebase import FPS

# Sizes in pixels. They keep a page of some fifty images at a few megabytes.
TILE_HEIGHT = 288
STRIP_FRAMES = 8
STRIP_HEIGHT = 120
ENVELOPE_BINS = 240
_SILENCE = 0.01  # of full scale
_WEBP_QUALITY = 74
_SUBPIXEL = 4  # fraction bits of the coordinates that OpenCV draws at: 1/16 pixel
# Colours are RGB; the names are those of MediaPipe's connection lists.
_MESH_COLOUR = (120, 235, 215)
_LINE_COLOURS = {
    "FACE_OVAL": (255, 255, 255),
    "LEFT_EYE": (120, 220, 255),
    "RIGHT_EYE": (120, 220, 255),
    "LEFT_EYEBROW": (120, 220, 255),
    "RIGHT_EYEBROW": (120, 220, 255),
    "LEFT_IRIS": (255, 225, 120),
    "RIGHT_IRIS": (255, 225, 120),
    "LIPS": (255, 130, 150),
}


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """An image as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int

    @classmethod
    def of(cls, image: np.ndarray) -> EmbeddedImage:
        """Encode an image, RGB uint8 `[H, W, 3]`, as WebP."""
        done, data = cv2.imencode(
            ".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY]
        )
        assert done
        text = base64.b64encode(data.tobytes()).decode()
        return cls(uri=f"data:image/webp;base64,{text}", width=image.shape[1], height=image.shape[0])


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One sample of the contact sheet."""

    row: SampleIndex
    image: EmbeddedImage
    frame: int
    """Number of the frame shown."""
    has_face: bool
    """Whether landmarks are drawn on it."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One sample over its time."""

    row: SampleIndex
    image: EmbeddedImage
    """`STRIP_FRAMES` frames side by side, evenly spread over the clip."""
    seconds: float
    """Length of the clip."""
    mouth_opening: np.ndarray
    """Opening of the mouth in units of its width, `[F]`."""
    yaw_deg: np.ndarray
    """Yaw of the head in degrees, `[F]`."""
    envelope: np.ndarray
    """Peaks of the sound, `[N]` in 0 .. 1."""


def choose(rows: Iterable[SampleIndex], most: int) -> list[SampleIndex]:
    """Choose up to `most` rows, spread over the split groups and otherwise by the hash of their key."""
    groups: dict[tuple[str, str], list[SampleIndex]] = defaultdict(list)
    for row in rows:
        groups[row.dataset, row.split_group].append(row)
    # The first of every group, then the second of every group, …: many persons before many clips of one.
    ranked = []
    for members in groups.values():
        members.sort(key=lambda row: _digest(row.key))
        ranked += [(place, _digest(row.key), row.key, row) for place, row in enumerate(members[:most])]
    ranked.sort(key=lambda entry: entry[:3])
    return [entry[3] for entry in ranked[:most]]


def contact_tile(storage: Storage, version: str, row: SampleIndex) -> Tile:
    """Draw mesh and contours on the frame with a face that is nearest to the middle of the clip.

    Args:
        storage: DATA, the data set's folder or bucket.
        version: Annotation version to draw.
        row: Sample to show.

    Raises:
        ValueError, av.error.FFmpegError: Media or annotation cannot be decoded.
        OSError, EOFError: A shard cannot be read.
    """
    # Without any face, the middle frame as it is.
    frame, points = row.num_frames // 2, None
    if row.annotation:
        with_face = np.flatnonzero(read_column(storage, version, row, "valid"))
        if len(with_face):
            frame = int(with_face[np.abs(with_face - frame).argmin()])
            points = read_column(storage, version, row, "landmarks")[frame]
    image = _scaled(decode_window(read_media(storage, row, "mp4"), frame, 1)[0], TILE_HEIGHT)
    if points is not None:
        image = draw_mesh(image, points)
    return Tile(row=row, image=EmbeddedImage.of(image), frame=frame, has_face=points is not None)


def clip_strip(storage: Storage, version: str, row: SampleIndex) -> Strip:
    """Read frames, mouth, head and sound of one sample over time. Raises as `contact_tile` does."""
    mp4 = read_media(storage, row, "mp4")
    # One frame from the middle of each eighth of the clip, decoded by itself.
    middles = ((np.arange(STRIP_FRAMES) + 0.5) * row.num_frames / STRIP_FRAMES).astype(int)
    frames = [_scaled(decode_window(mp4, int(frame), 1)[0], STRIP_HEIGHT) for frame in middles]
    quality = read_column(storage, version, row, "quality")
    return Strip(
        row=row,
        image=EmbeddedImage.of(np.concatenate(frames, axis=1)),
        seconds=row.num_frames / FPS,
        mouth_opening=quality[:, QUALITY_FIELDS.index("mouth_opening")],
        yaw_deg=quality[:, QUALITY_FIELDS.index("yaw_deg")],
        envelope=sound_envelope(read_media(storage, row, "wav")),
    )


def sound_envelope(wav: bytes, bins: int = ENVELOPE_BINS) -> np.ndarray:
    """Envelope of a sample's sound: the largest absolute value in each of `bins` equal stretches, `[bins]` in 0 .. 1.

    The loudest stretch is 1, unless the sound is almost silent.

    Raises:
        ValueError: Not a WAV file of the project.
    """
    samples = decode_wav(wav)
    if not samples.size:
        return np.zeros(0)
    starts = np.linspace(0, samples.size, min(bins, samples.size), endpoint=False).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), starts)
    return peaks / max(float(peaks.max()), _SILENCE)


def draw_mesh(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Draw one frame's landmarks over a dimmed copy of it.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        points: Landmarks `[468 or 478, ≥ 2]` as x/width, y/height; lines to NaN points are left out.
    """
    height, width = image.shape[:2]
    pixels = points[:, :2] * (width, height)
    # The mesh at half strength, so that the face shows through; the contours at full strength on top.
    mesh, lines = _connections()
    under = image.copy()
    _draw(under, pixels, mesh, _MESH_COLOUR)
    result = cv2.addWeighted(image, 0.5, under, 0.5, 0)
    for name, pairs in lines.items():
        _draw(result, pixels, pairs, _LINE_COLOURS[name])
    return result


def _draw(image: np.ndarray, pixels: np.ndarray, pairs: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw lines between pairs of points, in place."""
    # A model without irises has 468 points, and no lines between those that it lacks.
    pairs = pairs[(pairs < len(pixels)).all(axis=1)]
    ends = pixels[pairs]  # [N, 2, 2]
    limit = 4 * max(image.shape)  # far outside the image; keeps the fixed-point numbers small
    ends = ends[(np.abs(np.nan_to_num(ends, nan=np.inf)) < limit).all(axis=(1, 2))]
    # Convention: pixel (0, 0) covers 0 .. 1 here, while OpenCV's integer coordinates are pixel centres.
    fixed = np.rint((ends - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
    cv2.polylines(image, list(fixed), False, colour, 1, cv2.LINE_AA, _SUBPIXEL)


@cache
def _connections() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pairs of landmark numbers `[N, 2]`: the edges of the mesh, each once, and the contours by name."""
    # Here only: MediaPipe takes seconds to import, and a report without images needs none of it.
    from mediapipe.tasks.python.vision import FaceLandmarksConnections

    def pairs(name: str) -> np.ndarray:
        connections = getattr(FaceLandmarksConnections, f"FACE_LANDMARKS_{name}")
        found = {(min(line.start, line.end), max(line.start, line.end)) for line in connections}
        return np.array(sorted(found))

    return pairs("TESSELATION"), {name: pairs(name) for name in _LINE_COLOURS}


def _scaled(image: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
