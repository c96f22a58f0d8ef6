"""The plain folder: one row per file, whatever its name, and nothing lost from the count."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.catalog import build_catalog, read_catalog, write_catalog
from ingest.source_listing import display_path, from_stored, to_stored
from talkinghead.files.storage import Storage
from talkinghead.schema import KEY_PATTERN

AWKWARD = [
    *("a+b.mp4", "hash#1.mp4", "it's.mp4", 'say "hi".mp4', "x;rm -rf.mp4", "$(touch owned).mp4", "$HOME.mp4"),
    *(" leading blank.mp4", "trailing blank.mp4 ", "-leading.mp4", "--help", "Größe 日本語 🎬.mp4", "new\nline.mp4"),
    *("undecodable\udcff\udc80.mp4", "no suffix", "a.b.c.tar.gz", "%41.mp4", "back\\slash.mp4", "tab\t.mp4", "*?.mp4"),
]


def test_real_clips_are_eight_rows(media: Path):
    catalog = build_catalog("folder", media / "video")
    assert len(catalog.rows) == 8
    assert catalog.problems == []
    assert all((media / "video" / str(row.source)).is_file() for row in catalog.rows)


def test_awkward_names_give_rows_that_open_the_file(tmp_path: Path):
    source = tmp_path / "in"
    for index, name in enumerate(AWKWARD):
        folder = source / ("sub dir'" if index % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(index))
    catalog = build_catalog("folder", source)
    assert len(catalog.rows) == len({row.key for row in catalog.rows}) == len(AWKWARD)
    assert sorted((source / str(row.source)).read_text() for row in catalog.rows) == sorted(
        str(index) for index in range(len(AWKWARD))
    )
    assert all(KEY_PATTERN.fullmatch(row.key) and row.key.startswith("folder-") for row in catalog.rows)
    assert all(row.source_id.isprintable() and row.source_id.encode() for row in catalog.rows)
    storage = Storage(tmp_path / "data")
    write_catalog(storage, catalog)
    assert read_catalog(storage, "folder") == catalog


def test_every_file_is_a_row_and_hidden_ones_are_not(tmp_path: Path):
    for name in ("a.mp4", "notes.txt", "empty.mov", "photo.JPG", "speech.wav", "table.csv", "sub/deep/b.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (".hidden.mp4", ".git/x.mp4", "sub/.cache/y.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder.mp4" / "inside.mp4").touch()
    catalog = build_catalog("folder", tmp_path)
    assert sorted(str(row.source) for row in catalog.rows) == [
        *("a.mp4", "empty.mov", "folder.mp4", "notes.txt", "photo.JPG", "speech.wav", "sub/deep/b.mkv", "table.csv")
    ]


def test_links(tmp_path: Path):
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (source / "real").mkdir(parents=True)
    elsewhere.mkdir()
    for file in (source / "real" / "a.mp4", elsewhere / "b.mp4"):
        file.touch()
    (source / "a_link_before_real").symlink_to("real")
    (source / "real" / "loop").symlink_to(source)
    (source / "self").symlink_to("self")
    (source / "broken.mp4").symlink_to("nowhere.mp4")
    (source / "outside").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(source)
    catalog = build_catalog("folder", source)
    assert sorted(str(row.source) for row in catalog.rows) == ["broken.mp4", "real/a.mp4", "self"]
    assert sorted(problem.file for problem in catalog.problems) == ["a_link_before_real", "outside", "real/loop"]
    catalog = build_catalog("folder", source, follow_links=True)
    assert sorted(str(row.source) for row in catalog.rows) == ["broken.mp4", "outside/b.mp4", "real/a.mp4", "self"]
    assert sorted(problem.file for problem in catalog.problems) == ["a_link_before_real", "outside/back", "real/loop"]


def test_pipes_and_sockets_are_listed_and_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        catalog = build_catalog("folder", tmp_path)
    assert catalog.rows == []
    assert [problem.file for problem in catalog.problems] == ["pipe.mp4", "socket.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_is_a_problem(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0)
    try:
        catalog = build_catalog("folder", tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert [problem.file for problem in catalog.problems] == ["closed"]


def test_data_inside_source_is_left_out(tmp_path: Path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "clips-000000.tar").touch()
    assert len(build_catalog("folder", tmp_path, exclude=[tmp_path / "build"]).rows) == 1
    with pytest.raises(ValueError, match="both"):
        build_catalog("folder", tmp_path, exclude=[tmp_path])


def test_wrong_arguments(tmp_path: Path):
    (tmp_path / "file").touch()
    for source, message in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "is not a folder")):
        with pytest.raises(ValueError, match=message):
            build_catalog("folder", source)
    with pytest.raises(ValueError, match="has no metadata"):
        build_catalog("folder", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="limit is 0"):
        build_catalog("folder", tmp_path, limit=0)
    with pytest.raises(ValueError, match="choose one of hdtf, celebv-hq, vfhq, folder"):
        build_catalog("voxceleb", tmp_path)


file_names = st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b).map(os.fsdecode)


@given(file_names)
def test_stored_path_round_trip(name: str):
    assert from_stored(to_stored(name)) == name
    assert to_stored(name).encode("utf-8")
    assert display_path(name).isprintable()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(
        st.binary(min_size=1, max_size=12).filter(lambda b: not set(b"\0/") & set(b) and not b.startswith(b".")),
        min_size=1,
        max_size=6,
    )
)
@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses undecodable names")
def test_any_set_of_names_is_counted(tmp_path_factory: pytest.TempPathFactory, names: set[bytes]):
    source = tmp_path_factory.mktemp("names")
    for name in names:
        (source / os.fsdecode(name)).touch()
    catalog = build_catalog("folder", source)
    assert {os.fsencode(str(row.source)) for row in catalog.rows} == names
