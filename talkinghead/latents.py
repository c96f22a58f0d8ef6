"""Latents as columns: the forms of the arrays that the derived column `latents` makes, and moments of what is stored.

    version 1   `latents`       float16 [F, 2·C, h, w]   means, then logarithms of the variance
                `embedding`     float16 [F, D]           the images' embeddings
    version 2   `latent_rows`   uint8 [F, N]             all that a training reads of a frame, next to each other

A row of version 2, little endian, without gaps:

    uint16 [8]          C, h, w, D, width and height of the clip in pixels, 0, 0
    float16 [C, h, w]   means
    uint8 [C, h, w]     logarithms of the variance, a code of 8 bits
    float16 [D]         embedding

So a window and its reference are one range of bytes each, and `unpack_rows(numpy.load(file))` needs nothing else.

The code k is the logarithm -30 + 3/16 · k: -30 … 17.8125 in steps that half precision holds exactly. -30 is where
diffusers cuts off (`DiagonalGaussianDistribution`); the other end is a deviation of 7,000. It is at most 3/32 off, so
the deviation is at most 4.8 % too large or too small, and a latent that is drawn with the noise e at most 0.048 · |e|
deviations off. Half precision rounds a mean m by up to |m| / 2048, which is more where the deviation is below |m| / 98.

Letters of shapes: F frames; C channels of the latents; h, w their height and width; D size of the embedding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from talkinghead.column import Column
from talkinghead.config import from_json, shown
from talkinghead.derived import ColumnVersion

LATENTS = "latents"
"""Name of the derived column; and of its array of version 1 with both moments, unscaled."""
EMBEDDING = "embedding"
"""Array of version 1 with the images' embeddings."""
ROWS = "latent_rows"
"""Array of version 2."""

LOWEST, STEP = -30.0, 3 / 16
"""Logarithm of the variance that the code 0 means, and the difference from one code to the next."""
_LARGEST_CODE = 255

MOMENT_FORMS = (
    Column(LATENTS, (None, None, None), "mean, then logarithm of the variance", np.dtype("<f2")),
    Column(EMBEDDING, (None,), "of the image encoder", np.dtype("<f2")),
)
"""Forms of the arrays of version 1."""
ROW_FORMS = (Column(ROWS, (None,), "bytes of talkinghead.latents", np.dtype("|u1")),)
"""Forms of the arrays of version 2."""

ARRAYS = {1: (LATENTS, EMBEDDING), 2: (ROWS,)}
"""Version of the column → its arrays; the versions that can be read."""
HEAD_BYTES = 16
"""Bytes of a row of version 2 before its means."""
LARGEST_NUMBER = (1 << 16) - 1
"""Largest shape, and side of a clip in pixels, that a row of version 2 can tell."""

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


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """What a training reads of some frames of a clip, as version 2 stores it."""

    mean: np.ndarray
    """Means of the latents, unscaled, float16 `[F, C, h, w]`."""
    log_variance: np.ndarray
    """Codes of the logarithms of the variance, uint8 `[F, C, h, w]`."""
    embedding: np.ndarray
    """Embeddings of the images, float16 `[F, D]`."""
    clip_size: tuple[int, int]
    """Width and height of the clip in pixels, of which the encoded images are cut."""

    def moments(self) -> np.ndarray:
        """Means, then logarithms of the variance, float16 `[F, 2·C, h, w]`, as version 1 has them."""
        return np.concatenate([self.mean, _MEANT[self.log_variance]], axis=1)

    def pack(self) -> np.ndarray:
        """Rows as they are stored, uint8 `[F, N]`.

        Raises:
            ValueError: A shape, or the size of the clip, is beyond `LARGEST_NUMBER`.
        """
        count, *shape = self.mean.shape
        head = np.array([*shape, self.embedding.shape[1], *self.clip_size, 0, 0])
        if head.max() > LARGEST_NUMBER:
            width, height = self.clip_size
            raise ValueError(
                f"latents {shape} and embeddings of {self.embedding.shape[1]} numbers, of a clip of {width} x {height}"
                f" pixels: a row tells numbers up to {LARGEST_NUMBER}"
            )
        parts = [
            np.broadcast_to(head.astype("<u2"), (count, len(head))),
            self.mean.astype("<f2").reshape(count, -1),
            self.log_variance.reshape(count, -1),
            self.embedding.astype("<f2"),
        ]
        return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def unpack_rows(rows: np.ndarray) -> LatentRows:
    """Latents and embeddings of rows of version 2, uint8 `[F, N]` with at least one row.

    Raises:
        ValueError: They are no such rows.
    """
    rows = np.ascontiguousarray(rows)
    heads = rows[:, :HEAD_BYTES]
    if not len(rows) or heads.shape[1] != HEAD_BYTES or (heads != heads[0]).any():
        raise ValueError("these are no rows of latents, or damaged ones")
    channels, height, width, size, *clip = (int(number) for number in heads[0].copy().view("<u2")[:6])
    count = channels * height * width
    # Where each part ends, from the means on.
    ends = np.cumsum([HEAD_BYTES, 2 * count, count, 2 * size])
    if not count or ends[-1] != rows.shape[1]:
        raise ValueError(
            f"rows of latents of [{channels}, {height}, {width}] have {ends[-1]} bytes, not {rows.shape[1]}"
        )
    mean, log_variance, embedding = (
        np.ascontiguousarray(rows[:, start:stop]) for start, stop in itertools.pairwise(ends)
    )
    shape = (len(rows), channels, height, width)
    return LatentRows(
        mean=mean.view("<f2").reshape(shape),
        log_variance=log_variance.reshape(shape),
        embedding=embedding.view("<f2"),
        clip_size=(clip[0], clip[1]),
    )


def latent_columns(arrays: Container[str]) -> tuple[str, ...]:
    """Names of the arrays of a version of either kind, which a training reads.

    Args:
        arrays: Names of all its arrays.

    Raises:
        ValueError: It has none that this code can read.
    """
    for names in ARRAYS.values():
        if all(name in arrays for name in names):
            return names
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
