"""A version goes whole, whenever the command is killed; what needs it keeps it; and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.drop import drop
from shards.index import read_index
from shards.manifest import FitEntry, read_manifest
from shards.pins import pin_run, read_pins
from shards.reader import ShardReader
from shards.removal_records import Pending, write_pending
from shards.verify import verify
from shards.versions import versions
from talkinghead import dataroot
from talkinghead.files.foreign import LinkError
from talkinghead.files.lock import LockedError
from talkinghead.files.storage import LINKED_FOLDERS, Storage
from talkinghead.provenance import hash_bytes
from tests.support.derived_data import ToySettings, add_annotation, add_fit, add_version
from tests.support.object_store import LocalS3
from tests.support.shard_data import build, sample_key

PKEY = "0123456789abcdef"


def write_jobs(storage: Storage, *jobs: str) -> None:
    """Files of jobs, with one unit each that was done, one that failed, and one that was released."""
    for job in jobs:
        for path in (dataroot.plan(job), dataroot.old_plan(job)):
            storage.write(path, b"plan")
        output = dataroot.unit(job, "key", PKEY)
        storage.write(output, b"output")
        storage.write(dataroot.record(job, "key", PKEY), json.dumps({"file": output}).encode())
        storage.write(dataroot.quarantine(job, "bad", PKEY), b"{}")
        storage.write(dataroot.released(job, "once", PKEY, 0), b"{}")


def write_pack(storage: Storage, version: str) -> None:
    """Records of the shards of a version."""
    for entry in read_manifest(storage).annotations:
        for number, shard in enumerate(entry.shards if entry.version == version else ()):
            record = dataroot.record(f"pack-{version}", f"clips-{number:06d}", PKEY)
            storage.write(record, json.dumps({"file": shard.name}).encode())


def tree(storage: Storage) -> dict[str, bytes]:
    """Every file of DATA but the lease; in `tmp` there is nothing."""
    assert storage.local_root
    lease = storage.local_root / dataroot.LEASE_FOLDER
    paths = [path for path in storage.local_root.rglob("*") if path.is_file() and path.parent != lease]
    return {path.relative_to(storage.local_root).as_posix(): path.read_bytes() for path in paths}


def check_whole(storage: Storage) -> None:
    """Readers find all that there is, and no record speaks of a file that is not there."""
    report = verify(storage)
    assert report.ok, report.problems
    for item in versions(storage):
        if item.kind == "annotation":
            assert len(ShardReader(storage, version=item.name, split=None).rows) == item.kept
    for file in storage.list("records"):
        output = json.loads(storage.read(file.path))["file"]
        assert storage.exists(output), f"{file.path} speaks of {output}"


@pytest.fixture
def full(copied: Storage) -> Storage:
    """Two annotation versions, two derived ones and three fits, with the files of their jobs."""
    one = add_version(copied, failed=[sample_key(3)])
    two = add_version(copied, settings=ToySettings(2))
    add_annotation(copied, "v2")
    add_fit(copied, "basis", b"older", annotation="v1")
    add_fit(copied, "speakers", b"others", annotation="v1")
    add_fit(copied, "basis", b"newer", annotation="v1")
    for version, job in (("v2", "annotate-v2"), (one.version, f"derive-{one.version}")):
        write_jobs(copied, job)
        write_pack(copied, version)
    write_jobs(copied, "annotate-v1", f"encode-{two.version}", "fit-basis-0123456789ab", "fit-speakers-0123456789ab")
    write_pack(copied, "v1")
    return copied


def names_of(storage: Storage, name: str) -> str:
    """A name for `drop`, of words that do not change with the data."""
    manifest = read_manifest(storage)
    toys = [entry.version for entry in manifest.of_kind("toy")]
    return {"toy 1": toys[0], "toy 2": toys[1]}.get(name, name)


@pytest.mark.parametrize("name", ["v2", "toy 1", "toy 2", "basis"])
def test_a_kill_at_any_moment_leaves_it_whole_and_a_second_call_finishes(
    full: Storage, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = full.local_root
    assert root
    name = names_of(full, name)
    before = tree(full)

    def copy_of(label: str) -> Storage:
        shutil.copytree(root, tmp_path / label)
        return Storage(tmp_path / label)

    # Undisturbed: all that bears its name is gone, and nothing else.
    whole = copy_of("whole")
    dropped = drop(whole, name)
    after = tree(whole)
    gone = before.keys() - after.keys()
    assert dropped.files == len(gone) and dropped.bytes == sum(len(before[path]) for path in gone)
    assert all(name in path for path in gone) and not any(name in path for path in after if name != "basis")
    assert {path for path in after if after[path] != before.get(path)} == {"DATASET.json"}
    check_whole(whole)
    assert name not in [item.name for item in versions(whole)]

    # Stopped at each call that changes anything: before it and, in effect, after the one before.
    calls = 0
    stop_at = -1

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt

    for method in ("delete", "write"):
        original = getattr(Storage, method)

        def stopping(self: Storage, *arguments: object, original=original) -> None:
            if not str(arguments[0]).startswith(f"{dataroot.LEASE_FOLDER}/"):
                count()
            original(self, *arguments)

        monkeypatch.setattr(Storage, method, stopping)
    for stop_at in range(1, len(gone) + 2):
        calls = 0
        storage = copy_of(f"killed-{stop_at}")
        with pytest.raises(KeyboardInterrupt):
            drop(storage, name)
        check_whole(storage)
        calls = -(10**6)
        drop(storage, name)
        assert tree(storage) == after, stop_at
        check_whole(storage)
        shutil.rmtree(tmp_path / f"killed-{stop_at}")
    calls, stop_at = 0, len(gone) + 2
    drop(copy_of("last"), name)  # there was no further call


def test_what_is_needed_stays(full: Storage, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(full)
    one, two = (entry.version for entry in manifest.of_kind("toy"))
    older, speakers, newer = manifest.fits
    third = add_version(
        full, settings=ToySettings(3), pins={"annotation": "v2", "toy": one}, fits={"basis": newer.sha256}
    )
    (tmp_path / "run").mkdir()
    pin_run(full, str(tmp_path / "run"), versions=[two], fits=[speakers.sha256])
    pin_run(full, "/gone", versions=[two, third.version])
    before = tree(full)

    def refused(name: str, *words: str, options: tuple[str, ...] = ("--force",)) -> None:
        assert main(["drop", name, "--data", str(full.local_root), *options]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: ") and all(word in error for word in words), error
        assert tree(full) == before

    refused("v1", f"v1 is needed by {one} and", "drop that first")
    refused("v2", f"v2 is needed by {third.version}, made from it")
    refused(one, f"{one} is needed by {third.version}, made from it")
    refused("basis", f"basis@{newer.sha256[:12]} is needed by {third.version}")
    refused(two, str(tmp_path / "run"), "--force", options=())
    refused("speakers", str(tmp_path / "run"), "--force", options=())
    refused("v7", "no version or fit 'v7'", "v1, v2", third.version, f"basis@{older.sha256[:12]}")
    for wrong in ("../v2", "", "media", "toy", "basis@", "basis@0", "basis@zzzz", "BASIS", "v2/../v1", "\x1b[2J"):
        refused(wrong)
    # A run that is gone needs nothing, and is forgotten; one that may go on is overruled.
    assert main(["drop", third.version, "--data", str(full.local_root)]) == 0
    assert [pin.run for pin in read_pins(full)] == [str(tmp_path / "run")]
    assert main(["drop", two, "--data", str(full.local_root), "--force"]) == 0
    captured = capfd.readouterr()
    assert captured.out.splitlines()[-1].startswith(f"{full.local_root}: removed {two}, ")
    assert captured.out.splitlines()[-1].endswith(" bytes freed")


@pytest.mark.parametrize("job", ["remove", "gc"])
def test_what_was_interrupted_is_finished_first(job: str, full: Storage) -> None:
    path = "removed/20261130T000000Z-00000000.json" if job == "remove" else ""
    write_pending(full, Pending(job=job, path=path))  # type: ignore[arg-type]
    before = tree(full)
    with pytest.raises(ValueError, match=r"a removal or a collection in .* was interrupted: make retry DATA=.*data"):
        drop(full, "v2", force=True)
    assert tree(full) == before


def test_the_last_annotation_stays(copied: Storage) -> None:
    before = tree(copied)
    with pytest.raises(ValueError, match=r"v1 is the only face annotation of .*, which every reader needs"):
        drop(copied, "v1", force=True)
    assert tree(copied) == before


def test_the_counts_are_those_of_the_annotation_that_is_left(copied: Storage) -> None:
    add_annotation(copied, "v2")
    drop(copied, "v1")
    manifest = read_manifest(copied)
    index = read_index(copied, manifest.annotation())
    keep = index.numbers("keep")
    assert manifest.annotation().version == "v2" and manifest.counts["kept"] == keep.sum() == 8
    assert manifest.counts["frames_kept"] == index.numbers("num_frames")[keep].sum()


def test_files_of_others_stay(full: Storage) -> None:
    toy = names_of(full, "toy 1")
    bucket = dataroot.unit(f"derive-{toy}", "key", PKEY).split("/")[2]
    others = [
        f"ann/{toy}/notes.txt",
        f"ann/{toy}/ann-1.tar",
        f"ann/{toy}/below/ann-000000.tar",
        f"ann/{toy}x/ann-000000.tar",
        f"index/{toy}.parquet",
        f"index/{toy}x.0123456789ab.parquet",
        f"plans/derive-{toy}.txt",
        f"plans/derive-{toy}x.parquet",
        f"records/derive-{toy}/{bucket}/notes.json",
        f"records/derive-{toy}/a.b.json",
        f"quarantine/derive-{toy}/notes.json",
        f"released/derive-{toy}/a.b.json",
        f"units/derive-{toy}/{bucket}/a.tar",
        f"units/derive-{toy}x/{bucket}/key.{PKEY}.tar",
    ]
    for path in others:
        full.write(path, b"mine")
    drop(full, toy)
    assert [path for path in others if full.exists(path)] == others
    left = {file.path for folder in sorted(dataroot.FOLDERS) for file in full.list(folder) if toy in file.path}
    assert left == set(others)


def test_a_version_that_was_never_finished_goes_too(full: Storage) -> None:
    write_jobs(full, "derive-half", "fit-half-0123456789ab", "annotate-half2")
    before = tree(full)
    for name in ("half", "half2"):
        dropped = drop(full, name)
        assert dropped.name == name and dropped.files == 6
    # `half` named the fit first, as it had work of that name, and then the version.
    assert drop(full, "half").files == 6
    assert tree(full) == {path: data for path, data in before.items() if "half" not in path}
    with pytest.raises(ValueError, match="no version or fit 'half'"):
        drop(full, "half")


def test_fits_by_name_and_by_hash(copied: Storage) -> None:
    fits: dict[str, FitEntry] = {}
    twins: tuple[FitEntry, FitEntry] | None = None
    # Two files whose hashes begin alike: among a thousand there are some.
    contents = {hash_bytes(b"%d" % number)[:4]: b"%d" % number for number in range(1000)}
    for number in range(1000):
        digits = hash_bytes(b"%d" % number)[:4]
        if contents[digits] != b"%d" % number:
            twins = add_fit(copied, "basis", b"%d" % number), add_fit(copied, "basis", contents[digits])
            break
    assert twins
    for content in (b"old", b"new"):
        fits[content.decode()] = add_fit(copied, "basis", content)
    with pytest.raises(ValueError, match=r"may be basis@.*, basis@.*: give more digits"):
        drop(copied, f"basis@{twins[0].sha256[:4]}")
    assert drop(copied, f"basis@{twins[0].sha256}").name == f"basis@{twins[0].sha256[:12]}"
    assert drop(copied, f"basis@{twins[1].sha256[:4]}").name == f"basis@{twins[1].sha256[:12]}"
    assert drop(copied, "basis").name == f"basis@{fits['new'].sha256[:12]}"
    assert drop(copied, "basis").name == f"basis@{fits['old'].sha256[:12]}"
    assert read_manifest(copied).fits == [] and copied.list("fits") == []
    with pytest.raises(ValueError, match="no version or fit 'basis'"):
        drop(copied, "basis")


def test_the_records_of_a_fit_go_with_it(full: Storage) -> None:
    """Their sums are gone since the fit was made: the next job would look for them."""
    drop(full, "basis")
    assert not [path for path in tree(full) if "fit-basis" in path]
    assert [path for path in tree(full) if "fit-speakers" in path]


@pytest.mark.parametrize("where", ["ann", "ann/v2", "records/annotate-v2", "index"])
def test_nothing_is_removed_through_a_link(
    full: Storage, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full.local_root
    place = full.local_root / where
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    before = tree(full), sorted((tmp_path / "elsewhere").rglob("*"))
    with pytest.raises(LinkError, match=str(place)):
        drop(full, "v2")
    assert (tree(full), sorted((tmp_path / "elsewhere").rglob("*"))) == before
    # Whoever keeps a folder on another disk says so.
    if "/" not in where:
        monkeypatch.setenv(LINKED_FOLDERS, where)
        drop(Storage(full.local_root), "v2")
        assert not any("v2" in path.name for path in (tmp_path / "elsewhere").rglob("*") if path.is_file())
        check_whole(Storage(full.local_root))


def test_of_a_shard_that_is_a_link_the_link_goes(full: Storage, tmp_path: Path) -> None:
    assert full.local_root
    shard = full.local_root / "ann/v2/ann-000001.tar"
    shard.rename(tmp_path / "shard.tar")
    shard.symlink_to(tmp_path / "shard.tar")
    drop(full, "v2")
    assert (tmp_path / "shard.tar").is_file() and not os.path.lexists(shard)


def test_it_waits_for_no_other_job(full: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    assert full.local_root
    before = tree(full)
    with Storage(full.location).held():
        with pytest.raises(LockedError, match="another job is writing to"):
            drop(full, "v2")
        assert main(["drop", "v2", "--data", str(full.local_root)]) == 2
    assert "wait for it or stop it" in capfd.readouterr().err and tree(full) == before


def test_no_data_set_gets_no_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for data in ("nothing", "empty"):
        assert main(["drop", "v1", "--data", str(tmp_path / data)]) == 2
        assert capfd.readouterr().err.startswith("error: there is no ")
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_pin_keeps_everything(full: Storage) -> None:
    full.write(dataroot.pin("somebody"), b"{")
    before = tree(full)
    with pytest.raises(ValueError, match=r"is no pin of a run .*: remove it if no run needs it"):
        drop(full, "v2")
    assert tree(full) == before


def test_an_object_store(s3: LocalS3, tmp_path: Path) -> None:
    local = build(tmp_path / "data")
    toy = add_version(local)
    add_fit(local, "basis")
    write_jobs(local, f"derive-{toy.version}")
    remote = Storage(s3.uri("drop-test"))
    for path, data in tree(local).items():
        remote.write(path, data)
    assert drop(remote, toy.version).files == drop(local, toy.version).files
    drop(remote, "basis")
    drop(local, "basis")
    assert verify(remote).ok and [item.name for item in versions(remote)] == ["v1"]
    folders = ["ann", "index", *sorted(dataroot.FOLDERS)]
    assert {file.path for folder in folders for file in remote.list(folder)} == {
        path for path in tree(local) if "/" in path
    }
