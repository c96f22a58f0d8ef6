"""Samples that are read in place of those that cannot be: clips that are really cut, and data sets without media."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import ClipLoader, WindowConfig, WindowDataset
from shards.microbatches import BucketedMicrobatches, Share
from shards.mixture import MixtureDataset, divide
from shards.order import SampleOrder
from shards.reader import ShardReader
from shards.replacements import Replacement, Replacing, is_clips_fault, replacing
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import MachineError, UnreachableError
from tests.support.damaged_clips import cut_in_half

CONFIG = WindowConfig(num_frames=20, columns=("video", "audio"))


class Numbers:
    """Samples by number, of which some cannot be read.

    Args:
        bad: Numbers of those.
        error: What reading them raises.
        passing: Whether a second try succeeds.
    """

    readers = ()

    def __init__(self, bad: tuple[int, ...], error: Exception | None = None, *, passing: bool = False) -> None:
        self.bad, self.error, self.passing = bad, error or ValueError("it is cut off"), passing
        self.order = SampleOrder(12, 1)
        self.num_frames = 25 + 5 * np.arange(12)
        self.tried: list[int] = []

    def __len__(self) -> int:
        return 12

    def key(self, at: int | Share) -> str:
        return f"k-{self.order.at(Share.of(at).slot)[1]}"

    def __getitem__(self, at: int | Share) -> dict[str, Any]:
        share = Share.of(at)
        epoch, sample = self.order.at(share.slot)
        self.tried.append(sample)
        if sample in self.bad and not (self.passing and self.tried.count(sample) % 2 == 0):
            raise self.error
        # Of the longest there is only one: in its place a shorter one must do.
        assert share.frames is None or share.frames <= self.num_frames[sample] or share.frames == self.num_frames.max()
        return {"key": self.key(at), "slot": share.slot, "epoch": epoch, "frames": share.frames or 0}


def test_an_unreadable_sample_is_tried_twice_and_replaced() -> None:
    dataset = Numbers((4,))
    found = [Replacing(dataset, seed=0)[slot] for slot in range(36)]
    assert [item["slot"] for item in found] == list(range(36))
    assert [item["epoch"] for item in found] == [slot // 12 for slot in range(36)]
    replaced = [item["replaced"] for item in found if "replaced" in item]
    assert [event.slot // 12 for event in replaced] == [0, 1, 2]  # once in each epoch
    for event in replaced:
        assert event.key == "k-4" and event.replacement == found[event.slot]["key"] != "k-4"
        assert event.reason == "it is cut off"
    assert len({event.replacement for event in replaced}) > 1
    assert dataset.tried.count(4) == 6
    assert all(item["key"] == dataset.key(slot) for slot, item in enumerate(found) if "replaced" not in item)


def test_the_drawing_depends_on_slot_and_seed_alone() -> None:
    def events(seed: int, slots: list[int]) -> dict[int, Replacement]:
        wrapped = Replacing(Numbers((0, 1, 2, 3)), seed)
        return {slot: item["replaced"] for slot in slots if "replaced" in (item := wrapped[slot])}

    forwards = events(5, list(range(60)))
    assert len(forwards) == 20 and forwards == events(5, list(range(59, -1, -1)))
    assert forwards != events(6, list(range(60)))
    assert not {event.replacement for event in forwards.values()} & {"k-0", "k-1", "k-2", "k-3"}


def test_what_succeeds_at_the_second_try_is_not_replaced() -> None:
    wrapped = Replacing(Numbers(tuple(range(12)), passing=True), 0)
    assert not any("replaced" in wrapped[slot] for slot in range(24))


def test_clips_of_a_length_are_replaced_by_clips_that_are_long_enough() -> None:
    dataset = Numbers((3, 9, 11))
    order = BucketedMicrobatches(dataset.num_frames, 8.0, 1)
    wrapped = Replacing(dataset, 0)
    replaced = 0
    for number in range(4 * order.per_epoch):
        for share in order.shares(number):
            item = wrapped[share]
            assert item["frames"] == share.frames  # the data set itself asserts that the clip has as many
            replaced += "replaced" in item
    assert replaced == 12


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("cannot reach s3://clips"),
        MachineError("it is away"),
        OSError(errno.EMFILE, "too many open files"),
        OSError(errno.ENOSPC, "the disk is full"),
        OSError(errno.EIO, "the disk fails"),
        MemoryError(),
        KeyError("a mistake of ours"),
        AssertionError(),
    ],
)
def test_what_is_not_the_clips_fault_replaces_nothing(error: Exception) -> None:
    dataset = Numbers((4,), error)
    with pytest.raises(type(error)):
        [Replacing(dataset, 0)[slot] for slot in range(12)]
    assert dataset.tried.count(4) == 1 and not is_clips_fault(error)
    explained = ValueError("damaged")
    explained.__cause__ = OSError(errno.ESTALE, "stale")
    assert not is_clips_fault(explained) and is_clips_fault(ValueError("damaged")) and is_clips_fault(EOFError())


def test_where_nothing_can_be_read_it_says_so() -> None:
    dataset = Numbers(tuple(range(12)))
    with pytest.raises(ValueError, match=r"k-\d+ cannot be read \(it is cut off\), nor can any of \d+ .* make verify"):
        Replacing(dataset, 0)[0]
    alone = Numbers(tuple(set(range(12)) - {7}))
    found = [Replacing(alone, 0)[slot]["key"] for slot in range(12)]
    assert found == ["k-7"] * 12  # none is drawn twice


def test_samples_of_a_mixture_are_replaced_by_those_of_their_data_set() -> None:
    mixed = MixtureDataset([Numbers((4,)), Numbers((1, 2))], [3, 1], seed=3)
    wrapped = replacing(mixed, 0)
    assert isinstance(wrapped, MixtureDataset) and len(wrapped) == 24
    count = 0
    for slot in range(600):
        item = wrapped[slot]
        source, its = mixed.locate(slot)
        assert (item["slot"], item["source"]) == (slot, source)
        assert item["epoch"] == its // 12  # of the data set's own epoch
        if "replaced" in item:
            count += 1
            event = item["replaced"]
            assert event.slot == slot and event.key == mixed.key(slot) == wrapped.key(slot)
            assert event.key in (["k-4"], ["k-1", "k-2"])[source]
    assert count == pytest.approx(600 * (3 / 4 / 12 + 1 / 4 / 6), rel=0.1)
    by_length = divide(mixed, size=2, seconds=8.0, seed=1)
    for number in range(60):
        for share in by_length.shares(number):
            item = wrapped[share.item]  # type: ignore[index]
            assert item["slot"] == share.slot and item["frames"] == share.frames


@pytest.mark.parametrize("suffix", ["mp4", "wav"])
def test_a_clip_that_was_cut_is_replaced_alike_for_any_world_and_workers(copied: Storage, suffix: str) -> None:
    reader = ShardReader(copied, split=None)
    cut = reader.keys[2]
    cut_in_half(copied, cut, suffix)
    dataset = replacing(WindowDataset(ShardReader(copied, split=None), CONFIG, seed=4), 4)

    def read(world: int, workers: int) -> tuple[list[Replacement], list[str]]:
        loaders = [ClipLoader(dataset, 2, rank=rank, world=world, num_workers=workers) for rank in range(world)]
        batches = [list(itertools.islice(iter(loader), 16 // world)) for loader in loaders]
        events = [event for part in batches for batch in part for event in batch.get("replaced", [])]
        keys = [key for turn in zip(*batches, strict=True) for batch in turn for key in batch["keys"]]
        assert all(isinstance(batch["video"], torch.Tensor) for part in batches for batch in part)
        return sorted(events, key=lambda event: event.slot), keys

    events, keys = read(1, 0)
    assert {event.key for event in events} == {cut} and [event.slot // 8 for event in events] == [0, 1, 2, 3]
    assert cut not in keys and all(keys[event.slot] == event.replacement for event in events)
    assert all(f"{cut}.{suffix}" in event.reason and "make verify" in event.reason for event in events)
    assert read(2, 1) == (events, keys)


def test_a_shard_that_is_gone_is_its_clips_fault(copied: Storage) -> None:
    reader = ShardReader(copied, split=None)
    path, _ = reader.locate(int(reader.rows[0]), "wav")
    gone = [key for number, key in enumerate(reader.keys) if reader.locate(int(reader.rows[number]), "wav")[0] == path]
    copied.delete(path)
    dataset = replacing(WindowDataset(ShardReader(copied, split=None), CONFIG, seed=4), 4)
    events = [item["replaced"] for item in map(dataset.__getitem__, range(8)) if "replaced" in item]
    assert sorted(event.key for event in events) == sorted(gone)
    assert all("is not there" in event.reason for event in events)
