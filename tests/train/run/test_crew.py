"""Crews: what several processes measure together is what one measures, and a failure of one ends the part of all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.face_clips import build_face_data
from tests.support.lmk2video_tasks import SMALL
from tests.support.speech_data import build_speech_data
from tests.support.training import Ranks
from train.recipe import make_task, recipes_of
from train.run.crew import ONE, Crew, CrewError, shared

CPU = torch.device("cpu")


def crew_of_the_ranks() -> Crew:
    return Crew(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_turns_go_on_from_group_to_group() -> None:
    crews = [Crew(rank, 3) for rank in range(3)]
    assert [crew.own("abcd") for crew in crews] == [["a", "d"], ["b"], ["c"]]
    assert [crew.own("ef", before=4) for crew in crews] == [[], ["e"], ["f"]]
    assert ONE.own("abc", before=7) == ["a", "b", "c"] and ONE.exchange("x") == ["x"]


def failing(rank: int, after: int, error: Exception) -> tuple[int, str]:
    """Exchange three times; a rank fails after some exchanges. Returns how many were done, and what ended them."""
    crew = crew_of_the_ranks()
    done = 0

    def part() -> None:
        nonlocal done
        for number in range(3):
            if (crew.rank, number) == (rank, after):
                raise error
            assert crew.exchange((crew.rank, number)) == [(0, number), (1, number)]
            done += 1
        if (crew.rank, after) == (rank, 3):
            raise error

    try:
        shared(part, crew)
    except (CrewError, ValueError, OSError) as found:
        return done, f"{type(found).__name__}: {found}"
    return done, "done"


@pytest.mark.parametrize("after", [0, 2, 3])
def test_all_stop_where_one_fails_and_can_go_on_together(ranks: Ranks, after: int) -> None:
    """The next part works: nobody is left waiting for an answer of the one before."""
    found = ranks.run(failing, 1, after, ValueError("its clip is damaged"))
    assert found == [(after, "CrewError: its clip is damaged"), (after, "ValueError: its clip is damaged")]
    assert ranks.run(failing, 5, 0, OSError()) == [(3, "done"), (3, "done")]


def prepared(name: str, data: str, folder: Path) -> Any:
    torch.set_num_threads(1)
    config = recipes_of(name)["tiny"]().config
    more = SMALL[name] | {"validation_frames": 4, "validation_steps": 1} if name in SMALL else {}
    return make_task(name, dataclasses.replace(config, **more, validation_clips=2), data, folder)


def validated(name: str, data: str, root: Path, crew: Crew | None) -> dict[str, float]:
    crew = crew or crew_of_the_ranks()
    out = root / f"by-{crew.world}"
    out.mkdir(exist_ok=True)
    task = prepared(name, data, root / "task")
    return shared(lambda: task.validate(root / "weights", out, CPU, crew), crew)


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose", "stage1"])
def test_two_ranks_find_what_one_process_finds(ranks: Ranks, tmp_path: Path, name: str) -> None:
    """The figures, the file with every metric of every clip, and the names of images and videos."""
    build = build_face_data if name == "stage1" else build_speech_data
    data = build(tmp_path / "data").uri
    task = prepared(name, data, tmp_path / "task")
    (tmp_path / "task").mkdir()
    task.prepare()
    (tmp_path / "weights").mkdir()
    task.export(task.build(), tmp_path / "weights")
    alone = validated(name, data, tmp_path, ONE)
    assert ranks.run(validated, name, data, tmp_path, None) == [alone, alone]
    one, two = tmp_path / "by-1", tmp_path / "by-2"
    for file in ("validation.json", "validation.txt"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    names = [sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) for root in (one, two)]
    assert names[0] == names[1] and any(name.endswith(".mp4") for name in names[0])
