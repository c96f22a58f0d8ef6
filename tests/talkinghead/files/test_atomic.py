"""A file is whole or as it was, also when the disk is full or the writer dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.files.atomic import write_whole


def test_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_no_space_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the write fails half way."""
    path = tmp_path / "file.bin"
    write_whole(path, b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from talkinghead.files.atomic import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_whole(Path(sys.argv[1]), bytes(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"exists|directory"):
        write_whole(tmp_path / "file" / "below", b"x")
