"""Leftovers are removed only in the exact form that is made, and nothing is removed or replaced through a link."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.files import atomic
from talkinghead.files.atomic import commit_folder, staged_file, staged_folder, sweep, temporary_folder, write_whole
from tests.support.deep_folders import nested_folders
from tests.support.paths import ROOT


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's with a file in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


def unharmed(outside: Path) -> bool:
    return [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_text() == "precious"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_sweep_takes_our_own_leftovers_only(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    ours, kept = (
        {".config.json.tmp-0123abcd", ".a.tmp-b.tmp-00000000"},
        {".a.tmp-", ".a.tmp-0123456", ".a.tmp-0123ABCD"},
    )
    kept |= {".a.tmp-0123abcde", "a.tmp-0123abcd", ".tmp-0123abcd", ".a.tmp-0123abcd.txt"}
    for name in ours | kept:
        (folder / name).write_text("x")
    for name in (".step-4.tmp-01234567", ".step-2.tmp-removed"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "part").write_text("x")
        (folder / name / "link").symlink_to(outside)
    for name, target in ((".a.tmp-aaaaaaaa", outside), (".a.tmp-bbbbbbbb", outside / "file")):
        (folder / name).symlink_to(target)
        kept.add(name)
    sweep(folder)
    assert names(folder) == kept and unharmed(outside)
    sweep(tmp_path / "nowhere")
    with nested_folders(folder / ".a.tmp-00000000", 1500):
        sweep(folder)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("before", ["nothing", "folder", "file", "link", "hanging link"])
def test_a_folder_takes_the_place_of_anything(
    before: str, exchanges: bool, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system cannot swap two names."""
    if not exchanges:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda name: object())  # a C library without the call
    target = tmp_path / "run" / "export"
    target.parent.mkdir()
    match before:
        case "folder":
            target.mkdir()
            (target / "old").touch()
        case "file":
            target.touch()
        case "link":
            target.symlink_to(outside)
        case "hanging link":
            target.symlink_to(tmp_path / "nowhere")
    folder = temporary_folder(target)
    (folder / "weights").write_text("new")
    commit_folder(folder, target)
    assert names(target) == {"weights"} and not target.is_symlink() and names(target.parent) == {"export"}
    assert unharmed(outside) and not (tmp_path / "nowhere").exists()


def test_a_file_takes_the_place_of_a_link(tmp_path: Path, outside: Path) -> None:
    for name in ("written", "staged"):
        (tmp_path / name).symlink_to(outside / "file")
    write_whole(tmp_path / "written", b"new")
    with staged_file(tmp_path / "staged") as scratch:
        scratch.write_bytes(b"new")
    assert (tmp_path / "written").read_bytes() == (tmp_path / "staged").read_bytes() == b"new"
    assert unharmed(outside)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_scratch_files_of_killed_writers_only(kind: str, tmp_path: Path, outside: Path) -> None:
    """Not links, not pipes (which are not waited for either), and no name that only looks alike."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / ".out-abcd_123.part").write_text("left")
    (folder / ".out-abcdefgh.part").mkdir()
    (folder / ".out-abcdefgh.part" / "link").symlink_to(outside)
    kept = {".out-.part", ".out-notes.part", ".out-ABCDEFGH.part", ".out-abcdefghi.part", "out-abcdefgh.part"}
    for name in kept:
        (folder / name).write_text("the user's")
    (folder / ".out-linkfile.part").symlink_to(outside / "file")
    (folder / ".out-linkfold.part").symlink_to(outside)
    os.mkfifo(folder / ".out-a_pipe__.part")
    kept |= {".out-linkfile.part", ".out-linkfold.part", ".out-a_pipe__.part"}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context((staged_file if kind == "file" else staged_folder)(folder / "out"))
        assert names(folder) == kept | {scratch.name}
    assert names(folder) == kept | {"out"} and unharmed(outside)


def test_what_has_the_name_of_a_leftover_by_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening a leftover and locking it, another writer has removed it and somebody made a file of the name."""
    leftover = tmp_path / ".out-abcdefgh.part"
    leftover.write_text("left")
    lock = fcntl.flock

    def late(descriptor: int, kind: int) -> None:
        if kind & fcntl.LOCK_NB:
            leftover.unlink()
            leftover.write_text("another's")
        lock(descriptor, kind)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    with staged_file(tmp_path / "out"):
        assert leftover.read_text() == "another's"


WRITERS = """
import sys
from pathlib import Path
from talkinghead.files.atomic import staged_file, staged_folder
for number in range(150):
    with staged_file(Path(sys.argv[1])) as scratch:
        scratch.write_bytes(b"whole")
"""


def test_writers_never_take_each_others_scratch_files(tmp_path: Path) -> None:
    """Each looks for leftovers while the others have just made a scratch file and not locked it yet."""
    arguments = [sys.executable, "-c", WRITERS, str(tmp_path / "out")]
    writers = [subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [writer.communicate()[1] for writer in writers]
    assert errors == [""] * 4 and names(tmp_path) == {"out"}
