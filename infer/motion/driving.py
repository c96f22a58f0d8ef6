"""Interface to what drives a portrait (speech, or the face of a video), and edits to the motion of both.

`DrivingSpeech` is in `speech_motion`, `DrivingVideo` in `driven_motion`.
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
    """What drives a portrait. Methods are called in the order below; each raises `ValueError` for a wrong input."""

    command: str
    """Name of its command of `python -m infer`."""
    files: list[Path]
    """Input files of the user, which no output may replace."""

    def find(self, pipeline: Path) -> None:
        """Check that all files and weights are there; `pipeline` is the folder of the pipeline that was found."""
        ...

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read and check the driving file, at most `seconds` of it."""
        ...

    @property
    def sound(self) -> Path | None:
        """File whose sound goes into the video; None: a silent video."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts about what was read, for the sidecar."""
        ...

    def move(
        self, portrait: Portrait, progress: Progress, *, fps: float, compat: bool, device: str
    ) -> tuple[LandmarkMotion, dict[str, Any]]:
        """Motion of the portrait's face, and what was decided on the way; loads the weights that it needs."""
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
    """Apply the request's `expression_gain` and `blink_rate` to a motion; itself where neither is asked for.

    Args:
        motion: Motion as the models or the driving video give it.
        request: Request of the user.
        portrait: Portrait in which the motion was placed.
        reference_mesh: Mesh that the motion is relative to, `[468, 3]`, cm.
        compat: Whether the motion was projected as AniPortrait does.
    """
    rate = request.blink_rate
    if request.expression_gain == 1 and rate is None:
        return motion
    mesh = motion.mesh
    # The gain scales each vertex's offset from the reference, [F, 468, 3]; lips and lids that would cross are put back.
    if request.expression_gain != 1:
        reference = np.asarray(reference_mesh, np.float32)
        mesh = uncrossed(reference + np.float32(request.expression_gain) * (mesh - reference), reference, mesh)
    # Blinks come after the gain, which would otherwise scale them too.
    if rate is not None:
        closure = blink_closure(len(motion), motion.fps, rate=rate, seed=request.seed)
        mesh = close_eyes(mesh, closure)
    # The mesh has changed, so it is projected again.
    return place(
        mesh,
        motion.pose,
        reference_pose_matrix=portrait.pose_matrix,
        width=portrait.width,
        height=portrait.height,
        fps=motion.fps,
        compat=compat,
    )
