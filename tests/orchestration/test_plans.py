"""Plans of strangers: what has the wrong shape is one line, and no plan or record says which code runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestration import plans
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage

SETTINGS = {"settings": {"engine": "litert"}}
RIGHT = {
    "ingest-folder": {"units": {"a": "0" * 16}, "contents": {"a": "1" * 64, "b": None}, "settings": {}},
    "annotate-v1": {**SETTINGS, "units": {"a": "0" * 16}, "model": "m", "model_sha256": "2" * 64, "order": 0},
    "encode-v1": {
        "units": {"a": "0" * 16},
        "width": 32,
        "height": 32,
        "vae": {"sha256": "3" * 64},
        "image_encoder": {"sha256": "4" * 64},
    },
    "shards": {"shards": [["a"], ["b", "c"]], "settings": {}},
}
ABSURD = (None, True, -1, 0.5, 1e308, 1 << 62, "text", [[1]], {"../../etc": "a"}, {"a": "../b"}, {"a": 1}, {"a b": "c"})


@pytest.mark.parametrize("name", RIGHT)
def test_a_plan_has_all_that_is_read_from_it(name: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    newer = RIGHT[name] | {"more": "of a newer release"}
    storage.write(dataroot.plan(name), json.dumps(newer).encode())
    assert plans.find_plan(storage, name) == plans.read_plan(storage, name) == newer
    file = storage.describe(dataroot.plan(name))
    for field in RIGHT[name]:
        for value in ABSURD:
            storage.write(dataroot.plan(name), json.dumps(RIGHT[name] | {field: value}).encode())
            try:
                plans.read_plan(storage, name)
            except ValueError as error:
                assert str(error) == f"{file} is no plan of ours: its {field} is missing or wrong"
            else:
                assert field in ("settings", "contents", "model", "model_sha256"), f"{field} may be {value!r}"
        storage.write(dataroot.plan(name), json.dumps({k: v for k, v in RIGHT[name].items() if k != field}).encode())
        with pytest.raises(ValueError, match=f"its {field} is missing or wrong"):
            plans.read_plan(storage, name)
    for text, said in (("[]", "it is no object"), ("[" * 200_000, "nested too deeply"), ("", "Expecting value")):
        storage.write(dataroot.plan(name), text.encode())
        with pytest.raises(ValueError, match=f"{file} is no .*{said}"):
            plans.read_plan(storage, name)


def test_a_huge_plan_is_neither_read_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    storage.write(dataroot.plan("shards"), b"")
    with (tmp_path / "plans" / "shards.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ValueError, match="too large for a plan"):
        plans.read_plan(storage, "shards")
    monkeypatch.setattr(plans, "PLAN_BYTES", 1000)
    with pytest.raises(ValueError, match=r"too large for a plan \(make several DATA"):
        plans.write_json(storage, dataroot.plan("other"), ["a" * 1000])
    assert not storage.exists(dataroot.plan("other"))


def test_what_is_no_plan_by_its_name_does_not_count(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("ingest-a", "ingest-b"):
        storage.write(dataroot.plan(name), b"{}")
    storage.write("plans/deep/ingest-c.json", b"{}")
    storage.write("plans/ingest-a b.json", b"{}")
    os.mkfifo(tmp_path / "plans" / "ingest-pipe.json")
    (tmp_path / "plans" / "ingest-device.json").symlink_to("/dev/zero")
    assert plans.plan_names(storage, "ingest-") == ["ingest-a", "ingest-b"]
    assert plans.find_plan(storage, "ingest-pipe") is None


def test_units_name_code_of_ours_whatever_data_holds(tmp_path: Path) -> None:
    """The function of a unit comes from the planning code alone: no field of a plan or a record is one."""
    storage = Storage(tmp_path)
    unit = Unit(job="ingest", key="a", pkey="0" * 16, function="x:y", payload={}, source="a", time_limit_s=1.0)
    plans.write_plan(storage, "ingest-folder", [unit], contents={}, settings={})
    plan = plans.read_plan(storage, "ingest-folder")
    assert plan["units"] == {"a": "0" * 16} and "x:y" not in json.dumps(plan)
    hostile = plan | {"function": "os:abort", "units": {"a": {"pkey": "0" * 16, "function": "os:abort"}}}
    storage.write(dataroot.plan("ingest-folder"), json.dumps(hostile).encode())
    with pytest.raises(ValueError, match="its units is missing or wrong"):
        plans.ingest_results(storage)
