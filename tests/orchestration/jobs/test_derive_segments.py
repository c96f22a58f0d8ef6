"""Columns that are made in segments: the same shards as unit by unit, with few files, and old DATA goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from annotate.columns import COLUMNS
from orchestration import plans
from orchestration.jobs import derive, derive_worker
from orchestration.jobs.derive_worker import read_ahead
from orchestration.jobs.gc import run_gc
from orchestration.outcomes import current_quarantine
from orchestration.units.executor import Tally, UnitRunner
from orchestration.units.ledger import release
from orchestration.units.unit import Unit, compute
from shards.manifest import read_manifest
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.orchestration.jobs.test_derive import SETUP, content, version_of
from tests.support.dying import die_at_writes
from tests.support.job_commands import Command
from tests.support.latent_data import (
    LENGTHS,
    InProcessUnitRunner,
    build,
    clip_key,
    in_process,
    make_latents,
    unit_by_unit,
)
from tests.support.paths import ROOT
from tests.support.segments import records, tars


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set without latents; not to be changed."""
    folder = tmp_path_factory.mktemp("built") / "data"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def by_unit(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with latents, made unit by unit as earlier releases did; not to be changed."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("by_unit") / "data"))
    make_latents(unit_by_unit(folder))
    return folder


class StoppedError(Exception):
    """The command was ended when all units were done, before they were packed."""


def make_units(runner: UnitRunner) -> None:
    """Make all units of the latents, and pack none."""

    def stop(*arguments: object) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derive, "pack_columns", stop)
        with pytest.raises(StoppedError):
            make_latents(runner)


def test_same_shards_with_two_files_a_segment(built: Path, by_unit: Path, tmp_path: Path) -> None:
    counts = {}
    for name, runner in (("units", unit_by_unit), ("segments", in_process)):
        data = Path(shutil.copytree(built, tmp_path / name))
        before = {path for path in data.rglob("*") if path.is_file()}
        make_units(runner(data))
        made = {path for path in data.rglob("*") if path.is_file()} - before
        counts[name] = sum(path.parts[len(data.parts)] in ("units", "records") for path in made)
        make_latents(runner(data))
        assert content(data) == content(by_unit)
    assert counts == {"units": 2 * len(LENGTHS), "segments": 2 * len(read_manifest(Storage(by_unit)).media)}


