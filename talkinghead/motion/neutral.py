"""A speaker's neutral mesh: the face at rest with the mouth closed, estimated from annotated frames.

Rule. Every frame gets a tension: the sum of the mouth, jaw, brow, cheek and blink scores, plus 2 for each centimetre
between the lips. The neutral mesh is the per-coordinate median of the tenth of the frames with the least tension (at
least 5 frames where there are so many, at most 500).

Why so: the scores alone do not find a closed mouth (in one clip the tenth with the lowest sum has the lips 1.1 cm
apart), the opening alone picks lips that are pressed for a /p/ or /m/, and a blink would close the neutral eyes. Scores
that a person's anatomy raises do not matter, since only frames of one person are compared. The median resists a few
wrong frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from talkinghead.geometry.blendshapes import NUM_BLENDSHAPES, columns
from talkinghead.geometry.face_regions import NUM_VERTICES, lip_gap

SHARE = 0.1  # share of the frames that the median is taken over
FEWEST_FRAMES = 5
MOST_FRAMES = 500
"""Largest number of frames kept, so that an hour of one speaker needs no more memory than a few minutes."""
TENSION_PER_CM = 2.0  # tension for each cm between the lips
TENSE = columns("mouth", "jaw", "brow", "cheek", "eyeBlink")
"""Columns of the blendshapes that count as tension; `_neutral` does not."""

Rule = Literal["blendshapes and lip opening", "lip opening"]


@dataclass(frozen=True, kw_only=True)
class NeutralMesh:
    """A face at rest, and how it was found."""

    mesh: np.ndarray
    """`[468, 3]` float32, cm, canonical space."""
    num_frames: int
    """Number of frames in the median."""
    rule: Rule
    """Measure of tension that chose the frames; `lip opening` alone where the annotation has no blendshapes."""


class NeutralEstimator:
    """Estimate from the most relaxed frames of one person over any number of clips, in bounded memory.

    Where some frames have blendshapes and others do not, only those with blendshapes count.
    """

    def __init__(self) -> None:
        self._pools: dict[Rule, _Pool] = {"blendshapes and lip opening": _Pool(), "lip opening": _Pool()}

    def add(self, mesh: np.ndarray, blendshapes: np.ndarray | None, valid: np.ndarray) -> None:
        """Add the frames of one clip.

        Args:
            mesh: `[F, 468, 3]` cm.
            blendshapes: `[F, 52]`; None or NaN rows where the face model gives none.
            valid: `[F]` bool, True where the frame has a face; other frames are ignored.

        Raises:
            ValueError: Shapes that do not fit each other.
        """
        frames = len(valid)
        if blendshapes is None:
            blendshapes = np.full((frames, NUM_BLENDSHAPES), np.nan, np.float32)
        if mesh.shape != (frames, NUM_VERTICES, 3) or blendshapes.shape != (frames, NUM_BLENDSHAPES):
            raise ValueError(
                f"a neutral mesh is made of mesh [F, {NUM_VERTICES}, 3], blendshapes [F, {NUM_BLENDSHAPES}] and valid"
                f" [F]; these are {mesh.shape}, {blendshapes.shape} and {valid.shape}"
            )
        # Tension of each frame, [F], by its scores and by its lips; NaN without scores.
        opening = TENSION_PER_CM * lip_gap(mesh).astype(np.float64)
        tension = opening + blendshapes[:, TENSE].sum(axis=1, dtype=np.float64)
        # Frames without scores are kept apart: they count only where no frame has any.
        scored = np.isfinite(tension)
        seen = valid.astype(bool) & np.isfinite(mesh).all(axis=(1, 2))
        self._pools["blendshapes and lip opening"].add(mesh, tension, seen & scored)
        self._pools["lip opening"].add(mesh, opening, seen & ~scored)

    def result(self) -> NeutralMesh:
        """The neutral mesh of all frames so far.

        Raises:
            ValueError: No frame had a face.
        """
        # The pool of the better rule comes first.
        for rule, pool in self._pools.items():
            if pool.seen:
                chosen = pool.chosen()
                mesh = np.median(chosen, axis=0).astype(np.float32)
                return NeutralMesh(mesh=mesh, num_frames=len(chosen), rule=rule)
        raise ValueError("no frame has a face, so there is no neutral mesh")


class _Pool:
    """The least tense of all frames seen; the earlier one where two are equal."""

    def __init__(self) -> None:
        self.seen = 0
        self._tension = np.empty(0)
        self._mesh = np.empty((0, NUM_VERTICES, 3), np.float32)

    def add(self, mesh: np.ndarray, tension: np.ndarray, which: np.ndarray) -> None:
        self.seen += int(which.sum())
        self._tension = np.concatenate((self._tension, tension[which]))
        self._mesh = np.concatenate((self._mesh, mesh[which].astype(np.float32, copy=False)))
        # No later frame can bring back one that is dropped here: at most MOST_FRAMES are chosen, the least tense ones.
        least = np.argsort(self._tension, kind="stable")[:MOST_FRAMES]
        self._tension, self._mesh = self._tension[least], self._mesh[least]

    def chosen(self) -> np.ndarray:
        """Meshes `[n, 468, 3]` that the median is taken over."""
        # A share of all frames seen, not only of those kept. The frames are in order of tension.
        count = min(max(round(SHARE * self.seen), FEWEST_FRAMES), MOST_FRAMES)
        return self._mesh[:count]


def neutral_mesh(mesh: np.ndarray, blendshapes: np.ndarray | None, valid: np.ndarray) -> NeutralMesh:
    """The neutral mesh of one clip.

    Args:
        mesh: `[F, 468, 3]` cm.
        blendshapes: `[F, 52]`; None or NaN rows where the face model gives none.
        valid: `[F]` bool, True where the frame has a face.

    Raises:
        ValueError: No frame has a face, or shapes that do not fit each other.
    """
    estimator = NeutralEstimator()
    estimator.add(mesh, blendshapes, valid)
    return estimator.result()
