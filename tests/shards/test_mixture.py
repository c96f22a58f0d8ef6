"""Several data sets in one order: shares are met in each block, and nothing depends on ranks or resumes."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.loader import ClipLoader, WindowConfig, WindowDataset
from shards.microbatches import BucketedMicrobatches, EqualMicrobatches
from shards.mixture import MixedMicrobatches, MixtureDataset, MixtureOrder, divide, shares
from shards.reader import ShardReader

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS)
def test_shares_are_the_weights_as_far_as_whole_numbers_can_be(weights):
    found = shares(weights)
    assert sum(found) == 1000 and min(found) >= 1
    wanted = np.array(weights) / sum(weights) * 1000
    # Data sets that have one slot more than they should take it from the others.
    lifted = int((wanted < 1).sum())
    for share, exact in zip(found, wanted, strict=True):
        assert exact - 1 - lifted - 1e-6 <= share <= exact + 1 + 1e-6
    assert shares([weight * 4 for weight in weights]) == found


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1], (1000,)),
        ([0.7, 0.3], (700, 300)),
        ([1, 1, 1], (334, 333, 333)),
        ([1e-9, 1], (1, 999)),
        ([1.0] * 1000, (1,) * 1000),
        ([1e9, *[1e-9] * 999], (1,) * 1000),
        ([5, 3, 1e-9, 1e-9], (624, 374, 1, 1)),
    ],
)
def test_shares_by_hand(weights, expected):
    assert shares(weights) == expected


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 10**9))
def test_each_block_has_its_shares_and_slots_follow_each_other(weights, seed, block):
    order = MixtureOrder(weights, seed)
    found = [order.at(1000 * block + place) for place in range(1000)]
    counts = Counter(source for source, _ in found)
    assert tuple(counts[number] for number in range(len(weights))) == order.shares
    for source, share in enumerate(order.shares):
        assert [slot for other, slot in found if other == source] == list(range(block * share, (block + 1) * share))
    # Random access, whatever was asked before, also in another process.
    again = copy.deepcopy(order)
    assert [again.at(1000 * block + place) for place in (999, 0, 500)] == [found[place] for place in (999, 0, 500)]


def test_the_order_is_pinned_and_shuffled():
    """A training must resume in the same order after any update of the code or its libraries."""
    order = MixtureOrder([0.5, 0.3, 0.2], 0)
    first = [(2, 0), (0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (2, 1), (1, 1)]
    assert [order.at(slot) for slot in range(8)] == first
    assert [order.at(slot) for slot in (1000, 123_456_789)] == [(0, 500), (1, 37_037_046)]
    half = [MixtureOrder([1, 1], seed) for seed in range(5)]
    assert len({tuple(o.at(1000 * block + place)[0] for place in range(50)) for o in half for block in range(5)}) == 25
    sources = np.array([order.at(slot)[0] for slot in range(20_000)])
    assert abs(np.corrcoef(sources[:-1], sources[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [float("nan")], [float("inf"), 1.0], [1.0] * 1001])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError):
        MixtureOrder(weights, 0)
    with pytest.raises(ValueError, match="1 data sets have 2 weights"):
        MixtureDataset([Numbers(3)], [1.0, 2.0], 0)


class Numbers:
    """A data set of slots that has nothing to do with clips."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return {"key": f"k-{slot % self.count}", "slot": slot, "own": slot}


def test_each_data_set_goes_through_its_own_epochs():
    mixed = MixtureDataset([Numbers(40), Numbers(7), Numbers(300)], [5, 3, 2], seed=3)
    assert len(mixed) == 347
    items = [mixed[slot] for slot in range(3000)]
    assert [item["slot"] for item in items] == list(range(3000))
    for source, share in enumerate((500, 300, 200)):
        own = [item["own"] for item in items if item["source"] == source]
        assert own == list(range(3 * share)), "each of its slots once, in order"


