"""Below a guarded folder no link leads a write or a removal out of it, also not one that appears meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.files.foreign import LinkError
from talkinghead.files.guarded_folder import GuardedFolder
from tests.support.paths import ROOT


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's with a file in it."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_text("precious")
    return folder


def unharmed(outside: Path) -> bool:
    names = sorted(path.relative_to(outside).as_posix() for path in outside.rglob("*"))
    return names == ["deep", "file"] and (outside / "file").read_text() == "precious"


def test_a_file_appears_where_folders_were_missing(tmp_path: Path) -> None:
    guarded = GuardedFolder(tmp_path / "new" / "root")
    with guarded.new_file("tmp") as file:
        file.write(b"one")
        file.replace("a/b/file")
    with guarded.new_file("tmp") as file:
        file.write(b"two")
        assert not file.take("a/b/file") and file.take("a/other")
    with pytest.raises(RuntimeError), guarded.new_file("tmp"):
        raise RuntimeError
    found = {path.name: path.read_bytes() for path in guarded.root.rglob("*") if path.is_file()}
    assert found == {"file": b"one", "other": b"two"}
    guarded.remove("a/other")
    guarded.remove("a/other")
    guarded.remove("nowhere/other")
    assert guarded.file_names("a/b") == ["file"] and guarded.file_names("a") == guarded.file_names("nowhere") == []


@pytest.mark.parametrize("place", ["link", "a/link", "a/b/link"])
def test_a_link_on_the_way_is_refused(place: str, tmp_path: Path, outside: Path) -> None:
    guarded = GuardedFolder(tmp_path / "root", advice="; or ask")
    link = guarded.root / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    said = f"{link} is a link to {outside}: nothing is written or removed .* in its place"
    end = "; or ask$" if place == "link" else "$"
    with pytest.raises(LinkError, match=said + end), guarded.new_file(f"{place}/deep"):
        pass
    with guarded.new_file("tmp") as file:
        for call in (file.replace, file.take, guarded.remove, guarded.file_names):
            with pytest.raises(LinkError, match=said):
                call(f"{place}/file")
    assert unharmed(outside) and not guarded.file_names("tmp")


def test_a_name_that_is_a_link_is_replaced_or_removed_itself(tmp_path: Path, outside: Path) -> None:
    guarded = GuardedFolder(tmp_path / "root")
    guarded.root.mkdir()
    for name in ("replaced", "kept", "removed"):
        (guarded.root / name).symlink_to(outside / "file")
    with guarded.new_file("tmp") as file:
        file.write(b"ours")
        assert not file.take("kept")
        file.replace("replaced")
    guarded.remove("removed")
    assert (guarded.root / "replaced").read_bytes() == b"ours" and not (guarded.root / "replaced").is_symlink()
    assert (guarded.root / "kept").is_symlink() and not os.path.lexists(guarded.root / "removed")
    assert unharmed(outside)


def test_the_root_may_be_a_link_and_so_may_what_the_user_names(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "named").symlink_to(outside)
    guarded = GuardedFolder(tmp_path / "root", ["named"])
    for path, folder in (("file", "tmp"), ("named/new", "named/tmp")):
        with guarded.new_file(folder) as file:
            file.replace(path)
    assert (tmp_path / "real" / "file").is_file() and (outside / "new").is_file()
    (outside / "inner").symlink_to(tmp_path)
    (tmp_path / "real" / "a" / "named").symlink_to(outside)
    for folder in ("named/inner", "a/named"):
        with pytest.raises(LinkError), guarded.opened(folder):
            pass


def test_what_was_put_in_a_files_place_is_not_given_another_name(tmp_path: Path, outside: Path) -> None:
    """A hard link to the user's file would be, if the link in the place of ours were followed."""
    guarded = GuardedFolder(tmp_path / "root")
    with guarded.new_file("tmp") as file:
        [name] = guarded.file_names("tmp")
        (guarded.root / "tmp" / name).unlink()
        (guarded.root / "tmp" / name).symlink_to(outside / "file")
        file.write(b"ours")
        assert file.take("record")
    assert (outside / "file").stat().st_nlink == 1 and unharmed(outside)


EXCHANGING = """
import sys
from pathlib import Path
from talkinghead.files.atomic import _exchange
first, second = map(Path, sys.argv[1:])
while _exchange(first, second):
    pass
"""


def test_a_racing_stranger_leads_nothing_out(tmp_path: Path, outside: Path) -> None:
    """A folder and a link change places all the time, while files are written and removed."""
    guarded = GuardedFolder(tmp_path / "root")
    (guarded.root / "a").mkdir(parents=True)
    (guarded.root / "link").symlink_to(outside)
    arguments = [sys.executable, "-c", EXCHANGING, str(guarded.root / "a"), str(guarded.root / "link")]
    stranger = subprocess.Popen(arguments, cwd=ROOT)
    refused = made = 0
    try:
        while min(refused, made) < 500:
            assert stranger.poll() is None
            try:
                with guarded.new_file("a") as file:
                    file.replace("a/new")
                    made += 1
                guarded.remove("a/new")
                guarded.remove("a/file")
            except (LinkError, NotADirectoryError):  # the latter where the link is a folder again when it is looked at
                refused += 1
    finally:
        stranger.kill()
        stranger.wait()
    assert unharmed(outside)
