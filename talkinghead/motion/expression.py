"""Expression basis: how each blendshape moves the face mesh, learned from annotated clips. It takes expressions out.

Model. mesh ≈ neutral mesh + (scores - rest) · offsets, one offset per score and coordinate, the same for everyone. The
scores are the 52 blendshapes and, as a 53rd that belongs to the mouth, the lip opening measured on the mesh itself in
cm: blendshapes alone leave a mouth half open. `rest` are the scores that annotated faces get when they look neutral:
they are not 0 (a squint of 0.5 can be a person's anatomy). The offsets are fitted by ridge regression. Scores and mesh
are both taken relative to their mean over the clip, so that neither a person's shape nor a person's usual scores enter.
The ridge shrinks what the clips do not show: a blendshape that never moved gets no offset.

Source of the estimator: A. E. Hoerl and R. W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal
Problems", 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_limited
from talkinghead.geometry.blendshapes import NUM_BLENDSHAPES, PARTS
from talkinghead.geometry.face_regions import NUM_VERTICES, lip_gap

EXPRESSION_FILE = "expression.safetensors"
"""Name of the basis in a folder of trained weights; it takes the expression out of a portrait's mesh."""
RIDGE = 5e-3
"""Variance that the ridge adds to each score's: scores that move less than its root (0.07) count little."""
NUM_SCORES = NUM_BLENDSHAPES + 1
"""Number of scores: the blendshapes, then the lip opening in cm."""
_MOST_BYTES = 16 << 20
_NEUTRAL_SHARE = 0.1  # share of a clip's frames, those nearest to the neutral mesh, that give its scores at rest


