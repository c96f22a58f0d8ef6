"""Losses and gradients that are not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.training import batches_of, lines, recipe, start, train, trainer_of
from train.trainer.backward import keys_of_bad_loss, only


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


def test_bad_losses_are_told_by_sample() -> None:
    batches = [{"keys": ["a", "b"]}, {"keys": ["c", "d"]}]
    losses = [torch.tensor([1.0, float("inf")]), torch.tensor([float("nan"), 2.0])]
    assert keys_of_bad_loss(batches, losses) == ["b", "c"]


def test_one_sample_of_a_batch() -> None:
    batch = {"keys": ["a", "b"], "x": torch.arange(6).view(2, 3), "rate": torch.tensor(3.0), "fps": 25}
    one = only(batch, 1)
    assert one["keys"] == ["b"] and one["x"].tolist() == [[3, 4, 5]] and one["rate"] == 3 and one["fps"] == 25
