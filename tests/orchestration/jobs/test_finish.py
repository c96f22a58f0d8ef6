"""Finishing a version: what ingest noted on a clip stands in the index of the annotation, without reading media."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotate.columns import COLUMNS
from orchestration import plans
from orchestration.jobs import derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.finish import finish
from orchestration.jobs.pack import run_pack
from orchestration.units.unit import Output, Unit, store_output
from shards.__main__ import main
from shards.manifest import read_manifest
from shards.reader import ShardReader
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.indexes import open_index
from tests.support.latent_data import in_process
from tests.support.packed_data import annotation_members, media_members
from tests.support.speech_data import LENGTHS, arrays, clip_key, speech
from tests.support.toy_column import ToySettings, toy_column

KEYS = [clip_key(number) for number in range(3)]
PKEY = "0" * 16
Notes = Mapping[str, list[str]]


def commit(
    storage: Storage,
    job: str,
    key: str,
    contents: dict[str, bytes],
    frames: int,
    details: Mapping[str, object] | None = None,
) -> None:
    """Store a unit's only sample, and its commit record."""
    unit = Unit(job=job, key=key, pkey=PKEY, function="", payload={}, source=key, time_limit_s=1.0)
    stored = store_output(storage, unit, Output(contents=[(key, frames, contents)]))
    storage.write(dataroot.record(job, key, PKEY), replace(stored, details=dict(details or {})).to_json())


def ingested(storage: Storage, number: int, notes: Notes | None) -> None:
    key, frames = KEYS[number], LENGTHS[number]
    details = {"dataset": "folder", "split_group": key, "licence": "CC0-1.0", "person": None}
    media = media_members(key, np.zeros((frames, 64, 64, 3), np.uint8), speech(number), source_id=key, group=key)
    commit(storage, "ingest", key, media, frames, details if notes is None else details | {"notes": notes})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Three clips that are ingested, annotated and packed, by records of a release before there were notes."""
    storage = Storage(tmp_path / "data")
    units = dict.fromkeys(KEYS, PKEY)
    plan = plans.IngestPlan(units=units, contents=dict.fromkeys(KEYS, "0" * 64), settings={})
    plans.write_plan(storage, plans.ingest_plan_name("folder"), plan)
    faces = plans.AnnotatePlan(units=units, settings={"engine": "litert"}, model="m", model_sha256="0" * 64, order=0)
    plans.write_plan(storage, plans.annotate_job("v1"), faces)
    for number, key in enumerate(KEYS):
        ingested(storage, number, None)
        commit(storage, plans.annotate_job("v1"), key, annotation_members(key, arrays(number)), LENGTHS[number])
    run_pack(in_process(storage), "v1")
    return storage


def test_notes_stand_in_the_index(storage: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    before = finish(storage, "v1").annotation("v1")
    assert {row.key: row.notes for row in open_index(storage, "v1").rows()} == {key: [] for key in KEYS}
    # No record has notes: the index has the same bytes, whose hash is its name, and so has an index without media.
    for number, key in enumerate(KEYS):
        ingested(storage, number, {} if number else {"another-piece": [f"not of {key}"]})
    assert finish(storage, "v1").annotation("v1").index_sha256 == before.index_sha256
    notes = {KEYS[0]: ["hlg tone-mapped to BT.709", "x" * 2000 + "\n"], KEYS[1]: [], KEYS[2]: ["deinterlaced"]}
    for number, key in enumerate(KEYS):
        ingested(storage, number, {key: notes[key]})
    for shard in read_manifest(storage).media:
        storage.delete(shard.name)
    assert finish(storage, "v1").annotation("v1").index_sha256 != before.index_sha256
    found = {row.key: row.notes for row in open_index(storage, "v1").rows()}
    assert found == notes | {KEYS[0]: [notes[KEYS[0]][0], "x" * 499 + "…"]}
    # Readers and the list of samples show them.
    reader = ShardReader(storage, split=None, kept=False)
    assert reader.find(KEYS[2]).index.notes == ["deinterlaced"]
    assert main(["ls", "--data", storage.uri]) == 0
    lines = {line.split("\t")[0]: line.split("\t")[6:] for line in capfd.readouterr().out.splitlines()}
    assert lines[KEYS[2]] == ["deinterlaced"] and lines[KEYS[1]] == []


@pytest.mark.parametrize("notes", [["deinterlaced"], {"a": "deinterlaced"}, {"a": [1]}, "x"])
def test_notes_that_are_none_are_one_line(storage: Storage, notes: object) -> None:
    ingested(storage, 0, notes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no record of ours: the notes of its details is missing or wrong"):
        finish(storage, "v1")


def test_a_derived_column_does_not_repeat_them(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    ingested(storage, 0, {KEYS[0]: ["deinterlaced"]})
    finish(storage, "v1")
    column = toy_column()
    derive_worker._last.clear()
    monkeypatch.setitem(COLUMNS, column.name, column)
    version = run_derive(in_process(storage), column, ToySettings())
    assert [row.notes for row in open_index(storage, version).rows()] == [[]] * len(KEYS)
    assert [row.notes for row in open_index(storage, "v1").rows() if row.notes] == [["deinterlaced"]]


def test_a_manifest_that_was_lost_is_made_again_and_says_what_it_does_not_list(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ingested(storage, 0, {})
    with caplog.at_level(logging.WARNING):
        finish(storage, "v1")
        assert not caplog.records, "the first one has nothing to miss"
        column = toy_column()
        derive_worker._last.clear()
        monkeypatch.setitem(COLUMNS, column.name, column)
        version = run_derive(in_process(storage), column, ToySettings())
        storage.delete("DATASET.json")
        finish(storage, "v1")
    [record] = [record for record in caplog.records if "DATASET.json" in record.getMessage()]
    assert f"make derive COLUMNS={column.name} lists it again" in record.getMessage()
    assert run_derive(in_process(storage), column, ToySettings()) == version
    assert [entry.version for entry in read_manifest(storage).annotations] == ["v1", version]
