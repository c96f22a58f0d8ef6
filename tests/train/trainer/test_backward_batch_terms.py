"""Terms over the whole global batch: their gradient, however a step is cut, and what they leave behind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import toy_adversary, toy_task
from tests.support.toy_adversary import ToyAdversaryTask
from tests.support.training import Ranks, assert_same, lines, recipe, start, train, trainer_of
from train.recipe import Recipe
from train.task import Step

ROUNDING = 5e-5  # of float32 sums in another order, through Adam's division, over a few steps
TWO, FOUR, EIGHT = 2, 4, 8  # samples of a microbatch; a step has eight


def shared(toy: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """Recipe of the plain toy with eight samples in a step."""
    return recipe(toy, global_batch=8, log={"every": 1}, **train)


def spread(toy: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """Recipe of the generator alone, whose pairs are to be spread over the whole batch."""
    settings = {"critic": False, "norm": False, "term": 0.3} | (toy or {})
    return recipe(settings, toy_adversary.tiny(), **({"global_batch": 8, "log": {"every": 1}} | train))


# --- the gradient -----------------------------------------------------------------------------------------------------


class MeanOfRows(toy_task.ToyTask):
    """Toy whose loss is nothing but a term over the batch, T(x) = mean x, of what its samples' losses were."""

    def loss(self, module: Any, batch: Any, **about: Any) -> Step:
        losses = super().loss(module, batch, **about).losses
        return Step(losses=losses | {"loss": torch.zeros_like(losses["loss"])}, rows={"x": losses["loss"]})

    def batch_terms(self, rows: Mapping[str, Tensor], *, seed: int, step: int) -> dict[str, Tensor]:
        return {"loss": rows["x"].mean(), "mean": rows["x"].mean().detach()}


def train_mean(path: Path, chosen: Recipe) -> dict[str, Any]:
    """Train the toy by the mean of its rows."""
    return train(path, chosen, task=MeanOfRows(chosen.config, "none", path / "task"))


@pytest.mark.parametrize("microbatch", [TWO, EIGHT])
def test_the_mean_of_the_rows_is_the_same_per_sample_loss(tmp_path: Path, microbatch: int) -> None:
    """Also with dropout: the pass that gathers the rows draws the masks of the pass that learns from them."""
    chosen = shared({"dropout": 0.3}, microbatch=microbatch)
    plain, terms = train(tmp_path / "plain", chosen), train_mean(tmp_path / "terms", chosen)
    assert plain["error"] is None and terms["error"] is None
    assert_same(terms, plain, ROUNDING)
    for line, other in zip(lines(tmp_path / "terms"), lines(tmp_path / "plain"), strict=True):
        # Logged once, whatever the number of microbatches, by itself and in the loss.
        for name, expected in (("loss", "loss"), ("mean", "loss"), ("gradient_norm", "gradient_norm")):
            assert line[name] == pytest.approx(other[expected], rel=1e-4)


