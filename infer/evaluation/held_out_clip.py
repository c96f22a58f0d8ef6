"""Held-out clips as users would meet them: a portrait, and files of the speech or video that drives it, with the truth.

The portrait is the clip's frame farthest from the measured ones, at the clip's own resolution, cut to the aspect of the
evaluated images. Its face is that of the annotation, measured anew in the camera of the cut image, and so is the true
motion. What drives is written into files, so that a driver reads them as it reads a user's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer.evaluation.driven_clip import DrivenClip, measured_window, read_driven_clips
from shards.reader import Sample
from talkinghead.face.portrait import Crop, Face, Portrait
from talkinghead.geometry.canonical import CanonicalFace
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.media.audio import encode_wav
from talkinghead.media.image_size import middle_box
from talkinghead.media.talking_video import write_talking_video
from talkinghead.motion.annotated import MOTION_COLUMNS
from talkinghead.motion.gaps import held_frames
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.resampling import tile
from talkinghead.timebase import FPS, SAMPLES_PER_FRAME

COLUMNS = ("landmarks", *MOTION_COLUMNS)
"""Annotation columns that are read."""


@dataclass(frozen=True, kw_only=True)
class HeldOutClip:
    """A clip that systems are measured on, with its truth; F frames at 25 fps."""

    driven: DrivenClip
    """True frames `[F, H, W, 3]` at the evaluated size, true landmarks, measured frames, and the sound."""
    portrait: Portrait
    """Portrait that every system gets."""
    motion: Motion
    """True motion in the camera of the portrait; frames without a face repeat the one before and are not valid."""

    @property
    def key(self) -> str:
        """Sample key."""
        return self.driven.key

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return self.driven.num_frames

    @property
    def truth(self) -> np.ndarray:
        """True frames, `[F, H, W, 3]` RGB uint8."""
        assert self.driven.truth is not None, "it drives itself"
        return self.driven.truth


@dataclass(frozen=True, kw_only=True)
class DrivingFiles:
    """What drives a portrait, as files."""

    speech: Path
    """WAV of F frames."""
    video: Path | None
    """Video of F frames with the same sound; None where no driver looks at images."""


def read_held_out(
    sample: Sample, size: tuple[int, int], face: CanonicalFace, *, frames: int | None = None
) -> HeldOutClip:
    """Read a clip.

    Args:
        sample: Sample of a reader with the annotation columns `COLUMNS`.
        size: Width and height of the evaluated images in pixels.
        face: Canonical face of the face model.
        frames: Number of frames, near the clip's middle; None: all.

    Raises:
        ValueError: The clip shows no face outside of its reference frame, or cannot be read.
    """
    found = next(read_driven_clips([sample], *size, frames=frames), None)
    if found is None or not found.valid.any() or found.frames is None:
        raise ValueError(f"{sample.key} shows no face but in its reference frame")
    crop = cut_of(sample, size)
    points = crop.points(sample.annotation("landmarks"))
    scores = sample.annotation("blendshapes", found.still, 1)[0]
    shown = Face(points=points[found.still], blendshapes=scores if np.isfinite(scores).all() else None)
    mesh, matrix = metric_mesh(points[found.still : found.still + 1], crop.width, crop.height, face)
    portrait = Portrait(
        image=crop.cut(sample.video(found.still, 1)[0]),
        face=shown,
        mesh=mesh[0].astype(np.float32),
        pose_matrix=matrix[0],
    )
    valid = sample.annotation("valid").astype(bool)
    held = points[held_frames(valid)][found.frames]
    return HeldOutClip(
        driven=found,
        portrait=portrait,
        motion=motion_of(held, portrait, face, valid=valid[found.frames]),
    )


def motion_of(points: np.ndarray, portrait: Portrait, face: CanonicalFace, *, valid: np.ndarray) -> Motion:
    """Motion of landmarks in the camera of a portrait.

    Args:
        points: Landmarks `[F, ≥468, 3]`: x/W, y/H, z/W of images of the portrait's aspect; finite.
        portrait: Portrait.
        face: Canonical face of the face model.
        valid: Frames that hold a face, `[F]` bool.
    """
    mesh, matrix = metric_mesh(points, portrait.width, portrait.height, face)
    mesh = mesh.astype(np.float32)
    return Motion(
        pose_matrix=matrix,
        neutral=neutral_mesh(mesh, None, np.ones(len(mesh), bool)).mesh,
        mesh=mesh,
        valid=valid,
        fps=FPS,
        width=portrait.width,
        height=portrait.height,
    )


def cut_of(sample: Sample, size: tuple[int, int]) -> Crop:
    """Box of a clip's images that has the aspect of the evaluated ones: the one that training cuts, in the middle."""
    width, height = sample.info.width, sample.info.height
    left, top, across, down = middle_box(width, height, *size)
    return Crop(x0=left, y0=top, x1=left + across, y1=top + down, image_width=width, image_height=height)


def write_driving(
    sample: Sample, folder: Path, size: tuple[int, int], *, frames: int | None, count: int, images: bool
) -> DrivingFiles:
    """Write what a clip drives with: its measured frames, to and fro where it is shorter than what it drives.

    Args:
        sample: Driving clip.
        folder: Folder for the files; made when needed.
        size: Width and height of the evaluated images in pixels, whose aspect the video is cut to.
        frames: Number of frames that are measured of each clip, near its middle; None: all.
        count: Number of frames to write.
        images: Whether a video is written, too.

    Raises:
        ValueError: The clip shows no face.
    """
    valid = sample.annotation("valid").astype(bool)
    if not valid.any():
        raise ValueError(f"{sample.key} shows no face, so it drives nothing")
    # As many frames as are to be driven, where the clip has them.
    window = measured_window(valid, max(frames or len(valid), count))
    order = tile(np.arange(len(window)), count)
    sound = sample.audio(window.start, len(window)).reshape(-1, SAMPLES_PER_FRAME)
    samples = sound[order].ravel()
    folder.mkdir(parents=True, exist_ok=True)
    speech = folder / "speech.wav"
    speech.write_bytes(encode_wav(samples))
    if not images:
        return DrivingFiles(speech=speech, video=None)
    crop, video = cut_of(sample, size), folder / "driving.mp4"
    pixels = sample.video(window.start, len(window))
    width, height = crop.width // 2 * 2, crop.height // 2 * 2  # H.264 takes even sides
    cut = (np.ascontiguousarray(crop.cut(pixels[number])[:height, :width]) for number in order)
    write_talking_video(video, cut, width=width, height=height, fps=FPS, speech=samples)
    return DrivingFiles(speech=speech, video=video)
