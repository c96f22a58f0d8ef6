"""The plan is pure, complete, balanced, and only grows; splits are by group, and near their fractions."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.plan import DEFAULTS, PlannedSample, ShardSettings, assign_splits, plan_hash, plan_shards
from talkinghead.schema import Member

SIZES = st.dictionaries(st.text("abcdef0123", min_size=1, max_size=6), st.integers(1, 5000), max_size=60)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 20_000), st.integers(1, 9), st.integers(0, 3))
def test_every_key_once_and_shards_are_balanced(sizes, target, min_shards, seed):
    plan = plan_shards(sizes, target_bytes=target, min_shards=min_shards, seed=seed)
    assert sorted(key for shard in plan for key in shard) == sorted(sizes)
    assert all(plan)
    if not sizes:
        assert plan == []
        return
    wanted = min(max(-(-sum(sizes.values()) // target), min_shards), len(sizes))
    assert len(plan) == wanted
    mean = sum(sizes.values()) / wanted
    largest = max(sizes.values())
    assert all(sum(sizes[key] for key in shard) <= mean + largest for shard in plan)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.randoms())
def test_plan_depends_on_content_not_on_insertion_order(sizes, rnd):
    items = list(sizes.items())
    rnd.shuffle(items)
    assert plan_shards(dict(items), target_bytes=3000) == plan_shards(sizes, target_bytes=3000)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES)
def test_growing_moves_nothing(old, new):
    first = plan_shards(old, target_bytes=4000, min_shards=2)
    second = plan_shards(old | new, target_bytes=4000, min_shards=2, existing=first)
    assert second[: len(first)] == first
    assert sorted(key for shard in second for key in shard) == sorted(old | new)
    assert plan_shards(old | new, target_bytes=4000, min_shards=2, existing=second) == second
    without = dict(list((old | new).items())[::2])  # samples that vanished from the records stay packed
    assert plan_shards(without, target_bytes=4000, existing=second) == second


def test_sources_are_mixed_and_equal_sizes_give_equal_shards():
    sizes = {f"source{n // 100}-{n}": 1000 for n in range(400)}
    plan = plan_shards(sizes, target_bytes=100_000)
    assert [len(shard) for shard in plan] == [100] * 4
    for shard in plan:
        assert len({key.split("-")[0] for key in shard}) == 4
    assert plan_shards(sizes, target_bytes=100_000, seed=1) != plan
    assert plan_hash(plan) == plan_hash([tuple(shard) for shard in plan])
    assert plan_hash(plan) != plan_hash(plan[::-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40))
def test_a_sample_lies_where_its_middle_does(sizes, target):
    """Cut at the multiples of the mean, each sample goes to the part that its middle is in, if none stays empty."""
    named = {f"k{number}": size for number, size in enumerate(sizes)}
    plan = plan_shards(named, target_bytes=target)
    order = [key for shard in plan for key in shard]
    total, count = sum(sizes), len(plan)
    middles = {key: sum(named[k] for k in order[:at]) + named[key] / 2 for at, key in enumerate(order)}
    parts = [min(count - 1, -(-count * middles[key] // total) - 1) for key in order]
    if set(parts) == set(range(count)):
        assert parts == [number for number, shard in enumerate(plan) for _ in shard]


def test_the_smallest_number_of_shards_counts_those_that_are_there():
    first = plan_shards({f"old{n}": 1 for n in range(8)}, min_shards=3)
    sizes = {f"new{n}": 1 for n in range(8)}
    assert len(first) == 3 and len(plan_shards(sizes, min_shards=5, existing=first)) == 5
    assert len(plan_shards(sizes, min_shards=2, existing=first)) == 4, "new samples need one shard at least"


def test_defaults():
    """Shards of data sets that are there already were planned with them."""
    mib = 1 << 20
    assert len(plan_shards({f"k{n}": mib for n in range(128)})) == 1
    assert len(plan_shards({f"k{n}": mib for n in range(129)})) == 2
    assert ShardSettings() == ShardSettings(target_mib=128, min_shards=1, seed=0, val_fraction=0.05, test_fraction=0.05)
    assert ShardSettings(target_mib=1, min_shards=1).fractions == pytest.approx(
        {"train": 0.9, "val": 0.05, "test": 0.05}
    )
    for wrong in ({"target_mib": 0}, {"min_shards": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            ShardSettings(**wrong)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="min_shards"):
        plan_shards({"a": 1}, min_shards=0)
    with pytest.raises(ValueError, match="target_bytes"):
        plan_shards({"a": 1}, target_bytes=0)
    with pytest.raises(ValueError, match="twice"):
        plan_shards({}, existing=[["a"], ["a"]])


def test_planned_sample_is_contiguous():
    members = [Member(suffix="json", offset=512, size=10), Member(suffix="mp4", offset=1536, size=600)]
    random.Random(1).shuffle(members)
    sample = PlannedSample.of_members(key="k", file="f.tar", members=members, num_frames=1)
    assert (sample.offset, sample.length) == (0, 512 + 512 + 512 + 1024)
    members = [Member(suffix="json", offset=2560, size=10), Member(suffix="mp4", offset=3584, size=600)]
    sample = PlannedSample.of_members(key="k", file="f.tar", members=members, num_frames=1)
    assert (sample.offset, sample.length) == (2048, 512 + 512 + 512 + 1024)
    with pytest.raises(ValueError, match="do not fill"):
        PlannedSample(key="k", file="f.tar", offset=2048, length=512, members=tuple(members), num_frames=1)
    with pytest.raises(ValueError, match="not contiguous with the others"):
        PlannedSample.of_members(
            key="k", file="f.tar", members=[members[0], Member(suffix="wav", offset=9728, size=3)], num_frames=1
        )
    with pytest.raises(ValueError, match="lists no members"):
        PlannedSample.of_members(key="k", file="f.tar", members=[], num_frames=1)


# --- splits -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(max_size=8), max_size=30), st.sets(st.text(max_size=8), max_size=30), st.integers(0, 5))
def test_other_groups_move_nobody(groups, more, seed):
    alone = assign_splits(groups, seed=seed)
    together = assign_splits(sorted(groups | more), seed=seed)
    assert alone.keys() == groups
    assert all(together[group] == split for group, split in alone.items())


def test_fractions_hold_on_average():
    groups = [f"person-{n}" for n in range(20_000)]
    counts = Counter(assign_splits(groups).values())
    for split, fraction in DEFAULTS.fractions.items():
        assert abs(counts[split] / len(groups) - fraction) < 0.006
    assert assign_splits(groups, seed=1) != assign_splits(groups)


def test_larger_validation_takes_from_train_only():
    groups = [f"person-{n}" for n in range(2000)]
    small = assign_splits(groups, fractions={"train": 0.9, "val": 0.05, "test": 0.05})
    large = assign_splits(groups, fractions={"train": 0.8, "val": 0.15, "test": 0.05})
    assert {(small[g], large[g]) for g in groups if small[g] != large[g]} == {("train", "val")}


def test_extremes():
    assert set(assign_splits(map(str, range(500)), fractions={"train": 1.0}).values()) == {"train"}
    assert set(assign_splits(map(str, range(500)), fractions={"val": 1.0, "test": 0.0}).values()) == {"val"}
    for fractions in ({"train": 0.5}, {"train": 1.2, "val": -0.2}, {"dev": 1.0}, {}):
        with pytest.raises(ValueError, match="split"):
            assign_splits(["a"], fractions=fractions)
