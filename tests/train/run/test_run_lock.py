"""Lock of a RUN: it writes over no file of others, and says who holds it."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from train.run.run_lock import LOCK, locked, refuse_strange


def test_the_holder_is_written_down(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, 0.0):
            text = (tmp_path / LOCK).read_text()
    assert text == f"process {os.getpid()} on {socket.gethostname()}"
    (tmp_path / LOCK).write_text("process 1 on a-host-with-a-much-longer-name.of.some.cluster")
    with locked(tmp_path, 0.0):
        assert (tmp_path / LOCK).read_text() == text, "nothing is left of a longer one"


@pytest.mark.parametrize("content", [b"years of work", b"process 1 on host\nmore", b"\0" * 5000, b"process x on y"])
def test_a_file_that_is_no_lock_stays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.lock is no lock of ours: put it elsewhere"), locked(tmp_path, 0.0):
        pass
    assert (tmp_path / LOCK).read_bytes() == content


def test_a_lock_leads_to_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("process 1 on host")
    (tmp_path / LOCK).symlink_to("thesis")
    with pytest.raises(ValueError, match="is a link to thesis"), locked(tmp_path, 0.0):
        pass
    assert (tmp_path / "thesis").read_text() == "process 1 on host"
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).symlink_to("new")
    with pytest.raises(ValueError, match="is a link to new"), locked(tmp_path, 0.0):
        pass
    assert not (tmp_path / "new").exists()


def test_what_no_training_makes_is_named(tmp_path: Path) -> None:
    refuse_strange(tmp_path / "nowhere")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    refuse_strange(tmp_path)
    (deep / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match=re.escape(f"{deep / 'link'} is a link to nowhere")):
        refuse_strange(tmp_path)
    (deep / "link").unlink()
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    try:
        os.chdir(deep)  # a socket's name has at most 107 bytes
        server.bind("socket")
    finally:
        os.chdir(here)
        server.close()
    with pytest.raises(ValueError, match="is a socket, not a file"):
        refuse_strange(tmp_path)


def test_only_the_folder_of_wandb_may_hold_links(tmp_path: Path) -> None:
    for name in ("wandb", "wandb2", "a/wandb"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("nowhere")
    refuse_strange(tmp_path)
    for name in ("wandb2", "a/wandb"):
        (tmp_path / name / "link").symlink_to("nowhere")
        with pytest.raises(ValueError, match="is a link"):
            refuse_strange(tmp_path)
        (tmp_path / name / "link").unlink()
