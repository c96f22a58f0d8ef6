"""Global fits: the same bytes in any order of the parts and in one process, and whatever dies on the way."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate.columns import FITS
from orchestration import outcomes, plans
from orchestration.jobs import fit as module
from orchestration.jobs.fit import run_fit
from orchestration.outcomes import current_quarantine
from orchestration.units.executor import Tally
from orchestration.units.unit import JobStoppedError, Unit
from shards import fits as parts_of
from shards.fit_files import find_fit, read_fit, write_fit
from shards.fits import make_fit, reader_for, source_of
from shards.manifest import FitEntry, read_manifest
from shards.selection import Selection
from talkinghead.files.storage import Storage
from tests.support.dying import die_at_writes
from tests.support.latent_data import InProcessUnitRunner, in_process
from tests.support.speech_data import build_speech_data, clip_key
from train.clip_choice import ClipChoice

SPEAKERS, EXPRESSION = FITS["speakers"], FITS["expression"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits") / "data"
    build_speech_data(folder)
    return folder


@pytest.fixture
def data(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "data"))


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few frames a part, so that the few clips make several."""
    monkeypatch.setattr(parts_of, "FRAMES_OF_A_PART", 50)
    module._last.clear()


class Backwards(InProcessUnitRunner):
    """Runs units from the last one to the first, each in a process of its own, as far as it can know."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        tally = Tally(planned=len(units), done_before=0)
        for unit in reversed(units):
            module._last.clear()
            tally = super().run(job, [unit])
        return tally


def entries(data: Path) -> dict[str, FitEntry]:
    return {entry.name: entry for entry in read_manifest(Storage(data)).fits}


def made_here(data: Path) -> dict[str, dict[str, np.ndarray]]:
    """Both fits, made in this process as a training makes them."""
    storage = Storage(data)
    reader = reader_for(SPEAKERS, storage)
    speakers = make_fit(SPEAKERS, SPEAKERS.settings(), {}, reader)
    entry = write_fit(storage, SPEAKERS, source_of(reader, SPEAKERS.settings()), [], speakers)
    needed = {"speakers": read_fit(storage, "speakers", entry.sha256)}
    return {
        "speakers": speakers,
        "expression": make_fit(EXPRESSION, EXPRESSION.settings(), needed, reader_for(EXPRESSION, storage)),
    }


def test_the_same_bytes_in_any_order_and_in_one_process(data: Path, tmp_path: Path) -> None:
    runner = in_process(data)
    found = run_fit(runner, EXPRESSION, EXPRESSION.settings())
    assert set(entries(data)) == {"speakers", "expression"}, "the fit that it needs was made, too"
    assert len(list(data.glob("records/fit-speakers-*/**/*.json"))) > 1, "several parts"
    copy = Path(
        shutil.copytree(data, tmp_path / "backwards", ignore=shutil.ignore_patterns("fits", "records", "plans"))
    )
    manifest = read_manifest(Storage(copy))
    Storage(copy).write("DATASET.json", replace(manifest, fits=[]).to_json())
    other = in_process(copy)
    run_fit(
        Backwards(storage=other.storage, cluster=other.cluster, retry=other.retry), EXPRESSION, EXPRESSION.settings()
    )
    assert {name: entry.sha256 for name, entry in entries(copy).items()} == {
        name: entry.sha256 for name, entry in entries(data).items()
    }
    here = made_here(Path(shutil.copytree(copy, tmp_path / "here")))
    for name, arrays in here.items():
        stored = read_fit(Storage(data), name, entries(data)[name].sha256).arrays
        assert stored.keys() == arrays.keys()
        for part, values in arrays.items():
            assert values.tobytes() == np.asarray(stored[part], values.dtype).tobytes(), (name, part)
    # The same once more reads what is there; the sums are gone, the fit stays.
    before = (data / "DATASET.json").read_bytes()
    assert run_fit(runner, EXPRESSION, EXPRESSION.settings()).sha256 == found.sha256
    assert (data / "DATASET.json").read_bytes() == before
    assert not [path for path in data.glob("units/fit-*/**/*") if path.is_file()]


def test_another_choice_is_another_fit(data: Path) -> None:
    runner, storage = in_process(data), Storage(data)
    every = run_fit(runner, SPEAKERS, SPEAKERS.settings())
    one = run_fit(runner, SPEAKERS, SPEAKERS.settings(), ClipChoice(person=("speaker-0",)))
    assert every.sha256 != one.sha256 and len(read_manifest(storage).fits) == 2
    manifest = read_manifest(storage)
    index = manifest.annotation().index
    for selection, wanted in ((Selection(), every), (Selection(person=("speaker-0",)), one)):
        found = find_fit(storage, manifest, SPEAKERS, SPEAKERS.settings(), index, selection)
        assert found and found.sha256 == wanted.sha256
    assert find_fit(storage, manifest, SPEAKERS, SPEAKERS.settings(pose_origin="first"), index) is None
    with pytest.raises(ValueError, match="nobody"):
        run_fit(runner, SPEAKERS, SPEAKERS.settings(), ClipChoice(person=("nobody",)))


def test_fits_go_with_those_that_they_were_made_of(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New code of one fit makes those anew that need it."""
    runner = in_process(data)
    first = run_fit(runner, EXPRESSION, EXPRESSION.settings())
    speakers = entries(data)["speakers"]
    monkeypatch.setattr(type(SPEAKERS), "version", 2)
    module._last.clear()
    run_fit(runner, EXPRESSION, EXPRESSION.settings())
    after = entries(data)
    assert after["speakers"].sha256 != speakers.sha256 and after["expression"].sha256 != first.sha256
    assert after["expression"].fits == {"speakers": after["speakers"].sha256}


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_fit_whose_file_is_lost_is_made_again(damage: str, data: Path) -> None:
    runner = in_process(data)
    found = run_fit(runner, EXPRESSION, EXPRESSION.settings())
    for name, entry in entries(data).items():
        path = data / f"fits/{name}/{entry.sha256}.npz"
        content = path.read_bytes()
        path.unlink() if damage == "gone" else path.write_bytes(content[:-10])
    module._last.clear()
    before = (data / "DATASET.json").read_bytes()
    assert run_fit(runner, EXPRESSION, EXPRESSION.settings()).sha256 == found.sha256
    assert read_fit(Storage(data), "expression", found.sha256) and (data / "DATASET.json").read_bytes() == before


