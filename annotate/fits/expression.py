"""Fit `expression`: the basis that takes an expression out of a portrait; see `talkinghead.motion.expression`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from annotate.fits.speakers import SPEAKERS, read_neutral_meshes
from talkinghead.column import Arrays
from talkinghead.derived import ColumnSample, Fit
from talkinghead.motion.expression import ExpressionBasis, ExpressionFit


@dataclass(frozen=True, kw_only=True)
class ExpressionSettings:
    """Settings of the fit: it has none. The neutral meshes that it needs are the same for both origins of poses."""


class Expression:
    """Expression basis of a data set; see `talkinghead.global_fit.GlobalFit`."""

    name = "expression"
    version = 1
    needs = SPEAKERS.needs
    """Those of `speakers`, so that both are made of the same clips; it reads meshes and blendshapes."""
    fits = (SPEAKERS.name,)
    settings = ExpressionSettings
    parts: Literal["shards"] = "shards"
    most_clips = 500
    """It has few numbers for many frames, so more clips would not change it."""

    def partial(
        self, samples: Iterable[ColumnSample], settings: object, fits: Mapping[str, Fit], num_frames: int
    ) -> dict[str, np.ndarray]:
        """Sums of products over the clips of one part."""
        neutral = read_neutral_meshes(fits[SPEAKERS.name])
        fit = ExpressionFit()
        for sample in samples:
            blendshapes = sample.column("blendshapes")
            # Without a face there is no speaker.
            if sample.speaker in neutral and np.isfinite(blendshapes).any():
                fit.add(sample.column("mesh"), neutral[sample.speaker], blendshapes)
        return fit.sums()

    def merge(self, one: Arrays, two: Arrays, num_frames: int) -> dict[str, np.ndarray]:
        """Sums over both."""
        return {name: values + two[name] for name, values in one.items()}

    def finish(self, sums: Arrays, settings: object, fits: Mapping[str, Fit]) -> dict[str, np.ndarray]:
        """The basis; only `num_frames`, of 0, where no frame has blendshapes."""
        fit = ExpressionFit.from_sums(sums)
        found = {"num_frames": np.array([fit.num_frames], np.int64)}
        if fit.num_frames:
            basis = fit.basis()
            found |= {"offsets": basis.offsets, "rest": basis.rest}
        return found


EXPRESSION = Expression()


def read_basis(fit: Fit) -> ExpressionBasis | None:
    """Basis of a fit; None where the annotations had no blendshapes.

    Raises:
        ValueError: The arrays, which may be a stranger's, are no such fit.
    """
    arrays = fit.arrays
    frames = arrays.get("num_frames", np.empty(0))
    if frames.shape != (1,) or frames.dtype.kind != "i" or frames[0] < 0:
        raise ValueError("it is no fit of expressions: its number of frames is missing")
    if not frames[0]:
        return None
    if not {"offsets", "rest"} <= arrays.keys() or any(arrays[name].dtype.kind != "f" for name in ("offsets", "rest")):
        raise ValueError("it is no fit of expressions: offsets or rest are missing")
    return ExpressionBasis(offsets=arrays["offsets"], rest=arrays["rest"])
