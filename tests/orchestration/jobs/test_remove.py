"""Taking a person or samples out of a DATA that the jobs have made: readers, jobs and the report know them no more."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotate.columns import COLUMNS
from annotate.fits.speakers import SPEAKERS, SpeakersSettings
from ingest.catalog import read_catalog
from orchestration import outcomes, plans
from orchestration.jobs import derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.finish import finish
from orchestration.jobs.matched import match_keys, match_person
from orchestration.jobs.pack import run_pack
from orchestration.jobs.remove import finish_remove, run_remove
from orchestration.report.accounting import account
from orchestration.report.state import data_state
from orchestration.units.records import UnitRecord
from orchestration.units.segment_records import read_segment
from shards.fit_files import FitSource, write_fit
from shards.manifest import read_manifest, write_manifest
from shards.pins import pin_run
from shards.reader import ShardReader
from shards.removal import without_samples
from shards.removal_records import PENDING, REASON, RemovalList, find_pending
from shards.selection import Selection
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.dying import die_at_writes
from tests.support.latent_data import in_process
from tests.support.removable_data import CLIPS, PIECES, SAMPLES, build, build_ingested, everything
from tests.support.toy_column import ToySettings, toy_column

ANN = SAMPLES[:2]
"""Samples of the person with two clips."""


def nobody_read(run: str, keys: Collection[str]) -> tuple[int, int]:
    raise ValueError("no run here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The data set, which must not be changed."""
    return build(tmp_path_factory.mktemp("removable") / "data")


@pytest.fixture
def storage(built: Storage, tmp_path: Path) -> Storage:
    assert built.local_root
    return Storage(shutil.copytree(built.local_root, tmp_path / "data"))


def files_naming(storage: Storage, text: str) -> list[str]:
    """Files of a DATA in whose names or bytes a text stands (Parquet is looked at uncompressed)."""
    assert storage.local_root
    found = []
    for path in sorted(storage.local_root.rglob("*")):
        if path.is_file() and (text in path.name or text.encode() in path.read_bytes()):
            found.append(path.relative_to(storage.local_root).as_posix())
    return found


def test_a_person_goes_and_the_counts_prove_it(storage: Storage, built: Storage) -> None:
    whole = everything(built)
    record = run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    assert (record.removed, record.unpacked, record.inputs) == (2, 0, 2)
    for counts in record.versions:
        assert counts.samples == (6, 4)
        assert sum(one for one, _ in counts.splits.values()) == 6
        assert sum(two for _, two in counts.splits.values()) == 4
        assert sum(one - two for one, two in counts.shards.values()) == 2
    assert [counts.version for counts in record.versions] == [e.version for e in read_manifest(storage).annotations]
    # What is left is whole and unchanged, in every version.
    assert everything(storage) == {key: members for key, members in whole.items() if key not in ANN}
    report = verify(storage, deep=True)
    assert report.problems == [] and report.samples == 4
    manifest = read_manifest(storage)
    assert (manifest.counts["samples"], manifest.counts["kept"]) == (4, 4)
    assert not storage.exists(PENDING)


def test_its_name_stands_nowhere_any_more(storage: Storage) -> None:
    assert files_naming(storage, "Ann Example")
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    # In the old index, which tells what runs have learnt from, and in the shards, until `make gc`.
    left = [name for name in files_naming(storage, "Ann Example") if not name.startswith(("clips-", "index/"))]
    assert left == []
    named = [row for row in read_catalog(storage, "folder").rows if row.person == "Ann Example"]
    assert named == [] and len(read_catalog(storage, "folder").rows) == len(CLIPS)
    with pytest.raises(ValueError, match=r"no clip of .* belongs to the person"):
        match_person(storage, "Ann Example")


