"""Optimizer, learning rate, and moving average of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.toy_task import Config, ToyModel
from tests.support.training import recipe, train
from train.config import EmaConfig, OptimizerConfig, ScheduleConfig
from train.trainer.update import Ema, clip_gradient, learning_rate, make_optimizer, trainable_parameters


@given(st.sampled_from(["constant", "cosine", "linear"]), st.integers(1, 60), st.integers(0, 80), st.floats(0, 1))
def test_rate_rises_then_never_rises(name: str, steps: int, warmup: int, final: float) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, final=final)  # type: ignore[arg-type]
    rates = [learning_rate(step, steps, OptimizerConfig(learning_rate=2.0), schedule) for step in range(steps)]
    if name != "constant":
        warmup = min(warmup, steps // 2)
    up, down = rates[: warmup + 1], rates[warmup:]
    assert up == sorted(up) and down == sorted(down, reverse=True)
    assert all(0 < rate <= 2 for rate in rates[:-1])
    assert all(rate == pytest.approx(2 * (i + 1) / warmup) for i, rate in enumerate(rates[:warmup]))
    if len(down) > 1:
        assert down[0] == 2
        assert down[-1] == pytest.approx(2 if name == "constant" else 2 * final)


def test_rate_in_the_middle() -> None:
    schedules = {name: ScheduleConfig(name=name, warmup_steps=2, final=0.2) for name in ("cosine", "linear")}  # type: ignore[arg-type]
    rates = {n: learning_rate(7, 13, OptimizerConfig(learning_rate=1.0), s) for n, s in schedules.items()}
    assert rates == {"cosine": pytest.approx(0.6), "linear": pytest.approx(0.6)}
    early = {n: learning_rate(4, 13, OptimizerConfig(learning_rate=1.0), s) for n, s in schedules.items()}
    assert early["cosine"] > early["linear"]


def test_only_matrices_decay() -> None:
    model = ToyModel(Config())
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.75 if parameter.requires_grad and parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_state_is_there_before_the_first_step_and_changed_nothing() -> None:
    model, untouched = ToyModel(Config()), ToyModel(Config())
    untouched.load_state_dict(model.state_dict())
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    assert len(optimizer.state) == len(trainable_parameters(model))
    assert all(value.count_nonzero() == 0 for state in optimizer.state.values() for value in state.values())


def test_gradient_is_scaled_down_and_never_up() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    for limit, expected in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0]), (None, [3.0, 4.0])):
        parameter.grad = torch.tensor([3.0, 4.0])
        clip_gradient([parameter], 5.0, limit)
        assert parameter.grad.tolist() == pytest.approx(expected)


def test_private_functions_of_torch_do_what_their_names_say() -> None:
    """`_foreach_mul_` and `_foreach_lerp_` have no public name: each equals a loop over the tensors, bit for bit."""
    torch.manual_seed(0)
    ones, others = ([torch.randn(size) for size in (3, 50, 1)] for _ in range(2))
    scaled = [one * 0.3 for one in ones]
    nearer = [one.lerp(other, 0.3) for one, other in zip(scaled, others, strict=True)]
    torch._foreach_mul_(ones, 0.3)  # pyright: ignore
    assert all(torch.equal(one, value) for one, value in zip(ones, scaled, strict=True))
    torch._foreach_lerp_(ones, others, 0.3)  # pyright: ignore
    assert all(torch.equal(one, value) for one, value in zip(ones, nearer, strict=True))


def test_all_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer(ToyModel(Config()).requires_grad_(False), OptimizerConfig())


# --- the average of the weights ---------------------------------------------------------------------------------------


def test_average_of_known_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"w": weight}, EmaConfig(decay=0.75, warmup=False))
    for step, value in enumerate((2.0, 3.0)):
        weight.data.fill_(value)
        ema.update(step)
    assert ema.average["w"].item() == 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 3


def test_decay_rises_to_its_value() -> None:
    ema = Ema({"w": nn.Parameter(torch.zeros(1))}, EmaConfig(decay=0.9))
    decays = [ema.decay(step) for step in range(200)]
    assert decays[0] == 0.1 and decays[10] == 11 / 20 and decays[-1] == 0.9
    assert decays == sorted(decays)


def test_without_decay_it_is_the_newest_weights(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", recipe(ema={"decay": 0.0}))
    assert all(torch.equal(outcome["module"][name], value) for name, value in outcome["ema"].items())


def test_it_is_not_the_weights_and_keeps_their_memory_apart(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", recipe(ema={"decay": 0.9}))
    assert not any(torch.equal(outcome["module"][name], value) for name, value in outcome["ema"].items())
