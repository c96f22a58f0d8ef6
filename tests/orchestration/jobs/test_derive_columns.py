"""Any column by the one job: every form of array arrives in readers, and a column that errs loses its clip alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotate.columns import COLUMNS, FITS
from orchestration import outcomes, plans
from orchestration.jobs import derive, derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.fit import run_fit
from orchestration.outcomes import current_quarantine
from orchestration.units.ledger import release
from orchestration.units.unit import JobStoppedError
from shards.manifest import read_manifest
from shards.reader import ShardReader
from shards.verify import verify
from talkinghead.column import decode_column
from talkinghead.derived import ColumnSample, ColumnVersion, Derived, DerivedColumn
from talkinghead.files.storage import Storage
from tests.support.latent_data import in_process
from tests.support.speech_data import LENGTHS, UNSEEN, arrays, build_speech_data, clip_key, speech
from tests.support.toy_column import ARRAYS, Misbehave, ToySettings, toy_column

Register = Callable[[DerivedColumn], DerivedColumn]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns") / "data"
    build_speech_data(folder)
    return folder


@pytest.fixture
def data(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "data"))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts a column into the table, as a line in `annotate/columns.py` would."""

    def put(column: DerivedColumn) -> DerivedColumn:
        derive_worker._last.clear()
        monkeypatch.setitem(COLUMNS, column.name, column)
        return column

    return put


def test_every_form_of_array_arrives(data: Path, register: Register) -> None:
    version = run_derive(in_process(data), register(toy_column()), ToySettings(scale=0.5))
    reader = ShardReader(data, split=None, kept=False, join=("toy",), columns=tuple(array.name for array in ARRAYS))
    assert reader.joined == {"toy": version} and len(reader) == len(LENGTHS)
    for number, length in enumerate(LENGTHS):
        sample, truth = reader.find(clip_key(number)), arrays(number)
        valid = truth["valid"].astype(bool)
        assert valid.all() == (number != 1) or UNSEEN
        height = sample.annotation("toy_height")
        expected = truth["mesh"][:, :2, 1] * 0.5
        assert np.isnan(height[~valid]).all()
        assert np.abs(height[valid] - expected[valid]).max() <= 0.5 / 1024 + 0.25 / 1024, "the mesh is rounded, too"
        # Two rows a frame, one row a clip, and integers with a blank; windows are slices of the whole.
        sound = speech(number) * (number != 3)
        rms = np.sqrt((sound.reshape(2 * length, -1).astype(np.float64) ** 2).mean(axis=1))
        rows = sample.annotation("toy_speech")
        assert rows.shape == (2 * length, 3) and rows.dtype == np.float16
        np.testing.assert_allclose(rows[np.repeat(valid, 2), 0], rms[np.repeat(valid, 2)], rtol=2e-3, atol=1e-4)
        np.testing.assert_array_equal(sample.annotation("toy_speech", 5, 7), rows[10:24])
        assert (sample.annotation("toy_flag") == -1).tolist() == (~valid).tolist()
        assert sample.annotation("toy_clip").tolist() == sample.annotation("toy_clip", 3, 2).tolist() == [[length] * 4]
        assert sample.label("toy_length") == ("long" if length > 40 else "short")
        assert sample.score("toy_frames") == length
        about = json.loads(sample.member("toy.json"))
        assert about["dataset"] == "folder" and about["made_of"]["pins"] == {"annotation": "v1"} and about["derive_key"]
    # What the version was made of stands in the manifest, so that a reader needs no code of the column.
    [entry] = read_manifest(Storage(data)).of_kind("toy")
    assert entry.made_of.parameters == {"scale": 0.5, "file": ""} and entry.made_of.labels == ["toy_length"]
    assert list(entry.arrays.values()) == [replace(array, optional=False, loaded=None) for array in ARRAYS]
    assert verify(Storage(data), deep=True).ok
    # Scores and labels select.
    kept = ShardReader(data, split=None, at_least={"toy_frames": 40}, label={"toy_length": ("long",)})
    assert set(kept.keys) == {clip_key(number) for number in (1, 3)} and kept.left_out


