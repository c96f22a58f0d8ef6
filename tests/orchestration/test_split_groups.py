"""Copies never stand in different splits, and what is packed keeps its split."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from orchestration.split_groups import join_splits, related_groups
from shards.plan import ShardSettings, assign_splits
from talkinghead.files.storage import Storage
from tests.support.indexes import open_index
from tests.support.job_commands import Command

HALVES = ShardSettings(val_fraction=0.3, test_fraction=0.2)


def own(name: str, settings: ShardSettings = HALVES) -> str:
    return assign_splits([name], seed=settings.seed, fractions=settings.fractions)[name]


def of_split(split: str, count: int) -> list[str]:
    """Names of groups whose own split this is."""
    return list(itertools.islice((f"g{n}" for n in itertools.count() if own(f"g{n}") == split), count))


def test_groups_that_stand_alone_keep_the_split_of_their_name() -> None:
    names = [f"g{n}" for n in range(50)]
    splits, torn = join_splits([[name] for name in names], {}, HALVES)
    assert splits == assign_splits(names, seed=HALVES.seed, fractions=HALVES.fractions) and not torn
    assert set(splits.values()) == {"train", "val", "test"}


def test_related_groups_take_the_split_of_the_first_name() -> None:
    names = sorted([*of_split("train", 2), *of_split("val", 2), *of_split("test", 2)])
    splits, torn = join_splits([names], {}, HALVES)
    assert set(splits.values()) == {own(names[0])} and splits.keys() == set(names) and not torn


def test_a_new_file_joins_what_is_packed() -> None:
    packed, new = of_split("val", 1)[0], "a-first-name"
    splits, torn = join_splits([[new, packed]], {packed: "val"}, HALVES)
    assert splits == {new: "val", packed: "val"} and not torn
    # Also where the packed group took its split from another name, that is gone now.
    assert join_splits([[new, packed]], {packed: "test"}, HALVES)[0] == {new: "test", packed: "test"}


def test_a_new_file_that_joins_two_splits_moves_neither() -> None:
    names = ["a", "b", "c"]
    splits, torn = join_splits([names], {"b": "train", "c": "val"}, HALVES)
    assert splits == {"a": "train", "b": "train", "c": "val"} and torn == [names]


@pytest.mark.parametrize("seed", range(20))
def test_packed_groups_never_move_however_data_grow(seed: int) -> None:
    """Groups arrive in rounds and are related at random; what was packed in one has the same split after the next."""
    draw = random.Random(seed)
    names = [f"n{draw.random()}" for _ in range(40)]
    family = {name: draw.randrange(15) for name in names}
    before: dict[str, str] = {}
    for end in (10, 25, 40):
        related: dict[int, list[str]] = defaultdict(list)
        for name in names[:end]:
            related[family[name]].append(name)
        parts = [sorted(part) for part in related.values()]
        draw.shuffle(parts)
        splits, torn = join_splits(parts, before, HALVES)
        assert before.items() <= splits.items() and not torn
        assert all(len({splits[name] for name in part}) == 1 for part in parts)
        before = splits


def test_the_index_holds_copies_in_one_split(
    finished: Path, sample_source: Path, tmp_path: Path, command: Command
) -> None:
    """The sample holds a file and a copy of it in other bytes; another copy comes in after packing."""

    def splits(data: Path) -> dict[str, str]:
        index = open_index(Storage(data), "v1")
        return dict(zip(index.texts("split_group").tolist(), index.texts("split").tolist(), strict=True))

    data, source = (Path(shutil.copytree(old, tmp_path / old.name)) for old in (finished, sample_source))
    before = splits(data)
    clip = sorted(source.glob("astronaut*"))[1]
    (source / "a copy.mkv").write_bytes(clip.read_bytes() + bytes(8))
    command("orchestration", "shards", "--source", source, "--data", data)
    assert before.items() <= splits(data).items() and len(splits(data)) == len(before) + 1
    for seed in range(3):  # another seed deals all groups anew
        command("orchestration", "shards", "--data", data, "--shards", f"seed={seed}", "val_fraction=0.4")
        found = splits(data)
        related = [
            [found[name] for name in part if name in found]
            for part in related_groups(Storage(data)).groups.members().values()
        ]
        assert sorted(map(len, related))[-2:] == [2, 2] and all(len(set(part)) <= 1 for part in related)
