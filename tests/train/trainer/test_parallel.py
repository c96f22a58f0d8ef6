"""Preparing a module for its device and ranks; what ranks do together is in test_parallel_ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

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

    def compile_(function: Any, **options: Any) -> Any:
        compiled.append(function.__self__)
        return original(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_)
    both = {"compile": True, "activation_checkpointing": True}
    assert_same(train(tmp_path / "1", recipe(parallel=both)), train(tmp_path / "2", recipe()), 1e-6)
    assert [type(block) for block in compiled] == [Block, Block]


def test_every_form_of_a_block_is_compiled_for_its_own_shape(monkeypatch: Any) -> None:
    """Blocks of one class share their code; PyTorch by itself goes on without compiling after eight forms of it."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    torch.compiler.reset()
    module, blocks = nn.Module(), {width: Block(width, 0.0) for width in range(2, 14)}
    module.blocks = nn.ModuleList(blocks.values())
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        parallelise(module, ParallelConfig(compile=True), CPU, 1)
        counters.clear()
        for forms, batch in ((12, 4), (24, 4), (36, 3), (48, 5)):
            module.train(forms == 12)
            for _ in range(2):
                for width, block in blocks.items():
                    block(torch.ones(batch, width))
            # No symbolic shape, which would be compiled once for all, and nothing a second time.
            assert counters["stats"]["unique_graphs"] == forms
    torch.compiler.reset()


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
    with pytest.raises(ValueError, match=rf"this machine has \w+ GPUs? for {rank + 1} ranks?: "):
        choose_device(ParallelConfig(device="cuda"), rank)
