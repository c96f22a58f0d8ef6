"""Plans as tables: what is written comes back, an older release's JSON is read, and a stranger's file is one line."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration import outcomes, plans
from talkinghead import dataroot
from talkinghead.derived import ColumnVersion
from talkinghead.files.storage import Storage
from tests.support.old_layout import old_plan

UNITS = {"b": "0" * 16, "a": "1" * 16}
PLANS: dict[str, plans.Plan] = {
    "ingest-folder": plans.IngestPlan(units=UNITS, contents={"b": "1" * 64, "a": None}, settings={"size": 64}),
    "annotate-v1": plans.AnnotatePlan(
        units=UNITS, settings={"engine": "litert"}, model="m", model_sha256="2" * 64, order=3
    ),
    "encode-v1": plans.ColumnPlan(
        units=UNITS,
        made_of=ColumnVersion(
            column="latents",
            column_version=1,
            parameters={"width": 32, "height": 32},
            provenance={"vae": {"sha256": "3" * 64}, "image_encoder": {"sha256": "4" * 64}},
        ),
    ),
    "derive-mouth-1": plans.ColumnPlan(
        units=UNITS,
        made_of=ColumnVersion(
            column="mouth", column_version=1, parameters={}, provenance={}, pins={"annotation": "v1"}, scores=["open"]
        ),
    ),
    "fit-speakers-1": plans.FitPlan(units=UNITS, fit="speakers", key="5" * 16),
    "shards": plans.ShardPlan(shards=[["a"], [], ["c", "b"]], settings={"seed": 1}),
}
OLD = [name for name in PLANS if not name.startswith(("derive-", "fit-"))]
ABSURD = (None, True, -1, 0.5, 1e308, 1 << 62, "text", [[1]], {"../../etc": "a"}, {"a": "../b"}, {"a": 1}, {"a b": "c"})


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_comes_back(name: str, tmp_path: Path) -> None:
    """Its fields are columns that any reader of Parquet can read; the same plan once more is not written again."""
    storage, plan = Storage(tmp_path), PLANS[name]
    assert plans.find_plan(storage, name) is None
    plans.write_plan(storage, name, plan)
    assert plans.find_plan(storage, name) == plan and plans.plan_names(storage, name) == [name]
    file = tmp_path / dataroot.plan(name)
    table = pq.read_table(file)
    assert table.column_names == list(plan.table) and set(table.column("key").to_pylist()) == {"a", "b"} | (
        {"c"} if name == "shards" else set()
    )
    before = file.stat().st_mtime_ns
    plans.write_plan(storage, name, plan)
    assert file.stat().st_mtime_ns == before
    if not isinstance(plan, plans.ShardPlan):
        plans.write_plan(storage, name, replace(plan, units=UNITS | {"c": "2" * 16}))
        found = plans.find_plan(storage, name)
        assert found and found.units.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("name", OLD)
def test_plans_of_an_older_release_are_read_and_become_tables(name: str, tmp_path: Path) -> None:
    storage, plan = Storage(tmp_path), PLANS[name]
    value = old_plan(plan)
    storage.write(dataroot.old_plan(name), json.dumps(value | {"more": "of another release"}).encode())
    found = plans.find_plan(storage, name)
    assert found and plans.plan_names(storage, "") == [name]
    if isinstance(found, plans.ColumnPlan) and isinstance(plan, plans.ColumnPlan):
        assert found.units == plan.units and found.made_of.is_same(plan.made_of)
    else:
        assert found == plan
    # Written again it is a table, and the JSON does not linger.
    plans.write_plan(storage, name, found)
    assert plans.find_plan(storage, name) == found
    assert not storage.exists(dataroot.old_plan(name)) and plans.plan_names(storage, "") == [name]


LATER = ("sound_delays", "group_by")
"""Fields that no release wrote as JSON."""


@pytest.mark.parametrize("name", OLD)
def test_json_of_a_stranger_is_one_line(name: str, tmp_path: Path) -> None:
    storage, right = Storage(tmp_path), old_plan(PLANS[name])
    file = storage.describe(dataroot.old_plan(name))

    def read(content: str) -> None:
        storage.write(dataroot.old_plan(name), content.encode())
        plans.find_plan(storage, name)

    for field in right:
        for value in ABSURD:
            try:
                read(json.dumps(right | {field: value}))
            except ValueError as error:
                assert str(error).startswith(f"{file} is no plan of ours: ") and "\n" not in str(error)
            else:
                free = ("settings", "contents", "model", "model_sha256", "encoding", "width", "height")
                assert field in (*free, *LATER, "order"), f"{field} may be {value!r}"
        if field not in ("encoding", *LATER):
            with pytest.raises(ValueError, match="is no plan of ours"):
                read(json.dumps({k: v for k, v in right.items() if k != field}))
    for text, said in (("[]", "it is no object"), ("[" * 200_000, "nested too deeply"), ("", "Expecting value")):
        with pytest.raises(ValueError, match=f"{file} is no .*{said}"):
            read(text)


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("name", PLANS)
def test_tables_of_a_stranger_are_one_line(name: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    plans.write_plan(storage, name, PLANS[name])
    right = pq.read_table(tmp_path / dataroot.plan(name))
    about = json.loads(right.schema.metadata[b"talkinghead"])
    keys = right.column("key").to_pylist()

    def with_about(value: object) -> bytes:
        return parquet(right.replace_schema_metadata({b"talkinghead": json.dumps(value).encode()}))

    def with_keys(values: list[str | None]) -> bytes:
        return parquet(right.set_column(0, "key", pa.array(values, pa.string())))

    hostile = [
        b"",
        b"PAR1" * 10,
        parquet(right.drop_columns(["key"])),
        parquet(right.append_column("function", pa.array(["os:abort"] * len(keys)))),
        parquet(right.replace_schema_metadata(None)),
        with_about([]),
        with_about({"units": {"a": "b"}, **about, "function": "os:abort"}),
        with_about({field: [[1]] for field in about} or {"more": 1}),
        with_keys(["../../etc", *keys[1:]]),
        with_keys([None, *keys[1:]]),
        with_keys(["x" * 91, *keys[1:]]),
    ]
    if name == "shards":
        hostile += [
            with_about(about | {"num_shards": 1 << 40}),
            with_about(about | {"num_shards": 1}),
            parquet(right.set_column(1, "shard", pa.array([-1] * len(keys), pa.int32()))),
        ]
    for content in hostile:
        storage.write(dataroot.plan(name), content)
        with pytest.raises(ValueError, match="is no plan of ours") as found:
            plans.find_plan(storage, name)
        assert "\n" not in str(found.value)


def test_a_huge_plan_is_neither_read_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    for path in (dataroot.plan("shards"), dataroot.old_plan("shards")):
        storage.write(path, b"")
        with (tmp_path / path).open("wb") as stream:
            stream.truncate(1 << 40)
        with pytest.raises(ValueError, match="too large for a plan"):
            plans.find_plan(storage, "shards")
        storage.delete(path)
    # A few bytes that stand for a billion rows.
    many = pa.table({"key": pa.array(["a" * 80] * 5_000_000), "shard": pa.array([0] * 5_000_000, pa.int32())})
    storage.write(dataroot.plan("shards"), parquet(many))
    assert (storage.size(dataroot.plan("shards")) or 0) < 1 << 20
    with pytest.raises(ValueError, match="more than 268,435,456 bytes of memory"):
        plans.find_plan(storage, "shards")
    monkeypatch.setattr(plans, "PLAN_BYTES", 1000)
    with pytest.raises(ValueError, match=r"too large for a plan \(make several DATA"):
        plans.write_plan(storage, "ingest-folder", replace(PLANS["ingest-folder"], settings={"a": "b" * 1000}))
    assert not storage.exists(dataroot.plan("ingest-folder"))


def test_what_is_no_plan_by_its_name_does_not_count(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("ingest-a", "ingest-b"):
        storage.write(dataroot.plan(name), b"")
    storage.write(dataroot.old_plan("ingest-b"), b"{}")
    storage.write("plans/deep/ingest-c.json", b"{}")
    storage.write("plans/ingest-a b.json", b"{}")
    os.mkfifo(tmp_path / "plans" / "ingest-pipe.parquet")
    (tmp_path / "plans" / "ingest-device.json").symlink_to("/dev/zero")
    assert plans.plan_names(storage, "ingest-") == ["ingest-a", "ingest-b"]
    assert plans.find_plan(storage, "ingest-pipe") is None


def test_units_name_code_of_ours_whatever_data_holds(tmp_path: Path) -> None:
    """The function of a unit comes from the planning code alone: no field of a plan or a record is one."""
    storage = Storage(tmp_path)
    value = asdict(PLANS["ingest-folder"]) | {"units": {"a": {"pkey": "0" * 16, "function": "os:abort"}}}
    storage.write(dataroot.old_plan("ingest-folder"), json.dumps(value).encode())
    with pytest.raises(ValueError, match="is no plan of ours"):
        outcomes.ingest_results(storage)
    assert not any("function" in plan.table or "function" in plan.about() for plan in PLANS.values())