def raises(sample: ColumnSample, derived: Derived) -> Derived:
    raise ZeroDivisionError("this clip has no such thing")


def other(**changed: np.ndarray) -> Misbehave:
    return lambda _, derived: replace(derived, arrays={**derived.arrays, **changed})


def without_face(value: float) -> Misbehave:
    def fill(sample: ColumnSample, derived: Derived) -> Derived:
        return replace(derived, arrays={**derived.arrays, "toy_height": np.full((sample.num_frames, 2), value, "f4")})

    return fill


def with_nan(sample: ColumnSample, derived: Derived) -> Derived:
    height = derived.arrays["toy_height"].copy()
    height[0, 1] = np.nan
    return replace(derived, arrays={**derived.arrays, "toy_height": height})


FAULTS: dict[str, tuple[int, Misbehave]] = {
    "error:ZeroDivisionError": (0, raises),
    "column:shape": (0, other(toy_clip=np.zeros((2, 4), "f4"))),
    "column:type": (0, other(toy_height=np.zeros((LENGTHS[0], 2), np.int64))),
    "column:nan": (0, with_nan),
    "column:face": (1, without_face(0.0)),
    "column:range": (0, without_face(1000.0)),
    "column:names": (0, lambda _, derived: replace(derived, arrays={})),
    "column:needs": (0, lambda sample, derived: (sample.column("pose"), derived)[1]),
}


@pytest.mark.parametrize("cause", FAULTS)
def test_a_clip_that_a_column_cannot_make_is_quarantined_alone(cause: str, data: Path, register: Register) -> None:
    number, misbehave = FAULTS[cause]
    column = register(toy_column({clip_key(number): misbehave}))
    version = run_derive(in_process(data), column, ToySettings())
    storage = Storage(data)
    [failure] = current_quarantine(storage)
    assert (failure.key, failure.cause, failure.job) == (clip_key(number), cause, f"derive-{version}")
    reader = ShardReader(data, split=None, kept=False, join=("toy",), columns=("toy_clip",))
    assert len(reader) == len(LENGTHS) - 1 and clip_key(number) not in reader.keys
    assert verify(storage).ok
    entry = read_manifest(storage).annotation(version)
    assert (entry.samples, entry.kept) == (len(LENGTHS), len(LENGTHS) - 1)
    # Every sample has exactly one outcome.
    results = outcomes.derive_results(storage, "toy", version)
    assert len(results) == len(LENGTHS) and None not in results.values()
    # A mended column is another version of the code, and so another version of the column.
    mended = run_derive(in_process(data), register(toy_column(version=2)), ToySettings())
    assert mended != version and read_manifest(storage).derived("toy").version == mended
    assert read_manifest(storage).annotation(mended).kept == len(LENGTHS)


def test_scores_and_labels_that_an_index_cannot_hold(data: Path, register: Register) -> None:
    def named(**changed: object) -> Misbehave:
        return lambda _, derived: replace(derived, **changed)  # type: ignore[arg-type]

    faults = {
        clip_key(0): named(scores={"unknown": 1.0}),
        clip_key(1): named(labels={"a b": "c"}),
        clip_key(2): named(labels={"name": "\x1b[2J"}),
        clip_key(3): named(scores={"toy_mean": float("nan")}),
    }
    version = run_derive(in_process(data), register(toy_column(faults)), ToySettings())
    assert {failure.cause for failure in current_quarantine(Storage(data))} == {"column:names"}
    reader = ShardReader(data, split=None, kept=False, version=version)
    assert len(reader) == len(LENGTHS), "also those that the version lacks"
    scores = {reader[number].key: reader[number].index.scores for number in range(len(reader))}
    assert scores[clip_key(3)] == {"toy_mean": None, "toy_frames": None}


