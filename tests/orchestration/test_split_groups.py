"""Copies never stand in different splits, and what is packed keeps its split."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ingest.signatures import Signature
from orchestration.plans import INGEST_JOB, IngestPlan, ingest_plan_name, write_plan
from orchestration.split_groups import SIGNATURE, STORED, forget_related, join_splits, related_groups
from orchestration.units.records import SampleRecord, UnitRecord
from shards.plan import ShardSettings, assign_splits
from talkinghead import dataroot
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


# --- what is kept in DATA ---------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """DATA of which clips were ingested: a recording and a copy of it, two files of equal bytes, and another clip."""
    storage, draws = Storage(tmp_path / "data"), np.random.default_rng(0)
    recording = draws.integers(1, 1 << 32, 40, np.uint32)
    movements = {"a": recording, "copy": recording ^ (draws.random(40) < 0.2), "other": draws.permutation(recording)}
    movements |= {"same0": draws.permutation(recording), "same1": draws.permutation(recording)}
    for key, movement in movements.items():
        signature = Signature(step_frames=5, movement=movement.astype(np.uint32)).to_json()
        record = UnitRecord(
            job=INGEST_JOB,
            key=key,
            pkey="p",
            samples=[SampleRecord(key=key, num_frames=200, members=[], sha256="0" * 64)],
            file=dataroot.unit(INGEST_JOB, key, "p"),
            file_sha256="0" * 64,
            details={
                "dataset": "folder", "source": f"{key}.mp4", "split_group": f"group-{key}", "licence": "x",
                SIGNATURE: signature,
            },
        )  # fmt: skip
        storage.create(dataroot.record(INGEST_JOB, key, "p"), record.to_json())
    contents: dict[str, str | None] = {key: key.rstrip("01") for key in movements}
    plan = IngestPlan(units=dict.fromkeys(movements, "p"), contents=contents, settings={})
    write_plan(storage, ingest_plan_name("folder"), plan)
    return tmp_path / "data"


def found_in(data: Path) -> tuple[object, ...]:
    related = related_groups(Storage(data))
    return related.groups.members(), related.matches, dict(related.sources)


def repacked(file: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(gzip.decompress(file.read_bytes()))
    change(value)
    file.write_bytes(gzip.compress(json.dumps(value).encode()))


def test_what_is_related_is_found_once(data: Path) -> None:
    """The commands that follow read it, and open no record."""
    forget_related(Storage(data))
    assert not (data / STORED).exists()
    expected = found_in(data)
    groups = [["group-a", "group-copy"], ["group-other"], ["group-same0", "group-same1"]]
    assert expected[0] == {names[0]: names for names in groups}
    assert expected[2] == {"a": "folder:a.mp4", "copy": "folder:copy.mp4"}
    written = (data / STORED).read_bytes()
    for record in (data / "records/ingest").rglob("*.json"):
        record.write_bytes(bytes(record.stat().st_size))
    assert found_in(data) == expected
    # Found anew from the same it would be the same file.
    shutil.rmtree(data / "records")
    assert found_in(data) != expected
    assert (data / STORED).read_bytes() != written


def test_it_is_found_anew_where_records_or_plans_are_other_ones(data: Path) -> None:
    found_in(data)
    repacked(data / STORED, lambda value: value.update(groups=[["made", "up"]]))
    assert found_in(data)[0] == {"made": ["made", "up"]}, "taken as it is"
    record = next((data / "records/ingest").rglob("*.json"))
    record.write_bytes(record.read_bytes() + b"\n")
    assert "made" not in str(found_in(data)[0])
    repacked(data / STORED, lambda value: value.update(groups=[["made", "up"]], version=0))
    assert "made" not in str(found_in(data)[0]), "another version of the search"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        lambda data: b"not ours",
        lambda data: gzip.compress(b"[" * 100_000),
        lambda data: gzip.compress(b"{}"),
        lambda data: gzip.compress(bytes(1 << 30), 1)[: 1 << 20],
    ],
)
def test_a_damaged_file_is_made_again(data: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = found_in(data)
    whole = (data / STORED).read_bytes()
    (data / STORED).write_bytes(damage(whole))
    assert found_in(data) == expected and (data / STORED).read_bytes() == whole


def test_what_cannot_be_kept_is_found_all_the_same(data: Path) -> None:
    expected = found_in(data)
    (data / STORED).unlink()
    (data / STORED / "a folder").mkdir(parents=True)
    assert found_in(data) == expected
    # Nor is it kept while a record cannot be read: mended, it may have the same size.
    shutil.rmtree(data / STORED)
    next((data / "records/ingest").rglob("*.json")).write_bytes(b"{}")
    found_in(data)
    assert not (data / STORED).exists()