@pytest.fixture(scope="module")
def mixed(built):
    """Two data sets of clips and an order of both that a batch does not divide."""
    config = WindowConfig(num_frames=20, columns=("audio", "pose"), features=("loudness",))
    parts = [WindowDataset(ShardReader(built, split=split), config, seed=4) for split in ("train", "val")]
    return MixtureDataset(parts, [3, 1], seed=9)


def batches(dataset, first: int, count: int, **options: Any) -> list[dict]:
    loader = ClipLoader(dataset, 4 // options.get("world", 1), **options)
    loader.load_state_dict({"microbatches": options.get("world", 1) * first})
    return list(islice(iter(loader), count))


def test_batches_are_the_same_for_any_world_and_after_a_resume(mixed):
    """Also where a batch spans two blocks: 1,000 slots are 250 batches."""
    expected = batches(mixed, 247, 6)
    assert {int(source) for batch in expected for source in batch["source"]} == {0, 1}
    for world, workers, first in ((2, 0, 247), (4, 2, 247), (1, 0, 249), (2, 2, 250)):
        ranks = [batches(mixed, first, 253 - first, rank=r, world=world, num_workers=workers) for r in range(world)]
        for batch, *parts in zip(expected[first - 247 :], *ranks, strict=True):
            assert batch["keys"] == [key for part in parts for key in part["keys"]]
            for name in batch.keys() - {"keys"}:
                torch.testing.assert_close(batch[name], torch.cat([part[name] for part in parts]), rtol=0, atol=0,
                                           equal_nan=True)  # fmt: skip


def test_a_run_and_one_that_was_interrupted_see_the_same(mixed):
    whole, first = ClipLoader(mixed, 3), ClipLoader(mixed, 3)
    expected = [batch["keys"] for batch in islice(iter(whole), 9)]
    seen = [batch["keys"] for batch in islice(iter(first), 4)]
    second = ClipLoader(mixed, 3)
    second.load_state_dict(first.state_dict())
    assert seen + [batch["keys"] for batch in islice(iter(second), 5)] == expected


def test_items_are_those_of_the_data_set_alone(mixed):
    for slot in range(30):
        source, its_slot = mixed.order.at(slot)
        item, alone = mixed[slot], mixed.datasets[source][its_slot]
        assert item["slot"] == slot and item["source"] == source and item["key"] == alone["key"]
        assert item["first"] == alone["first"] and torch.equal(item["audio"], alone["audio"])


def test_microbatches_by_length_come_from_one_data_set_each(mixed):
    order = divide(mixed, size=2, seconds=4.0, seed=9)
    assert isinstance(order, MixedMicrobatches)
    lengths = [part.num_frames for part in mixed.datasets]
    parts = [BucketedMicrobatches(frames, 4.0, 9) for frames in lengths]
    expected: list[set[int]] = [set(), set()]
    for number in range(300):
        source, own = order.order.at(number)
        shares = order.shares(number)
        assert [(share.slot // 2, share.frames) for share in shares] == [
            (share.slot, share.frames) for share in parts[source].shares(own)
        ]
        expected[source] |= {share.slot for share in shares}
        items = [mixed[share] for share in shares]
        assert {item["source"] for item in items} == {source}
        assert [item["slot"] for item in items] == [share.slot for share in shares]
        assert {len(item["pose"]) for item in items} == {shares[0].frames}
    assert not expected[0] & expected[1], "the slots of the mixture are unique"
    assert order.epoch(3 * (parts[0].per_epoch + parts[1].per_epoch)) == 3
    found = [batch["keys"] for batch in islice(iter(ClipLoader(mixed, order)), 6)]
    second = ClipLoader(mixed, order, rank=1, world=2)
    second.load_state_dict({"microbatches": 2})
    assert [batch["keys"] for batch in islice(iter(second), 2)] == found[3::2]


def test_what_has_no_lengths_is_not_divided_by_them():
    assert isinstance(divide(Numbers(5), size=3, seconds=None, seed=0), EqualMicrobatches)
    with pytest.raises(ValueError, match="leave out --train"):
        divide(Numbers(5), size=3, seconds=2.0, seed=0)
