"""Transfers between the host and the device, as far as a CPU shows them."""

from __future__ import annotations

import pytest
import torch

from tests.support.host_reads import HostReads
from train.trainer.throughput import Throughput
from train.trainer.transfer import Ahead, Returning, sent

CPU = torch.device("cpu")


def test_numbers_come_back_as_they_were_when_they_were_sent() -> None:
    values = torch.tensor([1.5, float("nan")])
    changing = torch.tensor(2.0)
    with HostReads() as reads:
        returning = Returning({"one": {"a": values[0], "b": changing}, "none": {}, "two": {"a": torch.tensor(True)}})
        changing.fill_(9.0)
        there = sent([0.1, 1e300], CPU)
    # What the test itself makes is no read of the code.
    assert all(read.file.startswith("tests/") for read in reads.found), str(reads)
    assert returning.read() == {"one": {"a": 1.5, "b": 2.0}, "none": {}, "two": {"a": 1.0}}
    assert there.tolist() == [0.1, 1e300] and there.dtype == torch.float64


def test_microbatches_come_in_turn_with_or_without_a_start() -> None:
    ahead = Ahead(CPU, Throughput(CPU))
    batches = [{"x": torch.full((2,), float(number)), "keys": ["a", "b"]} for number in range(3)]
    ahead.start(batches[0])
    taken = [ahead.take(batch) for batch in ahead.in_turn(batches)]
    assert [batch["x"][0].item() for batch in taken] == [0.0, 1.0, 2.0]
    assert all(batch["keys"] == ["a", "b"] for batch in taken)
    assert ahead.take(batches[1])["x"].equal(batches[1]["x"])


class _Order(Ahead):
    """Notes when a copy begins."""

    def __init__(self) -> None:
        super().__init__(CPU, Throughput(CPU))
        self.order: list[str] = []

    def start(self, batch: dict[str, int]) -> None:
        self.order.append(f"start {batch['number']}")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_next_copy_begins_before_a_microbatch_is_worked_on(count: int) -> None:
    ahead = _Order()
    for batch in ahead.in_turn([{"number": number} for number in range(count)]):
        ahead.order.append(f"work {batch['number']}")
    for number in range(count - 1):
        assert ahead.order.index(f"start {number + 1}") < ahead.order.index(f"work {number}")
    if count == 3:
        assert ahead.order.index("work 0") < ahead.order.index("start 2"), "one ahead, and no more"
