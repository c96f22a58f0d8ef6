"""A driver that takes a video: the portrait's face does what the face in the video does, when it does it.

The rest of a face and of a head are medians over the whole clip, so the whole clip is read before the first frame
moves: a megabyte for each second.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from infer.drivers.driving import reference_at_rest
from infer.drivers.driving_video import DrivingClip, bridged_clip, read_driving_clip
from infer.request import VideoOptions
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.face.resolve import resolve_face_model
from talkinghead.media.media_file import probe
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.retarget import transfer
from talkinghead.motion.smoothing import moving_average
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MESHES, MotionKind
from talkinghead.provenance import hash_file
from talkinghead.runtime.progress import Progress, ProgressCallback
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

_STAGE = "motion of the video"  # name of this phase in the progress bar


class VideoDriver:
    """The face in a video. Its source is a `DrivingClip` that was read, or the path of a video; options `VideoOptions`.

    Args:
        model: Face model by which videos are read; None: the one that is found.
    """

    name = "video"
    gives = MotionKind(space=MESHES, fps=FPS, needs=("mesh",), delay=None)

    def __init__(self, model: FaceModel | None = None) -> None:
        self._model = model
        self._clips: dict[Path, DrivingClip] = {}
        self._facts: dict[str, Any] = {}

    def check(self, portrait: Portrait, source: DrivingClip | Path, options: VideoOptions | None = None) -> None:
        """Read the video and find its face, so that `move` need not; raises `ValueError` as `read_driving`."""
        del portrait, options
        self._clip(source)

    def move(
        self,
        portrait: Portrait,
        source: DrivingClip | Path,
        options: VideoOptions | None = None,
        *,
        fps: float | None = None,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> MotionStream:
        """Motion of the portrait's face, whole, in parts; arguments as `protocols.Driver.move`."""
        del seed, progress
        clip = self._clip(source)
        options = options or VideoOptions(driving=clip.path)
        motion, self._facts = driven_motion(options, clip, portrait, fps=fps or FPS)
        return MotionStream.of(motion)

    def about(self) -> dict[str, dict[str, Any]]:
        """What was decided about the neutral face and gaps."""
        return {"result": self._facts}

    def _clip(self, source: DrivingClip | Path) -> DrivingClip:
        if isinstance(source, DrivingClip):
            return source
        if source not in self._clips:
            clip = read_driving_clip(source, self._model or resolve_face_model())
            self._clips = {source: bridged_clip(clip)}
        return self._clips[source]


class VideoDriving:
    """A video with the user's options; a `Driving`."""

    name = VideoDriver.name
    gives = VideoDriver.gives
    recording = None

    def __init__(self, options: VideoOptions) -> None:
        self._options = options
        self.files = [options.driving]
        self._driver = VideoDriver()
        self._clip: DrivingClip | None = None

    def find(self, pipeline: Path | None) -> None:
        """Check that the video is there; it needs nothing from the renderer."""
        del pipeline
        if not self._options.driving.exists():
            raise ValueError(f"the driving video {self._options.driving} is not there")

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Find the face in every frame of the video."""
        self._clip = read_driving(self._options.driving, model, progress, seconds)
        self._driver.check(portrait, self._clip, self._options)

    @property
    def sound(self) -> Path | None:
        """File whose sound goes into the result: the driving video; None when it has none."""
        assert self._clip is not None
        return self._clip.path if self._clip.has_audio else None

    def describe(self) -> dict[str, Any]:
        """Hash, size, length and sound of the video, for the sidecar."""
        clip = self._clip
        assert clip is not None
        found = {
            "sha256": hash_file(clip.path),
            "size": [clip.motion.width, clip.motion.height],
            "seconds": round(len(clip) / FPS, 6),
            "sound": clip.has_audio,
        }
        return {"driving": found | ({"turned_deg": clip.turned_deg} if clip.turned_deg else {})}

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """Motion of the portrait's face; needs no weights."""
        del device
        assert self._clip is not None
        return self._driver.move(portrait, self._clip, self._options, fps=fps, progress=progress)

    @property
    def facts(self) -> dict[str, Any]:
        """What was decided about the neutral face and gaps."""
        return self._driver.about()["result"]

    def provenance(self) -> dict[str, Any]:
        """Weights that took part, for the sidecar: none."""
        return {}


def read_driving(path: Path, model: FaceModel, progress: Progress, seconds: float | None) -> DrivingClip:
    """Find the driving video's face in every frame and bridge gaps.

    Args:
        path: Video file.
        model: Face model.
        progress: Callback for the progress.
        seconds: Most seconds to read; None: the whole video.

    Raises:
        ValueError: The video cannot be read, shows no face, or shows none for too long.
    """
    # The container's length is only an estimate, good enough for the progress.
    info = probe(path)
    length = info.duration_s if info.duration_s is not None else 0.0
    frames = max(1, math.ceil(min(length, seconds if seconds is not None else math.inf) * FPS))
    progress(_STAGE, 0, frames)

    def on_frame(done: int) -> None:
        progress(_STAGE, min(done, frames), frames)

    clip = bridged_clip(read_driving_clip(path, model, seconds=seconds, on_frame=on_frame))
    if not clip.has_audio:
        log.info("the driving video %s has no sound, so neither has the result", path)
    return clip


def driven_motion(
    request: VideoOptions, clip: DrivingClip, portrait: Portrait, *, fps: float
) -> tuple[Motion, dict[str, Any]]:
    """Transfer the driving face's motion to the portrait's face.

    Args:
        request: Options of the user.
        clip: Driving face, without gaps.
        portrait: Portrait as it is animated (its crop).
        fps: Frame rate of the result.

    Returns:
        Motion, and what was decided on the way (for the sidecar).
    """
    # The driving face's motion on the portrait's face, at 25 fps as the video was read: mesh [F, 468, 3], pose [F, 6].
    mesh, neutral = clip.motion.meshes(), clip.neutral
    if request.smooth_mesh > 1:
        mesh = moving_average(mesh, request.smooth_mesh)
        neutral = neutral_mesh(mesh, clip.blendshapes, clip.motion.valid)
    transferred = transfer(
        mesh,
        clip.motion.pose_matrix,
        neutral.mesh,
        # An open mouth is closed below, by the driving mouth, which shows better how mouths open than a basis.
        reference_mesh=reference_at_rest(portrait, "all") if request.neutralise == "all" else portrait.mesh,
        reference_pose_matrix=portrait.pose_matrix,
        pose_mode="relative" if request.pose == "still" else request.pose,
        pose_gain=request.pose_gain,
        window=request.smooth,
        relax_mouth=request.neutralise != "none",
    )
    pose = np.zeros_like(transferred.pose) if request.pose == "still" else transferred.pose

    # At the result's frame rate, in the portrait's camera.
    count = max(1, round(len(clip) * fps / FPS))
    motion = Motion(
        pose_matrix=placed_pose(resample_frames(pose, FPS, fps, count), portrait.pose_matrix),
        neutral=transferred.rest.astype(np.float32),
        mesh=resample_frames(transferred.mesh.astype(np.float32), FPS, fps, count),
        valid=np.ones(count, bool),
        fps=fps,
        width=portrait.width,
        height=portrait.height,
    )
    facts = {
        "interpolated_frames": clip.interpolated,
        "neutral_frames": neutral.num_frames,
        "neutral_rule": neutral.rule,
    }
    return motion, facts