@dataclass(frozen=True, kw_only=True)
class ExpressionBasis:
    """Mesh offsets per score, and the scores of a face at rest."""

    offsets: np.ndarray
    """`[53, 468, 3]` float32, cm for a blendshape that rises by 1 (`_neutral`: 0), and for lips 1 cm further apart."""
    rest: np.ndarray
    """`[53]` float32: scores of a neutral face, as a mean over the fitted clips."""

    def __post_init__(self) -> None:
        if self.offsets.shape != (NUM_SCORES, NUM_VERTICES, 3) or self.rest.shape != (NUM_SCORES,):
            raise ValueError(
                f"an expression basis has offsets [{NUM_SCORES}, {NUM_VERTICES}, 3] and rest [{NUM_SCORES}], not"
                f" {self.offsets.shape} and {self.rest.shape}"
            )
        if not np.isfinite(self.offsets).all() or not np.isfinite(self.rest).all():
            raise ValueError("an expression basis must be finite")

    @classmethod
    def fit(
        cls, mesh: np.ndarray, neutral: np.ndarray, blendshapes: np.ndarray, *, ridge: float = RIDGE
    ) -> ExpressionBasis:
        """Basis of one clip; the arguments are those of `ExpressionFit.add` and `ExpressionFit.basis`."""
        fit = ExpressionFit()
        fit.add(mesh, neutral, blendshapes)
        return fit.basis(ridge=ridge)

    def expression(self, mesh: np.ndarray, blendshapes: np.ndarray, parts: Iterable[str] = tuple(PARTS)) -> np.ndarray:
        """Offset from the neutral mesh that the expression of some parts of the face makes.

        Args:
            mesh: `[..., 468, 3]` cm.
            blendshapes: `[..., 52]`, scores of the same face.
            parts: Names of `PARTS`.

        Returns:
            `[..., 468, 3]` float32, cm.

        Raises:
            ValueError: An unknown part, or blendshapes that are missing or not finite.
        """
        parts = tuple(parts)
        if unknown := [part for part in parts if part not in PARTS]:
            raise ValueError(f"there is no part {', '.join(unknown)} of a face; there are {', '.join(PARTS)}")
        if blendshapes.shape[-1:] != (NUM_BLENDSHAPES,) or not np.isfinite(blendshapes).all():
            raise ValueError("an expression can be taken out only where the face model gives 52 blendshapes")
        # Distance from rest of the scores that belong to the parts; the lip opening is the mouth's.
        chosen = sorted(column for part in parts for column in PARTS[part]) + [NUM_BLENDSHAPES] * ("mouth" in parts)
        away = (_scores(mesh, blendshapes) - self.rest)[..., chosen]  # [..., K]
        return np.tensordot(away.astype(np.float32), self.offsets[chosen], axes=1)

    def neutralise(
        self, mesh: np.ndarray, blendshapes: np.ndarray, parts: Iterable[str] = ("mouth", "smile")
    ) -> np.ndarray:
        """The mesh without the expression of some parts.

        Args:
            mesh: `[..., 468, 3]` cm.
            blendshapes: `[..., 52]`, scores of the same face.
            parts: Names of `PARTS`: `mouth` closes the mouth, `smile` relaxes its corners and the cheeks, …

        Returns:
            `[..., 468, 3]` float32, cm.
        """
        return (mesh - self.expression(mesh, blendshapes, parts)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write a `.safetensors` file, whole or not at all."""
        write_whole(path, save_tensors({"offsets": self.offsets, "rest": self.rest}))

    @classmethod
    def load(cls, path: Path) -> ExpressionBasis:
        """Inverse of `save`.

        Raises:
            ValueError: The file holds no expression basis.
            OSError: The file cannot be read.
        """
        try:
            tensors = load_tensors(read_limited(path, _MOST_BYTES, "expression basis"))
            return cls(offsets=tensors["offsets"], rest=tensors["rest"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no expression basis: {error}") from error


class ExpressionFit:
    """Fit of a basis over any number of clips in constant memory: only sums of products are kept."""

    def __init__(self) -> None:
        self._frames = 0
        self._gram = np.zeros((NUM_SCORES, NUM_SCORES))  # scores with scores
        self._cross = np.zeros((NUM_SCORES, NUM_VERTICES * 3))  # scores with coordinates
        self._rest = np.zeros(NUM_SCORES)  # sum over the clips
        self._clips = 0

    @property
    def num_frames(self) -> int:
        """Number of frames with blendshapes so far."""
        return self._frames

    def sums(self) -> dict[str, np.ndarray]:
        """The sums so far, float64: those of two fits, added, are the sums over the clips of both."""
        return {
            "frames": np.array([self._frames], np.float64),
            "clips": np.array([self._clips], np.float64),
            "rest": self._rest.copy(),
            "gram": self._gram.copy(),
            "cross": self._cross.copy(),
        }

    @classmethod
    def from_sums(cls, sums: Mapping[str, np.ndarray]) -> ExpressionFit:
        """Inverse of `sums`.

        Raises:
            ValueError: Sums are missing, or have other shapes.
        """
        fit = cls()
        for name, empty in fit.sums().items():
            if name not in sums or sums[name].shape != empty.shape:
                raise ValueError(f"these are no sums of an expression fit: {name} is missing or has another shape")
        fit._frames, fit._clips = int(sums["frames"][0]), int(sums["clips"][0])
        fit._rest, fit._gram, fit._cross = (np.array(sums[name], np.float64) for name in ("rest", "gram", "cross"))
        return fit

    def add(self, mesh: np.ndarray, neutral: np.ndarray, blendshapes: np.ndarray) -> None:
        """Add the frames of one clip of one person.

        Args:
            mesh: `[F, 468, 3]` cm; NaN frames are passed over.
            neutral: `[468, 3]` cm, the person's neutral mesh.
            blendshapes: `[F, 52]`; NaN frames are passed over.

        Raises:
            ValueError: Shapes that do not fit each other.
        """
        frames = len(mesh)
        if mesh.shape != (frames, NUM_VERTICES, 3) or blendshapes.shape != (frames, NUM_BLENDSHAPES):
            raise ValueError(f"mesh {mesh.shape} and blendshapes {blendshapes.shape} do not fit each other")
        seen = np.isfinite(mesh).all(axis=(1, 2)) & np.isfinite(blendshapes).all(axis=1)
        if not seen.any():
            return
        # Distance of each coordinate from the neutral mesh, [n, 1404], and the scores of the same frames, [n, 53].
        offset = (mesh[seen].astype(np.float64) - neutral).reshape(int(seen.sum()), -1)
        scores = _scores(mesh[seen], blendshapes[seen])
        # The scores at rest: the median over the frames nearest to the neutral mesh.
        nearest = np.argsort(np.abs(offset).sum(axis=1), kind="stable")[: max(1, round(_NEUTRAL_SHARE * len(offset)))]
        self._rest += np.median(scores[nearest], axis=0)
        self._clips += 1
        # Sums of products about the clip's own means, which hold the person's shape and usual scores.
        scores -= scores.mean(axis=0)
        self._gram += scores.T @ scores
        self._cross += scores.T @ (offset - offset.mean(axis=0))
        self._frames += len(offset)

    def basis(self, *, ridge: float = RIDGE) -> ExpressionBasis:
        """Basis over all clips so far.

        Args:
            ridge: Variance added to each score's (`RIDGE`).

        Raises:
            ValueError: No frame had blendshapes.
        """
        if not self._frames:
            raise ValueError("no frame has blendshapes: annotate with a face model that gives them (make reannotate)")
        counted = np.arange(1, NUM_SCORES)  # without `_neutral`
        # Ridge regression: (Gram + ridge · 1) · offsets = cross, all per frame, so that the ridge is a variance.
        system = self._gram[np.ix_(counted, counted)] / self._frames + ridge * np.eye(len(counted))
        offsets = np.zeros((NUM_SCORES, NUM_VERTICES, 3), np.float32)
        solved = np.linalg.solve(system, self._cross[counted] / self._frames)
        offsets[counted] = solved.reshape(-1, NUM_VERTICES, 3)
        return ExpressionBasis(offsets=offsets, rest=(self._rest / self._clips).astype(np.float32))


def _scores(mesh: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
    """Scores of a mesh `[..., 468, 3]` and its blendshapes `[..., 52]`: `[..., 53]` float64."""
    return np.concatenate((blendshapes, lip_gap(mesh)[..., None]), axis=-1, dtype=np.float64)