def test_versions_of_what_a_column_reads_are_pinned(data: Path, register: Register) -> None:
    """A column of a column: its version is part of the name, and what it lacks is missing here, too."""

    def second() -> DerivedColumn:
        def make(sample: ColumnSample) -> Derived:
            return Derived(arrays={"toy_sum": sample.column("toy_clip").sum(axis=1)})

        return replace(
            toy_column(),
            name="second",
            needs=("toy",),
            arrays=(replace(ARRAYS[3], name="toy_sum", shape=()),),
            scores=(),
            open=lambda *_: make,
        )

    runner, storage = in_process(data), Storage(data)
    column = register(second())
    with pytest.raises(ValueError, match=r"second is made of toy: there is no derived column .* COLUMNS=toy"):
        run_derive(runner, column, ToySettings())
    first = run_derive(runner, register(toy_column({clip_key(0): raises})), ToySettings())
    one = run_derive(runner, column, ToySettings())
    assert {(failure.key, failure.cause) for failure in current_quarantine(storage)} == {
        (clip_key(0), "error:ZeroDivisionError"),
        (clip_key(0), "column:needs"),
    }
    newer = run_derive(runner, register(toy_column()), ToySettings(scale=2.0))
    assert newer != first
    two = run_derive(runner, column, ToySettings())
    assert two != one and run_derive(runner, column, ToySettings(), use=(f"toy@{first}",)) == one
    manifest = read_manifest(storage)
    assert manifest.annotation(one).made_of.pins == {"toy": first}
    assert manifest.annotation(two).made_of.pins == {"toy": newer} and manifest.annotation(two).kept == len(LENGTHS)
    with pytest.raises(ValueError, match="second reads no column mouth"):
        run_derive(runner, column, ToySettings(), use=("mouth",))
    for version, user in ((two, "second"), ("v1", "annotation")):
        with pytest.raises(ValueError, match=f"is in use for {user}"):
            run_derive(runner, register(toy_column()), ToySettings(), version=version)


def test_a_name_that_another_job_has_begun_is_not_free(data: Path, register: Register) -> None:
    """Jobs of all kinds pack under the version's name: shards of one would count as the other's."""
    runner, storage = in_process(data), Storage(data)
    plan = plans.AnnotatePlan(units={}, settings={"engine": "litert"}, model="m", model_sha256="0" * 64, order=1)
    plans.write_plan(storage, "annotate-v2", plan)
    with pytest.raises(ValueError, match="v2 is in use for an annotation"):
        run_derive(runner, register(toy_column()), ToySettings(), version="v2")
    made_of = ColumnVersion(column="latents", column_version=1, parameters={}, provenance={})
    plans.write_plan(storage, "encode-mine", plans.ColumnPlan(units={}, made_of=made_of))
    with pytest.raises(ValueError, match="mine is in use for latents"):
        run_derive(runner, register(toy_column()), ToySettings(), version="mine")
    assert not list(data.glob("ann/v2")) and not list(data.glob("ann/mine"))


def test_a_fit_that_a_column_needs_is_part_of_its_version(data: Path, register: Register) -> None:
    runner = in_process(data)
    column = register(toy_column(fits=("speakers",)))
    with pytest.raises(ValueError, match="toy needs the global fit speakers: run make basis FITS=speakers"):
        run_derive(runner, column, ToySettings())
    fit = run_fit(runner, FITS["speakers"], FITS["speakers"].settings())
    version = run_derive(runner, column, ToySettings())
    assert read_manifest(Storage(data)).annotation(version).made_of.fits == {"speakers": fit.sha256}
    # The same column of another fit is another version; the two do not mix.
    other_fit = run_fit(runner, FITS["speakers"], FITS["speakers"].settings(pose_origin="first"))
    assert other_fit.sha256 != fit.sha256 and run_derive(runner, column, ToySettings()) != version
    # A damaged fit stops the job, and is no clip's fault.
    path = data / f"fits/speakers/{other_fit.sha256}.npz"
    path.write_bytes(path.read_bytes()[:-10])
    derive_worker._last.clear()
    with pytest.raises(JobStoppedError, match="damaged"):
        run_derive(runner, column, ToySettings(), version="again")
    assert not current_quarantine(Storage(data))


