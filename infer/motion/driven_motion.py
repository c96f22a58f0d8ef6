"""A portrait's motion from a driving video: its face, its way, in the other's time."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from infer.motion.driving_video import DrivingClip, bridged, read_driving_clip
from infer.motion.motion_edit import edited
from infer.portrait import Portrait
from infer.request import VideoRequest
from talkinghead.face.model import FaceModel
from talkinghead.geometry.face_regions import mouth_opening
from talkinghead.motion.landmark_motion import LandmarkMotion, place
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.retarget import transfer
from talkinghead.motion.smoothing import moving_average
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

_STAGE = "motion of the video"
_OPEN_MOUTH_CM = 0.4


def read_driving(path: Path, model: FaceModel, progress: Progress, seconds: float | None) -> DrivingClip:
    """The driving video's face in every frame, gaps bridged.

    Args:
        path: Video file.
        model: Face model.
        progress: Told how far it is.
        seconds: Read no more than this.

    Raises:
        ValueError: It cannot be read, or shows no face, or none for too long.
    """
    from talkinghead.media.probe import probe

    info = probe(path)
    length = info.duration_s if info.duration_s is not None else 0.0
    frames = max(1, math.ceil(min(length, seconds if seconds is not None else math.inf) * FPS))
    progress(_STAGE, 0, frames)

    def watch(done: int) -> None:
        progress(_STAGE, min(done, frames), frames)

    clip = bridged(read_driving_clip(path, model, seconds=seconds, watch=watch))
    if not clip.has_audio:
        log.info("the driving video %s has no sound, so neither has the result", path)
    return clip


def driven_motion(
    request: VideoRequest, clip: DrivingClip, portrait: Portrait, *, fps: float, compat: bool
) -> tuple[LandmarkMotion, dict[str, Any]]:
    """Let the portrait's face do what the driving face does.

    Args:
        request: What is asked for.
        clip: The driving face, without gaps.
        portrait: The portrait as it is animated (its crop).
        fps: Frame rate where the request leaves it open.
        compat: Whether to project as AniPortrait does.

    Returns:
        The motion, and what was decided on the way (for the sidecar).
    """
    if request.neutralise == "none" and (opening := float(mouth_opening(portrait.mesh))) > _OPEN_MOUTH_CM:
        log.warning(
            "warning: the portrait's mouth is %.1f cm open, and with --neutralise none it will not close further",
            opening,
        )
    rate = request.fps or fps
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
    count = max(1, round(len(clip) * rate / FPS))
    geometry: dict[str, Any] = {
        "reference_pose_matrix": portrait.pose_matrix,
        "width": portrait.width,
        "height": portrait.height,
        "compat": compat,
    }
    motion = place(
        resample_frames(transferred.mesh.astype(np.float32), FPS, rate, count),
        resample_frames(pose, FPS, rate, count),
        fps=rate,
        **geometry,
    )
    facts = {
        "compat_projection": compat,
        "interpolated_frames": clip.interpolated,
        "neutral_frames": transferred.neutral.num_frames,
        "neutral_rule": transferred.neutral.rule,
    }
    return edited(motion, request, reference_mesh=transferred.rest, **geometry), facts
