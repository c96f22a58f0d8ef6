"""A package as others install it: two drivers and a renderer that join by entry points, in a folder on the path.

`nodding` moves the head alone, `numbers` gives coefficients that nobody here can decode, `paint` shows a face's meshes
as one grey level a frame; the first and the last have options.
"""

from __future__ import annotations

from pathlib import Path

_INFO = "Metadata-Version: 2.1\nName: other-heads\nVersion: 1.0\n"
_ENTRY_POINTS = """
[talkinghead.drivers]
nodding = other_heads:Nodding
numbers = other_heads:Numbers

[talkinghead.renderers]
paint = other_heads:Paint
"""
_MODULE = """
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from talkinghead.motion.motion import Coefficients, Motion
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import HEAD, MESHES, FrameSize, MotionKind


@dataclass(frozen=True, kw_only=True)
class Nods:
    degrees: float = 5.0
    seconds: float = 1.0
    way: Literal["up", "down"] = "up"
    shifts: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not -90 < self.degrees < 90:
            raise ValueError(f"degrees is {self.degrees:g}, must be within 90")


class Nodding:
    name = "nodding"
    gives = MotionKind(space=HEAD)
    options = Nods

    def check(self, portrait, source, options):
        assert isinstance(options, Nods)

    def move(self, portrait, source, options, *, fps=None, seed=0, progress=None):
        rate = fps or 25.0
        count = round(options.seconds * rate)
        pose = np.zeros((count, 6))
        sign = 1 if options.way == "up" else -1
        pose[:, 0] = sign * options.degrees * np.sin(np.arange(count) / rate)
        pose[:, 3:] = options.shifts
        return MotionStream.of(Motion(
            pose_matrix=placed_pose(pose, portrait.pose_matrix), neutral=portrait.mesh, valid=np.ones(count, bool),
            fps=rate, width=portrait.width, height=portrait.height,
        ))

    def about(self):
        return {"result": {"nods": 1}}


class Numbers:
    name = "numbers"
    gives = MotionKind(space="bfm-deep3d", fps=25.0)

    def check(self, portrait, source, options):
        raise AssertionError("a driver that fits nothing is asked nothing")

    move = about = check


@dataclass(frozen=True, kw_only=True)
class Paints:
    side: int
    level: int = 100


@dataclass
class Canvas:
    options: Paints

    @property
    def size(self):
        return self.options.side, self.options.side


class Paint:
    name = "paint"
    takes = (MotionKind(space=MESHES),)
    size = FrameSize()
    options = Paints

    def prepare(self, portrait, options):
        return Canvas(options)

    def render(self, prepared, motion, *, seed=0, progress=None):
        for part in motion:
            for _ in part.meshes():
                yield np.full((*prepared.size, 3), prepared.options.level, np.uint8)
"""


def install_other_package(folder: Path) -> None:
    """Write the package into a folder: what stands there joins where the folder is on the path of modules."""
    info = folder / "other_heads-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(_INFO, encoding="utf-8")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
    (folder / "other_heads.py").write_text(_MODULE, encoding="utf-8")
