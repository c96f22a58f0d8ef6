"""Latents as columns: the names and forms of the arrays that the derived column `latents` makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from talkinghead.column import Column
from talkinghead.config import from_json, shown
from talkinghead.derived import ColumnVersion

LATENTS = "latents"
"""Column with the moments of the latents: float16 `[F, 2·C, h, w]`, mean and logarithm of the variance, unscaled; and
name of the derived column that makes both."""
EMBEDDING = "embedding"
"""Column with the images' embeddings: float16 `[F, D]`."""

LATENT_FORMS = (
    Column(LATENTS, (None, None, None), "mean, then logarithm of the variance", np.dtype("<f2")),
    Column(EMBEDDING, (None,), "of the image encoder", np.dtype("<f2")),
)
"""Forms of the arrays of the column `latents`."""


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
            "arrays": [column.to_json() for column in LATENT_FORMS],
        },
    )
