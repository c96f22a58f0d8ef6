"""Checkpoints of two ranks: what one of them finds, both decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.training import Ranks
from train.config import CheckpointConfig
from train.run.run_folder import folder_name
from train.trainer.checkpoint import Checkpoints


def save(folder: Path, steps: list[int], run: str | None = None) -> None:
    """Save states that both ranks have, one tensor for each: each rank writes a file."""
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=9), dist.get_rank(), dist.get_world_size(), run=run)
    for step in steps:
        checkpoints.save(step, {"a": torch.full((50,), step), "b": torch.full((70,), float(step))}, block=True)
    checkpoints.close()


def restore(folder: Path, run: str | None = None) -> tuple[Any, ...]:
    """Step, values and what was set aside, or the error."""
    state = {"a": torch.zeros(50, dtype=torch.int64), "b": torch.zeros(70)}
    try:
        checkpoints = Checkpoints(folder, CheckpointConfig(), dist.get_rank(), dist.get_world_size(), run=run)
        step = checkpoints.restore(state)
    except ValueError as error:
        return (type(error).__name__, str(error))
    finally:
        dist.barrier()
    return step, state["a"].unique().tolist(), state["b"].unique().tolist(), checkpoints.set_aside


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "__1_0.distcp", "checkpoint.json"])
def test_both_pass_over_what_one_finds_damaged(ranks: Ranks, tmp_path: Path, file: str) -> None:
    """Whichever rank it is whose share of the files the damaged one belongs to."""
    ranks.run(save, tmp_path / "c", [3, 6])
    target = tmp_path / "c" / folder_name(6) / file
    target.write_bytes(target.read_bytes()[:-9] + b"otherwise")
    one, two = ranks.run(restore, tmp_path / "c")
    assert one == two and one[:3] == (3, [3], [3.0])
    assert [found.defect for found in one[3]] == [f"{file} is not as it was written"]
    # A second start finds nothing to say.
    assert ranks.run(restore, tmp_path / "c") == [(3, [3], [3.0], ())] * 2


def test_both_end_where_there_is_nothing_to_go_on_from(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(save, tmp_path / "c", [3, 6], "1" * 32)
    one, two = ranks.run(restore, tmp_path / "c", "2" * 32)
    assert one == two and one[0] == "ValueError" and "is of another run" in one[1]
    for step in (3, 6):
        (tmp_path / "c" / folder_name(step) / "__1_0.distcp").unlink()
    one, two = ranks.run(restore, tmp_path / "c", "1" * 32)
    assert one == two and "every checkpoint in" in one[1]
    assert sorted(path.name for path in (tmp_path / "c").glob("*step*")) == [folder_name(3), folder_name(6)]
