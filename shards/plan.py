"""Plan of a data set: the shard and the split of every sample, as pure functions of keys, groups, sizes and the seed.

Media shards are immutable, so a plan only ever grows: the shards that exist stay as they are, and new samples fill new
shards after them. Within the new shards the order is pseudo-random by key, so that a shard mixes sources.

Splits are by person or source video, never by clip. The split of a group is a hash of (seed, group) compared with the
fractions. So it depends on no other group: adding data never moves a group, and no state has to be kept. In return
the fractions hold only on average: of ten groups with 5 % validation there may be none or two in `val`, and nothing
corrects that, since a correction would depend on the other groups. A small data set that needs a validation split takes
larger fractions or another seed (`make shards ARGS='--shards val_fraction=0.2'`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from talkinghead import rng
from talkinghead.provenance import canonical_json, hash_bytes
from talkinghead.sampletar import BLOCK, end_of
from talkinghead.schema import SPLITS, Member, check_key

# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Settings of how samples are dealt out to shards and splits."""

    target_mib: int = 128
    """Size of a media shard in MiB: large enough for sequential reading, small enough that many workers get many."""
    min_shards: int = 1
    """Smallest number of shards (training wants 4 per reading worker), as far as there are samples."""
    seed: int = 0
    """Seed of the order in which samples are dealt out, and of the splits."""
    val_fraction: float = 0.05
    """Expected share of the split groups (persons, source videos) in the validation split."""
    test_fraction: float = 0.05
    """Expected share of the split groups in the test split."""

    @property
    def fractions(self) -> dict[str, float]:
        """Split → expected share of the split groups."""
        train = 1.0 - self.val_fraction - self.test_fraction
        return {"train": train, "val": self.val_fraction, "test": self.test_fraction}

    def __post_init__(self) -> None:
        if self.target_mib < 1 or self.min_shards < 1:
            raise ValueError(f"target_mib ({self.target_mib}) and min_shards ({self.min_shards}) must be at least 1")
        _check_fractions(self.fractions)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if unknown := fractions.keys() - set(SPLITS):
        raise ValueError(f"unknown split {', '.join(sorted(unknown))}; there are {', '.join(SPLITS)}")
    if min(fractions.values(), default=0.0) < 0 or not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"split fractions {dict(fractions)} must be at least 0 and sum to 1")


DEFAULTS = ShardSettings()

# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """One sample to be packed: the byte range of its members in a unit's output tar."""

    key: str
    file: str
    """Path of the unit's output relative to DATA."""
    offset: int
    """First byte of the first member's header."""
    length: int
    """Length of the byte range: headers, contents and padding of all members, which are contiguous."""
    members: tuple[Member, ...]
    """Members in tar order; their offsets are in `file`."""
    num_frames: int
    sha256: str | None = None
    """SHA-256 of the byte range, checked while it is copied; None: unknown."""

    def __post_init__(self) -> None:
        # Each header must begin where the padding of the member before it ends: the range is copied as it is.
        position = self.offset
        for member in self.members:
            if member.offset != position + BLOCK:
                raise ValueError(f"{self.key}: member {member.suffix} of {self.file} is not contiguous with the others")
            position = end_of([member])
        if not self.members or position != self.offset + self.length:
            raise ValueError(f"{self.key}: the members in {self.file} do not fill their {self.length} bytes")

    @classmethod
    def of_members(
        cls, *, key: str, file: str, members: Iterable[Member], num_frames: int, sha256: str | None = None
    ) -> PlannedSample:
        """Sample whose members a unit's record lists, in any order."""
        ordered = tuple(sorted(members, key=lambda member: member.offset))
        if not ordered:
            raise ValueError(f"{key}: the record of {file} lists no members")
        offset = ordered[0].offset - BLOCK
        length = end_of(ordered) - offset
        return cls(
            key=check_key(key),
            file=file,
            offset=offset,
            length=length,
            members=ordered,
            num_frames=num_frames,
            sha256=sha256,
        )


