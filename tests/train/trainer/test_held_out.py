"""The loss on held-out clips: what it measures, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import toy_adversary
from tests.support.toy_task import ToyTask, batch_of
from tests.support.training import Ranks, assert_same, lines, losses_of, recipe, start, train, trainer_of
from train.recipe import Recipe

EVERY_2 = {"loss_every": 2, "loss_samples": 7}


def measured(path: Path) -> list[dict[str, Any]]:
    """Lines with a held-out loss."""
    return [line for line in lines(path) if "held_out/loss" in line]


@pytest.mark.parametrize("noisy", [{"dropout": 0.3}, {}])
def test_it_changes_nothing(tmp_path: Path, noisy: dict[str, Any]) -> None:
    with_it = train(tmp_path / "with", recipe(noisy, validation=EVERY_2))
    assert_same(with_it, train(tmp_path / "without", recipe(noisy)))
    assert [line["step"] for line in measured(tmp_path / "with")] == [2, 4, 6, 8]
    assert not measured(tmp_path / "without")


def with_everything(**train: Any) -> Recipe:
    """A generator and a critic, both with BatchNorm."""
    return recipe({"counts": True, "term": 0.1, "follow": True}, toy_adversary.tiny(), **train)


def test_it_changes_nothing_of_a_critic_and_of_running_statistics(tmp_path: Path) -> None:
    with_it = train(tmp_path / "with", with_everything(validation=EVERY_2))
    assert with_it["error"] is None
    assert_same(with_it, train(tmp_path / "without", with_everything()))
    assert measured(tmp_path / "with")


def test_it_is_the_mean_over_the_same_samples_every_time(tmp_path: Path) -> None:
    chosen = recipe({"dropout": 0.3}, steps=2, validation=EVERY_2)
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    trainer.fit()
    loss = trainer.task.loss

    def drawing(*arguments: Any, **options: Any) -> Any:
        torch.rand(3)
        return loss(*arguments, **options)

    trainer.task.loss = drawing  # type: ignore[method-assign]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    figures = trainer.watch.held_out.measure()
    assert torch.equal(torch.random.get_rng_state(), before) and trainer.module.training
    assert figures == trainer.watch.held_out.measure()
    (line,) = measured(tmp_path / "run")
    assert line == {"step": 2} | figures
    # By hand: seven slots over five samples, without dropout.
    task, module = trainer.task, trainer.module
    assert isinstance(task, ToyTask)
    seed = trainer.watch.held_out.seed
    items = task.held_out(seed, 7)
    batch = batch_of([items[slot] for slot in range(7)])
    with torch.no_grad():
        expected = losses_of(task, module.eval(), batch, seed=seed)
    assert figures["held_out/loss"] == pytest.approx(float(expected["loss"].mean()), rel=1e-6)
    above = expected["absolute"][batch["target"] > 0]
    assert figures["held_out/absolute/above_0"] == pytest.approx(float(above.mean()), rel=1e-6)
    assert seed != trainer.config.seed
    trainer.close()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_measure_what_one_does(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    # Four microbatches of 2, 2, 2 and 1 samples; three of 3, 3 and 1, which two ranks do not share evenly.
    for microbatch, batch in ((2, 4), (3, 6)):
        chosen = recipe(microbatch=microbatch, global_batch=batch, validation=EVERY_2)
        alone = train(tmp_path / f"alone-{microbatch}", chosen)
        shared = dataclasses.replace(
            chosen,
            train=dataclasses.replace(
                chosen.train, parallel=dataclasses.replace(chosen.train.parallel, strategy=strategy)
            ),
        )
        (first, second) = ranks.run(train, tmp_path / f"two-{microbatch}", shared)
        assert_same(first, second)
        assert_same(first, ranks.run(train, tmp_path / f"plain-{microbatch}", without(shared))[0])
        pairs = zip(measured(tmp_path / f"alone-{microbatch}"), measured(tmp_path / f"two-{microbatch}"), strict=True)
        for one, two in pairs:
            assert two == pytest.approx(one, rel=2e-4)
        assert alone["error"] is None


def without(chosen: Recipe) -> Recipe:
    validation = dataclasses.replace(chosen.train.validation, loss_every=0)
    return dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, validation=validation))


def test_without_held_out_clips_there_is_a_warning_and_no_figure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = train(tmp_path / "run", recipe({"held_out": 0}, validation=EVERY_2))
    assert outcome["error"] is None and not measured(tmp_path / "run")
    assert [
        r.getMessage() for r in caplog.records if "held-out" in r.getMessage() and r.levelno >= logging.WARNING
    ] == ["there is no held-out clip to measure a loss on: held_out/loss is left out"]


def test_one_held_out_clip_is_enough(tmp_path: Path) -> None:
    train(tmp_path / "run", recipe({"held_out": 1}, validation=EVERY_2))
    assert len(measured(tmp_path / "run")) == 4


def test_a_damaged_clip_is_replaced(ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = recipe({"bad_held_out": (1,)}, validation=EVERY_2)
    outcome = train(tmp_path / "one", chosen)
    assert outcome["error"] is None
    assert any("toy-2001 cannot be read" in record.getMessage() for record in caplog.records)
    ranks.run(train, tmp_path / "two", chosen)
    for one, two in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=2e-4)


def test_clips_that_are_all_damaged_do_not_end_a_run(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe({"bad_held_out": tuple(range(5))}, validation=EVERY_2)
    for outcome in ranks.run(train, tmp_path / "run", chosen):
        assert outcome["error"] is None and outcome["step"] == 8
    assert not measured(tmp_path / "run")
    assert_same(outcome, ranks.run(train, tmp_path / "plain", recipe())[0])


def test_the_interval_follows_the_validation(tmp_path: Path) -> None:
    validation = recipe(validation={"every": 5000}).train.validation
    assert validation.loss_interval == 1000
    assert dataclasses.replace(validation, loss_every=0).loss_interval == 0
    assert dataclasses.replace(validation, every=0).loss_interval == 0
    with pytest.raises(ValueError, match=r"loss_samples at least 1"):
        dataclasses.replace(validation, loss_samples=0)
