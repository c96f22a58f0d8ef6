"""A folder that may be a stranger's: nothing is written or removed through links, and nothing waits or is huge."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest

from talkinghead.dataroot import FOLDERS
from talkinghead.files.foreign import LinkError
from talkinghead.files.storage import LINKED_FOLDERS, Storage
from tests.support.deep_folders import nested_folders
from tests.support.small_disk import run_with_mounts


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's, with names that ours have too."""
    folder = tmp_path / "outside"
    (folder / "ingest" / "ab").mkdir(parents=True)
    for name in ("file", "0" * 32, "ingest/ab/a.tar"):
        (folder / name).write_text("precious")
    return folder


def unharmed(outside: Path) -> bool:
    files = {path.relative_to(outside).as_posix(): path.read_text() for path in outside.rglob("*") if path.is_file()}
    return files == dict.fromkeys(("file", "0" * 32, "ingest/ab/a.tar"), "precious")


@pytest.mark.parametrize("folder", sorted(FOLDERS | {"tmp"}))
def test_a_folder_that_is_a_link_is_neither_written_nor_emptied(folder: str, tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / folder).symlink_to(outside)
    storage = Storage(root)
    said = f"{root / folder} is a link to {outside}: .*{LINKED_FOLDERS}"

    def stage() -> None:
        with storage.staged(f"{folder}/file"):
            pytest.fail("what cannot be stored is not even begun")

    calls = [
        lambda: storage.write(f"{folder}/file", b"ours"),
        lambda: storage.create(f"{folder}/new", b"ours"),
        stage,
        lambda: storage.delete(f"{folder}/file"),
        lambda: storage.check_links(f"{folder}/ingest"),
    ]
    for call in [*calls, storage.sweep_temporary, storage.check_writable] if folder == "tmp" else calls:
        with pytest.raises(LinkError, match=said):
            call()
    assert unharmed(outside)
    # Reading follows links.
    assert storage.read(f"{folder}/file") == b"precious" and storage.exists(f"{folder}/file")
    assert [file.path for file in storage.list(f"{folder}/ingest")] == [f"{folder}/ingest/ab/a.tar"]


def test_a_file_that_is_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path, outside: Path) -> None:
    storage = Storage(tmp_path / "data")
    for name in ("DATASET.json", "clips-000000.tar", "gone.json", "kept.json"):
        storage.write("tmp/ready", b"")
        (tmp_path / "data" / name).symlink_to(outside / "file")
    storage.write("DATASET.json", b"ours")
    with storage.staged("clips-000000.tar") as scratch:
        scratch.write_bytes(b"ours")
    storage.delete("gone.json")
    assert not storage.create("kept.json", b"ours")
    assert storage.read("DATASET.json") == storage.read("clips-000000.tar") == b"ours"
    assert unharmed(outside) and sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "DATASET.json", "clips-000000.tar", "kept.json", "tmp"
    ]  # fmt: skip


def test_a_link_put_in_a_scratch_files_place_is_not_written_through(tmp_path: Path, outside: Path) -> None:
    storage = Storage(tmp_path / "data")
    with storage.staged("clips-000000.tar") as scratch:
        [name] = (tmp_path / "data" / "tmp").iterdir()
        name.unlink()
        name.symlink_to(outside / "file")
        scratch.write_bytes(b"ours")
    assert unharmed(outside)


def test_a_sweep_takes_our_own_temporary_files_only(tmp_path: Path, outside: Path) -> None:
    storage = Storage(tmp_path / "data")
    storage.check_writable()
    folder = tmp_path / "data" / "tmp"
    ours = {"0123456789abcdef" * 2, "probe-" + "0" * 32}
    kept = {"notes.txt", "0123456789abcdef", "0123456789ABCDEF" * 2, "0" * 33, "probe-0", "deep", "f" * 32, "e" * 32}
    for name in ours | kept - {"f" * 32, "e" * 32}:
        (folder / name).mkdir() if name == "deep" else (folder / name).write_text("x")
    (folder / "deep" / ("0" * 32)).write_text("not directly in it")
    (folder / ("f" * 32)).symlink_to(outside / "file")
    (folder / ("e" * 32)).mkdir()
    assert storage.sweep_temporary() == len(ours)
    assert {path.name for path in folder.iterdir()} == kept and (folder / "deep" / ("0" * 32)).exists()
    assert unharmed(outside)