def plan_shards(
    sizes: Mapping[str, int],
    *,
    target_bytes: int = DEFAULTS.target_mib << 20,
    min_shards: int = DEFAULTS.min_shards,
    seed: int = DEFAULTS.seed,
    existing: Sequence[Sequence[str]] = (),
) -> list[list[str]]:
    """Plan that puts every sample into a shard.

    Args:
        sizes: Sample key → bytes it will take in its shard. Sizes of samples that are packed already are not used.
        target_bytes: Wanted size of a shard. New shards are equally full, at most a sample above or below.
        min_shards: Smallest total number of shards, as far as there are samples: training wants at least
            4 x workers, and a small data set should still give several.
        seed: Seed of the order in which new samples are dealt out.
        existing: Keys of the existing shards, in shard order. They come first in the plan, unchanged, even where a
            key is no longer in `sizes`.

    Returns:
        Keys of each shard; the position in the list is the shard's number, the position in a shard the ordinal.

    Raises:
        ValueError: A size or number below 1, or a key twice in `existing`.
    """
    if target_bytes < 1 or min_shards < 1:
        raise ValueError(f"target_bytes ({target_bytes}) and min_shards ({min_shards}) must be at least 1")
    plan = [list(shard) for shard in existing]
    packed = {key for shard in plan for key in shard}
    if len(packed) != sum(map(len, plan)):
        raise ValueError("a key occurs twice in the existing shards")
    # New samples in pseudo-random order, so that every shard mixes sources; ties by key keep it a pure function.
    fresh = sorted(sizes.keys() - packed, key=lambda key: (rng.key_bits(seed, "shard", key), key))
    if not fresh:
        return plan
    total = sum(sizes[key] for key in fresh)
    # As many shards as the bytes need, rounded up, but no more than there are samples: none is empty.
    wanted = max(-(-total // target_bytes), min_shards - len(plan), 1)
    return plan + _deal(fresh, sizes, min(wanted, len(fresh)))


def _deal(keys: list[str], sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Cut the list into `count` contiguous parts of nearly equal bytes, none empty."""
    total = sum(sizes[key] for key in keys)
    parts: list[list[str]] = [[]]
    before = 0
    for position, key in enumerate(keys):
        # Compared in integers, multiplied out: no rounding can differ from machine to machine.
        full = 2 * count * before + count * sizes[key] > 2 * total * len(parts)  # its middle lies after the part's end
        must = len(keys) - position == count - len(parts)  # as many keys left as parts to open
        if parts[-1] and len(parts) < count and (full or must):
            parts.append([])
        parts[-1].append(key)
        before += sizes[key]
    return parts


def plan_hash(plan: Sequence[Sequence[str]]) -> str:
    """SHA-256 of a plan, which identifies the set of shards."""
    return hash_bytes(canonical_json([list(shard) for shard in plan]))


# --- splits -----------------------------------------------------------------------------------------------------------


def assign_splits(
    groups: Iterable[str], *, seed: int = DEFAULTS.seed, fractions: Mapping[str, float] = DEFAULTS.fractions
) -> dict[str, str]:
    """Split of each group.

    Args:
        groups: Split groups of the samples (`split_group`); may repeat.
        seed: Another seed gives another, equally random division.
        fractions: Split → expected share of the groups. `test` takes the lowest hash values, then `val`, then `train`,
            so that a larger `val` takes groups from `train` only.

    Returns:
        Group → split.

    Raises:
        ValueError: Fractions of unknown splits, or that do not sum to 1.
    """
    _check_fractions(fractions)
    # Upper bounds of the hash values of each split, from `test` up to `train`.
    bounds: list[tuple[float, str]] = []
    bound = 0.0
    for split in reversed(SPLITS):
        bound += fractions.get(split, 0.0)
        bounds.append((bound, split))
    last = next(split for split in SPLITS if fractions.get(split, 0.0) > 0)  # rounding may leave its bound under 1
    assigned: dict[str, str] = {}
    # The groups share no state: each is compared with the bounds by itself.
    for group in groups:
        if group not in assigned:
            value = rng.uniform(seed, "split", group)
            assigned[group] = next((split for bound, split in bounds if value < bound), last)
    return assigned
