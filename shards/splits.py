"""Which split a sample belongs to: by person or source video, never by clip.

The split of a group is a hash of (seed, group) compared with the fractions. So it depends on no other group: adding
data never moves anybody, and no state has to be kept. The price is that fractions hold only on average: of ten groups
with 5 % validation there may be none or two in `val`, and nothing corrects that, since a correction would depend on
the other groups. A small data set that needs a validation split takes
larger fractions or another seed (`make shards ARGS='--shards val_fraction=0.2'`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from talkinghead import rng
from talkinghead.schema import SPLITS

FRACTIONS: Mapping[str, float] = {"train": 0.9, "val": 0.05, "test": 0.05}


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise `ValueError` unless the fractions name known splits and sum to 1."""
    if unknown := fractions.keys() - set(SPLITS):
        raise ValueError(f"unknown split {', '.join(sorted(unknown))}; there are {', '.join(SPLITS)}")
    if min(fractions.values(), default=0.0) < 0 or not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"split fractions {dict(fractions)} must be at least 0 and sum to 1")


def assign_splits(
    groups: Iterable[str], *, seed: int = 0, fractions: Mapping[str, float] = FRACTIONS
) -> dict[str, str]:
    """The split of each group.

    Args:
        groups: `split_group` of the samples; may repeat.
        seed: Another seed gives another, equally random division.
        fractions: Split → expected share of the groups. `test` takes the lowest hash values, then `val`, then `train`,
            so that a larger `val` takes groups from `train` only.

    Returns:
        Group → split.
    """
    check_fractions(fractions)
    bounds: list[tuple[float, str]] = []
    bound = 0.0
    for split in reversed(SPLITS):
        bound += fractions.get(split, 0.0)
        bounds.append((bound, split))
    last = next(split for split in SPLITS if fractions.get(split, 0.0) > 0)  # rounding may leave its bound under 1
    assigned: dict[str, str] = {}
    for group in groups:
        if group not in assigned:
            value = rng.uniform(seed, "split", group)
            assigned[group] = next((split for bound, split in bounds if value < bound), last)
    return assigned
