"""Layouts over ranks; ranks that do it are in test_sharding_ranks, and what they hold in test_doctor_table."""

from __future__ import annotations

from typing import Any

import pytest

from train.config import ParallelConfig
from train.trainer.sharding import Layout, layout_of

SHARDED = ParallelConfig(strategy="fsdp2")


@pytest.mark.parametrize(
    ("config", "world", "local", "layout", "name"),
    [
        (ParallelConfig(), 8, 8, Layout(replicas=8, shards=1), "ddp"),
        (SHARDED, 8, 4, Layout(replicas=1, shards=8), "fsdp2"),
        (ParallelConfig(strategy="fsdp2", shard_within="node"), 64, 8, Layout(replicas=8, shards=8), "hsdp"),
        (ParallelConfig(strategy="fsdp2", shard_within="node"), 8, 8, Layout(replicas=1, shards=8), "fsdp2"),
        (ParallelConfig(strategy="fsdp2", shard_within=2), 8, 8, Layout(replicas=4, shards=2), "hsdp"),
    ],
)
def test_layouts(config: ParallelConfig, world: int, local: int, layout: Layout, name: str) -> None:
    found = layout_of(config, world, local)
    assert found == layout and found.name == name


def test_ranks_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ValueError, match="6 ranks cannot be divided into groups of 4"):
        layout_of(ParallelConfig(strategy="fsdp2", shard_within=4), 6, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_within": 2}, "ddp shards nothing"),
        ({"accumulation": "sharded"}, "ddp shards nothing"),
        ({"strategy": "fsdp2", "shard_within": 1}, "a number of ranks above 1"),
        ({"strategy": "fsdp2", "gradients": "bf16"}, "is of --train.parallel.strategy ddp"),
    ],
)
def test_settings_that_go_with_another_strategy_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**settings)
