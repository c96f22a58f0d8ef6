"""Layouts over ranks, and what a rank holds by counting; ranks that do it are in test_sharding_ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.toy_task import Config, ToyModel
from train.config import OptimizerConfig, ParallelConfig, ScheduleConfig
from train.trainer.learner import Learner
from train.trainer.sharding import Layout, layout_of, rank_bytes

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


def test_bytes_of_a_rank_by_hand() -> None:
    """10 x 1000 and 7 numbers trained, 4 x 5 frozen."""
    about: dict[str, Any] = {"parallel": SHARDED, "optimizer": OptimizerConfig(), "averages": True}
    trained, frozen = [(10, 1000), (7,)], [(4, 5)]
    one = rank_bytes(trained, frozen, Layout(replicas=4, shards=1), accumulation=4, **about)
    assert one.weights == 4 * (10_000 + 7 + 20) and one.gradients == one.averages == 4 * 10_007
    assert one.moments == 2 * one.averages + 2 * 4
    assert one.total == one.weights + one.gradients + one.moments + one.averages
    # The largest shares of four: 3 of 10 rows, 2 of 7 numbers, 1 of 4 rows; the same whatever copies there are.
    for layout in (Layout(replicas=1, shards=4), Layout(replicas=2, shards=4)):
        quarter = rank_bytes(trained, frozen, layout, accumulation=1, **about)
        assert quarter.weights == 4 * (3000 + 2 + 5) and quarter.gradients == quarter.averages == 4 * 3002
        whole = rank_bytes(trained, frozen, layout, accumulation=2, **about)
        assert whole.gradients == 4 * 10_007 and whole.weights == quarter.weights
        shared = about | {"parallel": ParallelConfig(strategy="fsdp2", accumulation="sharded"), "averages": False}
        assert rank_bytes(trained, frozen, layout, accumulation=2, **shared).gradients == 4 * 3002
        assert rank_bytes(trained, frozen, layout, accumulation=2, **shared).averages == 0


def test_bytes_of_8_bit_moments_by_hand() -> None:
    """A code for each number, and a factor in float32 for each block of 256; small parameters stay in float32."""
    about: dict[str, Any] = {"parallel": ParallelConfig(), "averages": False, "accumulation": 1}
    layout = Layout(replicas=1, shards=1)
    found = rank_bytes([(10, 1000), (4095,)], [], layout, optimizer=OptimizerConfig(name="adamw8bit"), **about)
    assert found.moments == 2 * (10_000 + 4 * 40) + 4 + 2 * 4 * 4095 + 4


def test_bytes_are_those_of_a_training() -> None:
    module = ToyModel(Config(width=96))
    learner = Learner(module, OptimizerConfig(), ScheduleConfig(), 1)
    names = learner.parameters.keys()
    found = rank_bytes(
        [p.shape for p in learner.parameters.values()],
        [p.shape for name, p in module.named_parameters() if name not in names],
        Layout(replicas=1, shards=1),
        parallel=ParallelConfig(),
        optimizer=OptimizerConfig(),
        averages=False,
        accumulation=1,
    )
    assert found.weights == _bytes(module.parameters())
    assert found.moments == _bytes(value for kept in learner.optimizer.state.values() for value in kept.values())


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in map(torch.Tensor.detach, tensors))
