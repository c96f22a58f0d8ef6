"""Two real clips of two people, annotated as the job does it: for measures that must hold on real faces."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from annotate.clip import annotate_clip
from annotate.engines.litert import LitertEngine
from annotate.settings import AnnotateSettings
from talkinghead.annotation import Arrays
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import load_official
from talkinghead.files.storage import Storage
from talkinghead.geometry.canonical import canonical_face
from talkinghead.media.audio import read_whole_audio
from talkinghead.media.image_size import fit_images
from talkinghead.media.video_source import VideoSource
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

WOMAN, OTHER = "Real3DPortrait_May_5s", "SadTalker_WDA_AlexandriaOcasioCortez_000"
"""Files of the clips: both 512 x 512 pixels, 25 frames per second, and speaking."""
FRAMES = 100
SIDE = 256
"""Width and height in pixels of the images that are packed."""


@dataclass(frozen=True)
class RealClip:
    """First frames of a clip."""

    name: str
    video: np.ndarray
    """Images, `[F, 512, 512, 3]`."""
    audio: np.ndarray
    arrays: Arrays

    @property
    def landmarks(self) -> np.ndarray:
        """Points in the images, `[F, 468, 2]`."""
        return self.arrays["landmarks"][:, :468, :2]

    def at(self, side: int) -> np.ndarray:
        """Video at another size, as the pipeline would make it."""
        return resized(self.video, side)


@functools.cache
def real_clip(shared: Path, name: str) -> RealClip:
    """Read and annotate a clip, once."""
    path = shared / "media" / "video" / f"{name}.mp4"
    with VideoSource(path) as source:
        video = np.stack([frame.image for frame in itertools.islice(source.frames(), FRAMES)])
    model = load_official(shared / "models" / "face_landmarker.task")
    face = canonical_face(model.geometry_metadata)
    arrays = annotate_clip(video, LitertEngine(model), FaceDetector(model), face, AnnotateSettings())
    assert arrays["valid"].all()
    return RealClip(name, video, read_whole_audio(path)[: FRAMES * 640], arrays)


def build_real_data(root: Path, shared: Path, *, held_out: bool = True) -> Storage:
    """Both clips as a data set: the other woman to train on, the first one held out or not."""
    clips = []
    for name, split in ((OTHER, "train"), (WOMAN, "val" if held_out else "train")):
        clip = real_clip(shared, name)
        key = f"folder-{name}"
        clips.append(
            PackedClip(
                key=key,
                num_frames=FRAMES,
                media=media_members(key, clip.at(SIDE), clip.audio, source_id=name, group=name),
                annotation=annotation_members(key, clip.arrays),
                split=split,
                split_group=name,
                scores={"audio_missing": 0.0, "audio_silent": 0.0, "audio_padded_fraction": 0.0},
            )
        )
    return pack_data(root, clips, min_shards=1)


def resized(video: np.ndarray, side: int) -> np.ndarray:
    """Images `[F, H, W, 3]` in another size."""
    return np.ascontiguousarray(np.moveaxis(fit_images(np.moveaxis(video, 3, 1), side, side), 1, 3))


def blurred(video: np.ndarray, sigma: float) -> np.ndarray:
    """Images out of focus."""
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in video])


def noisy(video: np.ndarray, sigma: float) -> np.ndarray:
    """Images with noise, drawn for each one."""
    noise = np.random.default_rng(0).normal(0, sigma, video.shape)
    return np.clip(video + noise, 0, 255).round().astype(np.uint8)
