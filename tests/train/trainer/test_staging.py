"""Shares of a checkpoint: all ranks together copy one state, however many of them have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.staging import DefaultStager
from torch.distributed.tensor import DTensor

from tests.support.training import Ranks, assert_same, recipe, train
from train.trainer.staging import own_share

LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "hsdp": {"strategy": "fsdp2", "shard_within": 2},
}
WIDTH = 96


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 5))
def test_each_tensor_has_one_owner_and_none_much_more_than_others(sizes: list[int], world: int) -> None:
    state = {"a": {str(n): torch.zeros(size) for n, size in enumerate(sizes)}, "b": torch.zeros(3)}
    shares = [own_share(state, rank, world) for rank in range(world)]
    names = [[*share.get("a", {}), *("b" for _ in range("b" in share))] for share in shares]
    assert sorted(name for part in names for name in part) == sorted([*state["a"], "b"])
    loads = [_bytes(share) for share in shares]
    assert sum(loads) == _bytes(state)
    assert max(loads) - min(loads) <= 4 * max([3, *sizes])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_ranks_of_a_machine_stage_one_copy(four: Ranks, tmp_path: Path, layout: str) -> None:
    chosen = recipe(
        {"width": WIDTH}, global_batch=8, parallel=LAYOUTS[layout], checkpoint={"asynchronous": True, "every": 4}
    )
    found = four.run(staged, tmp_path / "run", chosen)
    # At step 4 in the background; that of step 8, the last one, is waited for and needs no copy.
    whole = sum(_bytes(found[0]["state"][part]) for part in ("module", "optimizer", "ema"))
    counts = [one["staged"] for one in found]
    assert whole <= sum(counts) < 1.1 * whole  # medians and counters on top
    assert max(counts) < 0.4 * whole, "no rank copies much more than a quarter"
    # What was written from these parts is the whole state.
    resumed = four.run(train, tmp_path / "run", chosen)
    for one, other in zip(resumed, found, strict=True):
        assert_same(one, other["state"])


def staged(path: Path, chosen: Any) -> dict[str, Any]:
    """Bytes that this rank copies for checkpoints in the background, and the state at the end."""
    counted: list[int] = []
    stage = DefaultStager.stage

    def watched(self: DefaultStager, state: Any, **options: Any) -> Any:
        counted.append(_bytes(state))
        return stage(self, state, **options)

    DefaultStager.stage = watched  # type: ignore[method-assign]
    try:
        outcome = train(path, chosen)
    finally:
        DefaultStager.stage = stage  # type: ignore[method-assign]
    dist.barrier()
    (count,) = counted
    return {"staged": count, "state": outcome}


def _bytes(state: Any) -> int:
    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    own = state.to_local() if isinstance(state, DTensor) else state
    return own.numel() * own.element_size()
