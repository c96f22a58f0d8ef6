"""Traces of steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import Ranks, assert_same, recipe, start, train, trainer_of
from tests.train.trainer.test_loop import Killed, Spy, kill_at
from train.config import LogConfig
from train.run.run_folder import RunFolder


def traces(path: Path) -> dict[str, Any]:
    return {
        file.name: json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        for file in sorted((path / "profile").glob("*"))
    }


def test_each_rank_writes_a_trace_of_the_steps(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe(log={"profile_steps": "3:5"})
    first, _ = ranks.run(train, tmp_path / "run", chosen)
    found = traces(tmp_path / "run")
    assert list(found) == ["steps-3-4-rank-0.json.gz", "steps-3-4-rank-1.json.gz"]
    for events in found.values():
        # Two steps of one backward pass each; the rehearsal is not among them.
        updates = [event for event in events if event.get("name", "").startswith("Optimizer.step#")]
        assert len(updates) == 2
    assert_same(first, ranks.run(train, tmp_path / "plain", recipe())[0])
    RunFolder.open(tmp_path / "run")  # a run may have such a folder


def test_a_training_that_ends_early_writes_what_it_has(tmp_path: Path) -> None:
    chosen = recipe(log={"profile_steps": "3:100"}, checkpoint={"every": 1})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen, task=Spy(chosen.config, kill_at(4 * 5)))
    with pytest.raises(Killed):
        trainer.fit()
    trainer.close()
    assert list(traces(tmp_path / "run")) == ["steps-3-5-rank-0.json.gz"]
    # The resumed run begins in the middle of the range.
    train(tmp_path / "run", chosen)
    assert "steps-6-8-rank-0.json.gz" in traces(tmp_path / "run")


def test_nothing_is_written_without_a_wish(tmp_path: Path) -> None:
    train(tmp_path / "run", recipe())
    assert not (tmp_path / "run" / "profile").exists()


def test_memory_of_a_cpu_is_refused_in_one_line(tmp_path: Path) -> None:
    chosen = recipe(log={"profile_steps": "1:2", "memory_snapshot": True})
    start(tmp_path / "run", chosen)
    with pytest.raises(ValueError, match=r"^log\.memory_snapshot is of a GPU's memory, and this training is on cpu"):
        trainer_of(tmp_path / "run", chosen)


@pytest.mark.parametrize("wrong", ["3", "0:2", "5:5", "7:3", "a:b", "-1:3", "1:2:3", "1:٢", ""])
def test_steps_that_make_no_sense(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"log\.profile_steps is .*: write START:STOP"):
        LogConfig(profile_steps=wrong)


def test_a_snapshot_needs_steps() -> None:
    with pytest.raises(ValueError, match=r"set log\.profile_steps"):
        LogConfig(memory_snapshot=True)
