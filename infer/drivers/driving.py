"""A driver with the files and options that the user gave it; and the edits of motion, whatever drives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from infer.request import PortraitOptions
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.at_rest import at_rest
from talkinghead.motion.blink import with_blinks
from talkinghead.motion.expression import ExpressionBasis
from talkinghead.motion.gain import expression_gain
from talkinghead.motion.motion import Motion
from talkinghead.motion.silence import mouth_shut
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import Driver, MotionKind
from talkinghead.provenance import hash_file
from talkinghead.runtime.progress import Progress

if TYPE_CHECKING:
    from talkinghead.models.speech.recording import Recording

log = logging.getLogger(__name__)


class Driving(Protocol):
    """A driver and what the user gave it. Methods are called in this order; each raises `ValueError` for a mistake."""

    name: str
    """Name of the driver, for the sidecar."""
    files: list[Path]
    """Input files of the user, which no output may replace."""

    @property
    def gives(self) -> MotionKind:
        """Kind of the motion: as its name tells before `find`, and as its weights do after it."""
        ...

    def find(self, pipeline: Path | None) -> None:
        """Check that all files and weights are there; `pipeline` is the folder of the renderer's weights, if any."""
        ...

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read and check the driving file, at most `seconds` of it."""
        ...

    @property
    def sound(self) -> Path | None:
        """File whose sound goes into the video; None: a silent video."""
        ...

    @property
    def recording(self) -> Recording | None:
        """That sound, where it was read to drive; None where it was not."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts about what was read, by input, for the sidecar."""
        ...

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """Motion of the portrait's face in parts; loads the weights that it needs."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What was decided on the way, for the sidecar; complete after the last part."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Weights that took part, for the sidecar; known after `move`."""
        ...


class FileDriving:
    """A driver that takes one file, or none; a `Driving`.

    Args:
        driver: Driver, whose source is what `source` gives.
        path: Its file; None: it takes none.
        options: Its options.
        sound: File whose sound goes into the video; None: no sound.
        what: Name of the input in messages and in the sidecar.
    """

    recording = None

    def __init__(
        self, driver: Driver, path: Path | None, options: Any, *, sound: Path | None = None, what: str = "motion"
    ) -> None:
        self.name = driver.name
        self.files = [file for file in (path, sound) if file is not None]
        self.sound = sound
        self._driver = driver
        self._source: Any = path
        self._path = path
        self._options = options
        self._what = what

    @property
    def gives(self) -> MotionKind:
        """Kind of the motion."""
        return self._driver.gives

    def find(self, pipeline: Path | None) -> None:
        """Check that the file is there; it needs nothing from the renderer."""
        del pipeline
        for file in self.files:
            if not file.exists():
                raise ValueError(f"the file {file} is not there")

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Let the driver check the file."""
        del model, progress, seconds
        self._driver.check(portrait, self._source, self._options)

    def describe(self) -> dict[str, Any]:
        """Hash of the file, and what the driver says of it."""
        if self._path is None:
            return {}
        return {self._what: {"sha256": hash_file(self._path)} | self._driver.about().get("input", {})}

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """The driver's motion."""
        del progress, device
        return self._driver.move(portrait, self._source, self._options, fps=fps)

    @property
    def facts(self) -> dict[str, Any]:
        """What the driver decided."""
        return self._driver.about().get("result", {})

    def provenance(self) -> dict[str, Any]:
        """Weights of the driver."""
        return self._driver.about().get("weights", {})


def edited(motion: Motion, request: PortraitOptions, *, first: int = 0, silence: np.ndarray | None = None) -> Motion:
    """Apply the request's gains, the still mouth and the blinks to a part of a motion.

    Args:
        motion: Part of a motion; itself is returned where nothing is asked for.
        request: Options of the user.
        first: Number of its first frame in the video.
        silence: How far the mouth is shut in each frame of the whole video (`silence_share`); None: not at all.
    """
    motion = expression_gain(motion, request.expression_gain)
    motion = expression_gain(motion, request.lips_gain, "lips")
    motion = expression_gain(motion, request.brows_gain, "brows")
    if silence is not None:
        motion = mouth_shut(motion, silence[first : first + len(motion)], motion.neutral)
    # Blinks come after the gains, which would otherwise scale them too.
    if request.blink_rate is None:
        return motion
    return with_blinks(motion, rate=request.blink_rate, seed=request.seed, first=first)


def reference_at_rest(
    portrait: Portrait, neutralise: Literal["none", "mouth", "all"], basis: ExpressionBasis | None = None
) -> np.ndarray:
    """The portrait's mesh `[468, 3]`, cm, that motion is added to, with `neutralise` of the request taken out.

    Args:
        portrait: Portrait as it is animated (its crop).
        neutralise: Nothing, an open mouth, or the whole expression.
        basis: Expression basis next to the weights; None: the project's own.
    """
    if neutralise == "none":
        return portrait.mesh
    if neutralise == "all" and portrait.face.blendshapes is None:
        log.warning(
            "warning: --neutralise all only closes the mouth: without blendshapes, which the 468-point face model does"
            " not give, a smile cannot be told from the shape of the face; put face_landmarker.task into a folder and"
            " set TALKINGHEAD_MODELS to it"
        )
    return at_rest(portrait.mesh, portrait.face.blendshapes, neutralise, basis)
