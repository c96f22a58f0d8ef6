"""Packed clips that are made again from SOURCE: with the plan lost, under other settings, after a removal."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from ingest.sample import make_sample
from orchestration import outcomes, plans
from orchestration.jobs import annotate, ingest
from orchestration.jobs.gc import run_gc
from orchestration.jobs.ingest_inputs import Source
from orchestration.jobs.matched import match_keys
from orchestration.jobs.remove import run_remove
from orchestration.units.executor import Tally
from orchestration.units.unit import Unit, run_unit
from shards.index import read_index
from shards.manifest import read_manifest
from shards.reader import ShardReader
from shards.removal_records import REASON
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_file
from tests.support.job_commands import digests
from tests.support.latent_data import InProcessUnitRunner, in_process
from tests.support.mending import make_shards

JOBS = ("ingest", "annotate-v1", "pack-media", "pack-v1")
NOTHING = dict.fromkeys(JOBS, (0, 0))
PIECES = ("max_frames=70",)
"""Settings under which each clip has two pieces."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` with two clips, and `data` made of it, whose clips have two pieces each, and the sound of one of which
    was moved. Not to be changed."""
    folder = tmp_path_factory.mktemp("remade")
    (folder / "source").mkdir()
    sample = make_sample(folder / "sample")
    for name in ("astronaut-close.mp4", "astronaut-portrait.mkv"):
        shutil.copy(sample / name, folder / "source")
    storage = Storage(folder / "data")
    delays = {hash_file(folder / "source" / "astronaut-close.mp4"): 3}
    plan = plans.IngestPlan(units={}, contents={}, settings={}, sound_delays=delays)
    plans.write_plan(storage, plans.ingest_plan_name("folder"), plan)
    make_shards(storage, folder / "source", ingest=PIECES)
    assert len(outcomes.ingested_samples(storage)) == 4
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


def newer_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release under which every unit has another provenance key."""
    monkeypatch.setattr(ingest, "VERSION", ingest.VERSION + 1)
    monkeypatch.setattr(annotate, "VERSION", annotate.VERSION + 1)


def bare(data: Path) -> None:
    """Without the files of the units, as `make gc` leaves DATA."""
    shutil.rmtree(data / "units")


def sound(data: Path, samples: set[str]) -> None:
    """Everything that readers see fits together, and they see these samples."""
    storage = Storage(data)
    report = verify(storage, deep=True)
    assert report.ok and not report.unknown, (report.problems, report.unknown)
    for entry in read_manifest(storage).annotations:
        reader = ShardReader(storage, version=entry.version, split=None, kept=False)
        assert {sample.key for sample in reader} == samples


def one_piece(data: Path) -> tuple[str, str]:
    """A piece of a clip that has two, and the key of the clip."""
    manifest = read_manifest(Storage(data))
    index = read_index(Storage(data), manifest.annotation())
    # The first of a shard, so that the others move when it is packed without it.
    key = next(row.key for row in index.rows() if row.ordinal == 0 and manifest.media[row.shard].samples > 1)
    return key, outcomes.ingested_samples(Storage(data))[key].record.key