def test_a_file_that_changes_under_the_plan_stops_the_job(
    data: Path, tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    column, settings = register(toy_column()), ToySettings(file=str(file))
    given = derive.plan_derive

    def plan_and_change(*arguments: object) -> object:
        units = given(*arguments)  # type: ignore[arg-type]
        file.write_text("two")
        return units

    with monkeypatch.context() as patched:
        patched.setattr(derive, "plan_derive", plan_and_change)
        with pytest.raises(JobStoppedError, match=r"this machine has the file .* the plan was made with"):
            run_derive(in_process(data), column, settings)
    assert not current_quarantine(Storage(data)) and not read_manifest(Storage(data)).of_kind("toy")
    # With the new content it is another version, and the place of the file does not matter.
    version = run_derive(in_process(data), column, settings)
    moved = tmp_path / "moved"
    file.rename(moved)
    assert run_derive(in_process(data), column, ToySettings(file=str(moved))) == version
    assert run_derive(in_process(data), column, replace(settings, file=str(moved), scale=3.0)) != version


def test_a_version_that_is_half_made_is_never_read(
    data: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job dies with some units done: readers know nothing of the version, and the same command ends it."""
    column, storage = register(toy_column()), Storage(data)
    monkeypatch.setattr(derive, "pack_columns", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_derive(in_process(data), column, ToySettings())
    assert not read_manifest(storage).of_kind("toy") and not list(data.glob("ann/toy-*"))
    with pytest.raises(ValueError, match="run make derive COLUMNS=toy"):
        ShardReader(data, join=("toy",))
    records = {path: path.stat().st_mtime_ns for path in data.glob("records/derive-*/**/*.parquet")}
    assert len(records) == len(read_manifest(storage).media)
    monkeypatch.undo()
    register(toy_column())
    version = run_derive(in_process(data), column, ToySettings())
    assert all(path.stat().st_mtime_ns == then for path, then in records.items()), "made once"
    assert read_manifest(storage).derived("toy").version == version


def test_a_packed_version_goes_on_under_newer_libraries(
    data: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = register(toy_column())
    version = run_derive(in_process(data), column, ToySettings())
    before = {path: path.read_bytes() for path in data.glob("ann/toy-*/*.tar")}
    monkeypatch.setattr(derive, "library_versions", lambda *names: dict.fromkeys(names, "99.0"))
    assert run_derive(in_process(data), column, ToySettings()) == version
    assert len(list(data.glob("records/derive-*/**/*.parquet"))) == len(read_manifest(Storage(data)).media)
    assert {path: path.read_bytes() for path in data.glob("ann/toy-*/*.tar")} == before


def test_what_is_released_is_tried_again(data: Path, register: Register) -> None:
    version = run_derive(in_process(data), register(toy_column({clip_key(0): raises})), ToySettings())
    storage = Storage(data)
    assert release(storage, current_quarantine(storage))
    # The plan stands, the shards are packed: the sample is made, but its shard never changes.
    assert run_derive(in_process(data), register(toy_column()), ToySettings()) == version
    assert not current_quarantine(storage) and read_manifest(storage).annotation(version).kept == len(LENGTHS) - 1
    found = plans.find_column_plan(storage, "toy", version)
    assert found and len(found.units) == len(LENGTHS)


def test_rounding_stays_within_what_the_column_states(data: Path, register: Register) -> None:
    column = register(toy_column())
    run_derive(in_process(data), column, ToySettings())
    reader = ShardReader(data, split=None, kept=False, join=("toy",))
    for number in range(len(LENGTHS)):
        sample = reader.find(clip_key(number))
        for array in ARRAYS:
            stored = decode_column(array, sample.member(array.member))
            np.testing.assert_array_equal(stored, sample.annotation(array.name))
            assert (array.rounding(stored.astype(np.float64)) >= 0).all() or np.isnan(stored.astype(float)).any()
