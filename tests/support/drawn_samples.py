"""Clips with random faces, poses and sound, as a global fit sees them, without a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.schema import ClipInfo


@dataclass
class DrawnSample:
    """Clip with random faces, of which some are not seen."""

    key: str
    speaker: str
    num_frames: int
    scored: bool = True
    hidden: bool = False
    columns: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        draws = np.random.default_rng(sum(self.key.encode()))
        frames = self.num_frames
        valid = draws.random(frames) < (0 if self.hidden else 0.8)
        mesh = (mean_face().vertices + draws.normal(0, 0.3, (frames, 468, 3))).astype(np.float32)
        pose = np.cumsum(draws.normal(0, 1, (frames, 6)), axis=0) + draws.normal(0, 5, 6)
        self.columns = {
            "valid": valid,
            "mesh": mesh,
            "blendshapes": draws.random((frames, 52)).astype(np.float32),
            "pose_matrix": matrix_from_pose(pose).astype(np.float32),
        }
        if not self.scored:
            self.columns["blendshapes"][:] = np.nan
        for name, values in self.columns.items():
            if name != "valid":
                values[~valid] = np.nan
        self._audio = draws.normal(0, 0.1, frames * 640).astype(np.float32)

    @property
    def info(self) -> ClipInfo:
        """Facts about the clip: there are none."""
        raise AssertionError("not needed")

    def video(self) -> Iterator[np.ndarray]:
        """Frames: there are none."""
        raise AssertionError("not needed")

    def audio(self) -> np.ndarray:
        """The whole sound, `[F * 640]`."""
        return self._audio

    def column(self, name: str) -> np.ndarray:
        """Annotation column."""
        return self.columns[name]


def drawn() -> list[DrawnSample]:
    """Clips of nine speakers; one of them is never seen, one clip of another is not, one has no blendshapes."""
    made = []
    for speaker in range(9):
        for clip in range(1 + speaker % 3):
            made.append(
                DrawnSample(
                    key=f"k{speaker}-{clip}",
                    speaker=f"ü{speaker}",
                    num_frames=20 + 17 * clip + 5 * speaker,
                    scored=speaker != 4,
                    hidden=speaker == 3 or (speaker, clip) == (5, 1),
                )
            )
    return made
