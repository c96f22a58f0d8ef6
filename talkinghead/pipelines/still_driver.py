"""A driver that moves nothing: the portrait's face as it is, for a given time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from talkinghead.face.portrait import Portrait
from talkinghead.motion.motion import Motion
from talkinghead.motion.parts import PART
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MESHES, MotionKind
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.timebase import FPS


class StillDriver:
    """A still face: the honest baseline of every driver, and the rest of a face of which only a part is moved.

    Its source is a length in seconds; it has no options.
    """

    name = "still"
    gives = MotionKind(space=MESHES, needs=("mesh",))

    def check(self, portrait: Portrait, source: float, options: None = None) -> None:
        """Refuse a length that is no positive number."""
        del portrait, options
        if not (math.isfinite(source) and source > 0):
            raise ValueError(f"a still face needs a length above 0 seconds, not {source}")

    def move(
        self,
        portrait: Portrait,
        source: float,
        options: None = None,
        *,
        fps: float | None = None,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> MotionStream:
        """The portrait's mesh and pose in every frame; arguments as `protocols.Driver.move`."""
        del seed, progress
        self.check(portrait, source, options)
        rate = fps or FPS
        count = max(1, math.ceil(source * rate - 1e-6))
        return MotionStream(_parts(portrait, count, rate), count=count, fps=rate)

    def about(self) -> dict[str, dict[str, Any]]:
        """Nothing: there is no input and there are no weights."""
        return {}


def _parts(portrait: Portrait, count: int, fps: float) -> Iterator[Motion]:
    for first in range(0, count, PART):
        yield constant_motion(portrait.mesh, portrait, min(PART, count - first), fps)


def constant_motion(mesh: np.ndarray, portrait: Portrait, count: int, fps: float) -> Motion:
    """Motion that does not move: one face, and the portrait's head pose.

    Args:
        mesh: Face `[468, 3]`, cm.
        portrait: Portrait.
        count: Number of frames.
        fps: Frames a second.
    """
    face = mesh.astype(np.float32, copy=False)
    return Motion(
        pose_matrix=np.repeat(np.asarray(portrait.pose_matrix, np.float64)[None], count, axis=0),
        neutral=face,
        mesh=np.repeat(face[None], count, axis=0),
        valid=np.ones(count, bool),
        fps=fps,
        width=portrait.width,
        height=portrait.height,
    )
