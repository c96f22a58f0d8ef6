"""Splits are by group, independent of other groups, and near their fractions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.splits import FRACTIONS, assign_splits


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
    for split, fraction in FRACTIONS.items():
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
