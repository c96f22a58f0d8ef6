"""Microbatches: every slot once an epoch, clips of like length, and a pure function of the number."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.microbatches import BucketedMicrobatches, EqualMicrobatches

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


def whole_seconds(frames: int) -> int:
    return frames if frames < 25 else frames - frames % 25


@settings(deadline=None)
@given(LENGTHS, st.floats(0.1, 60), st.integers(0, 5))
def test_every_clip_is_in_one_microbatch_of_an_epoch(lengths: list[int], seconds: float, seed: int) -> None:
    order = BucketedMicrobatches(np.array(lengths), seconds, seed)
    most = int(seconds * 25)
    for epoch in range(3):
        found = [order.shares(epoch * order.per_epoch + number) for number in range(order.per_epoch)]
        slots = sorted(share.slot for part in found for share in part)
        assert slots == list(range(epoch * len(lengths), (epoch + 1) * len(lengths)))
        for part in found:
            (frames,) = {share.frames for share in part}
            held = [whole_seconds(min(lengths[order.order.at(share.slot)[1]], most)) for share in part]
            assert frames == min(held), "as long as the shortest, never padded"
            assert len(part) * frames <= most or len(part) == 1
            assert max(held) <= 1.1 * frames + 1
    assert order.epoch(2 * order.per_epoch) == 2


def test_convolutions_meet_few_shapes() -> None:
    """3,000 clips of 2 to 60 s: by the frame they would meet 1,191 shapes, and new ones for epochs on."""
    lengths = np.random.default_rng(0).integers(50, 1500, 3000)
    order = BucketedMicrobatches(lengths, 60.0, 0)
    groups = [order.shares(number) for number in range(10 * order.per_epoch)]
    shapes = {(len(group), group[0].frames) for group in groups}
    assert all(frames is not None and frames % 25 == 0 for _, frames in shapes)
    assert len(shapes) <= 80 and len({frames for _, frames in shapes}) <= 58
    # What is left out of the clips for it: less than a second of each, and what `_GROWTH` allows.
    read = sum(len(group) * (group[0].frames or 0) for group in groups)
    assert read > 0.98 * 10 * lengths.sum()


def test_the_order_is_another_one_in_each_epoch_and_for_each_seed() -> None:
    lengths = np.arange(20, 120)
    one, again, other = (BucketedMicrobatches(lengths, 20.0, seed) for seed in (0, 0, 1))
    pickled = pickle.loads(pickle.dumps(one))  # noqa: S301  what was just made

    def epoch(order: BucketedMicrobatches, number: int) -> list[list[int]]:
        places = range(number * order.per_epoch, (number + 1) * order.per_epoch)
        return [[share.slot - number * 100 for share in order.shares(place)] for place in places]

    assert epoch(one, 1) == epoch(again, 1) == epoch(pickled, 1)
    assert epoch(one, 0) != epoch(one, 1) and epoch(one, 0) != epoch(other, 0)


def test_equal_ones_take_the_slots_in_a_row() -> None:
    order = EqualMicrobatches(3, 10)
    assert [share.slot for number in range(4) for share in order.shares(number)] == list(range(12))
    assert order.epoch(5) == 1.5


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.03, float("nan"), float("inf")])
def test_seconds_that_hold_no_frame_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must last at least one frame"):
        BucketedMicrobatches(np.array([10]), seconds, 0)
    with pytest.raises(ValueError, match="at least 1 sample"):
        EqualMicrobatches(0, 3)
