"""Units of ingest: their time limits and keys, their progress, and sources that change while they are read."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.extent import UNKNOWN, Extent
from ingest.fingerprints import Fingerprint, fingerprint
from ingest.settings import IngestSettings
from ingest.signatures import Signature
from orchestration.cluster import Cluster, ClusterSettings
from orchestration.jobs.ingest import SourceChangedError, plan_ingest
from orchestration.units import frame_reports
from orchestration.units.executor import RetrySettings, run_units
from orchestration.units.frame_reports import reporting
from orchestration.units.ledger import quarantined
from orchestration.units.unit import JobStoppedError, Unit, run_unit
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.schema import CatalogRow
from tests.support.media_files import write_video

FULL_HD = {"width": 1920, "height": 1080}
THREE_HOURS = Extent(seconds=10_800.0, frames=270_000, **FULL_HD)


def row_of(source: str = "clip.mp4", **changes: Any) -> CatalogRow:
    row = CatalogRow(
        key="folder-clip",
        dataset="folder",
        source_id="clip",
        source=source,
        split_group="clip",
        licence="CC BY 4.0",
        terms_url="https://example.org/terms",
    )
    return replace(row, **changes)


def planned(row: CatalogRow, extent: Extent | None, *, size: int = 10**6, time_limit_s: float | None = None) -> Unit:
    content = Fingerprint(path=row.source or "", size=size, mtime_ns=1, sha256="0" * 64, extent=extent)
    place = {"source": "/videos", "follow_links": False}
    (unit,) = plan_ingest([row], {content.path: content}, place, IngestSettings(), "1" * 64, time_limit_s)
    return unit


def test_a_whole_file_gets_time_for_its_length() -> None:
    unit = planned(row_of(), THREE_HOURS, size=8 * 10**9)
    assert unit.time_limit_s >= 10 * 10_800 and unit.frames == 270_000
    # A short one has a generous floor; one of unknown length at least what every file had before.
    assert 600 <= planned(row_of(), Extent(seconds=5.0, frames=125, **FULL_HD)).time_limit_s < 1000
    for unknown in (UNKNOWN, None):
        unit = planned(row_of(), unknown)
        assert unit.time_limit_s >= 1800 and unit.frames == 0


def test_large_and_many_frames_get_more() -> None:
    limit = planned(row_of(), THREE_HOURS).time_limit_s
    assert planned(row_of(), replace(THREE_HOURS, width=3840, height=2160)).time_limit_s > 3.9 * limit
    assert planned(row_of(), replace(THREE_HOURS, frames=2 * THREE_HOURS.frames)).time_limit_s > 1.9 * limit
    assert planned(row_of(), replace(THREE_HOURS, width=320, height=240)).time_limit_s == limit
    assert planned(row_of(), THREE_HOURS, size=10**12).time_limit_s > limit + 10**5


def test_a_clip_of_a_long_file_gets_time_for_itself_and_for_reaching_it() -> None:
    first = planned(row_of(start_s=0.0, end_s=10.0), THREE_HOURS)
    late = planned(row_of(start_s=10_000.0, end_s=10_010.0), THREE_HOURS)
    assert first.frames == late.frames == 250
    assert 600 < first.time_limit_s < 1000 < 2 * 10_000 < late.time_limit_s < 22_000
    # Without an end: what is left of the file.
    assert planned(row_of(start_s=10_000.0, end_s=None), THREE_HOURS).frames == 20_000


def test_a_folder_of_images_is_as_long_as_its_rate_says() -> None:
    assert planned(row_of(frame_fps=50.0), Extent(frames=5000, width=512, height=512)).frames == 2500


def test_no_length_makes_a_limit_that_a_clock_cannot_hold() -> None:
    for row, extent in (
        (row_of(), Extent(seconds=1e300, frames=10**18, **FULL_HD)),
        (row_of(start_s=0.0, end_s=1e300), THREE_HOURS),
    ):
        assert planned(row, extent).time_limit_s <= 30 * 86_400
    with pytest.raises(ValueError, match=r"--time-limit-s is 1e\+300, must be"):
        RetrySettings(time_limit_s=1e300)


def test_neither_limits_nor_extents_are_in_the_provenance_key() -> None:
    units = [
        planned(row_of(), extent, time_limit_s=limit)
        for extent in (THREE_HOURS, UNKNOWN, None)
        for limit in (None, 5.0, 100_000.0)
    ]
    assert len({unit.pkey for unit in units}) == 1
    assert {unit.time_limit_s for unit in units} >= {5.0, 100_000.0}


# --- a unit that runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(sample_source: Path) -> Unit:
    """A unit that ingests one clip of the embedded sample."""
    source = sorted(sample_source.glob("[a-z]*.mp4"), key=lambda path: -path.stat().st_size)[0].name
    prints = fingerprint(sample_source, [source])
    place = {"source": str(sample_source), "follow_links": False}
    model = resolve_face_model()
    (unit,) = plan_ingest([row_of(source)], prints, place, IngestSettings(), model.detector_sha256, None)
    return unit


def test_frames_are_reported_up_to_the_length(unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reports, "EVERY_S", 0.0)
    told: list[int] = []
    with reporting(told.append):
        record = run_unit(Storage(tmp_path), unit, attempts=1)
    assert record.file and told == sorted(told) and len(set(told)) > 5
    assert abs(told[-1] - unit.frames) <= IngestSettings().detect_every


def test_each_view_moves_a_clip_s_signature_once(tmp_path: Path) -> None:
    """Where no face is found, frames are looked at once more, turned: that is no movement."""
    images = np.random.default_rng(0).integers(0, 255, (71, 96, 96, 3), np.uint8)
    write_video(tmp_path / "noise.mp4", images)
    place = {"source": str(tmp_path), "follow_links": False}
    prints = fingerprint(tmp_path, ["noise.mp4"])
    model = resolve_face_model()
    (unit,) = plan_ingest([row_of("noise.mp4")], prints, place, IngestSettings(), model.detector_sha256, None)
    record = run_unit(Storage(tmp_path / "data"), unit, attempts=1)
    assert record.rejected and not record.samples
    signature = Signature.from_json(record.details["signature"])
    # Frames 0, 5, … 70, and what changes from each to the next.
    assert signature.step_frames == 5 and len(signature.movement) == 14 and not signature.sounds


def test_a_source_that_changes_meanwhile_leaves_nothing(unit: Unit, tmp_path: Path) -> None:
    known = unit.payload["fingerprint"]
    changed = unit.payload | {"fingerprint": known | {"mtime_ns": known["mtime_ns"] - 10**9}}
    storage = Storage(tmp_path)
    with pytest.raises(SourceChangedError, match="changed while it was ingested"):
        run_unit(storage, replace(unit, payload=changed), attempts=1)
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "tmp").iterdir()) == [], "it had begun to write"


def test_a_source_that_only_this_machine_lacks_is_no_fault_of_the_input(unit: Unit, tmp_path: Path) -> None:
    """As where SOURCE is not mounted: the command has read it, or else its fingerprint would say what is wrong."""
    storage = Storage(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nothing"):
        here = replace(unit, payload=unit.payload | {"source": str(place)})
        with pytest.raises(JobStoppedError, match=rf"{place}/\S+ is not there, but was when .* must have SOURCE"):
            run_unit(storage, here, attempts=1)
        known = unit.payload["fingerprint"] | {"sha256": None, "error": "not there"}
        with pytest.raises((UnreadableMediaError, FileNotFoundError)):
            run_unit(storage, replace(here, payload=here.payload | {"fingerprint": known}), attempts=1)


def test_a_machine_without_the_source_stops_the_job_and_is_named(unit: Unit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    here = replace(unit, payload=unit.payload | {"source": str(tmp_path / "empty")})
    storage = Storage(tmp_path / "data")
    with (
        Cluster(ClusterSettings(workers=1)) as cluster,
        pytest.raises(JobStoppedError, match=rf"is not there, .*\(on {re.escape(socket.gethostname())}\)"),
    ):
        run_units(storage, "ingest", [here], cluster, RetrySettings())
    assert quarantined(storage) == []
