"""What drives a portrait: one interface over speech and the face of a video, and what is laid over the motion of both.

`DrivingSpeech` stands in `speech_motion`, `DrivingVideo` in `driven_motion`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infer.portrait import Portrait
from infer.request import PortraitOptions
from talkinghead.face.model import FaceModel
from talkinghead.motion.blink import blink_closure, close_eyes
from talkinghead.motion.landmark_motion import LandmarkMotion, place
from talkinghead.motion.retarget import uncrossed
from talkinghead.runtime.progress import Progress


class Driving(Protocol):
    """Called in the order of its methods; each raises `ValueError` for what the user gave wrongly."""

    command: str
    """Name of the command of `python -m infer`."""
    files: list[Path]
    """The user's files, which no output may replace."""

    def find(self, pipeline: Path) -> None:
        """Look whether all files and weights are there; `pipeline` is the folder of the pipeline that was found."""
        ...

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read and check what drives; no more than so many seconds of it."""
        ...

    @property
    def sound(self) -> Path | None:
        """File whose sound goes into the video."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was read, for the sidecar."""
        ...

    def move(
        self, portrait: Portrait, progress: Progress, *, fps: float, compat: bool, device: str
    ) -> tuple[LandmarkMotion, dict[str, Any]]:
        """The motion of the portrait's face, and what was decided on the way; loads what it needs."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Weights that took part, for the sidecar."""
        ...


def edited(
    motion: LandmarkMotion,
    request: PortraitOptions,
    portrait: Portrait,
    *,
    reference_mesh: np.ndarray,
    compat: bool,
) -> LandmarkMotion:
    """The motion with the request's `expression_gain` and `blink`; itself where neither is asked for.

    Args:
        motion: Motion as the models or the driving video give it.
        request: What is asked for.
        portrait: The portrait in which the motion was placed.
        reference_mesh: `[468, 3]` cm: what the motion's mesh is relative to.
        compat: Whether the motion was projected as AniPortrait does.
    """
    rate = request.blink_rate
    if request.expression_gain == 1 and rate is None:
        return motion
    mesh = motion.mesh
    if request.expression_gain != 1:
        reference = np.asarray(reference_mesh, np.float32)
        mesh = uncrossed(reference + np.float32(request.expression_gain) * (mesh - reference), reference, mesh)
    if rate is not None:
        closure = blink_closure(len(motion), motion.fps, rate=rate, seed=request.seed)
        mesh = close_eyes(mesh, closure)
    return place(
        mesh,
        motion.pose,
        reference_pose_matrix=portrait.pose_matrix,
        width=portrait.width,
        height=portrait.height,
        fps=motion.fps,
        compat=compat,
    )
