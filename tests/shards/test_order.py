"""The sample order: a pure function, a permutation in every epoch, and the same for every world size."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import SampleOrder, spread


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 2**20))
def test_each_epoch_is_a_permutation(count, seed, epoch):
    order = SampleOrder(count, seed)
    permutation = order.permutation(epoch)
    assert sorted(permutation) == list(range(count))
    assert [order.at(epoch * count + p) for p in range(count)] == [(epoch, s) for s in permutation]
    again = copy.deepcopy(order)
    assert (again.permutation(epoch) == permutation).all()
    assert [order.sample(epoch, p) for p in range(count)] == list(permutation)


def test_order_is_pinned_and_shuffled():
    """A training must resume in the same order after any update of the code or its libraries."""
    assert SampleOrder(8, 0).permutation(0).tolist() == [3, 6, 7, 1, 2, 5, 4, 0]
    orders = {tuple(SampleOrder(8, seed).permutation(epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) > 95
    middle = SampleOrder(100_000, 3).permutation(1)
    assert abs(np.corrcoef(middle, np.arange(len(middle)))[0, 1]) < 0.02


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 50))
def test_a_choice_is_spread_from_the_first_to_the_last(total, count):
    chosen = spread(total, count)
    assert len(chosen) == min(total, count) and chosen[0] == 0 and chosen == sorted(set(chosen))
    if len(chosen) > 1:
        steps = np.diff(chosen)
        assert chosen[-1] == total - 1 and steps.max() - steps.min() <= 1


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        SampleOrder(0, 0)
