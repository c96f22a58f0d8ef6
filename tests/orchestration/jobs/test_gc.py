"""Freeing what DATA no longer needs: what is left reads as before, and removed samples are in no byte of it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from annotate.columns import COLUMNS
from orchestration import outcomes, plans
from orchestration.jobs import derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.finish import finish
from orchestration.jobs.gc import FITS, INDEXES, REMOVED, SHARDS, UNITS, finish_gc, run_gc
from orchestration.jobs.matched import match_keys, match_person
from orchestration.jobs.pack import run_pack
from orchestration.jobs.remove import pack_jobs, run_remove
from orchestration.report.accounting import account
from orchestration.report.state import data_state
from orchestration.units.records import Attempt, QuarantineRecord
from shards.index import build_index, write_index
from shards.manifest import ShardEntry, read_manifest
from shards.pins import pin_run
from shards.reader import ShardReader
from shards.removal_records import Pending, find_pending, write_pending
from shards.shard_names import next_revision
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.dying import die_at_times, die_at_writes
from tests.support.indexes import open_index
from tests.support.latent_data import in_process
from tests.support.packed_data import annotation_members
from tests.support.removable_data import (
    CLIPS,
    PIECES,
    PKEY,
    SAMPLES,
    build,
    build_ingested,
    commit,
    commit_clip,
    everything,
)
from tests.support.speech_data import LENGTHS, arrays
from tests.support.tars import read_tar
from tests.support.toy_column import ToySettings, toy_column

GONE = (SAMPLES[0], SAMPLES[1], PIECES[CLIPS[2]][0])


def nobody_read(run: str, keys: Collection[str]) -> tuple[int, int]:
    raise ValueError("no run here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The data set, which must not be changed."""
    return build(tmp_path_factory.mktemp("removable") / "data")


