"""Tasks by their names, and what each offers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from train.commands import describe_task, parse
from train.recipe import SHORT_NAMES, TASKS, full_name, make_task, recipes_of

OURS = [task for task, module in TASKS.items() if module.startswith("train.")]


@pytest.mark.parametrize("task", OURS)
def test_a_task_is_one_file_of_its_family(task: str) -> None:
    """Its name begins with its family's, unless it is the model's own."""
    _, family, file = TASKS[task].split(".")
    assert task in (file, f"{family}-{file}")
    assert describe_task(task).startswith("Training of ")
    assert "tiny" in recipes_of(task) and "paper" in recipes_of(task)


def test_help_says_what_a_task_trains_and_its_short_name() -> None:
    assert (
        describe_task("audio2pose") == "Training of Audio2Pose: speech → head pose, relative to the head's rest pose."
    )
    stage2 = "Training of Lmk2Video, stage 2: motion modules on windows of frames, everything else frozen."
    assert describe_task("lmk2video-stage2") == describe_task("stage2") == f"{stage2} Short: stage2."


@pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())
def test_a_short_name_is_the_same_task(short: str, full: str, tmp_path: Path) -> None:
    assert short not in TASKS and full_name(short) == full_name(full) == full
    assert recipes_of(short) is recipes_of(full)
    words = ["tiny", "--data", "none", "--run", str(tmp_path / "run"), "--config.width", "32"]
    asked, same = parse(short, words), parse(full, words)
    assert asked == same
    config = dataclasses.replace(asked.asked.config)
    assert type(make_task(short, config, "none", tmp_path)) is type(make_task(full, config, "none", tmp_path))


def test_an_unknown_task_is_said() -> None:
    with pytest.raises(ValueError, match=r"there is no task 'stage3'; there are audio2mesh, .*lmk2video-stage1"):
        recipes_of("stage3")
