"""A network in training: its optimizer, learning rates, and groups of parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.toy_task import Config, ToyModel
from train.config import OptimizerConfig, ParameterGroup, ScheduleConfig
from train.trainer.learner import Learner, learning_rate, trainable_parameters

PASSED = torch.tensor(True)


def learner_of(module: nn.Module, optimizer: OptimizerConfig, *groups: ParameterGroup, steps: int = 10) -> Learner:
    return Learner(module, optimizer, ScheduleConfig(), steps, groups)


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
    learner = learner_of(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in learner.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    learner.update(learner.norms(0), 0, PASSED)
    for name, parameter in model.named_parameters():
        factor = 0.75 if parameter.requires_grad and parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_state_is_there_before_the_first_step_and_changed_nothing() -> None:
    model, untouched = ToyModel(Config()), ToyModel(Config())
    untouched.load_state_dict(model.state_dict())
    optimizer = learner_of(model, OptimizerConfig(weight_decay=0.1)).optimizer
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    assert len(optimizer.state) == len(trainable_parameters(model))
    assert all(value.count_nonzero() == 0 for state in optimizer.state.values() for value in state.values())


def test_gradient_is_scaled_down_and_never_up() -> None:
    for limit, expected in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0]), (None, [3.0, 4.0])):
        module = nn.Module()
        module.register_parameter("w", nn.Parameter(torch.zeros(2)))
        learner = learner_of(module, OptimizerConfig(max_gradient_norm=limit))
        learner.parameters["w"].grad = gradient = torch.tensor([3.0, 4.0])
        norms = learner.norms(0)
        assert norms == {"gradient_norm": pytest.approx(5.0)}
        learner.update(norms, 0, PASSED)
        assert gradient.tolist() == pytest.approx(expected)


def test_private_functions_of_torch_do_what_their_names_say() -> None:
    """`_foreach_mul_` and `_foreach_lerp_` have no public name: each equals a loop over the tensors, bit for bit, and
    by a number that is a tensor of the device."""
    torch.manual_seed(0)
    ones, others = ([torch.randn(size) for size in (3, 50, 1)] for _ in range(2))
    scaled = [one * 0.3 for one in ones]
    nearer = [one.lerp(other, 0.3) for one, other in zip(scaled, others, strict=True)]
    number = torch.tensor(0.3)
    torch._foreach_mul_(ones, number)  # pyright: ignore
    assert all(torch.equal(one, value) for one, value in zip(ones, scaled, strict=True))
    torch._foreach_lerp_(ones, others, [number] * 3)  # pyright: ignore
    assert all(torch.equal(one, value) for one, value in zip(ones, nearer, strict=True))
    torch._foreach_mul_(ones, torch.tensor(1.0))  # pyright: ignore
    torch._foreach_lerp_(ones, others, [torch.tensor(0.0)] * 3)  # pyright: ignore
    assert all(torch.equal(one, value) for one, value in zip(ones, nearer, strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("gradient", [torch.nan, 3.0])
def test_a_skipped_update_keeps_every_bit(name: str, gradient: float) -> None:
    """By `found_inf`, which the fused optimizers take from loss scaling: a private attribute of theirs."""
    model = ToyModel(Config())
    decay = 0.1 if name == "adamw" else 0.0
    learner = learner_of(model, OptimizerConfig(name=name, learning_rate=0.1, weight_decay=decay))  # type: ignore[arg-type]

    def everything() -> list[torch.Tensor]:
        states = [value for state in learner.optimizer.state.values() for value in state.values()]
        return [*model.parameters(), *model.buffers(), *states]

    gradients(learner)
    learner.update(learner.norms(0), 0, PASSED)
    before = [value.detach().clone() for value in everything()]
    for passed, same in ((~PASSED, True), (PASSED, False)):
        gradients(learner, gradient)
        learner.update(learner.norms(1), 1, passed)
        equal = [torch.equal(one, two) for one, two in zip(before, everything(), strict=True)]
        assert all(equal) is same
    # A count, two moments and the weights of each parameter.
    assert equal.count(False) == 4 * len(learner.parameters)


def test_all_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        learner_of(ToyModel(Config()).requires_grad_(False), OptimizerConfig())


def test_the_rate_falls_by_a_factor_after_so_many_steps() -> None:
    schedule = ScheduleConfig(name="exponential", warmup_steps=2, factor=0.5, every=3, final=0.2)
    rates = [learning_rate(step, 100, OptimizerConfig(learning_rate=1.0), schedule) for step in range(12)]
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2]


# --- groups -----------------------------------------------------------------------------------------------------------


def gradients(learner: Learner, value: float = 1.0) -> None:
    for parameter in learner.parameters.values():
        parameter.grad = torch.full_like(parameter, value)


def test_each_group_has_its_own_rate_limit_and_time() -> None:
    model = ToyModel(Config(num_blocks=1))
    head = ParameterGroup(match=r"^head\.", rate=0.5, first=2, last=3)
    norm = ParameterGroup(
        match=r"norm", max_gradient_norm=1.0, schedule=ScheduleConfig(warmup_steps=4), betas=(0.0, 0.9)
    )
    learner = learner_of(model, OptimizerConfig(learning_rate=0.1, max_gradient_norm=None), head, norm)
    moved = []
    for step in range(5):
        before = {name: p.detach().clone() for name, p in learner.parameters.items()}
        gradients(learner)
        norms = learner.norms(step)
        count = sum(p.numel() for name, p in learner.parameters.items() if "norm" in name)
        assert norms["gradient_norm/norm"] == pytest.approx(count**0.5)
        common = [p for name, p in learner.active(step).items() if "norm" not in name]
        assert norms["gradient_norm"] == pytest.approx(sum(p.numel() for p in common) ** 0.5)
        learner.update(norms, step, PASSED)
        learner.drop()
        moved.append({name for name, p in learner.parameters.items() if not torch.equal(p.detach(), before[name])})
        # With gradients that never change, Adam moves each weight by the rate.
        change = (learner.parameters["head.bias"].detach() - before["head.bias"]).abs().item()
        assert change == pytest.approx(0.05 if step in (2, 3) else 0.0, rel=1e-4)
        assert learner.learning_rate(step, 1) == pytest.approx(0.1 * min(1, (step + 1) / 4))
    everything = set(learner.parameters)
    heads = {"head.weight", "head.bias"}
    assert moved == [everything - heads] * 2 + [everything] * 2 + [everything - heads]
    assert learner.optimizer.state[learner.parameters["head.bias"]]["step"].item() == 2, "moments stand still, too"
    assert learner.optimizer.state[learner.parameters["blocks.0.linear.bias"]]["step"].item() == 5


def test_the_first_group_that_matches_counts() -> None:
    one, two = ParameterGroup(match="head"), ParameterGroup(match="weight", rate=0.0)
    learner = learner_of(ToyModel(Config()), OptimizerConfig(), one, two)
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    gradients(learner)
    learner.update(learner.norms(0), 0, PASSED)
    still = {name for name, p in learner.parameters.items() if torch.equal(p.detach(), before[name])}
    assert still == {name for name in learner.parameters if "weight" in name and "head" not in name}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ((ParameterGroup(match="tail"),), "'tail' has none"),
        ((ParameterGroup(match="head"), ParameterGroup(match=r"head\.bias")), "an earlier group has taken it"),
        ((ParameterGroup(match="features"),), "nothing that is trained has such a name"),
        ((ParameterGroup(match="head", first=10),), "from step 10 on, and the training has 10 steps"),
    ],
)
def test_a_group_that_never_runs_is_refused(groups: tuple[ParameterGroup, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner_of(ToyModel(Config()), OptimizerConfig(), *groups)


@pytest.mark.parametrize("wrong", [{"match": "("}, {"rate": -1.0}, {"first": 3, "last": 2}, {"max_gradient_norm": 0.0}])
def test_a_group_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"parameters|max_gradient_norm"):
        ParameterGroup(**({"match": "head"} | wrong))  # pyright: ignore[reportArgumentType]
