"""Derived columns and global fits in the report: every sample counted, half-made versions named as such."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate.columns import COLUMNS
from annotate.labels import LabelSettings
from annotate.mouth import SCORES, MouthSettings
from orchestration.jobs.derive import run_derive
from orchestration.outcomes import current_quarantine
from orchestration.plans import FitPlan, write_plan
from orchestration.report import column_view
from orchestration.report.columns import MOST_VALUES, column_numbers, fit_errors
from orchestration.report.page import write_report
from orchestration.report.state import ColumnState, DataState, data_state
from orchestration.units.ledger import release
from orchestration.units.records import Attempt, QuarantineRecord, UnitRecord
from orchestration.units.segment_records import SegmentRecord
from shards.index import build_index
from shards.manifest import FitEntry, read_manifest, write_manifest
from talkinghead import dataroot
from talkinghead.annotation import COLUMNS as ANNOTATION_COLUMNS
from talkinghead.column import decode_column
from talkinghead.derived import ColumnVersion
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from tests.support.latent_data import in_process
from tests.support.packed_data import media_members
from tests.support.report_data import Clip, Content, Piece, encode_annotation, tiny_annotation, write_data
from tests.support.report_state import make_state

FRAMES = 12
HOSTILE = "<script>alert('1')</script> & \"so on\""
CLIPS = [
    *(Clip(key=f"k{number}", pieces=(Piece(key=f"k{number}", num_frames=FRAMES),)) for number in range(5)),
    Clip(key="left", kind="filtered", pieces=(Piece(key="left", kind="filtered", num_frames=FRAMES),)),
    Clip(key="flat", pieces=(Piece(key="flat", num_frames=FRAMES),)),
]
"""Six clips of which every column can be made, one of them left out by the filters, and one whose face is a point."""


def media(piece: Piece) -> Content:
    frames = np.zeros((piece.num_frames, 64, 64, 3), np.uint8)
    return media_members(piece.key, frames, np.zeros(640 * FRAMES, np.float32), source_id=piece.key, group=piece.key)


def annotation(piece: Piece, version: str) -> Content:
    """A face that opens its mouth, each a bit wider; that of `flat` is a point."""
    del version
    content = tiny_annotation(piece.num_frames)
    arrays = {column.name: decode_column(column, content[column.member]) for column in ANNOTATION_COLUMNS}
    mesh = arrays["mesh"] * (piece.key != "flat")
    if piece.key.startswith("k"):
        mesh[:, 13, 1] += np.linspace(0, 1 + int(piece.key[1:]), len(mesh))
    return encode_annotation({**arrays, "mesh": mesh})


@dataclasses.dataclass(frozen=True)
class Made:
    """A data set with a version of `mouth` and one of `labels`."""

    root: Path
    state: DataState
    """State without its columns."""
    mouth: str
    labels: str

    def report(self) -> tuple[str, dict[str, Any]]:
        """Page and numbers, as DATA is now."""
        return report(Storage(self.root), self.state)


def report(storage: Storage, state: DataState) -> tuple[str, dict[str, Any]]:
    found = data_state(storage, None)
    parts = {name: getattr(found, name) for name in ("columns", "fits", "fit_parts")}
    page = storage.read(write_report(storage, dataclasses.replace(state, **parts))).decode()
    return page, json.loads(storage.read("report/report.json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("columns") / "data"
    state = write_data(Storage(root), CLIPS, media=media, annotation=annotation)
    table = root.parent / "<b>labels.csv"
    lines = [f"k{number},{('happy', 'sad')[number % 2]},{number}" for number in range(5)]
    quoted = HOSTILE.replace('"', '""')
    table.write_text("\n".join(["key,emotion,level", *lines, f'left,"{quoted}",']))
    runner = in_process(root)
    mouth = run_derive(runner, COLUMNS["mouth"], MouthSettings())
    labels = run_derive(runner, COLUMNS["labels"], LabelSettings(csv=str(table)))
    return Made(root, state, mouth, labels)


def lose_segment(made: Made, key: str) -> list[str]:
    """Delete the commit record of the segment of `mouth` with a sample; returns the keys of its units that are done."""
    for path in (made.root / "records" / f"derive-{made.mouth}").rglob("*.parquet"):
        keys = [key for key, _ in SegmentRecord.from_parquet(path.read_bytes()).units()]
        if key in keys:
            path.unlink()
            return sorted(keys)
    raise AssertionError(f"{key} is in no segment")


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    return dataclasses.replace(made, root=Path(shutil.copytree(made.root, tmp_path / "data")))


def test_every_sample_of_a_version_is_counted_with_its_scores(made: Made) -> None:
    _, numbers = made.report()
    assert numbers["errors"] == []
    mouth, _ = numbers["columns"]
    assert (mouth["column"], mouth["version"], mouth["finished"]) == ("mouth", made.mouth, True)
    assert (mouth["planned"], mouth["made"], mouth["pending"]) == (7, 6, 0)
    assert mouth["failures"] == {"column:nan": 1}
    assert (mouth["samples"], mouth["missing"], mouth["frames"]) == (6, 1, 6 * FRAMES)
    assert mouth["parameters"] == {"blink_below": 0.85} and mouth["pins"] == {"annotation": "v1"}
    size = sum(file.stat().st_size for file in (made.root / "ann" / made.mouth).iterdir())
    assert mouth["bytes"] == size and mouth["bytes_per_frame"] == pytest.approx(size / 72, abs=0.01)
    assert mouth["scores"].keys() == set(SCORES)
    for score in mouth["scores"].values():
        assert (score["count"], score["missing"]) == (6, 0)
        assert score["min"] <= score["p05"] <= score["median"] <= score["p95"] <= score["max"]
    assert f"derive-{made.mouth}" in numbers["jobs"] and f"pack-{made.mouth}" in numbers["jobs"]


def test_labels_are_counted_by_value_with_the_file_that_they_come_from(made: Made) -> None:
    _, numbers = made.report()
    _, labels = numbers["columns"]
    table = made.root.parent / "<b>labels.csv"
    assert labels["provenance"] == {"csv": {"name": table.name, "sha256": hash_bytes(table.read_bytes())}}
    emotion = {"happy": 3, "sad": 2, HOSTILE: 1}
    assert labels["labels"]["emotion"] == {"samples": 6, "values": emotion, "other_values": 0, "other_samples": 0}
    assert labels["labels"]["level"]["samples"] == 5
    assert labels["samples"] == 7 and labels["failures"] == {}


def test_the_page_shows_charts_labels_and_examples_of_failures_as_text(made: Made) -> None:
    page, _ = made.report()
    section = page.split('<section id="columns">')[1].split("</section>")[0]
    assert section.count('<svg class="histogram"') == len(SCORES) + 1
    assert "mouth_range_cm: 5 kept and 1 left out" in section, "by the filters of the annotation"
    assert "column:nan" in section and "<code>flat</code> " in section and "eyes has no value in" in section
    assert "1 of 7 samples have no such column: 1 failed, 0 pending" in section
    assert "&lt;b&gt;labels.csv" in section and "<b>" not in section
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &#34;so on&#34;" in section
    assert "<script" not in page and "Unfinished" not in page
    assert '<a href="#columns">' in page


def test_a_version_that_is_half_made_is_listed_and_never_as_usable(copied: Made) -> None:
    # As a kill leaves it: the plan and some records are there, DATASET.json does not name the version.
    storage = Storage(copied.root)
    manifest = read_manifest(storage)
    write_manifest(storage, dataclasses.replace(manifest, annotations=manifest.annotations[:1]))
    lost = len(lose_segment(copied, "k0"))
    made = 6 - lost
    page, numbers = copied.report()
    labels, mouth = numbers["columns"]
    assert (labels["version"], mouth["version"]) == (copied.labels, copied.mouth)
    assert (mouth["finished"], mouth["samples"], mouth["missing"], mouth["bytes"]) == (False, 0, 7, 0)
    assert (mouth["planned"], mouth["made"], mouth["pending"]) == (7, made, lost) and mouth["scores"] == {}
    assert mouth["failures"] == {"column:nan": 1} and numbers["errors"] == []
    assert "Unfinished: no reader sees it." in page
    assert f"Of 7 samples {made} are made, 1 failed, {lost} pending" in page
    assert f"make derive COLUMNS=mouth DATA={storage.uri}" in page
    # What the page says brings it back.
    assert run_derive(in_process(storage), COLUMNS["mouth"], MouthSettings()) == copied.mouth
    page, numbers = copied.report()
    assert [column["finished"] for column in numbers["columns"]] == [True, False] and numbers["errors"] == []


def test_a_released_sample_is_pending_and_a_late_one_is_told_from_it(copied: Made) -> None:
    storage = Storage(copied.root)
    assert [record.key for record in current_quarantine(storage)] == ["flat"]
    release(storage, current_quarantine(storage))
    page, numbers = copied.report()
    assert (numbers["columns"][0]["pending"], numbers["columns"][0]["failures"]) == (1, {})
    assert "0 failed, 1 pending, 0 made only after their shard was packed" in page and numbers["errors"] == []


def test_data_that_was_copied_without_its_plans_has_no_outcomes_and_no_errors(copied: Made) -> None:
    shutil.rmtree(copied.root / "plans")
    shutil.rmtree(copied.root / "records")
    page, numbers = copied.report()
    assert numbers["errors"] == [] and numbers["columns"][0]["made"] is None and numbers["columns"][0]["missing"] == 1
    assert "DATA holds no plan of it" in page


def test_damage_of_a_version_is_an_error(copied: Made) -> None:
    storage = Storage(copied.root)
    short, gone = (copied.root / "ann" / copied.mouth / f"ann-00000{number}.tar" for number in (0, 1))
    short.write_bytes(short.read_bytes()[:1000])
    gone.unlink()
    lost = lose_segment(copied, "k3")
    assert lost == ["k0", "k1", "k2", "k3"]
    pack = next((copied.root / "records" / f"pack-{copied.labels}").rglob("clips-000000.*.json"))
    record = json.loads(pack.read_text())
    pack.write_text(json.dumps({**record, "file_sha256": "0" * 64}))
    manifest = read_manifest(storage)
    mouth = manifest.derived("mouth")
    wrong = dataclasses.replace(mouth.shards[1], samples=9)
    entries = [
        dataclasses.replace(entry, shards=[mouth.shards[0], wrong]) if entry is mouth else entry
        for entry in manifest.annotations
    ]
    write_manifest(storage, dataclasses.replace(manifest, annotations=entries))
    errors = "\n".join(copied.report()[1]["errors"])
    assert f"ann/{copied.mouth}/ann-000000.tar has 1000 bytes, DATASET.json says" in errors
    assert f"ann/{copied.mouth}/ann-000001.tar is in DATASET.json, but not in DATA" in errors
    assert f"ann-000001.tar has 9 samples with {2 * FRAMES} frames, the index of {copied.mouth} has 2 with" in errors
    assert f"{len(lost)} samples in the shards of {copied.mouth} have no commit record: k0, k1, k2, …" in errors
    assert f"ann/{copied.labels}/ann-000000.tar was committed with another hash than DATASET.json says" in errors
    assert len(errors.splitlines()) == 5


def test_a_version_that_is_not_parallel_to_the_media_is_an_error(copied: Made) -> None:
    storage = Storage(copied.root)
    manifest = read_manifest(storage)
    mouth = manifest.derived("mouth")
    entries = [
        dataclasses.replace(entry, shards=entry.shards[:1]) if entry is mouth else entry
        for entry in manifest.annotations
    ]
    write_manifest(storage, dataclasses.replace(manifest, annotations=entries))
    assert copied.report()[1]["errors"] == [f"{copied.mouth} has 1 shards, the data set has 2"]


def test_fits_are_listed_and_their_files_checked(copied: Made) -> None:
    storage = Storage(copied.root)
    manifest = read_manifest(storage)
    entry = FitEntry(
        name="basis",
        version=1,
        sha256="ab" * 32,
        size=4,
        settings={"size": 24, "note": HOSTILE},
        selection={"licence": ["CC BY 4.0"], "person": []},
        annotation="v1",
        index=manifest.annotation().index,
        clips=5,
    )
    storage.write(entry.path, b"sums")
    write_manifest(storage, dataclasses.replace(manifest, fits=[entry]))
    page, numbers = copied.report()
    assert numbers["errors"] == [] and numbers["fits"][0]["sha256"] == entry.sha256
    assert (numbers["fits"][0]["clips"], numbers["fits"][0]["settings"]["size"]) == (5, 24)
    assert '<td class="file">licence [&#34;CC BY 4.0&#34;]</td>' in page, "what chooses nothing is not shown"
    assert "note &lt;script&gt;" in page and "so on&#34;, size 24</td>" in page
    storage.write(entry.path, b"other")
    assert list(fit_errors(storage, [entry])) == [f"{entry.path} has 5 bytes, DATASET.json says 4"]
    storage.delete(entry.path)
    assert "is in DATASET.json, but not in DATA" in copied.report()[1]["errors"][0]


def test_parts_of_a_fit_that_failed_are_in_quarantine(copied: Made) -> None:
    storage, job = Storage(copied.root), "fit-basis-000000000000"
    plan = FitPlan(units={"part-000000": "0" * 16, "part-000001": "0" * 16}, fit="basis", key="0" * 16)
    write_plan(storage, job, plan)
    attempt = Attempt(cause="column:needs", message=HOSTILE)
    failed = QuarantineRecord(job=job, key="part-000000", pkey="0" * 16, source="part 0 of 2", attempts=[attempt])
    storage.create(dataroot.quarantine(job, failed.key, failed.pkey), failed.to_json())
    done = UnitRecord(job=job, key="part-000001", pkey="0" * 16, frames=9, seconds=1.0)
    storage.create(dataroot.record(job, done.key, done.pkey), done.to_json())
    page, numbers = copied.report()
    assert "part 0 of 2" in page and "CAUSE=column:needs" in page and "<script" not in page
    assert numbers["jobs"][job]["units"] == 1 and numbers["errors"] == []


def test_a_plan_under_the_name_of_another_column_is_refused(copied: Made) -> None:
    plans = copied.root / "plans"
    shutil.copy(plans / f"derive-{copied.mouth}.parquet", plans / "encode-mine.parquet")
    with pytest.raises(ValueError, match=r"encode-mine\.parquet is no plan of ours: it is about 'mouth'"):
        copied.report()


def test_a_strangers_numbers_are_bounded_and_finite(tmp_path: Path) -> None:
    """Many versions, each with many values of a label, long settings, and scores that no column makes."""
    clips = [Clip(key=f"k{number}") for number in range(200)]
    state = make_state(clips)
    scores = [1e308, -1e308, float("inf"), 5e-324]
    rows = [
        dataclasses.replace(
            row,
            scores={f"s{k}": scores[(number + k) % 4] for k in range(60)},
            labels={f"l{k}": f"{number // 2} {HOSTILE * 4}" for k in range(60)},
        )
        for number, row in enumerate(state.index)
    ]
    index = build_index("toy-1", rows)
    made_of = ColumnVersion(
        column="toy",
        column_version=1,
        parameters={"much": HOSTILE * 1000, "none": float("nan")},
        provenance={f"file{k}": {"sha256": HOSTILE, "name": [HOSTILE]} for k in range(50)},
    )
    numbers = column_numbers(ColumnState(version="toy-1", made_of=made_of, index=index))
    assert (numbers["scores"]["s0"]["count"], numbers["scores"]["s0"]["missing"]) == (150, 50)
    two = column_numbers(ColumnState(version="toy-1", made_of=made_of, index=build_index("toy-1", rows[:2])))
    assert np.isfinite(list(two["scores"]["s0"].values())).all()
    label = numbers["labels"]["l0"]
    assert (len(label["values"]), label["other_values"]) == (MOST_VALUES, 100 - MOST_VALUES)
    assert label["samples"] == 200 == sum(label["values"].values()) + label["other_samples"]
    columns = [ColumnState(version=f"toy-{number}", made_of=made_of, index=index) for number in range(100)]
    storage = Storage(tmp_path)
    page = storage.read(write_report(storage, dataclasses.replace(state, columns=columns))).decode()
    assert len(page) < 3_000_000 and "<script" not in page
    assert f"{column_view.MOST_VERSIONS} of 100 versions shown" in page
    assert len(json.loads(storage.read("report/report.json"))["columns"]) == 100
    assert dataroot.REPORT_FOLDER in write_report(storage, state)
