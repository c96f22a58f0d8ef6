"""A file is whole or as it was, also when the disk is full or the writer dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from talkinghead.files.atomic import commit_folder, staged_file, staged_folder, temporary_folder, write_whole
from tests.support.disk_log import DiskLog


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


def test_what_is_written_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DiskLog.watching(monkeypatch)
    write_whole(tmp_path / "whole", b"content")
    with staged_file(tmp_path / "file") as scratch:
        scratch.write_bytes(b"content")
    with staged_folder(tmp_path / "folder") as scratch:
        (scratch / "below").mkdir()
        (scratch / "below" / "weights").write_bytes(b"content")
    for name in ("whole", "file", "folder"):
        assert log.survives_a_power_cut(tmp_path / name), f"{name}: flushed, then named, then its folder flushed"
    assert log.flushed(tmp_path / "folder" / "below" / "weights") and log.flushed(tmp_path / "folder" / "below")
    # A folder that replaces another is swapped with it: its content first, its name afterwards.
    for content in (b"first", b"second"):
        filled = temporary_folder(tmp_path / "checkpoint")
        (filled / "below").mkdir()
        (filled / "below" / "weights").write_bytes(content)
        log.events.clear()
        commit_folder(filled, tmp_path / "checkpoint")
        weights = tmp_path / "checkpoint" / "below" / "weights"
        assert weights.read_bytes() == content
        assert all(log.flushed(path) for path in (weights, weights.parent, weights.parent.parent))
        assert log.events[-1][:2] == ("flushed", (tmp_path.stat().st_dev, tmp_path.stat().st_ino))
