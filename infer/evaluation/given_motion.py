"""A driving whose motion is known: the truth of a clip, or a baseline's, which no driver makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.motion import Motion
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MESHES, MotionKind
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS


class GivenMotionDriving:
    """A motion in the portrait's camera, as it is; a `Driving`.

    Args:
        motion: Motion at 25 fps; frames without a face must hold what is to be shown there.
    """

    name = "truth"
    gives = MotionKind(space=MESHES, fps=FPS)
    sound = None
    recording = None
    facts: dict[str, Any] = {}  # noqa: RUF012  nothing is decided, so nothing is ever put in

    def __init__(self, motion: Motion) -> None:
        self.files: list[Path] = []
        self._motion = motion

    def find(self, pipeline: Path | None) -> None:
        """There is nothing to find."""
        del pipeline

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """There is nothing to read."""
        del portrait, model, progress, seconds

    def describe(self) -> dict[str, Any]:
        """There are no files."""
        return {}

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """The motion, in parts."""
        del portrait, progress, device
        assert fps == self._motion.fps, "evaluations run at the rate of the truth"
        return MotionStream.of(self._motion)

    def provenance(self) -> dict[str, Any]:
        """There are no weights."""
        return {}
