"""A portrait's motion from a driving video: the portrait's face does what the driving face does, when it does it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from infer.motion.driving import edited, reference_at_rest
from infer.motion.driving_video import DrivingClip, bridged_clip, read_driving_clip
from infer.request import VideoRequest
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.media.media_file import probe
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.retarget import transfer
from talkinghead.motion.smoothing import moving_average
from talkinghead.provenance import hash_file
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

_STAGE = "motion of the video"  # name of this phase in the progress bar


class DrivingVideo:
    """The face in a video as what drives the portrait; a `Driving`."""

    command = "video"

    def __init__(self, request: VideoRequest) -> None:
        self._request = request
        self.files = [request.driving]
        self._clip: DrivingClip | None = None

    def find(self, pipeline: Path) -> None:
        """Check that the video is there; it needs nothing from the pipeline."""
        if not self._request.driving.exists():
            raise ValueError(f"the driving video {self._request.driving} is not there")

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Find the face in every frame of the video."""
        self._clip = read_driving(self._request.driving, model, progress, seconds)

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

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> tuple[Motion, dict[str, Any]]:
        """Motion of the portrait's face, and what was decided on the way; needs no weights."""
        assert self._clip is not None
        return driven_motion(self._request, self._clip, portrait, fps=fps)

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
    request: VideoRequest, clip: DrivingClip, portrait: Portrait, *, fps: float
) -> tuple[Motion, dict[str, Any]]:
    """Transfer the driving face's motion to the portrait's face.

    Args:
        request: Request of the user.
        clip: Driving face, without gaps.
        portrait: Portrait as it is animated (its crop).
        fps: Frame rate where the request leaves it open.

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
    rate = request.fps or fps
    count = max(1, round(len(clip) * rate / FPS))
    motion = Motion(
        pose_matrix=placed_pose(resample_frames(pose, FPS, rate, count), portrait.pose_matrix),
        neutral=transferred.rest.astype(np.float32),
        mesh=resample_frames(transferred.mesh.astype(np.float32), FPS, rate, count),
        valid=np.ones(count, bool),
        fps=rate,
        width=portrait.width,
        height=portrait.height,
    )
    # Gains and blinks come last, over the motion as it was transferred.
    facts = {
        "interpolated_frames": clip.interpolated,
        "neutral_frames": neutral.num_frames,
        "neutral_rule": neutral.rule,
    }
    return edited(motion, request), facts