@pytest.fixture(scope="module")
def removed(built: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The data set after a removal, which must not be changed."""
    assert built.local_root
    storage = Storage(shutil.copytree(built.local_root, tmp_path_factory.mktemp("removed") / "data"))
    run_remove(storage, match_keys(storage, GONE), nobody_read)
    return storage


def copy_of(storage: Storage, folder: Path) -> Storage:
    assert storage.local_root
    return Storage(shutil.copytree(storage.local_root, folder))


def size(storage: Storage) -> int:
    assert storage.local_root
    return sum(path.stat().st_size for path in storage.local_root.rglob("*") if path.is_file())


def tars(storage: Storage) -> dict[str, list[tuple[str, dict[str, bytes]]]]:
    """Name of every shard → its samples in order, by a tar reader that knows no index."""
    assert storage.local_root
    paths = [*storage.local_root.glob("clips-*.tar"), *storage.local_root.glob("ann/*/*.tar")]
    return {path.relative_to(storage.local_root).as_posix(): read_tar(path.read_bytes()) for path in sorted(paths)}


def named_shards(storage: Storage) -> list[ShardEntry]:
    manifest = read_manifest(storage)
    return [*manifest.media, *(shard for entry in manifest.annotations for shard in entry.shards)]


def check_whole(storage: Storage, expected: object) -> None:
    """Readers, verify, report and later jobs are content."""
    assert everything(storage) == expected
    report = verify(storage, deep=True)
    assert report.problems == [] and report.unknown == []
    assert account(data_state(storage, None)).errors == []
    run_pack(in_process(storage), "v1")
    finish(storage, "v1")
    assert everything(storage) == expected
    assert verify(storage).problems == []


def test_removed_samples_are_in_no_byte_and_the_others_unchanged(
    built: Storage, removed: Storage, tmp_path: Path
) -> None:
    storage = copy_of(removed, tmp_path / "data")
    before, whole = tars(built), everything(built)
    freed = run_gc(storage)
    assert freed.samples == 3 and freed.files[REMOVED] > 0
    assert storage.local_root
    for path in storage.local_root.rglob("*"):
        if path.is_file() and not path.is_relative_to(storage.local_root / "catalog"):
            content = path.read_bytes()
            names = [key for key in GONE if key.encode() in content]
            # What was asked for by key is still an input of SOURCE: its clip is accounted for as removed.
            assert (
                not names or path.is_relative_to(storage.local_root / "records/ingest") or "plans/ingest" in str(path)
            )
    # Shard by shard: the same samples in the same order, byte for byte, without those that are gone.
    after = tars(storage)
    assert len(after) == len(before)
    for name, samples in before.items():
        found = after.get(name) or after[name.replace(".tar", ".r1.tar")]
        assert found == [sample for sample in samples if sample[0] not in GONE]
    check_whole(storage, {key: members for key, members in whole.items() if key not in GONE})


def test_it_says_before_what_it_frees(removed: Storage, tmp_path: Path) -> None:
    storage = copy_of(removed, tmp_path / "data")
    before = size(storage)
    foreseen = run_gc(storage, dry_run=True)
    assert size(storage) == before
    done = run_gc(storage)
    # Between the two an index of other length and DATASET.json are written, which nobody foresees.
    assert foreseen.files[REMOVED] == done.files[REMOVED] and foreseen.bytes[REMOVED] == done.bytes[REMOVED]
    assert foreseen.files[UNITS] == done.files[UNITS] > 0 and foreseen.bytes[UNITS] == done.bytes[UNITS]
    assert abs(before - size(storage) - sum(done.bytes.values())) < 20_000
    again = run_gc(storage)
    assert again.files.total() == 0


def test_packed_units_go_and_others_stay(built: Storage, tmp_path: Path) -> None:
    storage = copy_of(built, tmp_path / "data")
    # A clip that is not packed yet, and a file without a record.
    lost, kept = SAMPLES[0], SAMPLES[4]
    for job in (plans.PACK_MEDIA_JOB, plans.pack_annotation_job("v1")):
        for file in storage.list(dataroot.records(job)):
            if kept.encode() in storage.read(file.path):
                storage.delete(file.path)
    stray = dataroot.unit("ingest", lost, "f" * 16)
    storage.write(stray, b"unfinished")
    run_gc(storage)
    left = {file.path.rpartition("/")[2].partition(".")[0] for file in storage.list("units")}
    assert kept in left and lost not in left and not storage.exists(stray)


def test_of_units_done_under_several_settings_the_planned_one_counts(built: Storage, tmp_path: Path) -> None:
    storage = copy_of(built, tmp_path / "data")
    clip = CLIPS[4]
    commit_clip(storage, clip, "1" * 16)
    for file in storage.list(dataroot.records(plans.PACK_MEDIA_JOB)):
        if clip.encode() in storage.read(file.path):
            storage.delete(file.path)
    run_gc(storage)
    assert storage.exists(dataroot.unit("ingest", clip, PKEY))
    assert not storage.exists(dataroot.unit("ingest", clip, "1" * 16))


def test_what_was_annotated_after_its_shard_was_packed_stays(built: Storage, tmp_path: Path) -> None:
    """The shard has rows of NaN in its place: the unit is not packed, and would count as lost."""
    storage = copy_of(built, tmp_path / "data")
    job, late = plans.annotate_job("v2"), SAMPLES[1]
    before = plans.find_annotate(storage, "v1")
    assert before
    plans.write_plan(storage, job, replace(before, order=1))
    for number, clip in enumerate(CLIPS):
        for key in PIECES.get(clip, (clip,)):
            if key != late:
                commit(storage, job, key, {key: annotation_members(key, arrays(number))}, LENGTHS[number], {})
    attempt = Attempt(cause="error:Test", message="not now")
    failed = QuarantineRecord(job=job, key=late, pkey=PKEY, source=late, attempts=[attempt])
    storage.write(dataroot.quarantine(job, late, PKEY), failed.to_json())
    run_pack(in_process(storage), "v2")
    finish(storage, "v2")
    storage.delete(dataroot.quarantine(job, late, PKEY))
    commit(storage, job, late, {late: annotation_members(late, arrays(1))}, LENGTHS[1], {})
    run_gc(storage)
    assert storage.exists(dataroot.unit(job, late, PKEY)) and not storage.exists(dataroot.unit(job, SAMPLES[0], PKEY))


def test_old_indexes_go_unless_a_run_has_pinned_them(built: Storage, tmp_path: Path) -> None:
    storage = copy_of(built, tmp_path / "data")
    (tmp_path / "run").mkdir()
    rows = list(open_index(storage, "v1").rows())
    first, second = (
        write_index(storage, build_index("v1", [replace(row, scores={"old": value}) for row in rows]))[0]
        for value in (1.0, 2.0)
    )
    pin_run(storage, str(tmp_path / "run"), versions=["v1"], indexes=[first])
    assert run_gc(storage, dry_run=True).files[INDEXES] == 1 and storage.exists(second)
    assert run_gc(storage).files[INDEXES] == 1
    assert storage.exists(first) and not storage.exists(second)
    finish(storage, "v1")
    left = {file.path for file in storage.list("index")}
    assert left == {first, *(entry.index for entry in read_manifest(storage).annotations)}
    assert verify(storage).unknown == []
    # A removal outweighs the pin.
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    assert storage.exists(first)
    with pytest.raises(ValueError, match=r"shards are rewritten that the run .*run.* reads.*--force"):
        run_gc(storage)
    assert storage.exists(first) and find_pending(storage) is None
    assert run_gc(storage, dry_run=True).runs and run_gc(storage, force=True).runs
    assert not storage.exists(first)


def test_unfinished_shards_and_fits_go_and_what_is_not_ours_stays(built: Storage, tmp_path: Path) -> None:
    storage = copy_of(built, tmp_path / "data")
    for path in ("clips-000009.tar", "ann/v1/ann-000009.tar", "ann/toy-abc/ann-000000.tar", f"fits/x/{'0' * 64}.npz"):
        storage.write(path, b"x" * 100)
    for path in ("clips-mine.tar", "notes.txt", "ann/readme.tar", "index/mine.parquet", "units/ingest/mine.tar"):
        storage.write(path, b"mine")
    freed = run_gc(storage)
    assert (freed.files[SHARDS], freed.files[FITS]) == (3, 1)
    for path in ("clips-mine.tar", "notes.txt", "ann/readme.tar", "index/mine.parquet", "units/ingest/mine.tar"):
        assert storage.exists(path)
    assert verify(storage).problems == []


def test_a_damaged_shard_is_not_copied(removed: Storage, tmp_path: Path) -> None:
    storage = copy_of(removed, tmp_path / "data")
    name = next(shard.name for shard in read_manifest(storage).media if shard.removed)
    assert storage.local_root
    with (storage.local_root / name).open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff" * 8)
    with pytest.raises(ValueError, match=f"{name} is damaged, so it is not rewritten"):
        run_gc(storage)
    assert storage.exists(name)


def test_shards_may_lose_samples_again_and_new_columns_read_them(
    removed: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = copy_of(removed, tmp_path / "data")
    run_gc(storage)
    left = [key for key in SAMPLES if key not in GONE]
    run_remove(storage, match_keys(storage, left[:1]), nobody_read)
    run_gc(storage)
    assert set(everything(storage)) == set(left[1:])
    assert verify(storage, deep=True).problems == []
    column = toy_column()
    monkeypatch.setitem(COLUMNS, column.name, column)
    derive_worker._last.clear()
    version = run_derive(in_process(storage), column, ToySettings(scale=3.0))
    assert set(ShardReader(storage, version=version, split=None).keys) == set(left[1:])
    assert verify(storage).problems == []


# --- shards that DATASET.json does not list ---------------------------------------------------------------------------


def of_removed_samples(storage: Storage) -> list[str]:
    """Every tar of DATA that holds a removed sample."""
    assert storage.local_root
    return [
        path.relative_to(storage.local_root).as_posix()
        for path in sorted(storage.local_root.rglob("*.tar"))
        if not {key for key, _ in read_tar(path.read_bytes())}.isdisjoint(GONE)
        or any(key.encode() in path.read_bytes() for key in GONE)
    ]


def check_records(storage: Storage) -> None:
    """Every record of a shard names a file that is there, and no other shard is."""
    names = [record.file for job in pack_jobs(storage) for record in outcomes.pack_records(storage, job).values()]
    assert sorted(filter(None, names)) == sorted(tars(storage))


def lose_manifest(storage: Storage) -> None:
    """`DATASET.json` is lost, and made again of one version."""
    storage.delete(dataroot.DATASET_JSON)
    finish(storage, "v1")


def test_a_version_that_is_not_listed_any_more_is_rewritten_too(
    built: Storage, removed: Storage, tmp_path: Path
) -> None:
    storage, before = copy_of(removed, tmp_path / "data"), everything(built)
    [toy] = [entry for entry in read_manifest(storage).annotations if entry.kind == "toy"]
    lose_manifest(storage)
    assert [entry.kind for entry in read_manifest(storage).annotations] == ["annotation"]
    size_before = size(storage)
    foreseen = run_gc(storage, dry_run=True)
    assert size(storage) == size_before
    freed = run_gc(storage)
    assert freed.files[REMOVED] == foreseen.files[REMOVED] and freed.bytes[REMOVED] == foreseen.bytes[REMOVED]
    assert of_removed_samples(storage) == []
    check_records(storage)
    assert run_gc(storage).files.total() == 0
    # The command that lists it again packs nothing: what the others have is not lost.
    column = toy_column()
    derive_worker._last.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COLUMNS, column.name, column)
        assert run_derive(in_process(storage), column, ToySettings()) == toy.version
    assert any(shard.name.endswith(".r1.tar") for shard in read_manifest(storage).derived("toy").shards)
    check_whole(storage, {key: members for key, members in before.items() if key not in GONE})


def pack_unfinished(root: Path) -> Storage:
    """A finished data set of two clips, and shards of the others and of another version that no finish has listed."""
    storage = build_ingested(root)
    faces, clips = plans.find_annotate(storage, "v1"), plans.find_ingest(storage, "folder")
    assert faces and clips
    for number in (2, len(CLIPS)):
        units = {clip: clips.units[clip] for clip in CLIPS[:number]}
        samples = dict.fromkeys((key for clip in units for key in PIECES.get(clip, (clip,))), PKEY)
        plans.write_plan(storage, plans.ingest_plan_name("folder"), replace(clips, units=units))
        plans.write_plan(storage, plans.annotate_job("v1"), replace(faces, units=samples))
        run_pack(in_process(storage), "v1", ("min_shards=1", "val_fraction=0.3"))
        if number == 2:
            finish(storage, "v1")
    plans.write_plan(storage, plans.annotate_job("v2"), replace(faces, order=1))
    for number, clip in enumerate(CLIPS):
        for key in PIECES.get(clip, (clip,)):
            members = {key: annotation_members(key, arrays(number))}
            commit(storage, plans.annotate_job("v2"), key, members, LENGTHS[number], {})
    run_pack(in_process(storage), "v2")
    assert len(read_manifest(storage).media) == 1 and len(tars(storage)) == 6
    return storage


def test_shards_that_were_packed_and_not_finished_are_rewritten_too(tmp_path: Path) -> None:
    storage = pack_unfinished(tmp_path / "data")
    gone = (SAMPLES[0], PIECES[CLIPS[2]][0])
    # The files of the units are freed, so that the shards alone hold the others.
    run_gc(storage)
    whole = tars(storage)
    assert storage.list("units", ".tar") == []
    run_remove(storage, match_keys(storage, gone), nobody_read)
    freed = run_gc(storage)
    assert freed.samples == 2 and freed.files[REMOVED] == 6
    after = tars(storage)
    for name, samples in whole.items():
        assert after[name.replace(".tar", ".r1.tar")] == [sample for sample in samples if sample[0] not in gone]
    check_records(storage)
    for version in ("v1", "v2"):
        run_pack(in_process(storage), version)
        finish(storage, version)
    assert set(ShardReader(storage, version="v2", split=None).keys) == set(SAMPLES) - set(gone)
    assert verify(storage, deep=True).problems == []
    assert account(data_state(storage, None)).errors == []


def test_killed_while_unlisted_shards_are_rewritten_nothing_is_lost(
    built: Storage, removed: Storage, tmp_path: Path
) -> None:
    unlisted = copy_of(removed, tmp_path / "unlisted")
    lose_manifest(unlisted)
    run_gc(unlisted)
    expected = {name: samples for name, samples in tars(unlisted).items() if name.startswith("ann/toy")}
    folders = [copy_of(removed, tmp_path / f"data{n}") for n in range(1, 43)]
    for storage in folders:
        lose_manifest(storage)
    ends = die_at_writes(
        [storage.local_root for storage in folders if storage.local_root],
        setup=SETUP,
        work="run_gc(Storage(folder), at_once=1)",
    )
    assert set(ends) == {-signal.SIGKILL, 0} and ends[-1] == 0
    for number, storage in enumerate(folders):
        if number % 2 and (pending := find_pending(storage)):
            finish_gc(storage, pending)
            storage.sweep_temporary()
            check_records(storage)  # nothing but the note tells of them on an object store
        run_gc(storage)
        storage.sweep_temporary()
        assert of_removed_samples(storage) == []
        check_records(storage)
        assert {name: samples for name, samples in tars(storage).items() if name.startswith("ann/toy")} == expected
        assert verify(storage).problems == []


# --- shards that are lost ---------------------------------------------------------------------------------------------


def test_a_lost_shard_is_named_before_anything_is_begun(removed: Storage, tmp_path: Path) -> None:
    storage = copy_of(removed, tmp_path / "data")
    entries = read_manifest(storage).derived("toy").shards
    lost = next(shard.name for shard in entries if shard.removed)
    storage.delete(lost)
    before = tars(storage)
    with pytest.raises(FileNotFoundError, match=f"{lost} is gone, so it is not rewritten: make derive COLUMNS=toy"):
        run_gc(storage)
    assert tars(storage) == before and find_pending(storage) is None


def test_records_of_lost_shards_stay_as_they_are(built: Storage, removed: Storage, tmp_path: Path) -> None:
    """A shard with removed samples was lost and packed again, under its next name, and the finish that would have said
    so was killed; then a collection was killed before its end."""
    storage = copy_of(removed, tmp_path / "data")
    lost = next(shard.name for shard in read_manifest(storage).media if shard.removed)
    storage.delete(lost)
    run_pack(in_process(storage), "v1")
    again = next_revision(lost)
    assert storage.exists(again)
    write_pending(storage, Pending(job="gc", files=[lost, again]))
    pending = find_pending(storage)
    assert pending
    finish_gc(storage, pending)
    assert storage.exists(again)
    records = outcomes.pack_records(storage, plans.PACK_MEDIA_JOB)
    assert again in {record.file for record in records.values()} and lost not in {r.file for r in records.values()}
    finish(storage, "v1")
    run_gc(storage)
    assert of_removed_samples(storage) == []
    check_whole(storage, {key: members for key, members in everything(built).items() if key not in GONE})


SETUP = """
from orchestration.jobs.gc import run_gc
delete = Storage.delete
def deleting(self, path):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    delete(self, path)
Storage.delete = deleting
"""


@pytest.mark.timeout(600)
def test_killed_at_any_write_or_delete_a_reader_sees_a_whole_data_set(
    built: Storage, removed: Storage, tmp_path: Path
) -> None:
    """SIGKILL at the n-th write or delete; shards are rewritten one by one, so that there are many states."""
    expected = {key: members for key, members in everything(built).items() if key not in GONE}
    folders = [copy_of(removed, tmp_path / f"data{n}").local_root for n in range(1, 61)]
    ends = die_at_writes(
        [folder for folder in folders if folder], setup=SETUP, work="run_gc(Storage(folder), at_once=1)"
    )
    assert set(ends) == {-signal.SIGKILL, 0} and ends[-1] == 0
    for number, (folder, end) in enumerate(zip(folders, ends, strict=True)):
        assert folder
        storage = Storage(folder)
        assert everything(storage) == expected, folder
        assert verify(storage).problems == []
        # Either the same command once more, or another that writes, which brings the records in line first.
        if end and number % 2:
            if pending := find_pending(storage):
                finish_gc(storage, pending)
                # Nothing but the note tells of them on an object store.
                assert set(tars(storage)) == {shard.name for shard in named_shards(storage)}
            run_pack(in_process(storage), "v1")
            finish(storage, "v1")
            assert everything(storage) == expected
        run_gc(storage)
        storage.sweep_temporary()  # as every command does that takes the lock
        assert not any(shard.removed for shard in read_manifest(storage).media)
        check_whole(storage, expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(built: Storage, removed: Storage, tmp_path: Path) -> None:
    expected = {key: members for key, members in everything(built).items() if key not in GONE}
    folders = [copy_of(removed, tmp_path / f"data{n}").local_root for n in range(40)]
    ends = die_at_times(
        [folder for folder in folders if folder],
        setup="from orchestration.jobs.gc import run_gc",
        work="run_gc(Storage(folder), at_once=1)",
        most_s=0.4,
        seed=14,
    )
    assert -signal.SIGKILL in ends
    for folder in folders:
        assert folder
        storage = Storage(folder)
        assert everything(storage) == expected, folder
        run_gc(storage)
        storage.sweep_temporary()
        check_whole(storage, expected)
