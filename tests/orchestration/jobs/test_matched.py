"""What a person or a list of keys stands for, and which other clips are of the same recordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.catalog import Catalog, write_catalog
from ingest.signatures import Signature
from orchestration import plans
from orchestration.jobs.matched import match_keys, match_person
from orchestration.split_groups import SIGNATURE, related_groups
from orchestration.units.records import UnitRecord
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import CatalogRow
from tests.support.removable_data import CLIPS, PIECES, PKEY, SAMPLES, build_ingested, contents, rows


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return build_ingested(tmp_path / "data")


def sign(storage: Storage, clips: dict[str, np.ndarray]) -> None:
    """Give clips a movement."""
    for clip, words in clips.items():
        path = dataroot.record("ingest", clip, PKEY)
        record = UnitRecord.from_json(storage.read(path))
        signature = Signature(step_frames=5, movement=words, sounds={}).to_json()
        storage.write(path, replace(record, details=record.details | {SIGNATURE: signature}).to_json())


def test_copies_of_copies_are_named(storage: Storage) -> None:
    """Also where no pair of the two was found: three copies are connected by two pairs."""
    rng = np.random.default_rng(14)
    recording = rng.integers(0, 2**32, 60, np.uint32)
    copies = [CLIPS[0], CLIPS[2], CLIPS[3]]
    # Each has some bits of its own that differ.
    sign(storage, {clip: recording ^ np.uint32(1 << n) for n, clip in enumerate(copies)})
    assert len(related_groups(storage).matches) == 2
    for clip in copies:
        assert set(match_keys(storage, [clip]).alike) == set(copies) - {clip}
    assert match_keys(storage, [CLIPS[4]]).alike == {}


def test_copies_in_one_group_are_named(storage: Storage) -> None:
    """Of one person, for example: clips of one group are never told apart by their splits."""
    recording = np.random.default_rng(14).integers(0, 2**32, 60, np.uint32)
    sign(storage, {CLIPS[0]: recording, CLIPS[1]: recording ^ np.uint32(2)})
    assert related_groups(storage).matches == []
    assert match_keys(storage, [CLIPS[0]]).alike == {CLIPS[1]: "folder:clip_1.mp4"}


def test_another_part_of_the_same_file_is_named(storage: Storage) -> None:
    """A video that one data set cuts, and another takes whole."""
    part = CatalogRow(
        key="hdtf-WRA_Ann-0-abcd",
        dataset="hdtf",
        source_id="WRA_Ann",
        source="WRA_Ann.mp4",
        start_s=1.0,
        end_s=2.0,
        person="Somebody",
        split_group="Somebody",
        licence="CC-BY-4.0",
    )
    write_catalog(storage, Catalog(dataset="hdtf", rows=[part], problems=[]))
    plan = plans.IngestPlan(units={part.key: PKEY}, contents={part.key: contents()[CLIPS[3]]}, settings={})
    plans.write_plan(storage, plans.ingest_plan_name("hdtf"), plan)
    record = UnitRecord.from_json(storage.read(dataroot.record("ingest", CLIPS[3], PKEY)))
    details = {"dataset": "hdtf", "source": part.source, "split_group": "Somebody", "person": None, "licence": "x"}
    storage.write(
        dataroot.record("ingest", part.key, PKEY),
        replace(record, key=part.key, samples=[replace(record.samples[0], key=part.key)], details=details).to_json(),
    )
    matched = match_person(storage, "Cleo")
    assert matched.alike == {part.key: "hdtf:WRA_Ann.mp4"} and matched.clips == {CLIPS[3]}
    assert match_keys(storage, [part.key]).alike == {CLIPS[3]: "folder:clip_3.mp4"}


def test_nothing_but_ingest_is_needed(storage: Storage) -> None:
    assert match_person(storage, "Ann Example").samples == set(SAMPLES[:2])
    matched = match_keys(storage, [PIECES[CLIPS[2]][1]])
    assert (matched.clips, matched.samples) == (set(), {PIECES[CLIPS[2]][1]})
    assert matched.pieces[0].start_s and rows()[2].source in ("clip_2.mp4",)


def test_an_empty_data_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing is ingested there"):
        match_person(Storage(tmp_path / "data"), "Ann Example")
