"""Latents as columns: the forms of the arrays that the derived column `latents` makes, and moments of what is stored.

    version 1   `latents`               float16 [F, 2·C, h, w]   means, then logarithms of the variance
    version 2   `latent_mean`           float16 [F, C, h, w]     means
                `latent_log_variance`   uint8 [F, C, h, w]       logarithms of the variance, a code of 8 bits
    both        `embedding`             float16 [F, D]           the images' embeddings

The code k is the logarithm -30 + 3/16 · k: -30 … 17.8125 in steps that half precision holds exactly. -30 is where
diffusers cuts off (`DiagonalGaussianDistribution`); the other end is a deviation of 7,000. It is at most 3/32 off, so
the deviation is at most 4.8 % too large or too small, and a latent that is drawn with the noise e at most 0.048 · |e|
deviations off. Half precision rounds a mean m by up to |m| / 2048, which is more where the deviation is below |m| / 98.

Letters of shapes: F frames; C channels of the latents; h, w their height and width; D size of the embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from talkinghead.column import Arrays, Column
from talkinghead.config import from_json, shown
from talkinghead.derived import ColumnVersion

LATENTS = "latents"
"""Name of the derived column; and of its array of version 1 with both moments, unscaled."""
MEAN = "latent_mean"
"""Array of version 2 with the means of the latents, unscaled."""
LOG_VARIANCE = "latent_log_variance"
"""Array of version 2 with the code of the logarithms of the variance."""
EMBEDDING = "embedding"
"""Array with the images' embeddings."""

LOWEST, STEP = -30.0, 3 / 16
"""Logarithm of the variance that the code 0 means, and the difference from one code to the next."""
_LARGEST_CODE = 255

_EMBEDDING_FORM = Column(EMBEDDING, (None,), "of the image encoder", np.dtype("<f2"))
MOMENT_FORMS = (
    Column(LATENTS, (None, None, None), "mean, then logarithm of the variance", np.dtype("<f2")),
    _EMBEDDING_FORM,
)
"""Forms of the arrays of version 1."""
LATENT_FORMS = (
    Column(MEAN, (None, None, None), "mean", np.dtype("<f2")),
    Column(LOG_VARIANCE, (None, None, None), "logarithm of the variance, 3/16 from -30", np.dtype("|u1")),
    _EMBEDDING_FORM,
)
"""Forms of the arrays of version 2."""

MOMENTS = {1: (LATENTS,), 2: (MEAN, LOG_VARIANCE)}
"""Version of the column → arrays that hold the moments; the versions that can be read."""

_MEANT = (LOWEST + STEP * np.arange(_LARGEST_CODE + 1)).astype(np.float16)  # by each code


@functools.cache
def _codes() -> np.ndarray:
    """Code of each float16 by its bits, `[65536]` int16; -1 for what no code means."""
    with np.errstate(invalid="ignore"):
        steps = np.rint((np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float64) - LOWEST) / STEP)
        return np.where((steps >= 0) & (steps <= _LARGEST_CODE), steps, -1).astype(np.int16)


def encode_log_variance(values: np.ndarray) -> np.ndarray:
    """Code of logarithms of the variance, float16, as uint8 of the same shape.

    Raises:
        ValueError: One is no number, or beyond what the code holds.
    """
    assert values.dtype == np.float16
    codes = _codes()[np.ascontiguousarray(values).view(np.uint16)]
    if codes.min(initial=0) < 0:
        raise ValueError(
            f"logarithms of the variance lie in {float(values.min()):.3g} … {float(values.max()):.3g}; stored are"
            f" {LOWEST:g} … {LOWEST + STEP * _LARGEST_CODE:g}"
        )
    return codes.astype(np.uint8)


def moments_of(arrays: Arrays) -> np.ndarray:
    """Moments of the latents of stored rows, of either version.

    Args:
        arrays: The rows of `MOMENTS` of the version, by the names of the arrays.

    Returns:
        Means, then logarithms of the variance, float16 `[F, 2·C, h, w]`: of version 1 as they are stored.
    """
    if LATENTS in arrays:
        return arrays[LATENTS]
    return np.concatenate([arrays[MEAN], _MEANT[arrays[LOG_VARIANCE]]], axis=1)


def latent_columns(arrays: Container[str]) -> tuple[str, ...]:
    """Names of the arrays of a version of either kind that a training reads: those of the moments, and `EMBEDDING`.

    Args:
        arrays: Names of all its arrays.

    Raises:
        ValueError: It has none that this code can read.
    """
    for names in MOMENTS.values():
        if all(name in arrays for name in (*names, EMBEDDING)):
            return (*names, EMBEDDING)
    raise ValueError("these latents are stored in a way that this release cannot read: run make latents again")


def latents_made_of(about: Mapping[str, Any]) -> ColumnVersion:
    """What a version of latents was made of, from the details of releases before derived columns.

    Args:
        about: `width`, `height`, `vae` and `image_encoder` with their `sha256`, and maybe `encoding`.

    Raises:
        ValueError: One of them is missing or wrong.
    """
    for name in ("width", "height"):
        if type(about.get(name)) is not int or about[name] < 1:
            raise ValueError(f"the {name} of latents is {shown(about.get(name))}")
    return from_json(
        ColumnVersion,
        {
            "column": LATENTS,
            "column_version": about.get("encoding", 1),  # the first release did not note it
            "parameters": {name: about.get(name) for name in ("width", "height")},
            "provenance": {name: about.get(name) for name in ("vae", "image_encoder")},
            "arrays": [column.to_json() for column in MOMENT_FORMS],
        },
    )
