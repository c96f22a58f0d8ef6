"""Validation next to the training: never waited for, done again after a kill, and no reason to end."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tests.support import toy_task
from tests.support.train_commands import ROOT, SITE, run_train, toy, wait_for
from tests.support.training import Ranks, assert_same, lines, recipe, train
from train.config import CheckpointConfig, ValidationConfig
from train.recipe import TASKS, Recipe
from train.run import validation
from train.run.kept_weights import KeptWeights
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder, folder_name, steps_in
from train.run.validation import Validations, run_validation
from train.trainer.port import Deadline

TASKS["toy"] = toy_task.__name__


@pytest.fixture(autouse=True)
def children_know_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SITE, str(ROOT)]))


class Figures(dict[int, dict[str, float]]):
    """What was handed out, by step."""

    def take(self, step: int, values: dict[str, float]) -> None:
        assert step not in self, "handed out twice"
        self[step] = values


def run_of(path: Path, **toy_settings: Any) -> RunFolder:
    tiny = toy_task.tiny()
    recipe = Recipe(config=dataclasses.replace(tiny.config, **toy_settings), train=tiny.train)
    return RunFolder.start(path, RunConfig(task="toy", recipe_name="tiny", recipe=recipe, data="none"))


def make(run: RunFolder, figures: Figures, rank: int = 0, device: str = "cpu", **checkpoint: Any) -> Validations:
    kept = KeptWeights(run, CheckpointConfig(**checkpoint))
    return Validations(run, ValidationConfig(every=1, device=device), rank, figures.take, kept.keep)


def export(folder: Path) -> None:
    torch.manual_seed(1)
    save_file(toy_task.ToyModel(toy_task.Config()).state_dict(), folder / toy_task.WEIGHTS)


def test_it_runs_next_to_the_training_and_again_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, figures = run_of(tmp_path / "run ü"), Figures()
    first = make(run, figures)
    # No validation can end now: who waited for one would wait for ever.
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv(toy_task.HOLD, str(hold))
    for step in (10, 20, 30, 40):
        first.submit(step, export)
        first.poll()
    assert not first.folder(20).exists(), "of those that wait the newest two stay"
    assert first._child is not None
    child, nice = first._child[1].pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, child) == nice or first._child[1].poll() is not None)
    assert first._child[1].poll() is None
    first.close()
    assert not Path(f"/proc/{child}").exists() and not figures
    assert first.folder(10).joinpath("weights").is_dir(), "not done"
    hold.unlink()

    second = make(run, figures)
    second.resume(30)
    assert not second.folder(40).exists(), "after the checkpoint it will be made again"
    second.wait()
    assert sorted(figures) == [10, 30] and figures[10] == figures[30]
    assert not list(run.validation.glob("*/weights")) and steps_in(run.kept_weights) == [10, 30]
    assert sorted(entry.name for entry in second.folder(30).iterdir()) == [
        "measured-by-0.json",
        "result.json",
        "validation.json",
        "validation.log",
    ]


def test_figures_that_were_not_handed_out_before_a_kill_are_not_computed_again(tmp_path: Path) -> None:
    run, figures = run_of(tmp_path), Figures()
    validations = make(run, Figures())
    validations._waiting = []
    export_to = validations.folder(5) / "weights"
    export_to.mkdir(parents=True)
    export(export_to)
    run_validation(run, 5, run.data_sets)
    again = make(run, figures)
    again.resume(5)
    again.poll()
    assert again._child is None and sorted(figures) == [5] and not export_to.exists()


def test_a_failing_one_is_reported_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, figures = run_of(tmp_path), Figures()
    validations = make(run, figures)
    validations.submit(1, lambda folder: (folder / toy_task.WEIGHTS).write_bytes(b"torn"))
    validations.wait()
    assert not figures
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("the validation of step 1 failed, training goes on: ") and "validation.log" in said
    assert (validations.folder(1) / "weights").is_dir(), "for a look by hand"


def test_other_ranks_do_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    validations = make(run, Figures(), rank=1)
    validations.resume(0)
    validations.submit(1, export)
    validations.poll()
    validations.wait()
    validations.close()
    assert not run.validation.exists()


def test_weights_that_were_kept_are_validated_again_by_hand(tmp_path: Path) -> None:
    run, figures = run_of(tmp_path), Figures()
    validations = make(run, figures)
    validations.submit(5, export)
    assert validations.pending == {5}
    validations.wait()
    assert validations.pending == frozenset() and not (validations.folder(5) / "weights").exists()
    (validations.folder(5) / "result.json").unlink()
    run_validation(run, 5, run.data_sets)
    assert (validations.folder(5) / "result.json").exists()


def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(ValueError, match="weights of step 7 are neither in"):
        run_validation(run, 7, run.data_sets)


def test_the_ranks_validate_with_the_figures_of_a_process_of_its_own(tmp_path: Path) -> None:
    """When `submit` returns they are in, and nothing is left of it in what the training draws from."""
    next_to, here = Figures(), Figures()
    child = make(run_of(tmp_path / "child"), next_to)
    child.submit(5, export)
    child.wait()
    run = run_of(tmp_path / "here")
    ranks = make(run, here, device="ranks")
    torch.manual_seed(3)
    ranks.submit(5, lambda folder: save_file(model_of_seed_1(), folder / toy_task.WEIGHTS))
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert ranks._child is None and ranks.pending == frozenset()
    assert here[5] == pytest.approx(next_to[5], rel=1e-6)
    assert steps_in(run.kept_weights) == [5]


def model_of_seed_1() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return toy_task.ToyModel(toy_task.Config()).state_dict()


def test_a_validation_by_the_ranks_that_fails_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, figures = run_of(tmp_path, fail_validation=0), Figures()
    validations = make(run, figures, device="ranks")
    validations.submit(1, export)
    assert not figures and "the validation of step 1 failed, training goes on: the toy was told to" in caplog.text
    assert (validations.folder(1) / "weights").is_dir(), "for a look by hand"
    # What an earlier start has left undone is done at the next one.
    again = Validations(
        run_of(tmp_path / "other"),
        ValidationConfig(every=1, device="ranks"),
        0,
        figures.take,
        lambda step, folder: None,
    )
    (again.folder(7) / "weights").mkdir(parents=True)
    export(again.folder(7) / "weights")
    again.resume(7)
    assert sorted(figures) == [7]


def test_two_ranks_share_a_validation(ranks: Ranks, tmp_path: Path) -> None:
    """Each validation takes longer than any step, and both ranks are in step after it."""
    chosen = recipe({"validate_s": 1.0}, validation={"every": 4, "device": "ranks", "loss_every": 0})
    first, second = ranks.run(train, tmp_path / "run", chosen)
    assert_same(first, second)
    assert_same(first, train(tmp_path / "plain", recipe()), 2e-5)
    figures = [line for line in lines(tmp_path / "run") if "validation/loss" in line]
    assert [line["step"] for line in figures] == [4, 8]
    assert steps_in(tmp_path / "run/weights") == [4, 8]
    # Each clip was measured by one of them; one process by itself finds the same, to the last bit.
    run = RunFolder.open(tmp_path / "run")
    for step, line in zip((4, 8), figures, strict=True):
        assert measured(run, step) == {0: [0, 2, 4, 6], 1: [1, 3, 5, 7]}
        result = run.validation / folder_name(step) / "result.json"
        by_ranks = result.read_bytes()
        run_validation(run, step, run.data_sets)
        assert result.read_bytes() == by_ranks and json.loads(by_ranks)["loss"] == line["validation/loss"]


def measured(run: RunFolder, step: int) -> dict[int, list[int]]:
    """Clips of a validation by the rank that has measured them."""
    folder = run.validation / folder_name(step)
    found = {rank: folder / f"measured-by-{rank}.json" for rank in range(4)}
    return {rank: json.loads(file.read_text()) for rank, file in found.items() if file.exists()}


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_validate_ends_nothing(ranks: Ranks, tmp_path: Path, failing: int) -> None:
    chosen = recipe({"fail_validation": failing}, validation={"every": 4, "device": "ranks", "loss_every": 0})
    first, second = ranks.run(train, tmp_path / "run", chosen)
    assert first["error"] is None and first["step"] == 8
    assert_same(first, second)
    assert_same(first, train(tmp_path / "plain", recipe()), 2e-5)
    assert not [line for line in lines(tmp_path / "run") if "validation/loss" in line]
    assert steps_in(tmp_path / "run/validation") == [4, 8] and steps_in(tmp_path / "run/weights") == []


def by_ranks(run: Path, elsewhere: Path | None) -> dict[int, dict[str, float]]:
    """Validate step 5 as a rank does; rank 1 has RUN where it is told."""
    rank = dist.get_rank()
    folder = RunFolder.open(run if rank == 0 or elsewhere is None else elsewhere)
    figures = Figures()
    make(folder, figures, rank, device="ranks").submit(5, export)
    return dict(figures)


def test_a_rank_that_does_not_see_the_run_leaves_it_to_the_first(ranks: Ranks, tmp_path: Path) -> None:
    """Also where a folder of that name is on its machine, with weights of another run."""
    one, two = run_of(tmp_path / "one"), run_of(tmp_path / "two")
    weights = two.validation / folder_name(5) / "weights"
    weights.mkdir(parents=True)
    export(weights)
    alone, nothing = ranks.run(by_ranks, one.path, two.path)
    assert measured(one, 5) == {0: list(range(8))} and not measured(two, 5) and nothing == {}
    both, _ = ranks.run(by_ranks, run_of(tmp_path / "three").path, None)
    assert both == alone


def without_a_task_on_rank_1(run: Path, elsewhere: None) -> list[int]:
    """Validate step 5 as a rank does, where rank 1 cannot even begin; then all tell their numbers."""

    def failing(*_: Any) -> Any:
        raise ValueError("a file of the data is not there")

    made = validation.make_task
    if dist.get_rank() == 1:
        validation.make_task = failing
    try:
        assert by_ranks(run, elsewhere) == {}
    finally:
        validation.make_task = made
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, dist.get_rank())
    return said


def test_a_rank_that_cannot_begin_a_validation_ends_nothing(ranks: Ranks, tmp_path: Path) -> None:
    """Nobody waits for what it would have measured."""
    run = run_of(tmp_path)
    assert ranks.run(without_a_task_on_rank_1, run.path, None) == [[0, 1], [0, 1]]
    assert not (run.validation / folder_name(5) / "result.json").exists()
    assert sorted(ranks.run(by_ranks, run.path, None)[0]) == [5]


def test_a_validation_by_the_ranks_counts_as_no_step_and_waits_where_the_hours_are_over(tmp_path: Path) -> None:
    run, figures = run_of(tmp_path, validate_s=1.0), Figures()
    deadline = Deadline(time.time() + 3600)
    config = ValidationConfig(every=1, device="ranks")
    kept = KeptWeights(run, CheckpointConfig())
    validations = Validations(run, config, 0, figures.take, kept.keep, deadline=deadline)
    for step in (1, 2):
        deadline.tick()
        validations.submit(step, export)
    deadline.tick()
    assert sorted(figures) == [1, 2] and deadline.step_s < 1
    # Ten minutes at most are kept for a checkpoint. Now there is less than a validation takes.
    assert deadline.until is not None
    deadline.until = time.time() + 360 + 30 + 3 * deadline.step_s + 0.5
    validations.submit(3, export)
    validations.wait()
    assert sorted(figures) == [1, 2] and validations.pending == {3} and validations._child is None
    again = Validations(run, config, 0, figures.take, kept.keep)
    again.resume(3)
    assert sorted(figures) == [1, 2, 3]


@pytest.mark.slow
def test_steps_take_as_long_with_validation_as_without(tmp_path: Path) -> None:
    """The child sleeps, so that on any machine only waiting for it could show."""
    seconds = []
    for every in (0, 10):
        run = tmp_path / str(every)
        options = ["--train.steps", 40, "--train.log.every", 40, "--config.step-s", 0.02, "--config.validate-s", 2]
        done = run_train(tmp_path / f"out{every}", *toy(run, *options, "--train.validation.every", every))
        assert done.wait() == 0, done.stderr
        line = next(text for text in (run / "metrics.jsonl").read_text().splitlines() if '"step_s"' in text)
        seconds.append(float(line.split('"step_s": ')[1].split(",")[0]))
    assert seconds[1] < seconds[0] + 0.05, seconds


@pytest.mark.parametrize(
    "result", [b"[1]", b'{"a": "b"}', b'{"a": null}', b"[" * 100_000, b'{"a": 1' + b"0" * 400 + b"}"]
)
def test_results_of_another_kind_end_nothing(tmp_path: Path, result: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's RUN may say that a validation is done, and anything about its figures."""
    run, figures = run_of(tmp_path), Figures()
    validations = make(run, figures)
    (validations.folder(5) / "weights").mkdir(parents=True)
    (validations.folder(5) / "result.json").write_bytes(result)
    validations.resume(5)
    validations.poll()
    assert not figures and "the validation of step 5 failed, training goes on" in caplog.text


def test_only_folders_of_our_form_are_removed(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    for name in ("step-9", "step-²", "step-000000009", "step-final"):
        (run.validation / name / "weights").mkdir(parents=True)
    validations = make(run, Figures())
    (validations.folder(9) / "weights").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\(there: 9\)"):
        run_validation(run, 8, run.data_sets)
    validations.resume(5)
    left = sorted(entry.name for entry in run.validation.iterdir())
    assert left == ["step-000000009", "step-9", "step-final", "step-²"] and not validations._waiting
