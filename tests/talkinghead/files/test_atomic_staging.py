"""Staged files and folders: whole or not at all, also after an error, a kill, or on a full disk."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.files.atomic import check_writable, staged_file, staged_folder
from tests.support.paths import ROOT


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.bin"
    with staged_file(target) as scratch:
        scratch.write_bytes(b"whole")
        assert not target.exists() and scratch.parent == target.parent
    assert target.read_bytes() == b"whole" and list(target.parent.iterdir()) == [target]
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask, "as any file the user makes"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), staged_file(target) as scratch:
        scratch.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with staged_folder(target) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "weights").write_bytes(b"1")
        assert not list(target.iterdir())
    assert (target / "sub" / "weights").read_bytes() == b"1" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(ValueError, match="is there already"), staged_folder(target):
        pass
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "other"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [target]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a folder"), staged_file(tmp_path):
        pass
    with pytest.raises(ValueError, match="not a folder"), staged_file(tmp_path / "file" / "out"):
        pass
    for place in (tmp_path, tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(ValueError, match="a folder"):
            check_writable(place)
    with pytest.raises(OSError, match=f"cannot write to {tmp_path}"):
        check_writable(tmp_path / ("x" * 250))


def test_a_check_of_a_place_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "out")
    check_writable(tmp_path / "out")
    assert not list(tmp_path.iterdir())


_WRITER = """
import sys, time
from pathlib import Path
from talkinghead.files.atomic import staged_file
with staged_file(Path(sys.argv[1])) as scratch:
    scratch.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(600)
"""


def _start(target: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(target)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "half\n"
    return writer


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    killed, alive = _start(target), _start(target)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not target.exists() and len(list(tmp_path.iterdir())) == 2
    with staged_file(target) as scratch:
        scratch.write_bytes(b"whole")
        left = [path for path in tmp_path.iterdir() if path != scratch]
        assert len(left) == 1, "what the killed one left is gone; what another one is writing is not"
    alive.send_signal(signal.SIGKILL)
    alive.wait()
    assert target.read_bytes() == b"whole"


_FULL = """
import sys
from pathlib import Path
from talkinghead.files.atomic import staged_file
try:
    with staged_file(Path(sys.argv[1])) as scratch:
        scratch.write_bytes(b"x" * 200_000)
except OSError as error:
    print(error.errno)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    commands = f"""
mount -t tmpfs -o size=100k none '{mount}' || exit 77
echo old > '{mount}/out'
'{sys.executable}' -c '{_FULL}' '{mount}/out'
cat '{mount}/out'; ls -A '{mount}'
"""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", commands], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("this system does not allow a mount in a user namespace")
    assert done.stdout.split() == [str(errno.ENOSPC), "old", "out"], done.stdout + done.stderr


def test_two_writers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with staged_file(tmp_path / "a") as first, staged_file(tmp_path / "a") as second:
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
