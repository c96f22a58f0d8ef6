"""What is drawn for a slot comes with its item: of mixtures and in place of other samples as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shards.drawn import DrawnDataset
from shards.loader import REPLACED, Batch, ClipLoader
from shards.microbatches import EqualMicrobatches, Share
from shards.mixture import MixedMicrobatches, MixtureDataset, divide
from shards.order import SampleOrder
from shards.replacements import Replacement, replacing
from talkinghead import rng


class Numbers:
    """Samples without content, one of which cannot be read."""

    readers = ()

    def __init__(self, name: str, count: int, bad: int | None = None) -> None:
        self.name, self.count, self.bad = name, count, bad
        self.num_frames = np.full(count, 50)
        self.order = SampleOrder(count, 0)

    def __len__(self) -> int:
        return self.count

    def key(self, at: int | Share) -> str:
        return f"{self.name}-{Share.of(at).slot % self.count}"

    def __getitem__(self, at: int | Share) -> Batch:
        slot = Share.of(at).slot
        if self.bad is not None and slot % self.count == self.bad:
            raise ValueError("damaged")
        return {"key": self.key(at), "slot": slot, "value": torch.tensor(float(slot))}


class Uniform:
    """A number of each slot."""

    def __call__(self, item: Batch) -> dict[str, Any]:
        return {"drawn": rng.uniform(3, "test", int(item["slot"]))}


def batches(dataset: Any, count: int, **options: Any) -> Iterator[Batch]:
    return (batch for _, batch in zip(range(count), ClipLoader(dataset, 4, **options), strict=False))


def mixture(bad: int | None = None) -> MixtureDataset:
    return MixtureDataset([Numbers("one", 8, bad), Numbers("two", 8)], [2.0, 1.0], 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_numbers_are_of_the_slot_that_the_training_counts(workers: int) -> None:
    for number, batch in enumerate(batches(DrawnDataset(mixture(), Uniform()), 6, num_workers=workers)):
        assert batch["slot"].tolist() == list(range(4 * number, 4 * number + 4))
        expected = torch.tensor([rng.uniform(3, "test", slot) for slot in batch["slot"].tolist()])
        assert torch.equal(batch["drawn"], expected)


def test_a_sample_in_place_of_another_one_gets_the_numbers_of_its_slot() -> None:
    dataset = replacing(DrawnDataset(mixture(bad=2), Uniform()), 0)
    assert isinstance(dataset, DrawnDataset) and isinstance(dataset.dataset, MixtureDataset)
    plain = replacing(mixture(bad=2), 0)
    replaced = 0
    for slot in range(40):
        item = dataset[slot]
        assert item["slot"] == slot and item["drawn"] == rng.uniform(3, "test", slot)
        assert item["key"] == plain[slot]["key"] and dataset.key(slot) == plain.key(slot)
        assert item["key"].split("-")[0] == dataset.key(slot).split("-")[0], "of the same data set"
        if REPLACED in item:
            assert isinstance(item[REPLACED], Replacement) and item[REPLACED].slot == slot
            replaced += 1
    assert replaced


def test_microbatches_are_those_of_the_samples() -> None:
    drawn = DrawnDataset(mixture(), Uniform())
    assert isinstance(divide(drawn, size=4, seconds=None, seed=0), EqualMicrobatches)
    by_length = divide(drawn, size=4, seconds=8.0, seed=0)
    assert isinstance(by_length, MixedMicrobatches)
    alone = divide(mixture(), size=4, seconds=8.0, seed=0)
    assert [by_length.shares(number) for number in range(8)] == [alone.shares(number) for number in range(8)]
    assert len(drawn) == len(mixture())


def test_what_is_drawn_replaces_what_an_item_has() -> None:
    class Shorter:
        def __call__(self, item: Batch) -> dict[str, Any]:
            return {"value": item["value"] + 1}

    dataset = DrawnDataset(Numbers("one", 8), Shorter())
    assert dataset[5]["value"] == 6 and dataset[Share(5, 25)]["value"] == 6
