"""Split groups and persons out of the paths of a plain folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.catalog import build_catalog, read_catalog, write_catalog
from ingest.path_groups import path_groups
from talkinghead.files.storage import Storage

TREE = ("id1/v1/a.mp4", "id1/v2/a.mp4", "id2/v1/a.mp4", "top.mp4")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("parent", ["id1/v1", "id1/v2", "id2/v1", None]),
        ("level:1", ["id1", "id1", "id2", None]),
        ("level:2", ["v1", "v2", "v1", None]),
        ("level:3", [None, None, None, None]),
        ("regex:^(id[0-9]+)/", ["id1", "id1", "id2", None]),
        ("regex:id[12]", ["id1", "id1", "id2", None]),
        ("regex:(x?)", [None, None, None, None]),
        ("none", [None, None, None, None]),
    ],
)
def test_rules(rule: str, expected: list[str | None]) -> None:
    assert [path_groups(rule)(path) for path in TREE] == expected


@pytest.mark.parametrize(
    "rule", ["", "parents", "level", "level:0", "level:-1", "level:x", "regex:", "regex:(", "None"]
)
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="--group-by"):
        path_groups(rule)


def test_rows_get_group_and_person(tmp_path: Path) -> None:
    for path in TREE:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    plain = build_catalog("folder", tmp_path)
    made = build_catalog("folder", tmp_path, group_by="level:1")
    assert [row.key for row in made.rows] == [row.key for row in plain.rows], "keys are those of the paths"
    groups = {row.source: (row.split_group, row.person) for row in made.rows}
    assert groups["id1/v1/a.mp4"] == groups["id1/v2/a.mp4"] == ("id1", "id1")
    assert groups["id2/v1/a.mp4"] == ("id2", "id2")
    top = next(row for row in made.rows if row.source == "top.mp4")
    assert (top.split_group, top.person) == (top.key, None)
    # The rule is kept, so that the next command has it.
    storage = Storage(tmp_path / "data")
    write_catalog(storage, made)
    assert read_catalog(storage, "folder") == made


def test_long_and_odd_names_of_folders_are_groups_too(tmp_path: Path) -> None:
    deep = "/".join(["a" * 200] * 6)
    (tmp_path / deep).mkdir(parents=True)
    (tmp_path / deep / "x.mp4").write_bytes(b"x")
    (tmp_path / "line\nbreak").mkdir()
    (tmp_path / "line\nbreak" / "y.mp4").write_bytes(b"y")
    groups = [row.split_group for row in build_catalog("folder", tmp_path, group_by="parent").rows]
    assert all(len(group) <= 1000 and group.isprintable() for group in groups) and len(set(groups)) == 2


def test_metadata_name_the_groups_of_other_data_sets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain folders"):
        build_catalog("hdtf", tmp_path, group_by="parent")


def test_a_rule_that_fits_no_file_is_an_error_and_one_that_fits_some_is_said(tmp_path: Path) -> None:
    for name in ("a/1/x.mp4", "a/2/x.mp4", "a/3/x.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    for rule in ("level:4", r"regex:id(\d+)"):
        with pytest.raises(ValueError, match=r"finds no group in the path of any file .*a/1/x\.mp4: name another rule"):
            build_catalog("folder", tmp_path, group_by=rule)
    assert not build_catalog("folder", tmp_path, group_by="none").problems
    assert not build_catalog("folder", tmp_path, group_by="parent").problems
    # As where SOURCE is given one folder higher: all are one person.
    [problem] = build_catalog("folder", tmp_path, group_by="level:1").problems
    assert str(problem) == "a: --group-by level:1 puts 3 files in one group, and so in one split"
    (tmp_path / "top.mp4").write_bytes(b"x")
    (tmp_path / "up.mp4").write_bytes(b"x")
    [problem] = build_catalog("folder", tmp_path, group_by="parent").problems
    assert problem.file == "top.mp4" and "finds no group for 2 of 5 files" in problem.message