def test_the_mean_of_the_rows_on_two_ranks(ranks: Ranks, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", shared(microbatch=TWO))
    for microbatch in (TWO, FOUR):
        first, second = ranks.run(train_mean, tmp_path / f"{microbatch}", shared(microbatch=microbatch))
        assert_same(first, second)
        assert_same(first, plain, ROUNDING)
        for line, other in zip(lines(tmp_path / f"{microbatch}"), lines(tmp_path / "plain"), strict=True):
            assert line["loss"] == line["mean"] == pytest.approx(other["loss"], rel=1e-4)


def test_it_is_the_gradient_of_the_whole_batch_in_plain_torch(tmp_path: Path) -> None:
    """Of a term that is no sum over the samples."""
    chosen = spread(steps=1, microbatch=TWO, optimizer={"max_gradient_norm": None})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    found: dict[str, Tensor] = {}
    drop = trainer.learner.drop
    trainer.learner.drop = lambda: (  # type: ignore[method-assign]
        found.update({name: p.grad.clone() for name, p in trainer.learner.parameters.items() if p.grad is not None}),
        drop(),
    )[1]
    trainer.fit()
    trainer.close()
    module = toy_adversary.make(chosen.config, "none", tmp_path).build()
    items = [trainer.task.dataset(0)[slot] for slot in range(8)]
    batch = toy_task.batch_of(items)
    pairs = module(batch["inputs"])
    error = (pairs - toy_adversary.true_pairs(batch)).square().sum(dim=1).mean()
    (error + 0.3 * (pairs.var(dim=0).sum() - 1).square()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    (line,) = lines(tmp_path / "run")
    assert line["spread"] == pytest.approx(pairs.var(dim=0).sum().item(), rel=1e-5)
    assert line["loss"] == pytest.approx((error + 0.3 * (pairs.var(dim=0).sum() - 1).square()).item(), rel=1e-5)


# --- however a step is cut --------------------------------------------------------------------------------------------


def same_lines(one: Path, two: Path) -> None:
    for line, other in zip(lines(one), lines(two), strict=True):
        assert line.keys() == other.keys()
        for name in ("loss", "spread", "gradient_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)


def test_a_step_is_the_same_however_many_share_it(ranks: Ranks, tmp_path: Path) -> None:
    """One rank with four microbatches, with one; two ranks with two each, with one each."""
    alone = {size: train(tmp_path / f"1-{size}", spread(microbatch=size)) for size in (TWO, EIGHT)}
    together = {size: ranks.run(train, tmp_path / f"2-{size}", spread(microbatch=size)) for size in (TWO, FOUR)}
    assert alone[TWO]["error"] is None
    for first, second in together.values():
        assert_same(first, second)
    found = [*alone.values(), *(first for first, _ in together.values())]
    for one, two in itertools.pairwise(found):
        assert_same(one, two, ROUNDING)
    for name in ("1-8", "2-2", "2-4"):
        same_lines(tmp_path / name, tmp_path / "1-2")


def test_two_microbatches_of_one_rank_are_one_of_each_of_two(ranks: Ranks, tmp_path: Path) -> None:
    """With BatchNorm, spectral normalisation and a critic, whose unit is the microbatch."""
    chosen = recipe({"term": 0.3, "follow": True}, toy_adversary.tiny(), global_batch=8, microbatch=FOUR)
    alone = train(tmp_path / "1", chosen)
    first, second = ranks.run(train, tmp_path / "2", chosen)
    assert alone["error"] is None and any("running_mean" in name for name in alone["module"])
    assert_same(first, second)
    assert_same(first, alone, ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("toy", [{}, {"critic": True, "norm": True}], ids=["term", "everything"])
def test_four_ranks_are_two_and_one(toy: dict[str, Any], tmp_path: Path) -> None:
    # With two samples BatchNorm makes ±1 of any numbers, and what is left of a gradient is rounding.
    chosen = spread(toy, microbatch=FOUR, global_batch=4 * FOUR)
    found = [train(tmp_path / "1", chosen)]
    for world in (2, 4):
        several = Ranks(world, tmp_path / f"ranks-{world}")
        (tmp_path / f"ranks-{world}").mkdir()
        try:
            found.append(several.run(train, tmp_path / f"{world}", chosen)[-1])
        finally:
            several.stop()
    assert found[0]["error"] is None
    for one, two in itertools.pairwise(found):
        assert_same(one, two, ROUNDING)
    for world in (2, 4):
        same_lines(tmp_path / f"{world}", tmp_path / "1")


# --- what they leave behind, and what is refused ----------------------------------------------------------------------


class Nothing(ToyAdversaryTask):
    """The adversary's toy with a term that is 0 whatever the rows."""

    def batch_terms(self, rows: Mapping[str, Tensor], *, seed: int, step: int) -> dict[str, Tensor]:
        assert {value.dtype for value in rows.values()} == {torch.float32}
        return {"loss": 0.0 * rows["pairs"].sum()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_pass_that_gathers_rows_leaves_nothing_pending(tmp_path: Path, precision: str) -> None:
    """Running statistics, counters and singular vectors are those of a training without the term, bit by bit."""
    about: dict[str, Any] = {"global_batch": 16, "microbatch": FOUR, "parallel": {"precision": precision}}
    plain = train(tmp_path / "plain", recipe({"dropout": 0.1}, toy_adversary.tiny(), **about))
    chosen = recipe({"dropout": 0.1, "term": 1.0}, toy_adversary.tiny(), **about)
    terms = train(tmp_path / "terms", chosen, task=Nothing(chosen.config, "none", tmp_path / "task"))
    assert plain["error"] is None and terms["error"] is None
    assert plain["module"]["norm.num_batches_tracked"].item() == 8
    assert_same(terms, plain)


@pytest.mark.parametrize("option", [{"strategy": "fsdp2"}, {"compile": True}])
def test_what_no_test_covers_is_refused(ranks: Ranks, tmp_path: Path, option: dict[str, Any]) -> None:
    for outcome in ranks.run(train, tmp_path / "run", spread(microbatch=TWO, parallel=option)):
        assert "a training with terms over the whole batch cannot be " in outcome["error"]
