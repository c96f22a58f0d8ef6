"""DATA that has lost files, or in which files are damaged: found, said in one line, and made again by one command."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.catalog import read_catalog
from ingest.sample import make_sample
from orchestration import commands, plans
from orchestration.cluster import ClusterSettings
from orchestration.jobs import recovered
from orchestration.jobs.finish import finish
from orchestration.jobs.ingest_inputs import GONE, Source
from orchestration.outcomes import current_quarantine
from orchestration.report.accounting import account, complaint
from orchestration.report.page import write_report
from orchestration.report.state import data_state
from orchestration.units.executor import RetrySettings
from shards.index import read_index
from shards.manifest import read_manifest, write_manifest
from shards.pins import pin_run
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.job_commands import digests
from tests.support.mending import make_shards


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` with two clips and a text file, and `data` made of it. Not to be changed."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "source").mkdir()
    sample = make_sample(folder / "sample")
    for file in sorted(sample.glob("astronaut*"), key=lambda path: path.stat().st_size)[:2]:
        shutil.copy(file, folder / "source")
    (folder / "source" / "notes.mp4").write_text("this is a text file")
    make_shards(folder / "data", folder / "source")
    return folder


@pytest.fixture
def source(origin: Path) -> Path:
    return origin / "source"


@pytest.fixture
def data(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin / "data", tmp_path / "data"))


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def unpacked(data: Path) -> None:
    """DATA as it was after annotation, before anything was packed."""
    for path in (data / "DATASET.json", data / "plans/shards.parquet", *data.glob("clips-*.tar")):
        path.unlink()
    for folder in ("ann", "index", "records/pack-media", "records/pack-v1"):
        shutil.rmtree(data / folder)


def sound(data: Path, origin: Path) -> None:
    """What readers see is as in the data set that was never damaged, and everything adds up."""
    assert digests(data) == digests(origin / "data")
    report = verify(Storage(data), deep=True)
    assert report.ok and not report.unknown, (report.problems, report.unknown)
    accounting = account(data_state(Storage(data), None))
    assert not accounting.errors and not accounting.by_fate()["pending"]


def records(data: Path, job: str) -> list[Path]:
    return sorted(data.glob(f"records/{job}/*/*.json"))


# --- lost files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["ingest", "annotate-v1"])
def test_a_lost_unit_that_is_not_packed_is_run_again(
    job: str, data: Path, source: Path, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unpacked(data)
    lost = sorted(data.glob(f"units/{job}/*/*.tar"))[0]
    content = lost.read_bytes()
    lost.unlink()
    _, done = make_shards(data, source)
    assert lost.read_bytes() == content and done[job] == (1, 0) and done["pack-media"] == (2, 0)
    assert f"{lost.relative_to(data)} is gone" in caplog.text and "its unit is run again" in caplog.text
    sound(data, origin)
    assert make_shards(data, source)[1] == dict.fromkeys(("ingest", "annotate-v1", "pack-media", "pack-v1"), (0, 0))


def test_lost_units_without_source_name_the_inputs_and_the_command(data: Path, source: Path, origin: Path) -> None:
    unpacked(data)
    shutil.rmtree(data / "units/ingest")
    with pytest.raises(ValueError, match=r"ingest 2 inputs again \(astronaut.*make shards DATASET=folder SOURCE=<"):
        make_shards(data)
    make_shards(data, source)
    sound(data, origin)


def test_packed_units_may_be_gone(data: Path, source: Path, origin: Path) -> None:
    shutil.rmtree(data / "units")
    _, done = make_shards(data, source)
    assert set(done.values()) == {(0, 0)}
    sound(data, origin)


@pytest.mark.parametrize("name", ["clips-000001.tar", "ann/v1/ann-000000.tar", "index"])
def test_a_lost_shard_or_index_is_made_again(name: str, data: Path, origin: Path) -> None:
    name = read_manifest(Storage(data)).annotation().index if name == "index" else name
    (data / name).unlink()
    if not name.startswith("index"):
        write_report(Storage(data), data_state(Storage(data), None))
        assert f"{name} is in the index, but not in DATA" in (complaint(Storage(data)) or "")
    else:
        with pytest.raises(
            FileNotFoundError, match=r"is gone, the index .*: make shards ANN=v1 DATA=.* makes it again"
        ):
            data_state(Storage(data), None)
    [problem] = verify(Storage(data)).problems
    assert problem.file == name and problem.kind == "missing" and "make shards" in problem.detail
    make_shards(data)
    assert (data / name).read_bytes() == (origin / "data" / name).read_bytes()
    sound(data, origin)


def test_a_lost_shard_whose_units_are_gone_is_ingested_again(data: Path, source: Path, origin: Path) -> None:
    (data / "clips-000001.tar").unlink()
    (data / "ann/v1/ann-000000.tar").unlink()
    shutil.rmtree(data / "units")
    with pytest.raises(ValueError, match=r"clips-000001.tar and .*gone.*astronaut.*make shards DATASET=folder SOURCE"):
        make_shards(data)
    _, done = make_shards(data, source)
    # The annotation of the other clip was made by the first command, before it came to the shard.
    assert done == {"ingest": (1, 0), "annotate-v1": (0, 0), "pack-media": (1, 0), "pack-v1": (1, 0)}
    sound(data, origin)


def test_a_lost_shard_that_comes_out_otherwise_is_said(data: Path, source: Path) -> None:
    """As with another release of a library: here the record names other bytes."""
    (data / "clips-000001.tar").unlink()
    shutil.rmtree(data / "units")
    for path in records(data, "ingest"):
        record = json.loads(path.read_text())
        for sample in record["samples"]:
            sample["sha256"] = "0" * 64
        path.write_text(json.dumps(record))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"came out with other bytes than before.*put the shard back"):
            make_shards(data, source)
        assert not list(data.glob("units/ingest/*/*.tar"))


# --- nothing in it ----------------------------------------------------------------------------------------------------


def test_an_empty_data_set_is_said_by_every_command(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.mp4").write_text("this is a text file")
    for folder in (tmp_path / "empty", None):
        with pytest.raises(ValueError, match=r"has no sample: 1 clips: 1 failed \(media:not_media\); make quarantine"):
            make_shards(tmp_path / "new", folder)
    # One that an earlier release finished.
    storage = Storage(data)
    manifest = read_manifest(storage)
    write_manifest(storage, dataclasses.replace(manifest, media=[], counts={**manifest.counts, "samples": 0}))
    assert "holds no sample: make shards" in str(verify(storage).problems[0])
    state = dataclasses.replace(data_state(storage, None), index=[])
    write_report(storage, state)
    assert "holds no sample: make shards" in (complaint(storage) or "")


def test_a_data_set_of_which_the_filters_keep_nothing_is_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish(Storage(data), "v1", ("min_frames=9999",))
    assert "the filters keep none of the 2 samples (2 too_short), so nothing can be trained on" in caplog.text
    caplog.clear()
    finish(Storage(data), "v1", ("min_frames=1",))
    assert not caplog.records


def test_metadata_without_any_video_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = {
        "annotion_time": "Good.mp4 00:10-00:20",
        "video_url": "Good http://h/good",
        "resolution": "Good.mp4 720",
        "crop_wh": "Good_0.mp4 0 10 0 10",
        "crop_ratio": "Good_0.mp4 1.2",
    }
    (tmp_path / "hdtf").mkdir()
    for name, line in lines.items():
        (tmp_path / "hdtf" / f"RD_{name}.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="has no sample: no clip has its video in SOURCE: name the folder"):
        make_shards(tmp_path / "new", tmp_path / "hdtf", dataset="hdtf")
    assert "no clip has its video in" in caplog.text and "make download DATASET=hdtf" in caplog.text


# --- damaged records --------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "no JSON": lambda _: b"\xff\x00garbage",
    "of another version": lambda content: json.dumps(json.loads(content) | {"schema_version": 9}).encode(),
    "of another unit": lambda content: json.dumps(json.loads(content) | {"key": "other"}).encode(),
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("annotate-v1", how) for how in DAMAGE),
        *(("quarantine", how) for how in DAMAGE),
        *((kind, "cut") for kind in ("ingest", "pack-media", "pack-v1")),
    ],
)
def test_a_damaged_record_is_set_aside_and_its_unit_run_again(
    kind: str, how: str, data: Path, source: Path, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = sorted(data.glob("quarantine/ingest/*.json")) if kind == "quarantine" else records(data, kind)
    path = next(path for path in found if kind == "quarantine" or json.loads(path.read_text())["file"])
    before, broken = path.read_bytes(), DAMAGE[how](path.read_bytes())
    path.write_bytes(broken)
    name = path.relative_to(data).as_posix()
    # Who only reads names it.
    errors = account(data_state(Storage(data), None)).errors
    assert any(f"{name} cannot be read" in error for error in errors)
    current_quarantine(Storage(data))

    make_shards(data, source)
    assert name in caplog.text and "its unit is run again" in caplog.text
    assert (data / f"damaged/{name}.0").read_bytes() == broken
    for field in ("file_sha256", "samples", "source"):
        assert json.loads(path.read_bytes()).get(field) == json.loads(before).get(field)
    sound(data, origin)
    page = write_report(Storage(data), data_state(Storage(data), None))
    assert complaint(Storage(data)) is None
    text = (data / page).read_text()
    assert "records were damaged" in text and name in text
    # Once more: the first stays.
    path.write_bytes(b"")
    make_shards(data, source)
    assert (data / f"damaged/{name}.1").read_bytes() == b""


def test_a_damaged_ingest_record_without_source_is_one_line(data: Path, source: Path, origin: Path) -> None:
    path = [path for path in records(data, "ingest") if json.loads(path.read_text())["file"]][-1]
    again = "ingest its clip again with make shards DATASET=folder SOURCE="
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match=rf"{path.name} is no JSON.*{again}"):
        make_shards(data)
    # One that is gone: the sample that is named is its own.
    path.unlink()
    with pytest.raises(ValueError, match=rf"how {path.name.partition('.')[0]} was ingested: {again}"):
        make_shards(data)
    make_shards(data, source)
    sound(data, origin)


# --- damaged catalogs, plans and tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"PAR1 garbage PAR1", b""])
def test_a_damaged_catalog_is_made_again(
    content: bytes, data: Path, source: Path, origin: Path, tmp_path: Path
) -> None:
    before = read_catalog(Storage(data), "folder")
    (data / dataroot.catalog("folder")).write_bytes(content)
    with pytest.raises(ValueError, match=r"folder.parquet is no readable table.*: make ingest DATASET=folder SOURCE="):
        data_state(Storage(data), None)
    make_shards(data, source)
    assert read_catalog(Storage(data), "folder") == before
    sound(data, origin)
    # A packed clip whose file is gone as well is known from its record.
    (data / dataroot.catalog("folder")).write_bytes(content)
    fewer = Path(shutil.copytree(source, tmp_path / "fewer"))
    gone = sorted(fewer.glob("astronaut*"))[0]
    gone.unlink()
    make_shards(data, fewer)
    row = next(row for row in read_catalog(Storage(data), "folder").rows if row.source == gone.name)
    assert GONE in row.notes
    sound(data, origin)


@pytest.mark.parametrize("content", [b"PAR1 garbage PAR1", None])
def test_every_command_says_that_a_catalog_is_damaged_or_gone(
    content: bytes | None, data: Path, source: Path, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = dataroot.catalog("folder")
    again = f"make ingest DATASET=folder SOURCE=<its folder> DATA={data} makes it again"
    (data / path).unlink()
    if content is not None:
        (data / path).write_bytes(content)
    [problem] = verify(Storage(data)).problems
    assert (problem.file, problem.kind) == (path, "missing" if content is None else "unreadable")
    assert again in problem.detail
    if content is None:
        write_report(Storage(data), data_state(Storage(data), None))
        said = complaint(Storage(data)) or ""
        assert said.startswith(f"{path} is gone") and again in said
    else:
        with pytest.raises(ValueError, match=r"folder\.parquet is no readable table") as error:
            data_state(Storage(data), None)
        assert again in str(error.value)
    # What does not need it goes on, with a word.
    common = {"data": str(data), "cluster": ClusterSettings(), "retry": RetrySettings()}
    for run in (
        lambda: commands.annotate(**common),
        lambda: commands.shards(Source(), **common),
        lambda: commands.reannotate(version="v1", **common),
    ):
        caplog.clear()
        run()
        assert [record.getMessage().count(again) for record in caplog.records] == [1]
    make_shards(data, source)
    caplog.clear()
    commands.shards(Source(), **common)
    assert not caplog.records
    sound(data, origin)


@pytest.mark.parametrize("name", ["ingest-folder", "annotate-v1"])
def test_the_report_names_the_command_that_makes_a_lost_plan_again(name: str, data: Path) -> None:
    (data / dataroot.plan(name)).unlink()
    write_report(Storage(data), data_state(Storage(data), None))
    said = complaint(Storage(data)) or ""
    assert said.startswith(f"plans/{name}.parquet is gone") and plans.again_with(name, str(data)) in said


@pytest.mark.parametrize("content", [b"PAR1 garbage PAR1", None])
def test_a_lost_plan_of_the_shards_is_restored_and_the_settings_to_name_are_said(
    content: bytes | None, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = plans.find_shards(Storage(data))
    (data / dataroot.plan("shards")).unlink()
    if content is not None:
        (data / dataroot.plan("shards")).write_bytes(content)
    recovered.restore_shard_plan(Storage(data))
    after = plans.find_shards(Storage(data))
    assert before and after and after.shards == before.shards
    assert "name them with make shards ARGS='--shards NAME=VALUE …'" in caplog.text
    assert ("is gone: it is made again" in caplog.text) == (content is None)
    # And nothing is said of shards where there are none.
    caplog.clear()
    recovered.restore_shard_plan(Storage(data.parent / "new"))
    assert not caplog.records and plans.find_shards(Storage(data.parent / "new")) is None


@pytest.mark.parametrize("name", ["ingest-folder", "annotate-v1", "shards"])
@pytest.mark.parametrize("content", [b"PAR1 garbage PAR1", b""])
def test_a_damaged_plan_is_made_again_by_the_command_that_is_named(
    name: str, content: bytes, data: Path, source: Path, origin: Path
) -> None:
    before = plans.find_plan(Storage(data), name)
    (data / dataroot.plan(name)).write_bytes(content)
    command = {"ingest-folder": "make ingest DATASET=folder", "annotate-v1": "make annotate ANN=v1"}
    with pytest.raises(ValueError, match=f"no plan of ours.*{command.get(name, 'make shards')}.* makes it again"):
        plans.find_plan(Storage(data), name)
    make_shards(data, source)
    assert plans.find_plan(Storage(data), name) == before
    assert (data / f"damaged/plans/{name}.parquet.0").read_bytes() == content
    sound(data, origin)


def test_a_damaged_table_of_fingerprints_is_made_again(
    data: Path, source: Path, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (data / dataroot.sources("folder")).read_bytes()
    (data / dataroot.sources("folder")).write_bytes(before[:100])
    make_shards(data, source)
    assert (data / dataroot.sources("folder")).read_bytes() == before and "all sources are read again" in caplog.text
    sound(data, origin)


def test_a_damaged_index_is_written_again(data: Path, origin: Path) -> None:
    storage = Storage(data)
    entry = read_manifest(storage).annotation()
    (data / entry.index).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"is damaged; make shards ANN=v1 DATA=.* makes it again"):
        read_index(storage, entry)
    make_shards(data)
    sound(data, origin)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_limit_says_of_nothing_that_it_is_gone(
    data: Path, source: Path, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_shards(data, source, limit=1)
    assert "no longer in SOURCE" not in caplog.text
    assert not [row for row in read_catalog(Storage(data), "folder").rows if GONE in row.notes]
    sound(data, origin)


def test_rehash_finds_what_changed_under_the_same_size_and_time(data: Path, source: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(source, tmp_path / "source"))
    file = sorted(changed.glob("astronaut*"))[0]
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    make_shards(data, changed)
    with pytest.raises(ValueError, match="has changed since its clip was packed"):
        make_shards(data, changed, rehash=True)


def test_a_damaged_pin_stops_no_command_and_no_index_is_deleted(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(data)
    indexes = {read_manifest(storage).annotation().index}
    pin_run(storage, str(data.parent / "run"), versions=["v1"])
    [pin] = data.glob("pins/*.json")
    pin.write_bytes(b"{")
    for judged in ("max_yaw_abs_median=0.001", "min_frames=9999"):
        finish(storage, "v1", (judged,))
        indexes.add(read_manifest(storage).annotation().index)
    assert len(indexes) == 3 and all((data / name).exists() for name in indexes)
    assert (
        f"{pin.name} is no pin of a run" in caplog.text and "no index of an earlier command is deleted" in caplog.text
    )


def test_indexes_kept_on_purpose_are_no_strangers(data: Path) -> None:
    """A reader may still have the last one open; a file that only looks like one is named."""
    storage = Storage(data)
    old = read_manifest(storage).annotation().index
    finish(storage, "v1", ("max_yaw_abs_median=0.001",))
    manifest = read_manifest(storage)
    assert manifest.annotation().index != old and (data / old).exists()
    strangers = ["index/notes.txt", f"index/v1.{'0' * 12}.parquet", f"index/v9.{old.split('.')[1]}.parquet"]
    for name in strangers:
        (data / name).write_bytes((data / old).read_bytes())
    report = verify(storage)
    assert report.ok and report.kept == [old] and sorted(report.unknown) == strangers
    # What a run reads that DATASET.json does not name any more.
    pin_run(storage, str(data.parent / "run"), versions=["v0"], fits=["ab" * 32])
    for name in ("ann/v0/ann-000000.tar", f"fits/speakers/{'ab' * 32}.npz"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    report = verify(storage)
    assert sorted(report.unknown) == strangers and len(report.kept) == 3
