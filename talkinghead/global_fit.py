"""Global fits: what is computed once over the kept training clips (a basis, statistics), by map and merge.

A fit is one file of `annotate/fits/`, listed in `annotate/columns.py`. Its result is a small file in DATA, named by its
hash, which trainings and derived columns read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from talkinghead.column import Arrays
from talkinghead.derived import ColumnSample, Fit


class GlobalFit(Protocol):
    """A fit over the kept training clips: one instance in a file of `annotate/fits/`, listed in `annotate/columns.py`.

    The clips are divided into parts, `partial` is called for each, and `merge` for neighbouring groups of parts, in an
    order that the number of parts decides (`shards.fits`). So the result has the same bytes for any number of workers.
    What is in memory is one part's clips one after the other, the sums, and a row for each speaker (or clip, where that
    is small).
    """

    @property
    def name(self) -> str:
        """Lower-case letters, digits and `_`, at most 18."""
        ...

    @property
    def version(self) -> int:
        """Version of the code; raise it when the same clips and settings give other numbers."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """What it reads: `wav`, `json`, annotation columns, names of derived columns."""
        ...

    @property
    def fits(self) -> tuple[str, ...]:
        """Names of the global fits that it needs, with the same settings where they have them."""
        ...

    @property
    def settings(self) -> type:
        """Frozen dataclass, whose fields are options of `make basis`."""
        ...

    @property
    def parts(self) -> Literal["shards", "speakers"]:
        """How the clips are divided: by shard, or so that all clips of a speaker are in one part (a median over a
        speaker's frames cannot be merged)."""
        ...

    @property
    def most_clips(self) -> int | None:
        """Largest number of clips, spread evenly over all; None: all."""
        ...

    def partial(
        self, samples: Iterable[ColumnSample], settings: Any, fits: Mapping[str, Fit], num_frames: int
    ) -> dict[str, np.ndarray]:
        """Sums over the clips of one part, float64; `num_frames` are the frames of the clips of all parts."""
        ...

    def merge(self, one: Arrays, two: Arrays, num_frames: int) -> dict[str, np.ndarray]:
        """Sums over two neighbouring groups of parts."""
        ...

    def finish(self, sums: Arrays, settings: Any, fits: Mapping[str, Fit]) -> dict[str, np.ndarray]:
        """The fit; raises `ValueError` where the clips do not allow one."""
        ...
