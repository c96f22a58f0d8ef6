"""Losses and gradients that are not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.training import batches_of, lines, recipe, start, train, trainer_of
from train.config import GuardConfig
from train.trainer.backward import NotFinite, SkipGuard, keys_of_bad_loss, only


@pytest.mark.parametrize("fault", ["bad_loss", "bad_gradient"])
def test_a_skipped_step_changes_nothing_and_names_the_sample(tmp_path: Path, fault: str) -> None:
    chosen = recipe({fault: (21, 22)}, steps=6, microbatch=2, log={"every": 1}, checkpoint={"every": 1, "keep": 9})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    trainer.fit()
    batches = batches_of(trainer.task, 1, first=21)
    expected = [next(batches)["keys"][0], next(batches)["keys"][0]]
    *_, event, line = lines(tmp_path / "run")
    assert event == {"step": 6, "event": "skipped", "what": fault.removeprefix("bad_"), "keys": expected}
    assert line["skipped"] == 1 and "loss" not in line and "gradient_norm" not in line
    after = trainer._state()
    trainer.checkpoints.load(5, before := trainer_of(tmp_path / "run", chosen)._state())
    for part in ("module", "optimizer", "ema"):
        assert all(torch.equal(before[part][name], value) for name, value in after[part].items())
    assert before["progress"] == {"step": 5, "skipped": 0, "skipped_in_a_row": 0}
    assert after["progress"] == {"step": 6, "skipped": 1, "skipped_in_a_row": 1}
    trainer.close()


def test_training_goes_on_with_the_next_data(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", recipe({"bad_loss": (5,)}, log={"every": 1}))
    assert outcome["error"] is None and outcome["step"] == 8 and outcome["skipped"] == 1
    plain = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(plain) == 7
    assert outcome["optimizer"]["state.head.weight.step"] == 7


def test_the_run_is_given_up_after_so_many_in_a_row_also_across_a_resume(tmp_path: Path) -> None:
    chosen = recipe({"bad_loss": (1, *range(8, 40))}, guard={"abort_after": 4}, checkpoint={"every": 1})
    outcome = train(tmp_path / "run", chosen)
    assert outcome["error"].startswith("NotFinite: 4 steps in a row, up to step 6,")
    assert outcome["skipped"] == 5
    again = train(tmp_path / "run", chosen)  # from step 5, the third in a row
    assert again["error"].startswith("NotFinite: 4 steps in a row, up to step 6,")
    assert again["skipped"] == 5


def test_guard_counts() -> None:
    guard = SkipGuard(GuardConfig(abort_after=2))
    guard.skipped(1, "loss", ["a"])
    guard.passed()
    guard.skipped(3, "loss", ["b"])
    with pytest.raises(NotFinite, match=r"2 steps in a row, up to step 4, .* the last at c, d"):
        guard.skipped(4, "gradient", ["c", "d"])
    assert (guard.total, guard.in_a_row) == (3, 2)


def test_bad_losses_are_told_by_sample() -> None:
    batches = [{"keys": ["a", "b"]}, {"keys": ["c", "d"]}]
    losses = [torch.tensor([1.0, float("inf")]), torch.tensor([float("nan"), 2.0])]
    assert keys_of_bad_loss(batches, losses) == ["b", "c"]


def test_one_sample_of_a_batch() -> None:
    batch = {"keys": ["a", "b"], "x": torch.arange(6).view(2, 3), "rate": torch.tensor(3.0), "fps": 25}
    one = only(batch, 1)
    assert one["keys"] == ["b"] and one["x"].tolist() == [[3, 4, 5]] and one["rate"] == 3 and one["fps"] == 25
