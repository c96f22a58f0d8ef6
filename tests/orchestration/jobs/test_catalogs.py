"""Which catalogs DATA should have, and what is said of those that it lacks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ingest.catalog import Catalog, read_catalog, write_catalog
from orchestration import plans
from orchestration.jobs.catalogs import cataloged, warn_of_lost_catalogs
from orchestration.jobs.duplicates import Duplicates
from shards.manifest import read_manifest
from talkinghead import dataroot
from tests.support.removable_data import CLIPS, build, build_ingested


def test_a_catalog_is_missed_by_the_plan_the_samples_and_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = build(tmp_path / "data")
    manifest = read_manifest(storage)
    write_catalog(storage, Catalog(dataset="vfhq", rows=[], problems=[]))
    plan = plans.IngestPlan(units={}, contents={}, settings={})
    plans.write_plan(storage, plans.ingest_plan_name("hdtf"), plan)
    assert cataloged(storage, manifest) == ["hdtf", "vfhq", "folder"]
    storage.delete(dataroot.plan("ingest-folder"))
    storage.delete(dataroot.catalog("folder"))
    caplog.clear()  # of what the jobs above have said
    with caplog.at_level(logging.WARNING):
        warn_of_lost_catalogs(storage)
    assert [record.getMessage().partition(": ")[2].partition(" SOURCE")[0] for record in caplog.records] == [
        "make ingest DATASET=hdtf", "make ingest DATASET=folder",
    ]  # fmt: skip
    assert cataloged(storage, None) == ["hdtf", "vfhq"]


@pytest.mark.parametrize("content", [b"garbage", None])
def test_the_catalog_of_another_data_set_is_not_needed_to_find_duplicates(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else two of them that are damaged could never be made again."""
    storage = build_ingested(tmp_path / "data")
    rows = {row.key: row for row in read_catalog(storage, "folder").rows}
    whole = Duplicates.find(storage, "hdtf", [], set())
    storage.delete(dataroot.catalog("folder"))
    if content is not None:
        storage.write(dataroot.catalog("folder"), content)
    with caplog.at_level(logging.WARNING):
        found = Duplicates.find(storage, "hdtf", [], set())
    assert set(found.rows) == set(CLIPS) and found.others == whole.others
    assert all((row.source, row.person) == (rows[key].source, rows[key].person) for key, row in found.rows.items())
    assert "make ingest DATASET=folder SOURCE=" in caplog.text and "records of its clips say" in caplog.text