def age_plan(data: Path) -> None:
    """Give the plan of the latents the table that it had before segments."""
    [file] = data.glob("plans/encode-*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["segment"]), file)


def test_what_an_earlier_release_has_half_made_goes_on_with_its_bytes(
    built: Path, by_unit: Path, tmp_path: Path
) -> None:
    """Units of single clips, some of a shard, some quarantined: none of them is made again."""
    copies = [Path(shutil.copytree(built, tmp_path / str(number))) for number in range(1, 5)]
    setup = f"{SETUP}\nfrom tests.support.latent_data import unit_by_unit"
    die_at_writes(copies, setup=setup, work="make_latents(unit_by_unit(folder), SETTINGS)")
    for number, data in enumerate(copies[1:], 2):
        age_plan(data)
        storage = Storage(data)
        storage.sweep_temporary()
        old = {path: path.read_bytes() for path in data.glob("records/encode-*/**/*.json")}
        assert len(old) in (number - 2, number - 1)
        make_latents(in_process(data))
        assert content(data) == content(by_unit) and verify(storage).ok
        assert {path: path.read_bytes() for path in data.glob("records/encode-*/**/*.json")} == old
        assert tars(storage) == [] and bool(records(storage)) == (len(old) < len(LENGTHS))


def test_a_finished_version_of_an_earlier_release_stays(by_unit: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(by_unit, tmp_path / "data"))
    age_plan(data)
    make_latents(in_process(data))
    assert content(data) == content(by_unit) and records(Storage(data)) == []


def test_a_clip_that_is_mended_before_its_shard_is_packed(built: Path, by_unit: Path, tmp_path: Path) -> None:
    """Quarantined in a segment, released, and made on its own: as if it had never failed."""
    storage = build(tmp_path / "data", poison=(1,))
    make_units(in_process(storage))
    assert [failed.key for failed in current_quarantine(storage)] == [clip_key(1)]
    committed = {path: storage.read(path) for path in records(storage)}
    release(storage, current_quarantine(storage))
    assert current_quarantine(storage) == []
    make_units(in_process(storage))  # still broken
    assert [failed.key for failed in current_quarantine(storage)] == [clip_key(1)]
    assert {path: storage.read(path) for path in records(storage)} == committed
    version = make_latents(in_process(storage))
    entry = read_manifest(storage).annotation(version)
    assert (entry.samples, entry.kept) == (5, 4)


def test_a_collection_keeps_what_is_not_packed_and_what_a_worker_may_yet_commit(built: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(built, tmp_path / "data"))
    storage = Storage(data)
    make_units(in_process(data))
    [job] = plans.plan_names(storage, "encode-")
    plan = plans.find_plan(storage, job)
    assert isinstance(plan, plans.ColumnPlan)
    first, second = sorted(set(plan.segments.values()))
    made = tars(storage)
    storage.delete(dataroot.segment_record(job, first))  # as before it was committed
    late = dataroot.unit(job, second, "f" * 16)
    stray = dataroot.unit(job, "segment-clips-000000-000-0123456789ab", "f" * 16)
    for path in (late, stray):
        storage.write(path, b"of another attempt")
    run_gc(storage)
    assert tars(storage) == made, "a late worker is refused, and what no plan names is nobody's"


def planned_units(data: Path) -> list[Unit]:
    """The units that a command would run."""
    given: list[Unit] = []

    class Runner(InProcessUnitRunner):
        def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
            given.extend(units)
            raise StoppedError

    plain = in_process(data)
    with pytest.raises(StoppedError):
        make_latents(Runner(storage=plain.storage, cluster=plain.cluster, retry=plain.retry))
    return given


def test_the_next_sample_is_read_ahead(built: Path, tmp_path: Path) -> None:
    """By a thread that ends with it; the result is the same, and an error is that of the sample that has it."""
    data = Path(shutil.copytree(built, tmp_path / "data"))
    storage, units = Storage(data), planned_units(data)
    plain = [compute(storage, unit).contents for unit in units]
    eager = []
    for unit, following in zip(units, [*units[1:], None], strict=True):
        if following is not None:
            read_ahead(storage, following)
        eager.append(compute(storage, unit).contents)
    assert eager == plain and not derive_worker._ahead
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]
    (data / units[0].payload["file"]).unlink()
    other = next(unit for unit in units if unit.payload["file"] != units[0].payload["file"])
    read_ahead(storage, units[0])
    compute(storage, other)
    with pytest.raises(FileNotFoundError):
        compute(storage, units[0])


def test_a_sample_that_is_read_ahead_gives_its_frames_twice(built: Path, tmp_path: Path) -> None:
    """A column may go through the video more than once."""
    data = Path(shutil.copytree(built, tmp_path / "data"))
    unit = planned_units(data)[0]
    sample = derive_worker._Sample(Storage(data), unit, COLUMNS["latents"])
    sample.begin()
    with sample.reading():
        one, two = (np.stack(list(sample.video())) for _ in range(2))
    assert len(one) == unit.frames and np.array_equal(one, two)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_any_number_of_workers_and_kills_give_the_same_bytes(built: Path, tmp_path: Path, command: Command) -> None:
    """With the real command line: one worker, three, and a driver that is killed in the middle."""
    contents = []
    for name, workers in (("one", 1), ("three", 3), ("killed", 2)):
        data = Path(shutil.copytree(built, tmp_path / name))
        arguments = ("orchestration", "latents", "--data", data, "--vae", "tiny", "--image-encoder", "tiny")
        arguments = (*arguments, "--width", 32, "--height", 32, "--workers", workers)
        if name == "killed":
            driver = subprocess.Popen([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, start_new_session=True)
            while not list((data / "tmp").glob("*")) and not records(Storage(data)):
                assert driver.poll() is None
                time.sleep(0.02)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
        done = command(*arguments)
        assert "done now" in done.stderr
        contents.append(content(data))
        assert verify(Storage(data)).ok and version_of(data) and tars(Storage(data)) == []
    assert contents[0] == contents[1] == contents[2]