SETUP = """
import annotate.fits.expression, orchestration.jobs.fit, talkinghead.motion.speakers
from annotate.columns import FITS
from orchestration.jobs.fit import run_fit
from shards import fits as parts_of
from tests.support.latent_data import in_process
parts_of.FRAMES_OF_A_PART = 50
"""


def test_death_at_any_write(built: Path, data: Path, tmp_path: Path) -> None:
    """The process is killed at its n-th write: plans, parts, fits, DATASET.json."""
    run_fit(in_process(data), EXPRESSION, EXPRESSION.settings())
    expected = entries(data)
    copies = [Path(shutil.copytree(built, tmp_path / str(writes))) for writes in range(1, 40)]
    work = 'run_fit(in_process(folder), FITS["expression"], FITS["expression"].settings())'
    ends = die_at_writes(copies, setup=SETUP, work=work)
    killed = [copy for copy, end in zip(copies, ends, strict=True) if end == -signal.SIGKILL]
    assert 8 <= len(killed) < len(copies) and set(ends) == {0, -signal.SIGKILL}
    for copy in killed:
        # Never a manifest that names what is not there.
        for entry in entries(copy).values():
            assert read_fit(Storage(copy), entry.name, entry.sha256)
        records = {path: path.stat().st_mtime_ns for path in copy.glob("records/fit-*/**/*.json")}
        run_fit(in_process(copy), EXPRESSION, EXPRESSION.settings())
        assert {name: entry.sha256 for name, entry in entries(copy).items()} == {
            name: entry.sha256 for name, entry in expected.items()
        }
        assert all(path.stat().st_mtime_ns == then for path, then in records.items()), "made once"


def test_a_clip_that_cannot_be_read_is_listed_with_its_part(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, storage = in_process(data), Storage(data)
    given = type(SPEAKERS).partial

    def failing(self: Any, samples: Any, *arguments: Any) -> Any:
        def each() -> Any:
            for sample in samples:
                if sample.key == clip_key(0):
                    raise ValueError(f"{sample.key} is damaged")
                yield sample

        return given(self, each(), *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(type(SPEAKERS), "partial", failing)
        with pytest.raises(ValueError, match=r"1 parts of speakers could not be made .* make quarantine"):
            run_fit(runner, SPEAKERS, SPEAKERS.settings())
    [failure] = current_quarantine(storage)
    assert "is damaged" in failure.attempts[-1].message and not read_manifest(storage).fits
    [name] = plans.plan_names(storage, plans.FIT_PREFIX)
    assert outcomes.fit_records(storage, name)


def test_a_data_set_that_changes_under_the_plan_stops_the_job(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = module.plan_fit

    def plan_and_change(*arguments: Any) -> list[Unit]:
        units = given(*arguments)
        for unit in units:
            unit.payload["index"] = "index/v1.000000000000.parquet"
        return units

    monkeypatch.setattr(module, "plan_fit", plan_and_change)
    with pytest.raises(JobStoppedError, match="has changed since the plan"):
        run_fit(in_process(data), SPEAKERS, SPEAKERS.settings())
    assert not current_quarantine(Storage(data))