def remove(data: Path, key: str) -> set[str]:
    """Take one piece out; returns the keys of the others."""
    storage = Storage(data)
    others = set(outcomes.ingested_samples(storage)) - {key}

    def nobody(run: str, keys: object) -> tuple[int, int]:
        raise ValueError("no run here")

    run_remove(storage, match_keys(storage, [key]), nobody)
    return others


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"garbage", None])
def test_a_plan_is_recovered_whenever_something_is_packed(
    content: bytes | None, data: Path, source: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the second command after the damage, and where the plan is simply gone."""
    names = [plans.ingest_plan_name("folder"), plans.annotate_job("v1")]
    before = {name: plans.find_plan(Storage(data), name) for name in names}
    newer_release(monkeypatch)
    for name in names:
        if content is None:
            (data / dataroot.plan(name)).unlink()
        else:
            (data / dataroot.plan(name)).write_bytes(content)
    with pytest.raises(ValueError, match="nothing"):
        make_shards(data, source.parent / "nothing")
    with pytest.raises(ValueError, match="is packed and was made with other settings"):
        _annotate_otherwise(data)
    _, done = make_shards(data, source)
    assert done == NOTHING
    # Settings and sound delays as well.
    assert {name: plans.find_plan(Storage(data), name) for name in names} == before
    assert digests(data) == digests(origin / "data")


def _annotate_otherwise(data: Path) -> None:
    annotate.run_annotate(in_process(data), "v1", ("engine=litert-tracking",), resolve_face_model())


def test_a_lost_shard_is_made_again_with_the_settings_that_it_was_made_with(
    data: Path, source: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(data, source, ingest=("max_frames=60", "detect_every=4"), align_sound="none")
    newer_release(monkeypatch)
    bare(data)
    for shard in data.glob("clips-*.tar"):
        shard.unlink()
    _, done = make_shards(data, source)
    assert done == NOTHING | {"ingest": (2, 0), "pack-media": (2, 0)}
    for name in (shard.name for shard in (origin / "data").glob("clips-*.tar")):
        assert (data / name).read_bytes() == (origin / "data" / name).read_bytes()


# --- removed pieces ---------------------------------------------------------------------------------------------------


class Planning(InProcessUnitRunner):
    """Stops when it should run units, as a command that is killed."""

    units: ClassVar[dict[str, Unit]] = {}

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Keep the units."""
        Planning.units = {unit.key: unit for unit in units}
        raise KeyboardInterrupt


def ingest_units(data: Path, source: Path) -> dict[str, Unit]:
    """Units of ingest as a command plans them, of which none is run."""
    runner = in_process(data)
    planning = Planning(storage=runner.storage, cluster=runner.cluster, retry=runner.retry)
    with pytest.raises(KeyboardInterrupt):
        ingest.run_ingest(planning, Source(source=str(source)), (), resolve_face_model())
    return Planning.units


def test_a_removed_piece_is_in_no_committed_unit(data: Path, source: Path) -> None:
    """Also where the command is killed after the unit: its record never names the piece."""
    key, clip = one_piece(data)
    storage = Storage(data)
    whole = outcomes.ingested_samples(storage)[key].record
    others = remove(data, key)
    unit = ingest_units(data, source)[clip]
    storage.delete(dataroot.record("ingest", clip, unit.pkey))  # as where it was not ingested yet
    unit = dataclasses.replace(unit, is_packed=False)
    record = run_unit(storage, unit, attempts=1)
    assert {sample.key for sample in record.samples} == {k for k in others if k.startswith(clip)}
    assert (key, REASON) in [(piece.key, piece.rejection.reason) for piece in record.rejected]
    assert record.file and key.encode() not in storage.read(record.file)
    assert key not in str(record.details)
    # By the same hash as before other jobs know the rest.
    assert record.file_sha256 == whole.file_sha256


def test_a_piece_that_an_earlier_release_let_in_is_not_annotated(data: Path, source: Path, origin: Path) -> None:
    key, _ = one_piece(data)
    removals = remove(data, key) and list(data.glob("removed/*.json"))
    # DATA in which nothing is packed, and the piece is in a unit's file.
    again = data.parent / "again"
    shutil.copytree(origin / "data", again)
    for path in (again / "DATASET.json", again / "plans/shards.parquet", *again.glob("clips-*.tar")):
        path.unlink()
    for folder in ("ann", "index", "records/pack-media", "records/pack-v1", "records/annotate-v1", "units/annotate-v1"):
        shutil.rmtree(again / folder)
    (again / "plans/annotate-v1.parquet").unlink()
    (again / "removed").mkdir(exist_ok=True)
    for path in removals:
        shutil.copy(path, again / "removed")
    make_shards(again)
    assert not list(again.glob(f"records/annotate-v1/*/{key}.*"))
    assert key not in set(read_index(Storage(again), read_manifest(Storage(again)).annotation()).texts("key"))


@pytest.mark.parametrize("collected", [False, True])
@pytest.mark.parametrize("freed", [False, True])
def test_a_shard_that_is_lost_after_a_removal_is_packed_again(
    collected: bool, freed: bool, data: Path, source: Path
) -> None:
    make_shards(data, version="v2")
    key, _ = one_piece(data)
    storage = Storage(data)
    others = remove(data, key)
    if collected:
        run_gc(storage)
    if freed:
        bare(data)
    entry = read_manifest(storage)
    for shard in [*entry.media, *entry.annotations[0].shards]:
        (data / shard.name).unlink()
    make_shards(data, source)
    sound(data, others)
    after = read_manifest(storage)
    assert not any(shard.removed for shard in [*after.media, *after.annotations[0].shards])
    if collected:
        assert [shard.sha256 for shard in after.media] == [shard.sha256 for shard in entry.media]
    assert make_shards(data, source)[1] == NOTHING
    run_gc(storage)
    sound(data, others)
    for path in data.rglob("*.tar"):
        assert key.encode() not in path.read_bytes(), path


# --- what it costs ----------------------------------------------------------------------------------------------------


class CountingStorage(Storage):
    """Counts how often each file is read."""

    counts: ClassVar[Counter[str]] = Counter()

    def read(self, path: str, limit: int | None = None, what: str = "file") -> bytes:
        CountingStorage.counts[path] += 1
        return super().read(path, limit, what)


def test_records_are_read_a_few_times_by_a_command(data: Path, source: Path) -> None:
    make_shards(data, source)
    CountingStorage.counts.clear()
    assert make_shards(CountingStorage(data), source)[1] == NOTHING
    most = {
        job: max(count for path, count in CountingStorage.counts.items() if path.startswith(f"records/{job}/"))
        for job in JOBS
    }
    # Ingest, annotate and pack, and what looks for lost outputs; nothing reads them again to find copies.
    assert most["ingest"] <= 4 and most["annotate-v1"] <= 2 and most["pack-v1"] <= 3 and most["pack-media"] <= 5
    CountingStorage.counts.clear()
    make_shards(CountingStorage(data))
    assert max(count for path, count in CountingStorage.counts.items() if path.startswith("records/ingest/")) <= 2
