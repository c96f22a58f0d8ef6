"""A face at rest: the expression that a portrait shows taken out of its mesh, with whatever weights and face model.

Motion is added to the portrait's mesh, so a mouth that is open there never closes, and a smile stays for good. What is
taken out depends on what can be told:

    blendshapes, and a basis of a training   `ExpressionBasis.neutralise` by that basis
    blendshapes                              the same by the project's own basis (`mean_expression`)
    neither                                  the lips are closed in the way in which mouths of real clips open

Without blendshapes, a smile cannot be told from the shape of a face: fitted to the mesh alone, with the neutral faces
of other people as what shapes there are, an expression is also found in faces at rest (0.25 cm), and takes as much from
the upper face as it adds. So there only the mouth is closed.

Measured on four clips of people whom the project's basis was not made of, over 34 frames with lips more than 0.4 cm
apart: the lower face lies 0.70 cm from the person's neutral mesh, after the second rule 0.37 cm (`mouth`) and 0.30 cm
(`all`), after the third 0.38 cm; the gap of the lips is 1.37 cm, then 0.29 cm by each rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np

from talkinghead.geometry.blendshapes import PARTS
from talkinghead.geometry.face_regions import LOWER_FACE, lip_gap
from talkinghead.motion.expression import ExpressionBasis
from talkinghead.motion.retarget import uncrossed

MEAN_EXPRESSION_FILE = "mean_expression.npz"

Neutralised = Literal["mouth", "all"]
"""What is taken out: an open mouth, or the whole expression."""
_PARTS: dict[Neutralised, tuple[str, ...]] = {"mouth": ("mouth",), "all": tuple(PARTS)}


@dataclass(frozen=True, kw_only=True)
class MeanExpression:
    """How the faces of real clips move: the project's own basis, made by `python -m annotate.mean_expression`."""

    basis: ExpressionBasis
    opening: np.ndarray
    """Motion of the face for each centimetre by which the lips part, `[468, 3]` float32."""

    @property
    def lip_gap_at_rest(self) -> float:
        """Distance between the lips of a face at rest, cm."""
        return float(self.basis.rest[-1])


@cache
def mean_expression() -> MeanExpression:
    """The project's own expression basis."""
    with (
        resources.files("talkinghead.motion").joinpath(MEAN_EXPRESSION_FILE).open("rb") as file,
        np.load(file) as content,
    ):
        basis = ExpressionBasis(offsets=content["offsets"].astype(np.float32), rest=content["rest"])
        return MeanExpression(basis=basis, opening=content["opening"].astype(np.float32))


def at_rest(
    mesh: np.ndarray, blendshapes: np.ndarray | None, what: Neutralised, basis: ExpressionBasis | None = None
) -> np.ndarray:
    """The mesh of a face without its open mouth, or without its expression.

    Args:
        mesh: `[468, 3]` cm.
        blendshapes: Scores of the same face `[52]`; None where the face model gives none, which also takes out only the
            open mouth where `what` is `all`.
        what: What is taken out.
        basis: Basis of the training whose weights move the face; None: the project's own.

    Returns:
        `[468, 3]` float32, cm.
    """
    if blendshapes is None:
        return lips_closed(mesh)
    return (basis or mean_expression().basis).neutralise(mesh, blendshapes, _PARTS[what])


def lips_closed(mesh: np.ndarray) -> np.ndarray:
    """The mesh with its lips no further apart than at rest, `[468, 3]` → `[468, 3]` float32, cm.

    Only the lower face moves; a mouth that is closed stays as it is.
    """
    known = mean_expression()
    excess = float(lip_gap(mesh)) - known.lip_gap_at_rest
    closed = np.array(mesh, np.float32)
    if excess > 0:
        lower = list(LOWER_FACE)
        closed[lower] -= np.float32(excess) * known.opening[lower]
        uncrossed(closed[None], np.asarray(mesh, np.float32))
    return closed
