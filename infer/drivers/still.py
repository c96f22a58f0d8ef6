"""A still face on the command line: for as long as a sound, or as the request says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infer.speech import describe_speech, read_speech
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MotionKind
from talkinghead.pipelines.still_driver import StillDriver
from talkinghead.runtime.progress import Progress

SECONDS = 1.0
"""Length where neither a sound nor a limit says one; as a part of a face it is played for as long as the mouth."""


class StillDriving:
    """The portrait's face as it is; a `Driving`.

    Args:
        sound: File whose sound goes into the video, and whose length the video has; None: no sound.
    """

    name = StillDriver.name
    recording = None  # it was read for its length alone
    facts: dict[str, Any] = {}  # noqa: RUF012  nothing is decided, so nothing is ever put in

    def __init__(self, sound: Path | None) -> None:
        self.sound = sound
        self.files = [] if sound is None else [sound]
        self._about: dict[str, Any] = {}
        self._seconds = SECONDS
        self._driver = StillDriver()

    @property
    def gives(self) -> MotionKind:
        """Meshes at any rate."""
        return self._driver.gives

    def find(self, pipeline: Path | None) -> None:
        """Check that the sound is there."""
        del pipeline
        if self.sound is not None and not self.sound.exists():
            raise ValueError(f"the sound {self.sound} is not there")

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read the sound's length."""
        del model, progress
        if self.sound is not None:
            speech = read_speech(self.sound, seconds=seconds)
            self._seconds, self._about = speech.duration_s, {"audio": describe_speech(self.sound, speech)}
        elif seconds is not None:
            self._seconds = seconds
        self._driver.check(portrait, self._seconds)

    def describe(self) -> dict[str, Any]:
        """Facts about the sound."""
        return self._about

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """The portrait's mesh and pose in every frame."""
        del progress, device
        return self._driver.move(portrait, self._seconds, fps=fps)

    def provenance(self) -> dict[str, Any]:
        """There are no weights."""
        return {}
