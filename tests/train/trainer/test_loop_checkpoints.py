"""Checkpoints of a whole training: damage, milestones, the best step, checkpoints by the clock."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import assert_same, lines, recipe, start, tensors_of, train, trainer_of
from train.run.metrics import read_metrics
from train.run.run_folder import folder_name, steps_in
from train.trainer import loop
from train.trainer.checkpoint_content import LATER
from train.trainer.port import LocalPort


def steps_of(run: Path) -> list[int]:
    return steps_in(run / "checkpoints")


def test_after_damage_it_goes_on_from_the_one_before_to_the_same_bits(tmp_path: Path) -> None:
    chosen = recipe({"dropout": 0.3}, steps=8, checkpoint={"every": 2, "keep": 3}, log={"every": 1})
    whole, run = train(tmp_path / "whole", chosen), tmp_path / "run"
    train(run, recipe({"dropout": 0.3}, steps=6, checkpoint={"every": 2, "keep": 3}, log={"every": 1}))
    (run / "validation" / folder_name(5) / "weights").mkdir(parents=True)  # of a step that comes again
    file = run / "checkpoints" / folder_name(6) / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-5])
    start(run, chosen)
    trainer = trainer_of(run, chosen)
    assert trainer.step == 4
    trainer.fit()
    assert_same(tensors_of(trainer), whole)
    trainer.close()
    assert steps_of(run) == [4, 6, 8] and (run / "checkpoints" / f"damaged-{folder_name(6)}").is_dir()
    assert not (run / "validation" / folder_name(5)).exists()
    # Figures of the steps that came again stand there once, and the event where they began again.
    rows = lines(run)
    assert [row["step"] for row in rows if "event" not in row] == list(range(1, 9))
    (event,) = [row for row in rows if "event" in row]
    folder, defect = f"damaged-{folder_name(6)}", "__0_0.distcp is not as it was written"
    assert event == {"step": 4, "event": "damaged", "folder": folder, "defect": defect}
    (found,) = read_metrics(run / "metrics.jsonl").damages
    assert (found.step, found.folder, found.defect) == (4, folder, defect)
    train(run, recipe({"dropout": 0.3}, steps=9, checkpoint={"every": 2, "keep": 3}, log={"every": 1}))
    assert len(read_metrics(run / "metrics.jsonl").damages) == 1, "it was said once"


def test_milestones_stay(tmp_path: Path) -> None:
    train(tmp_path, recipe(steps=10, checkpoint={"every": 2, "keep": 1, "keep_every": 3}))
    assert steps_of(tmp_path) == [3, 6, 9, 10]


def test_the_best_validated_step_keeps_its_checkpoint_and_its_weights(tmp_path: Path) -> None:
    """Validations that are a step late, and whose figures fall, then rise."""
    chosen = recipe(
        steps=10,
        checkpoint={"every": 100, "keep": 1, "best": "validation/loss", "keep_validated": "best"},
        validation={"every": 2},
    )
    start(tmp_path, chosen)
    trainer = trainer_of(tmp_path, chosen)
    figures = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 5.0}
    validations = trainer.validations

    def poll() -> None:
        for step in [step for step in validations._waiting if step < trainer.step]:
            validations._waiting.remove(step)
            (validations.folder(step) / "result.json").write_text(json.dumps({"loss": figures[step]}))
            validations._collect(step, 0)

    validations.poll = poll  # type: ignore[method-assign]
    trainer.fit()
    trainer.step += 1
    poll()
    trainer.close()
    assert steps_of(tmp_path) == [4, 10]
    assert steps_in(tmp_path / "weights") == [4]
    assert (tmp_path / "weights" / "best").read_text() == f"{folder_name(4)}\n"
    assert (tmp_path / "weights" / folder_name(4) / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("rank", "late", "saved"),
    [(0, True, [2, 4, 5]), (0, False, [5]), (1, True, [5])],
    ids=["late", "not yet", "rank 1"],
)
def test_a_checkpoint_comes_after_so_many_minutes_by_the_clock_of_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, late: bool, saved: list[int]
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 61.0 if late else 0.001
        return now[0]

    class Clock:
        monotonic = staticmethod(clock)

    monkeypatch.setattr(loop, "time", Clock)
    # What a step says is known when the next one has been launched.
    chosen = recipe(steps=5, checkpoint={"every": 100, "keep": 9, "every_minutes": 1.0})
    start(tmp_path, chosen)
    trainer = trainer_of(tmp_path, chosen)
    trainer.port = LocalPort(rank=rank, world=1)
    trainer.fit()
    trainer.close()
    assert steps_of(tmp_path) == saved


def test_a_checkpoint_names_its_run_and_that_of_another_run_is_refused(tmp_path: Path) -> None:
    chosen = recipe()
    runs = {name: start(tmp_path / name, chosen) for name in ("one", "two")}
    for run in runs.values():
        trainer = trainer_of(run.path, chosen, run=run)
        trainer.fit()
        trainer.close()
    about = json.loads((runs["one"].checkpoints / folder_name(8) / "checkpoint.json").read_text())
    assert about == {"format": 1, "run": runs["one"].run_id, "step": 8}
    (runs["one"].checkpoints / folder_name(8)).rename(runs["two"].checkpoints / folder_name(6))
    with pytest.raises(ValueError, match="is of another run"):
        trainer_of(runs["two"].path, chosen, run=runs["two"])


def test_a_run_and_a_checkpoint_of_older_code_go_on(tmp_path: Path) -> None:
    """Neither has an identity, and the checkpoint lacks what is kept in it since."""
    chosen = recipe({"dropout": 0.3}, checkpoint={"every": 4})
    whole = train(tmp_path / "whole", chosen)
    run = start(tmp_path / "run", chosen)
    trainer = trainer_of(run.path, recipe({"dropout": 0.3}, steps=4, checkpoint={"every": 100}))
    trainer.fit()
    state = trainer._state()
    trainer.close()
    older = trainer_of(tmp_path / "older", chosen)
    older.checkpoints.save(4, {name: part for name, part in state.items() if name not in LATER}, block=True)
    older.close()
    shutil.rmtree(run.checkpoints)
    shutil.copytree(tmp_path / "older" / "checkpoints", run.checkpoints)
    for name in ("checkpoint.json", "checkpoint.json.sha256"):
        (run.checkpoints / folder_name(4) / name).unlink()
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({n: value for n, value in config.items() if n != "run_id"}))
    going = trainer_of(run.path, chosen, run=start(run.path, chosen))
    assert going.step == 4
    going.fit()
    assert_same(tensors_of(going), whole)
    going.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"checkpoint": {"best": "validation/loss"}, "validation": {"every": 0}}, "nothing is validated"),
        ({"checkpoint": {"best": "held_out/loss"}, "validation": {"every": 9, "loss_every": 2}}, "divides"),
        ({"checkpoint": {"best": "held_out/loss"}, "validation": {"every": 9, "loss_every": 0}}, "divides"),
    ],
)
def test_a_best_step_needs_steps_that_have_its_figure(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(**settings)