def test_later_jobs_do_not_see_them(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    before = read_manifest(storage)
    run_pack(in_process(storage), "v1")
    finish(storage, "v1")
    assert read_manifest(storage) == before
    finish(storage, "v1", ("min_face_fraction=0.01",))
    assert verify(storage).problems == []
    # A column that is made anew, and one that is brought up to date.
    column = toy_column()
    monkeypatch.setitem(COLUMNS, column.name, column)
    derive_worker._last.clear()
    run_derive(in_process(storage), column, ToySettings())
    version = run_derive(in_process(storage), column, ToySettings(scale=2.0))
    assert set(ShardReader(storage, version=version, split=None).keys) == set(SAMPLES) - set(ANN)
    assert verify(storage).problems == []


def test_their_inputs_are_accounted_for_as_removed(storage: Storage) -> None:
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    accounting = account(data_state(storage, None))
    assert accounting.errors == []
    fates = {outcome.row.key: (outcome.fate, outcome.reason) for outcome in accounting.inputs}
    assert fates == {clip: ("rejected", REASON) if clip in ANN else ("sample", None) for clip in CLIPS}


def test_one_piece_of_a_clip_goes_alone(storage: Storage, built: Storage) -> None:
    clip, (gone, stays) = CLIPS[2], PIECES[CLIPS[2]]
    record = run_remove(storage, match_keys(storage, [gone]), nobody_read)
    assert (record.removed, record.inputs) == (1, 0)
    kept = everything(built)
    del kept[gone]
    assert everything(storage) == kept
    assert verify(storage, deep=True).problems == []
    made = outcomes.ingest_results(storage)[clip]
    assert isinstance(made, UnitRecord)
    assert [sample.key for sample in made.samples] == [stays]
    assert [(piece.key, piece.rejection.reason) for piece in made.rejected] == [(gone, REASON)]
    # The clip's own file has lost the piece, too, and the other one is where the record says.
    assert made.file and gone.encode() not in storage.read(made.file)
    place = made.samples[0].members[0]
    assert storage.read_range(made.file, place.offset, place.size) == kept[stays][place.suffix]
    accounting = account(data_state(storage, None))
    assert accounting.errors == []
    assert {outcome.row.key: outcome.fate for outcome in accounting.inputs} == dict.fromkeys(CLIPS, "sample")
    run_pack(in_process(storage), "v1")
    finish(storage, "v1")
    assert verify(storage).problems == []


def test_a_clip_key_stands_for_its_pieces_and_all_pieces_for_the_clip(storage: Storage) -> None:
    by_clip, by_pieces = match_keys(storage, [CLIPS[2]]), match_keys(storage, PIECES[CLIPS[2]])
    assert by_clip.samples == by_pieces.samples == set(PIECES[CLIPS[2]])
    assert by_clip.clips == by_pieces.clips == {CLIPS[2]}


def test_a_list_may_be_given_again_with_more_keys(storage: Storage) -> None:
    first, second = PIECES[CLIPS[2]][:2]
    run_remove(storage, match_keys(storage, [first]), nobody_read)
    assert match_keys(storage, [first, second]).samples == {second}
    with pytest.raises(ValueError, match=r"all of these keys have been removed"):
        match_keys(storage, [first])
    with pytest.raises(ValueError, match=r"1 of the keys are in no shard"):
        match_keys(storage, [first, second, "folder-nobody"])


def test_shards_that_held_nothing_else_are_gone(storage: Storage) -> None:
    """The last shard of all loses its number; one between others stays, empty."""
    reader = ShardReader(storage, split=None)
    of = {
        number: [reader.keys[i] for i, n in enumerate(reader.index.numbers("shard")) if n == number]
        for number in range(3)
    }
    run_remove(storage, match_keys(storage, of[2]), nobody_read)
    manifest = read_manifest(storage)
    assert len(manifest.media) == 2 and not storage.exists("clips-000002.tar")
    assert not storage.exists("ann/v1/ann-000002.tar")
    run_remove(storage, match_keys(storage, of[0]), nobody_read)
    assert [shard.samples for shard in read_manifest(storage).media] == [0, len(of[1])]
    assert verify(storage).problems == []
    run_pack(in_process(storage), "v1")
    finish(storage, "v1")
    assert set(everything(storage)) == set(of[1])
    assert verify(storage).problems == []


def test_nothing_left_and_unknown_names_are_refused(storage: Storage, built: Storage) -> None:
    with pytest.raises(ValueError, match=r"no sample of .* would be left"):
        run_remove(storage, match_keys(storage, SAMPLES), nobody_read)
    with pytest.raises(ValueError, match=r"1 of the keys are in no shard and no catalog .*: 'nobody'"):
        match_keys(storage, ["nobody", SAMPLES[0]])
    assert everything(storage) == everything(built) and not storage.exists(PENDING)


def test_the_list_knows_what_was_removed_and_names_nothing(storage: Storage) -> None:
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    removed = RemovalList(storage)
    assert all(removed.has("key", key) and removed.has("clip", key) for key in ANN)
    assert not any(removed.has("key", key) for key in SAMPLES[2:])
    assert removed.has("person", "Ann Example") and not removed.has("person", "Bob")
    text = "".join(storage.read(file.path).decode() for file in storage.list("removed"))
    assert "Ann" not in text and not any(key in text for key in SAMPLES)


def test_pinned_runs_are_named_with_what_they_have_learnt_from(storage: Storage, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pin_run(storage, str(tmp_path / name), versions=["v1"])

    def read_by(run: str, keys: Collection[str]) -> tuple[int, int]:
        assert set(keys) == set(ANN)
        if run.endswith("two"):
            raise ValueError("it is unreadable")
        return 1, 500

    record = run_remove(storage, match_person(storage, "Ann Example"), read_by)
    assert [(Path(run.run).name, run.seen, run.steps) for run in record.runs] == [("one", 1, 500), ("two", None, None)]
    assert record.runs[1].note == "it is unreadable"


def test_fits_made_of_them_are_gone(storage: Storage) -> None:
    """Neutral meshes of persons, for example."""
    manifest = read_manifest(storage)
    source = FitSource(settings=SpeakersSettings(), annotation="v1", index=manifest.annotation().index)
    # Also one whose choice names her, though none of her clips could be used.
    chosen = replace(source, selection=Selection(person=("Ann Example", "Dan")))
    fits = [
        write_fit(storage, SPEAKERS, made_of, keys, {"x": np.array([number])})
        for number, (made_of, keys) in enumerate(
            ((source, [SAMPLES[0], SAMPLES[4]]), (source, [SAMPLES[4]]), (chosen, [SAMPLES[5]]))
        )
    ]
    write_manifest(storage, replace(manifest, fits=fits))
    record = run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    assert record.fits == sorted(f"speakers@{fits[number].sha256[:12]}" for number in (0, 2))
    assert [fit.sha256 for fit in read_manifest(storage).fits] == [fits[1].sha256]
    assert [storage.exists(fit.path) for fit in fits] == [False, True, False]


def damage_annotate_plan(storage: Storage) -> None:
    storage.write(dataroot.plan(plans.annotate_job("v1")), b"no plan")


def damage_pack_record(storage: Storage) -> None:
    storage.write(storage.list("records/pack-v1")[0].path, b"{")


def damage_pin(storage: Storage) -> None:
    storage.write("pins/0123456789abcdef.json", b"{}")


def lose_catalog(storage: Storage) -> None:
    storage.delete(dataroot.catalog("folder"))


@pytest.mark.parametrize("damage", [damage_annotate_plan, damage_pack_record, damage_pin, lose_catalog])
def test_what_is_damaged_stops_it_before_it_begins(storage: Storage, damage: Callable[[Storage], None]) -> None:
    """Else every later command would stop at finishing it, also the one that mends the damage."""
    matched = match_person(storage, "Ann Example")
    damage(storage)
    assert storage.local_root
    before = {path: path.read_bytes() for path in storage.local_root.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"annotate-v1|records/pack-v1/.*Nothing was removed|no pin of|folder.parquet"):
        run_remove(storage, matched, nobody_read)
    assert {path: path.read_bytes() for path in storage.local_root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", [damage_annotate_plan, damage_pack_record, damage_pin])
def test_a_killed_one_is_finished_whatever_was_damaged_since(
    storage: Storage, damage: Callable[[Storage], None]
) -> None:
    begin(storage, "*CLIPS[:2]")
    damage(storage)
    pending = find_pending(storage)
    assert pending
    finish_remove(storage, pending)
    assert find_pending(storage) is None and set(everything(storage)) == set(SAMPLES) - set(ANN)
    for key in ANN:
        assert not storage.list("damaged") or key not in str([storage.read(f.path) for f in storage.list("damaged")])


def begin(storage: Storage, keys: str) -> None:
    """Begin to remove samples, and be killed after the note, at the second write."""
    assert storage.local_root
    setup = (
        "from orchestration.jobs.matched import match_keys\nfrom orchestration.jobs.remove import run_remove\n"
        "from tests.support.removable_data import CLIPS, PIECES\n"
        "def no(run, keys): raise ValueError('none')"
    )
    work = f"storage = Storage(folder); run_remove(storage, match_keys(storage, [{keys}]), no)"
    nowhere = storage.local_root.parent / "nowhere"
    assert die_at_writes([nowhere, storage.local_root], setup=setup, work=work)[1] == -signal.SIGKILL
    assert find_pending(storage) and len(everything(storage)) == len(SAMPLES)


def test_counts_that_do_not_add_up_are_told_and_block_nothing(storage: Storage) -> None:
    """An index that has lost a sample which nobody asked for."""
    begin(storage, "*CLIPS[:2]")
    write_manifest(storage, without_samples(storage, read_manifest(storage), [*ANN, SAMPLES[4]]).manifest)
    pending = find_pending(storage)
    assert pending
    with pytest.raises(ValueError, match=r"counts of .* do not add up: 3 samples less, 2 were to go; .*removed/"):
        finish_remove(storage, pending)
    assert find_pending(storage) is None
    assert RemovalList(storage).records[0].removed == 3


def test_whatever_is_wrong_with_a_run_is_a_note(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    pin_run(storage, str(tmp_path / "run"), versions=["v1"])

    def read_by(run: str, keys: Collection[str]) -> tuple[int, int]:
        raise KeyError(SAMPLES[0])

    record = run_remove(storage, match_person(storage, "Ann Example"), read_by)
    assert [(run.seen, run.note) for run in record.runs] == [(None, "KeyError, about a removed sample")]
    assert find_pending(storage) is None


def test_nobody_has_to_be_packed(tmp_path: Path) -> None:
    """A DATA that is only ingested, or annotated."""
    storage = build_ingested(tmp_path / "data")
    record = run_remove(storage, match_keys(storage, [*CLIPS[:2], PIECES[CLIPS[2]][0]]), nobody_read)
    assert (record.removed, record.unpacked, record.inputs, record.versions) == (0, 3, 2, [])
    assert set(outcomes.ingested_samples(storage)) == set(SAMPLES) - {*ANN, PIECES[CLIPS[2]][0]}
    assert [name for name in files_naming(storage, "Ann Example") if not name.startswith("catalog/")] == []
    assert find_pending(storage) is None
    run_pack(in_process(storage), "v1", ("min_shards=3",))
    finish(storage, "v1")
    reader = ShardReader(storage, split=None)
    assert set(reader.keys) == set(SAMPLES) - {*ANN, PIECES[CLIPS[2]][0]}
    assert verify(storage, deep=True).problems == []


def test_killed_before_the_last_shards_are_deleted_none_stays(built: Storage, tmp_path: Path) -> None:
    """Shards at the end that hold nothing else have no name any more. Without records, as in a copy of the data set
    alone, or on an object store nothing else finds them."""
    assert built.local_root
    reader = ShardReader(built, split=None)
    last = [key for key, number in zip(reader.keys, reader.index.numbers("shard"), strict=True) if number == 2]
    ignored = shutil.ignore_patterns("pack-*")
    folders = [Path(shutil.copytree(built.local_root, tmp_path / f"data{n}", ignore=ignored)) for n in range(1, 8)]
    setup = (
        "from orchestration.jobs.matched import match_keys\nfrom orchestration.jobs.remove import run_remove\n"
        "def no(run, keys): raise ValueError('none')\n"
        "def deleting(self, path): os.kill(os.getpid(), signal.SIGKILL)\nStorage.delete = deleting"
    )
    work = f"storage = Storage(folder); run_remove(storage, match_keys(storage, {last!r}), no)"
    assert die_at_writes(folders, setup=setup, work=work)[-1] == -signal.SIGKILL
    for folder in folders:
        storage = Storage(folder)
        if pending := find_pending(storage):
            finish_remove(storage, pending)
            assert len(read_manifest(storage).media) == 2
            assert not list(folder.glob("clips-000002*")) and not list(folder.glob("ann/*/ann-000002*"))


@pytest.mark.timeout(600)
def test_killed_at_any_write_a_reader_sees_the_old_or_the_new(built: Storage, tmp_path: Path) -> None:
    """SIGKILL at the n-th write, for every n: no reader ever gets a mix, and the next command finishes the removal."""
    assert built.local_root
    before = everything(built)
    after = {key: members for key, members in before.items() if key not in (*ANN, PIECES[CLIPS[2]][0])}
    folders = [Path(shutil.copytree(built.local_root, tmp_path / f"data{n}")) for n in range(1, 41)]
    setup = (
        "from orchestration.jobs.matched import match_keys\nfrom orchestration.jobs.remove import run_remove\n"
        "from tests.support.removable_data import CLIPS, PIECES\n"
        "def no(run, keys): raise ValueError('none')"
    )
    work = "storage = Storage(folder); run_remove(storage, match_keys(storage, [*CLIPS[:2], PIECES[CLIPS[2]][0]]), no)"
    ends = die_at_writes(folders, setup=setup, work=work)
    assert set(ends) == {-signal.SIGKILL, 0} and ends[-1] == 0
    seen = set()
    for folder, end in zip(folders, ends, strict=True):
        storage = Storage(folder)
        found = everything(storage)
        assert found in (before, after), folder
        seen.add(len(found))
        if end:
            pending = find_pending(storage)
            if pending is None:  # killed before anything was noted
                assert found == before
                continue
            finish_remove(storage, pending)
        assert everything(storage) == after
        assert verify(storage).problems == []
        accounting = account(data_state(storage, None))
        assert accounting.errors == []
        assert [len(RemovalList(storage).records), find_pending(storage)] == [1, None]
        run_pack(in_process(storage), "v1")
        finish(storage, "v1")
        assert everything(storage) == after
    assert seen == {len(before), len(after)}


def test_what_is_left_is_the_same_whatever_killed_it(built: Storage, tmp_path: Path) -> None:
    """Plans and records of the other samples stay as they are, byte for byte."""
    assert built.local_root
    storage = Storage(shutil.copytree(built.local_root, tmp_path / "data"))
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    for file in built.list("records", ".json"):
        keys = dataroot.keys_of_record(file.path)
        assert keys
        if file.path.startswith(("records/ingest", "records/annotate")) and keys[0] not in ANN:
            assert storage.read(file.path) == built.read(file.path)
    for file in built.list("records", ".parquet"):
        names = dataroot.segment_of_record(file.path)
        assert names
        rows = [row for row in read_segment(built, *names).rows if row.key not in ANN]
        assert storage.exists(file.path) == bool(rows)
        if rows:
            assert read_segment(storage, *names).rows == rows
    plan = plans.find_annotate(storage, "v1")
    assert plan and set(plan.units) == set(SAMPLES) - set(ANN)
    shards = plans.find_shards(storage)
    assert shards and {key for keys in shards.shards for key in keys} == set(SAMPLES) - set(ANN)
    assert json.loads(storage.read("DATASET.json"))["counts"]["samples"] == 4