def test_folders_that_the_user_names_may_be_links(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for folder in ("units", "records"):
        (root / folder).symlink_to(outside)
    monkeypatch.setenv(LINKED_FOLDERS, "units, plans")
    storage = pickle.loads(pickle.dumps(Storage(root)))  # noqa: S301  our own bytes
    monkeypatch.delenv(LINKED_FOLDERS)
    assert storage.linked == ("plans", "units"), "a worker elsewhere knows them too"
    for again in (storage, pickle.loads(pickle.dumps(storage))):  # noqa: S301
        again.write("units/ingest/ab/b.tar", b"ours")
        again.check_links("units/ingest", "plans")
        with pytest.raises(LinkError, match="records is a link"):
            again.create("records/ingest/ab/b.json", b"ours")
    assert (outside / "ingest" / "ab" / "b.tar").read_bytes() == b"ours"
    # Deeper links stay refused, and what is removed there has a name of ours.
    (outside / "inner").symlink_to(tmp_path)
    with pytest.raises(LinkError, match="inner is a link"):
        storage.write("units/inner/new", b"ours")
    (outside / "tmp" / ("1" * 32)).write_text("left by a killed writer")
    (outside / "tmp" / "other").write_text("precious")
    assert storage.sweep_temporary() == 1 and (outside / ("0" * 32)).exists()
    storage.delete("units/ingest/ab/b.tar")
    assert [path.name for path in (outside / "tmp").iterdir()] == ["other"]


def test_a_linked_folder_may_lie_on_another_disk(tmp_path: Path) -> None:
    code = """
import sys
from talkinghead.files.storage import Storage
storage = Storage(sys.argv[1])
storage.write("units/ingest/ab/a.tar", b"1")
assert storage.create("units/ingest/ab/b.tar", b"2") and not storage.create("units/ingest/ab/b.tar", b"3")
with storage.staged("units/ingest/ab/c.tar") as scratch:
    scratch.write_bytes(b"4")
print(*(storage.read(file.path).decode() for file in storage.list("units/ingest")))
"""
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "units").symlink_to(tmp_path / "disk")
    commands = f"mount -t tmpfs none '{tmp_path}/disk' || exit 77\n'{sys.executable}' -c '{code}' '{tmp_path}/data'"
    done = run_with_mounts(commands, env={LINKED_FOLDERS: "units"}, timeout=240)
    assert done.stdout == "1 2 4\n", done.stderr


@pytest.mark.parametrize("named", ["tmp", "unit", "/etc", "..", "units/ingest", "units;records"])
def test_only_folders_of_data_can_be_named(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINKED_FOLDERS, named)
    with pytest.raises(ValueError, match=f"{LINKED_FOLDERS} names .*; it may name ann, catalog"):
        Storage(tmp_path)


def test_what_is_no_file_does_not_count_and_is_not_waited_for(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("plans/real.json", b"{}")
    (tmp_path / "plans" / "device.json").symlink_to("/dev/zero")
    (tmp_path / "plans" / "round.json").symlink_to("round.json")
    (tmp_path / "plans" / "hanging.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "plans" / "pipe.json")
    (tmp_path / "plans" / "folder.json").mkdir()
    assert [file.path for file in storage.list("plans", ".json")] == ["plans/real.json"]
    for name in ("device", "round", "hanging", "pipe", "folder"):
        assert not storage.exists(f"plans/{name}.json") and storage.size(f"plans/{name}.json") is None
    for name, kind in (("device", "a device"), ("pipe", "a named pipe"), ("folder", "a folder")):
        for read in (
            lambda path: storage.read(path),
            lambda path: storage.read(path, 100),
            lambda path: storage.read_range(path, 0, 1),
            lambda path: storage.local_copy(path).__enter__(),
        ):
            with pytest.raises(ValueError, match=f"{name}.json is {kind}, not a file"):
                read(f"plans/{name}.json")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_what_is_too_large_is_not_read(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    storage = Storage(tmp_path if place == "local" else request.getfixturevalue("s3").uri(tmp_path.name))
    storage.write("plans/a.json", b"x" * 100)
    assert storage.read("plans/a.json", 100) == b"x" * 100
    with pytest.raises(ValueError, match=r"plans/a.json.* has 100 bytes: too large for a plan, which may have 99"):
        storage.read("plans/a.json", 99, "plan")
    for offset, length in ((0, 1 << 60), (1 << 62, 1 << 62), (1 << 80, 1), (-1, 2), (1, -1), (0, 1 << 100), (99, 2)):
        with pytest.raises(EOFError, match="shorter"):
            storage.read_range("plans/a.json", offset, length)
    if place == "local":
        with (tmp_path / "plans" / "huge.json").open("wb") as stream:
            stream.truncate(1 << 42)
        with pytest.raises(ValueError, match="too large"):
            storage.read("plans/huge.json", 100)


def test_folders_nested_by_the_thousand_are_listed_or_one_line(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    with nested_folders(tmp_path / "data" / "records", 1500):
        assert storage.list("records") == []
    with nested_folders(tmp_path / "data" / "records", 4000), pytest.raises(OSError, match="too long"):
        storage.list("records")
