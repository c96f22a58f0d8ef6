"""Files of strangers: pipes do not block, sizes and nesting have limits, links lead nowhere."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from talkinghead.files.foreign import (
    LinkError,
    open_own,
    open_regular,
    parse_json,
    read_json,
    read_limited,
    refuse_links,
    refuse_links_in,
    warn_of_owner,
)
from tests.support.deep_folders import nested_folders


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"one": [1, 2.5, "ü"]}', encoding="utf-8-sig")
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "link") == {"one": [1, 2.5, "ü"]}
    with open_regular(tmp_path / "a.json") as stream:
        assert stream.read() == read_limited(tmp_path / "a.json", 100)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for read in (open_regular, read_json, lambda path: read_limited(path, 10)):
        with pytest.raises(ValueError, match=f"{path} is a (named )?{kind}, not a file"):
            read(path)
    if kind != "device":
        with pytest.raises(ValueError, match=f"is a (named )?{kind}, not a file"):
            open_own(path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"large has 1,099,511,627,776 bytes: too large for a table, .* 100"):
        read_limited(path, 100, "table")
    path.write_bytes(b"x" * 100)
    assert read_limited(path, 100) == b"x" * 100
    with pytest.raises(ValueError, match="too large"):
        read_limited(path, 99)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[" * 200_000, "nested too deeply"), ('{"a":' * 200_000, "nested too deeply"), ("{", "no JSON"), ("", "no JSON")],
)
def test_a_text_that_is_no_json_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"its name is .*{said}") as raised:
        parse_json(text.encode(), "its name")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="its name is no JSON"):
        parse_json(b"\xff\xfe\xfa", "its name")


def test_links_below_a_folder_are_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "file").write_text("ours")
    (tmp_path / "name").symlink_to(root)  # the folder that the user named may be a link
    refuse_links(tmp_path / "name", tmp_path / "name" / "deep" / "file")
    refuse_links(root, root / "new" / "file")
    refuse_links_in(tmp_path / "name")
    for place, target in (("deep/link", outside), ("deep/file", "deep/other"), ("hanging", tmp_path / "nowhere")):
        (root / place).unlink(missing_ok=True)
        (root / place).symlink_to(target)
        with pytest.raises(ValueError, match=f"{root / place} is a link to {target}: nothing is written"):
            refuse_links(root, root / place / "new")
        with pytest.raises(ValueError, match=f"{root / place} is a link"):
            open_own(root / place)
        with pytest.raises(ValueError, match="is a link to"):
            refuse_links_in(root)
        (root / place).unlink()
    assert not list(outside.iterdir()) and not (tmp_path / "nowhere").exists()


def test_links_are_looked_for_in_folders_nested_by_the_thousand(tmp_path: Path) -> None:
    with nested_folders(tmp_path / "root" / "deep", 1500):
        refuse_links_in(tmp_path / "root")
        (tmp_path / "root" / "link").symlink_to("deep")
        with pytest.raises(LinkError, match="is a link to deep"):
            refuse_links_in(tmp_path / "root")


def test_a_file_of_ours_is_opened_without_cutting_it(tmp_path: Path) -> None:
    for content in (b"", b"whole"):
        (tmp_path / "lock").write_bytes(content)
        os.close(open_own(tmp_path / "lock"))
        assert (tmp_path / "lock").read_bytes() == content
    os.close(open_own(tmp_path / "new"))
    assert (tmp_path / "new").read_bytes() == b""


def test_a_folder_of_another_user_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_owner(tmp_path)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        if os.geteuid() == 0:
            os.chown(tmp_path, 54321, -1)
            warn_of_owner(tmp_path)
        else:
            warn_of_owner(Path("/"))
    assert "belongs to another user" in caplog.text
