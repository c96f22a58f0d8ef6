"""Sources of the head's motion other than the speech (`--pose`): `video:FILE` and `template:FILE.npy`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer.drivers.driving_video import bridged_clip, read_driving_clip
from infer.request import TEMPLATE_FPS
from talkinghead.face.model import FaceModel
from talkinghead.files.foreign import open_regular
from talkinghead.motion.resampling import resample_frames, tile
from talkinghead.motion.rest_pose import clip_rest_pose
from talkinghead.motion.smoothing import TEMPLATE_WINDOW, moving_average
from talkinghead.timebase import FPS

# Limits of a plausible template; more is another kind of array.
_MOST_DEGREES = 180.0
_MOST_CM = 1000.0
_MOST_FRAMES = 1_000_000  # nine hours at 30 fps; a file with holes can have any size


@dataclass(frozen=True, kw_only=True)
class DrivingPose:
    """A head's motion relative to its rest pose (templates: to the first frame), to be played on any reference."""

    pose: np.ndarray
    """Pose per frame, `[F, 6]`: three angles in degrees, three shifts in cm."""
    fps: float
    """Frames per second."""
    smoothing: int
    """Frames (odd) of the moving average that suits it; 1: none."""
    interpolated: int = 0
    """Number of frames in which no face was found and the motion was interpolated."""

    def play(self, frames: int, fps: float, *, gain: float | None = None, smoothing: int | None = None) -> np.ndarray:
        """Play the motion for `frames` frames at `fps`, to and fro where it is shorter.

        Args:
            frames: Number of frames.
            fps: Frame rate.
            gain: Factor for the three angles; None: 1.
            smoothing: Frames (odd) of the moving average; None: what suits the source.

        Returns:
            Pose `[frames, 6]` float64, degrees and cm.
        """
        # Smoothed and scaled at its own rate, [F, 6]; tiled to the length that is needed, then resampled.
        pose = moving_average(self.pose, self.smoothing if smoothing is None else smoothing)
        pose[:, :3] *= 1.0 if gain is None else gain
        needed = math.ceil(frames * self.fps / fps) + 1
        return resample_frames(tile(pose, needed), self.fps, fps, frames)


def read_template(path: Path, fps: float = TEMPLATE_FPS) -> DrivingPose:
    """Read a head pose template: an `.npy` file of `[F, 6]`, relative to its first frame, as AniPortrait makes them.

    Raises:
        ValueError: No such file, or other content; the message tells what was found.
    """
    try:
        open_regular(path).close()  # no folder, and no pipe, which might never open
    except FileNotFoundError:
        raise ValueError(f"the pose template {path} is not there") from None
    try:
        # Mapped, so that a damaged header that speaks of terabytes is found out before memory is asked for.
        pose = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # NumPy's text proposes to unpickle it
        raise ValueError(f"the pose template {path} is not a NumPy .npy file of numbers, or is damaged") from error
    # Shape and values are checked here, because a wrong file would only show as a strange video.
    if not isinstance(pose, np.ndarray) or pose.ndim != 2 or pose.shape[1] != 6 or not len(pose):
        shape = list(pose.shape) if isinstance(pose, np.ndarray) else "an archive"
        raise ValueError(f"the pose template {path} is {shape}, must be [frames, 6]: three angles in degrees, three cm")
    if len(pose) > _MOST_FRAMES:
        raise ValueError(f"the pose template {path} has {len(pose):,} frames, and {_MOST_FRAMES:,} are the most")
    if pose.dtype.kind not in "fiu" or not np.isfinite(pose).all():
        raise ValueError(f"the pose template {path} holds values that are not finite numbers")
    if np.abs(pose[:, :3]).max() > _MOST_DEGREES or np.abs(pose[:, 3:]).max() > _MOST_CM:
        raise ValueError(f"the pose template {path} holds angles beyond ±180 degrees or moves beyond 10 m")
    return DrivingPose(pose=pose.astype(np.float64), fps=fps, smoothing=1)


def read_driving_video(
    path: Path, seconds: float, model: FaceModel, on_frame: Callable[[int], None] | None = None
) -> DrivingPose:
    """Read the head's motion from a video at 25 fps, relative to its rest pose.

    The rest pose is the median, not the first frame as in pose templates: otherwise a video that begins with a turned
    head would turn the reference for good. Where no face is found, the motion is interpolated between its neighbours;
    at the ends it stands still.

    Args:
        path: Video file; only its first `seconds` are read.
        seconds: Length of the motion that is needed.
        model: Face model.
        on_frame: Callback with the number of frames done.

    Raises:
        ValueError: The file cannot be read, no frame of it has a face, or the face is away for too long.
    """
    clip = read_driving_clip(path, model, seconds=seconds, on_frame=on_frame)
    # The rest pose comes from frames with a face only; what is interpolated must not weigh in.
    rest = clip_rest_pose(clip.motion.pose_matrix, clip.motion.valid)
    whole = bridged_clip(clip)
    return DrivingPose(
        pose=whole.motion.pose_about(rest),
        fps=FPS,
        smoothing=TEMPLATE_WINDOW,
        interpolated=whole.interpolated,
    )
