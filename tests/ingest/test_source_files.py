"""A stranger's SOURCE: links that lead out of it, files exchanged later, pipes, and files that are mostly holes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.__main__ import main
from ingest.catalog import build_catalog, read_catalog
from ingest.clip import ingest_clip
from ingest.fingerprints import Fingerprint, fingerprint, has_changed, read_fingerprints, write_fingerprints
from ingest.frame_folder import FrameFolder
from ingest.settings import IngestSettings
from ingest.source_files import SOURCE_BYTES, locate
from ingest.source_listing import LISTED_PROBLEMS, Problem, Problems
from talkinghead.files.storage import Storage
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.schema import CatalogRow

ADVICE = "leads out of SOURCE.*--follow-links takes it"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """SOURCE, and a folder outside it with a private video."""
    source, private = tmp_path / "in", tmp_path / "home"
    for folder in (source / "sub", private):
        folder.mkdir(parents=True)
    (source / "sub" / "real.mp4").write_bytes(b"real")
    (private / "private.mp4").write_bytes(b"private")
    return source, private


def _row(source: str, **changes: object) -> CatalogRow:
    values = {"key": "folder-a", "dataset": "folder", "source_id": "a", "split_group": "a", "licence": "x"} | changes
    return CatalogRow(source=source, **values)  # pyright: ignore[reportArgumentType]


def test_links_out_of_source_are_problems(places: tuple[Path, Path]):
    source, private = places
    (source / "file.mp4").symlink_to(private / "private.mp4")
    (source / "relative.mp4").symlink_to("../home/private.mp4")
    (source / "folder").symlink_to(private)
    (source / "frames.mp4").symlink_to(private)  # named like one input
    (source / "broken.mp4").symlink_to(private / "nothing.mp4")
    (source / "twice.mp4").symlink_to(source / "file.mp4")
    (source / "to_root").symlink_to("/")
    (source / "similar").symlink_to(f"{source}-other")  # only begins like SOURCE
    (source / "inside.mp4").symlink_to("sub/real.mp4")
    (source / "hard.mp4").hardlink_to(private / "private.mp4")
    catalog = build_catalog("folder", source)
    assert catalog.paths == ["hard.mp4", "inside.mp4", "sub/real.mp4"]
    names = ("broken.mp4", "file.mp4", "folder", "frames.mp4", "relative.mp4", "similar", "to_root", "twice.mp4")
    assert [problem.file for problem in catalog.problems] == list(names)
    assert all("--follow-links takes it" in problem.message for problem in catalog.problems)
    for name in ("to_root", "similar"):
        (source / name).unlink()
    followed = build_catalog("folder", source, follow_links=True).paths
    assert {"file.mp4", "relative.mp4", "folder/private.mp4", "frames.mp4", "broken.mp4", "twice.mp4"} <= set(followed)


def test_source_itself_may_be_a_link(places: tuple[Path, Path]):
    source, _ = places
    (link := source.parent / "link").symlink_to(source)
    (source / "inside.mp4").symlink_to("sub/real.mp4")
    catalog = build_catalog("folder", link)
    assert (catalog.paths, catalog.problems) == (["inside.mp4", "sub/real.mp4"], [])
    assert fingerprint(link, catalog.paths)["inside.mp4"].error is None


def test_a_file_that_is_exchanged_for_a_link_is_not_read(places: tuple[Path, Path]):
    source, private = places
    (known,) = fingerprint(source, build_catalog("folder", source).paths).values()
    (source / "sub" / "real.mp4").unlink()
    (source / "sub" / "real.mp4").symlink_to(private / "private.mp4")
    with pytest.raises(UnreadableMediaError, match=ADVICE):
        locate(source, known.path)
    with pytest.raises(UnreadableMediaError, match=ADVICE):
        next(
            ingest_clip(
                _row(known.path), source / known.path, IngestSettings(), None, "0", inside=source  # pyright: ignore
            )
        )  # fmt: skip
    entry = fingerprint(source, [known.path], {known.path: known})[known.path]
    assert (entry.sha256, "--follow-links" in str(entry.error)) == (None, True)
    assert has_changed(source, known)
    # The same for a folder on the way to it.
    (source / "sub" / "real.mp4").unlink()
    (source / "sub").rmdir()
    (source / "sub").symlink_to(private)
    (private / "real.mp4").write_bytes(b"real")
    os.utime(private / "real.mp4", ns=(known.mtime_ns or 0, known.mtime_ns or 0))
    assert has_changed(source, known)
    assert not has_changed(source, known, follow_links=True)
    assert fingerprint(source, [known.path])[known.path].sha256 is None
    assert fingerprint(source, [known.path], follow_links=True)[known.path].sha256 == known.sha256
    assert locate(source, known.path, follow_links=True) == private / "real.mp4"


def test_frames_that_lead_out_of_source_are_not_read(places: tuple[Path, Path]):
    source, private = places
    (folder := source / "frames").mkdir()
    image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    (folder / "0.png").write_bytes(image)
    (private / "1.png").write_bytes(image)
    (folder / "1.png").symlink_to(private / "1.png")
    (folder / "2.png").symlink_to("0.png")
    entry = fingerprint(source, ["frames"])["frames"]
    assert (entry.sha256, "--follow-links" in str(entry.error)) == (None, True)
    with pytest.raises(UnreadableMediaError, match=ADVICE):
        FrameFolder(folder, 25.0, inside=source)
    assert len(list(FrameFolder(folder, 25.0).frames())) == 3
    (folder / "1.png").unlink()
    assert len(list(FrameFolder(folder, 25.0, inside=source).frames())) == 2
    assert fingerprint(source, ["frames"])["frames"].error is None


def test_special_files_never_wait(places: tuple[Path, Path]):
    source, _ = places
    os.mkfifo(source / "pipe.mp4")
    (source / "device.mp4").symlink_to("/dev/zero")
    (source / "linked_pipe.mp4").symlink_to("pipe.mp4")
    (source / "frames.mp4").mkdir()
    os.mkfifo(source / "frames.mp4" / "0.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(source / "socket.mp4"))
        for follow_links in (False, True):
            catalog = build_catalog("folder", source, follow_links=follow_links)
            assert catalog.paths == ["frames.mp4", "sub/real.mp4"]
            files = [problem.file for problem in catalog.problems]
            assert files == ["device.mp4", "linked_pipe.mp4", "pipe.mp4", "socket.mp4"]
    for name in ("pipe.mp4", "linked_pipe.mp4", "device.mp4"):
        with pytest.raises(UnreadableMediaError, match="neither a file nor a folder"):
            locate(source, name, follow_links=True)
        assert fingerprint(source, [name], follow_links=True)[name].sha256 is None
    with pytest.raises(ValueError, match="named pipe"):
        FrameFolder(source / "frames.mp4", 25.0)
    # Exchanged for a pipe after the catalog was made.
    (known,) = fingerprint(source, ["sub/real.mp4"]).values()
    (source / "sub" / "real.mp4").unlink()
    os.mkfifo(source / "sub" / "real.mp4")
    assert has_changed(source, known)
    assert fingerprint(source, [known.path], {known.path: known})[known.path].sha256 is None


def _sparse(file: Path, size: int, data: int = 0) -> None:
    """Make a file that holds `data` bytes at its end, and holes before."""
    file.write_bytes(b"")
    os.truncate(file, size - data)
    with file.open("ab") as stream:
        stream.write(os.urandom(data))
    if file.stat().st_blocks * 512 >= size // 64:
        pytest.skip("this file system has no sparse files")


def test_sparse_files_are_not_hashed(places: tuple[Path, Path]):
    source, _ = places
    _sparse(source / "empty.mp4", 1 << 40)
    _sparse(source / "nearly.mp4", 1 << 33, data=1 << 20)
    _sparse(source / "small.mp4", 1 << 20)  # hashed in no time
    catalog = build_catalog("folder", source)
    assert catalog.paths == ["small.mp4", "sub/real.mp4"]
    messages = [(problem.file, problem.message) for problem in catalog.problems]
    assert messages[0] == ("empty.mp4", f"has {1 << 40:,} bytes; a source may have {SOURCE_BYTES:,}")
    assert messages[1][1].startswith("is mostly holes: 8,589,934,592 bytes, of which ")
    for entry in fingerprint(source, ["empty.mp4", "nearly.mp4"]).values():  # exchanged after the catalog was made
        assert entry.sha256 is None


def test_a_file_that_is_half_there_is_read(places: tuple[Path, Path]):
    source, _ = places
    _sparse(source / "part.mp4", 1 << 30, data=(1 << 24) - 8192)
    assert "part.mp4" not in build_catalog("folder", source).paths
    with (source / "part.mp4").open("r+b") as stream:
        stream.write(os.urandom(1 << 20))
    assert "part.mp4" in build_catalog("folder", source).paths


def test_problems_are_counted_and_printable():
    problems = Problems(most=3 * LISTED_PROBLEMS)
    for number in range(3 * LISTED_PROBLEMS):
        problems.append(Problem(file="a", message=f"{number}"))
    assert len(problems) == LISTED_PROBLEMS + 1
    with pytest.raises(ValueError, match="a: more than 30,000 lines"):
        problems.append(Problem(file="a", message="x"))
    problem = Problem(file="\x1b[2J\n\udcff", message="x\n" + "y" * 10**6 + "\u202e")
    assert str(problem).isprintable() and len(str(problem)) < 1100
    assert Problem(file=problem.file, message=problem.message) == problem


def test_the_catalog_command_follows_links_when_it_is_told_to(
    places: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
):
    source, private = places
    (source / "file\n\x1b[2J.mp4").symlink_to(private / "private.mp4")
    data = source.parent / "data"
    arguments = ["catalog", "--dataset", "folder", "--source", str(source), "--data", str(data)]
    assert main(arguments) == 0
    lines = capfd.readouterr().err.splitlines()
    assert all(line.isprintable() for line in lines)
    assert any("leads out of SOURCE" in line for line in lines)
    assert read_catalog(Storage(data), "folder").paths == ["sub/real.mp4"]
    assert main([*arguments, "--follow-links"]) == 0
    assert len(read_catalog(Storage(data), "folder").paths) == 2


def test_errors_of_any_name_can_be_stored(places: tuple[Path, Path]):
    source, private = places
    name = "new\nline \udcff\x1b[2J.mp4"
    (source / name).symlink_to(private / "private.mp4")
    prints = fingerprint(source, [name])
    assert str(prints[name].error).isprintable()
    write_fingerprints(storage := Storage(source.parent / "data"), "folder", prints)
    assert read_fingerprints(storage, "folder") == prints
    with pytest.raises(UnreadableMediaError) as refused:
        locate(source, name)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_error_entries_are_looked_at_again(places: tuple[Path, Path]):
    source, _ = places
    old = Fingerprint(path="sub/real.mp4", size=None, mtime_ns=None, sha256=None, error="gone")
    assert fingerprint(source, [old.path], {old.path: old})[old.path].error is None
