"""Interface to what drives a portrait (speech, or the face of a video), and edits to the motion of both.

`DrivingSpeech` is in `speech_motion`, `DrivingVideo` in `driven_motion`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from infer.request import PortraitOptions
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.at_rest import at_rest
from talkinghead.motion.blink import with_blinks
from talkinghead.motion.expression import ExpressionBasis
from talkinghead.motion.gain import expression_gain
from talkinghead.motion.motion import Motion
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)


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

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> tuple[Motion, dict[str, Any]]:
        """Motion of the portrait's face, and what was decided on the way; loads the weights that it needs."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Weights that took part, for the sidecar."""
        ...


def edited(motion: Motion, request: PortraitOptions) -> Motion:
    """Apply the request's `expression_gain` and `blink_rate` to a motion; itself where neither is asked for."""
    # Blinks come after the gain, which would otherwise scale them too.
    motion = expression_gain(motion, request.expression_gain)
    return motion if request.blink_rate is None else with_blinks(motion, rate=request.blink_rate, seed=request.seed)


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
