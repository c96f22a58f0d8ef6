"""A portrait's motion from a driving video: the portrait's face does what the driving face does, when it does it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from infer.motion.driving import edited
from infer.motion.driving_video import DrivingClip, bridged, read_driving_clip
from infer.portrait import Portrait
from infer.request import VideoRequest
from talkinghead.face.model import FaceModel
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.media.media_file import probe
from talkinghead.motion.landmark_motion import LandmarkMotion, place
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.retarget import transfer
from talkinghead.motion.smoothing import moving_average
from talkinghead.provenance import hash_file
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

_STAGE = "motion of the video"  # name of this phase in the progress bar
_OPEN_MOUTH_CM = 0.4  # gap of the portrait's lips from which on the mouth counts as open


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
        return {
            "driving": {
                "sha256": hash_file(clip.path),
                "size": [clip.width, clip.height],
                "seconds": round(len(clip) / FPS, 6),
                "sound": clip.has_audio,
            }
        }

    def move(
        self, portrait: Portrait, progress: Progress, *, fps: float, compat: bool, device: str
    ) -> tuple[LandmarkMotion, dict[str, Any]]:
        """Motion of the portrait's face, and what was decided on the way; needs no weights."""
        assert self._clip is not None
        return driven_motion(self._request, self._clip, portrait, fps=fps, compat=compat)

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

    clip = bridged(read_driving_clip(path, model, seconds=seconds, on_frame=on_frame))
    if not clip.has_audio:
        log.info("the driving video %s has no sound, so neither has the result", path)
    return clip


def driven_motion(
    request: VideoRequest, clip: DrivingClip, portrait: Portrait, *, fps: float, compat: bool
) -> tuple[LandmarkMotion, dict[str, Any]]:
    """Transfer the driving face's motion to the portrait's face.

    Args:
        request: Request of the user.
        clip: Driving face, without gaps.
        portrait: Portrait as it is animated (its crop).
        fps: Frame rate where the request leaves it open.
        compat: Whether to project as AniPortrait does.

    Returns:
        Motion, and what was decided on the way (for the sidecar).
    """
    # Motion is relative to the portrait's mesh, so a mouth that is open there never closes further.
    if request.neutralise == "none" and (opening := float(lip_gap(portrait.mesh))) > _OPEN_MOUTH_CM:
        log.warning(
            "warning: the portrait's mouth is %.1f cm open, and with --neutralise none it will not close further",
            opening,
        )

    # The driving face's motion on the portrait's face, at 25 fps as the video was read: mesh [F, 468, 3], pose [F, 6].
    transferred = transfer(
        moving_average(clip.mesh, request.smooth_mesh) if request.smooth_mesh > 1 else clip.mesh,
        clip.pose_matrix,
        clip.blendshapes,
        reference_mesh=portrait.mesh,
        reference_pose_matrix=portrait.pose_matrix,
        pose_mode="relative" if request.pose == "still" else request.pose,
        pose_gain=request.pose_gain,
        window=request.smooth,
        relax_mouth=request.neutralise == "mouth",
    )
    pose = np.zeros_like(transferred.pose) if request.pose == "still" else transferred.pose

    # At the result's frame rate, and projected by the portrait's camera.
    rate = request.fps or fps
    count = max(1, round(len(clip) * rate / FPS))
    motion = place(
        resample_frames(transferred.mesh.astype(np.float32), FPS, rate, count),
        resample_frames(pose, FPS, rate, count),
        reference_pose_matrix=portrait.pose_matrix,
        width=portrait.width,
        height=portrait.height,
        fps=rate,
        compat=compat,
    )
    # Gains and blinks come last, over the motion as it was transferred.
    facts = {
        "compat_projection": compat,
        "interpolated_frames": clip.interpolated,
        "neutral_frames": transferred.neutral.num_frames,
        "neutral_rule": transferred.neutral.rule,
    }
    return edited(motion, request, portrait, reference_mesh=transferred.rest, compat=compat), facts
