"""Preparing a module for its device and ranks; what ranks do together is in test_parallel_ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.toy_task import Block, Config, ToyModel
from tests.support.training import assert_same, recipe, train
from train.config import ParallelConfig
from train.trainer.parallel import choose_device, parallelise

CPU = torch.device("cpu")


def test_activation_checkpointing_runs_blocks_twice_and_changes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[int] = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x: (calls.append(1), forward(self, x))[1])
    one = train(tmp_path / "1", recipe({"dropout": 0.3}))
    plain = len(calls)
    two = train(tmp_path / "2", recipe({"dropout": 0.3}, parallel={"activation_checkpointing": True}))
    assert len(calls) == 3 * plain
    assert_same(one, two)


def test_compile_works_block_by_block(tmp_path: Path, monkeypatch: Any) -> None:
    compiled: list[Any] = []
    original = torch.compile

    def compile_(function: Any) -> Any:
        compiled.append(function.__self__)
        return original(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_)
    both = {"compile": True, "activation_checkpointing": True}
    assert_same(train(tmp_path / "1", recipe(parallel=both)), train(tmp_path / "2", recipe()), 1e-6)
    assert [type(block) for block in compiled] == [Block, Block]


def test_bf16_is_of_the_arithmetic_alone(tmp_path: Path, monkeypatch: Any) -> None:
    seen: set[torch.dtype] = set()
    forward = nn.Linear.forward

    def watched(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        result = forward(self, x)
        seen.add(result.dtype)
        return result

    monkeypatch.setattr(nn.Linear, "forward", watched)
    exact = train(tmp_path / "1", recipe())
    assert seen == {torch.float32}
    seen.clear()
    rough = train(tmp_path / "2", recipe(parallel={"precision": "bf16"}))
    assert seen == {torch.bfloat16}
    for part in ("module", "optimizer", "ema"):
        assert {value.dtype for value in rough[part].values()} == {torch.float32}
    assert_same(rough, exact, 0.2)
    with pytest.raises(AssertionError):
        assert_same(rough, exact, 1e-5)


def test_names_stay_as_they_are() -> None:
    built = ToyModel(Config())
    config = ParallelConfig(compile=True, activation_checkpointing=True)
    assert parallelise(ToyModel(Config()), config, CPU, 1).state_dict().keys() == built.state_dict().keys()


def test_a_missing_gpu_is_said() -> None:
    assert choose_device(ParallelConfig(device="cpu"), 0) == CPU
    rank = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(ValueError, match=f"has {rank} GPUs for its rank {rank}"):
        choose_device(ParallelConfig(device="cuda"), rank)
