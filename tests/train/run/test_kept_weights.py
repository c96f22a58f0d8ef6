"""RUN/weights: what is validated stays, the best is named, and a kill at any moment loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy_task
from tests.support.paths import ROOT
from train.config import CheckpointConfig
from train.recipe import TASKS
from train.run.kept_weights import KeptWeights
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder, folder_name, steps_in

TASKS["toy"] = toy_task.__name__
BY_LOSS: dict[str, Any] = {"best": "validation/loss"}


def run_of(path: Path) -> RunFolder:
    return RunFolder.start(path, RunConfig(task="toy", recipe_name="tiny", recipe=toy_task.tiny(), data="none"))


def weights(run: RunFolder, step: int, text: str = "w") -> Path:
    """Weights as a validation leaves them."""
    folder = run.validation / folder_name(step) / "weights"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_text(f"{text} {step}")
    return folder


def validated(kept: KeptWeights, step: int, loss: float, text: str = "w") -> None:
    kept.note(step, {"validation/loss": loss, "validation/other": 1.0})
    kept.keep(step, weights(kept.run, step, text))


def log(run: RunFolder, *rows: dict[str, Any]) -> None:
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def best(run: RunFolder) -> str | None:
    file = run.kept_weights / "best"
    return file.read_text() if file.exists() else None


def test_all_that_was_validated_stays_with_its_origin(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a run ü")
    kept = KeptWeights(run, CheckpointConfig())
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0)):
        validated(kept, step, loss)
    assert steps_in(run.kept_weights) == [10, 20, 30] and best(run) is None
    assert not list(run.validation.glob("*/weights")), "moved, not copied"
    about = json.loads((run.kept_weights / folder_name(20) / "training.json").read_text())
    assert about["step"] == 20 and about["task"] == "toy" and str(tmp_path) not in str(about)


@pytest.mark.parametrize(("better", "named"), [("lower", [10, 20, 20, 20]), ("higher", [10, 10, 30, 30])])
def test_the_best_is_named_and_a_figure_that_is_not_finite_never_is(
    tmp_path: Path, better: Any, named: list[int]
) -> None:
    run = run_of(tmp_path)
    kept = KeptWeights(run, CheckpointConfig(**BY_LOSS, best_is=better))
    found = []
    for step, loss in ((10, 3.0), (20, 1.0), (30, 4.0), (40, float("nan"))):
        validated(kept, step, loss)
        found.append(best(run))
    assert found == [f"{folder_name(step)}\n" for step in named]


def test_only_the_best_stays_where_that_is_asked_for(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    kept = KeptWeights(run, CheckpointConfig(**BY_LOSS, keep_validated="best"))
    seen = []
    for step, loss in ((10, float("nan")), (20, 3.0), (30, 4.0), (40, 2.0)):
        validated(kept, step, loss)
        seen.append(steps_in(run.kept_weights))
    assert seen == [[10], [20], [20], [40]]


def test_none_stay_and_those_of_earlier_settings_do(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    validated(KeptWeights(run, CheckpointConfig()), 10, 1.0)
    validated(KeptWeights(run, CheckpointConfig(keep_validated="none")), 20, 1.0)
    assert steps_in(run.kept_weights) == [10] and not list(run.validation.glob("*/weights"))


def test_the_held_out_loss_counts_at_validated_steps_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    config = CheckpointConfig(best="held_out/loss")
    log(run, {"step": 5, "held_out/loss": 0.1}, {"step": 10, "held_out/loss": 2.0}, {"step": 10, "validation/a": 1.0})
    kept = KeptWeights(run, config)
    assert kept.figures == {10: 2.0}
    kept.note(15, {"held_out/loss": 0.5})
    assert kept.figures == {10: 2.0}
    kept.note(15, {"validation/a": 3.0})
    assert kept.figures == {10: 2.0, 15: 0.5}


def test_figures_of_earlier_starts_count(tmp_path: Path) -> None:
    """And those of steps after the checkpoint, which come again, do not: their lines are cut."""
    run = run_of(tmp_path)
    first = KeptWeights(run, CheckpointConfig(**BY_LOSS))
    for step, loss in ((10, 1.0), (20, 0.5)):
        validated(first, step, loss)
    log(run, {"step": 10, "validation/loss": 1.0})
    again = KeptWeights(run, CheckpointConfig(**BY_LOSS))
    assert best(run) == f"{folder_name(10)}\n"
    assert steps_in(run.kept_weights) == [10, 20], "weights that were validated stay all the same"
    validated(again, 20, 2.0, "new")
    assert (run.kept_weights / folder_name(20) / "weights.safetensors").read_text() == "new 20"
    assert best(run) == f"{folder_name(10)}\n"


def test_a_figure_that_does_not_come_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = KeptWeights(run_of(tmp_path), CheckpointConfig(best="validation/typo"))
    for step in (10, 20):
        validated(kept, step, 1.0)
    (said,) = [record.getMessage() for record in caplog.records if "checkpoint.best" in record.getMessage()]
    assert said == (
        "checkpoint.best is validation/typo, and there is no such figure, but validation/loss, validation/other (see"
        " metrics.jsonl)"
    )


KILLED = """
import os, sys
from pathlib import Path
from tests.support.dying_calls import die_at
from tests.train.run.test_kept_weights import BY_LOSS, run_of, validated
from train.config import CheckpointConfig
from train.run.kept_weights import KeptWeights
for number in range(1, 100):
    run = run_of(Path(sys.argv[1]) / str(number))
    validated(KeptWeights(run, CheckpointConfig(**BY_LOSS)), 10, 1.0)
    if not (child := os.fork()):
        kept = KeptWeights(run, CheckpointConfig(**BY_LOSS, keep_validated=sys.argv[2]))
        kept.note(10, {"validation/loss": 1.0})
        die_at(number, "rename", "replace", "unlink", "rmdir", "fsync")
        validated(kept, 20, 0.5)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(number, status, flush=True)
    if status == 0:
        break
"""


@pytest.mark.parametrize("mode", ["all", "best"])
def test_a_kill_at_any_moment_leaves_weights_whole_and_the_best_named(tmp_path: Path, mode: str) -> None:
    """Killed before its n-th change of names or files, for every n; then started again."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), mode]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    ends = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(ends) > 8 and ends[-1][1] == 0, done.stderr
    assert all(status == -signal.SIGKILL for _, status in ends[:-1])
    for number, _ in ends:
        run = RunFolder.open(tmp_path / str(number))
        log(run, {"step": 10, "validation/loss": 1.0}, {"step": 20, "validation/loss": 0.5})
        again = KeptWeights(run, CheckpointConfig(**BY_LOSS, keep_validated=mode))  # type: ignore[arg-type]
        # Where the weights still wait, their validation counts as not done, and its figures are taken once more.
        waiting = run.validation / folder_name(20) / "weights"
        if waiting.is_dir():
            assert steps_in(run.kept_weights) == [10] and best(run) == f"{folder_name(10)}\n"
            again.keep(20, waiting)
        assert steps_in(run.kept_weights) == ([10, 20] if mode == "all" else [20])
        for step in steps_in(run.kept_weights):
            assert (run.kept_weights / folder_name(step) / "weights.safetensors").read_text() == f"w {step}"
        assert best(run) == f"{folder_name(20)}\n"
        assert not list(run.kept_weights.glob(".*"))
