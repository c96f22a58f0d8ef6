"""The folder of a private Ray: entered by its user only, and swept when its process was killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkinghead.runtime.ray_folder import make_ray_folder, sweep
from tests.support.paths import ROOT


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_only_its_user_enters_it(place: Path) -> None:
    folder = make_ray_folder()
    assert folder.path.parent == place and stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.temporary.mkdir(mode=0o777)
    folder.temporary.chmod(0o777)  # as Ray does
    if os.geteuid() == 0:
        done = subprocess.run(["ls", folder.temporary], user=65534, group=65534, extra_groups=[], capture_output=True)
        assert done.returncode
    folder.remove()
    assert not list(place.iterdir())


def test_names_of_sockets_in_it_are_short_enough(place: Path) -> None:
    folder = make_ray_folder()
    sockets = folder.temporary / f"session_2026-11-29_21-50-15_931912_{2**22 - 1}" / "sockets"
    sockets.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sockets / "plasma_store"))
    folder.remove()


def test_a_folder_of_a_killed_process_is_swept_and_no_other(place: Path, tmp_path: Path) -> None:
    code = "import sys, time; from talkinghead.runtime.ray_folder import make_ray_folder; "
    code += "print(make_ray_folder().path, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        killed = Path(process.stdout.readline().strip())
        (killed / "r" / "session").mkdir(parents=True)
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").touch()
        (killed / "r" / "link").symlink_to(outside)
        (place / "th-ray-a_linked").symlink_to(outside)
        names = ["th-ray-short", "th-ray-1234567x.old", "th-ray-ABCDEFGH", "other"]
        for name in names:
            (place / name).mkdir()
        (place / "th-ray-afile123").touch()
        own = make_ray_folder()
        assert killed.is_dir(), "its process lives"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    sweep(place)
    assert not killed.exists() and own.path.is_dir(), "this process lives"
    assert {path.name for path in place.iterdir()} == {*names, "th-ray-a_linked", "th-ray-afile123", own.path.name}
    assert (outside / "file").exists()
    own.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_folders_of_others_are_left(place: Path) -> None:
    for name in ("th-ray-ofanothr", "th-ray-ofmyself"):
        (place / name).mkdir()
    os.chown(place / "th-ray-ofanothr", 65534, 65534)
    sweep(place)
    assert {path.name for path in place.iterdir()} == {"th-ray-ofanothr"}


def test_a_place_in_which_others_may_rename_is_not_taken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    too_long = tmp_path / ("x" * 60)
    too_long.mkdir()
    for folder in (shared, too_long, place / "missing"):
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        made = make_ray_folder()
        assert made.path.parent == Path("/tmp").resolve() and re.fullmatch(r"th-ray-\w{8}", made.path.name)
        made.remove()
