"""AdamW with moments of 8 bits; all but the message of its absence needs the extra adam8bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.toy_task import Config, ToyModel
from tests.support.training import Ranks, assert_same, recipe, train
from train.config import EmaConfig, OptimizerConfig, ScheduleConfig
from train.trainer.average import Ema
from train.trainer.checkpoint import training_state
from train.trainer.eight_bit_adam import BLOCK_8BIT, LEAST_8BIT, moments_of
from train.trainer.learner import Learner

EIGHT: dict[str, Any] = {"name": "adamw8bit"}
WIDE = {"width": 96}  # 9216 numbers in a matrix: enough for 8 bits


def test_its_absence_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as if it were not installed
    with pytest.raises(
        ValueError, match=r"adamw8bit needs bitsandbytes: pip install .*'\.\[adam8bit\]', or take adamw"
    ):
        learner()


def test_it_does_not_go_with_shards() -> None:
    with pytest.raises(ValueError, match="fsdp2 shares out no moments of 8 bits"):
        recipe(optimizer=EIGHT, parallel={"strategy": "fsdp2"})


def learner() -> Learner:
    return Learner(ToyModel(Config(**WIDE)), OptimizerConfig(**EIGHT), ScheduleConfig(), 8)


def test_large_parameters_keep_codes_and_small_ones_float32() -> None:
    pytest.importorskip("bitsandbytes")
    found = learner()
    for parameter in found.parameters.values():
        kept = found.optimizer.state[parameter]
        large = parameter.numel() >= LEAST_8BIT
        assert kept["state1"].dtype == kept["state2"].dtype == (torch.uint8 if large else torch.float32)
        assert ("absmax1" in kept) == large and not kept["step"]
        if large:
            assert kept["absmax1"].shape == (-(-parameter.numel() // BLOCK_8BIT),)
    # Codes read back are the moments to 8 bits, block by block.
    parameter = max(found.parameters.values(), key=torch.Tensor.numel)
    gradient = torch.randn_like(parameter)
    for one in found.parameters.values():
        one.grad = gradient if one is parameter else torch.zeros_like(one)
    found.optimizer.step()
    first, second = moments_of(found.optimizer.state[parameter])
    torch.testing.assert_close(first, 0.1 * gradient, rtol=0.06, atol=0.005)
    torch.testing.assert_close(second, 0.001 * gradient.square(), rtol=0.06, atol=1e-4)
    names = training_state(found, Ema(found, EmaConfig(decay=0.0)))["optimizer"]
    assert {"state.blocks.0.linear.weight.state1", "state.blocks.0.linear.weight.qmap2"} <= names.keys()
    assert all(isinstance(value, torch.Tensor) for value in names.values())


def test_it_trains_about_as_adamw_does_and_resumes_exactly(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    about: dict[str, Any] = {"optimizer": EIGHT | {"learning_rate": 1e-3, "weight_decay": 0.1}}
    whole = train(tmp_path / "whole", recipe(WIDE, **about))
    train(tmp_path / "run", recipe(WIDE, steps=4, **about))
    assert_same(train(tmp_path / "run", recipe(WIDE, **about)), whole)
    exact = train(tmp_path / "exact", recipe(WIDE, optimizer=about["optimizer"] | {"name": "adamw"}))
    for part in ("module", "ema"):
        for name, value in exact[part].items():
            torch.testing.assert_close(whole[part][name], value, rtol=0, atol=2e-3)  # of 8 steps of 1e-3
    assert not torch.equal(whole["module"]["blocks.0.linear.weight"], exact["module"]["blocks.0.linear.weight"])


def test_two_ranks_hold_the_same_and_a_bad_step_moves_nothing(ranks: Ranks, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    chosen = recipe(WIDE | {"bad_gradient": (11,)}, optimizer=EIGHT)
    first, second = ranks.run(train, tmp_path / "two", chosen)
    assert_same(first, second)
    assert first["skipped"] == 1
    assert {int(value) for name, value in first["optimizer"].items() if name.endswith(".step")} == {7}
