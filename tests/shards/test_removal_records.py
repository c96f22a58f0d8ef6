"""Records of removals: they know what was removed, and name nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shards.removal_records import (
    PENDING,
    Piece,
    RemovalList,
    RemovalRecord,
    digests,
    find_pending,
    hashed,
    new_pending,
    read_keys,
    write_pending,
    write_record,
)
from talkinghead.files.storage import Storage


def record(salt: str, *keys: str) -> RemovalRecord:
    return RemovalRecord(
        time="2026-11-30T00:00:00+00:00",
        removed=len(keys),
        unpacked=0,
        inputs=0,
        versions=[],
        salt=salt,
        keys=digests(salt, "key", keys),
        persons=digests(salt, "person", ["Ann Example"]),
    )


def test_several_removals_are_one_list(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert not RemovalList(storage) and not RemovalList(storage).has("key", "a")
    for number, keys in enumerate((("a", "b"), ("c",))):
        write_record(storage, f"removed/20261130T00000{number}Z-0000000{number}.json", record(f"salt{number}", *keys))
    storage.write("removed/mine.json", b"not ours")
    found = RemovalList(storage)
    assert [key for key in "abcd" if found.has("key", key)] == ["a", "b", "c"]
    assert found.has("person", "Ann Example") and not found.has("key", "Ann Example")
    # Salted: the same name has another hash in each.
    assert found.records[0].persons != found.records[1].persons
    text = "".join(path.read_text() for path in (tmp_path / "removed").iterdir())
    assert "Ann" not in text


def test_a_record_is_written_once(tmp_path: Path) -> None:
    storage, path = Storage(tmp_path), "removed/20261130T000000Z-00000000.json"
    write_record(storage, path, record("one", "a"))
    write_record(storage, path, record("two", "b"))
    assert [found.salt for found in RemovalList(storage).records] == ["one"]


def test_a_piece_is_known_by_its_place_else_by_its_key(tmp_path: Path) -> None:
    source, other = "a" * 64, "b" * 64
    pieces = [Piece(key="k-cut00", content=source, start_s=10.0, end_s=20.0), Piece(key="k-cut07")]
    about = replace(record("s", "k-cut00", "k-cut07"), pieces=[hashed("s", piece) for piece in pieces])
    assert not RemovalList(Storage(tmp_path)).has_pieces
    write_record(Storage(tmp_path), "removed/20261130T000000Z-00000000.json", about)
    found = RemovalList(Storage(tmp_path))
    assert found.has_pieces and found.has_pieces_of(source) and not found.has_pieces_of(other)
    # Whatever its key is now; pieces that only touch are others.
    assert found.has_piece("k-cut03", source, (19.0, 25.0)) and found.has_piece("x", source, (12.0, 13.0))
    assert not found.has_piece("k-cut00", source, (20.0, 25.0)) and not found.has_piece("k-cut01", source, (0.0, 10.0))
    # Of another file, or where the place is not known, the key decides; so for a piece whose place never was.
    assert found.has_piece("k-cut00", other, (0.0, 1.0)) and found.has_piece("k-cut00", source, None)
    assert found.has_piece("k-cut07", source, (50.0, 60.0)) and not found.has_piece("k-cut08", source, (50.0, 60.0))
    with pytest.raises(ValueError, match="half an interval"):
        Piece(key="a", start_s=1.0)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"salt": 1}', b"\xff"])
def test_a_damaged_record_is_no_empty_list(tmp_path: Path, content: bytes) -> None:
    storage = Storage(tmp_path)
    storage.write("removed/20261130T000000Z-00000000.json", content)
    with pytest.raises(ValueError, match=r"is no record of a removal .*might come back"):
        RemovalList(storage)
    storage.write(PENDING, content)
    with pytest.raises(ValueError, match="is no note of a removal"):
        find_pending(storage)


def test_what_is_under_way_comes_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert find_pending(storage) is None
    pending = new_pending(samples=["a"], clips=[], contents=[], persons=["Ann Example"], counts=[])
    write_pending(storage, pending)
    assert find_pending(storage) == pending
    assert new_pending().salt != pending.salt


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no key"),
        (b"\n  \n", "names no key"),
        (b"a b\n", "is no key"),
        (b"a\n../b\n", "is no key"),
        (b"\xff\xfe", "is no text file"),
    ],
)
def test_a_file_of_keys_that_is_none_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_keys(tmp_path / "keys")


def test_keys_stand_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b" a-1 \r\n\nb_2\n")
    assert read_keys(tmp_path / "keys") == ["a-1", "b_2"]
    with pytest.raises(ValueError, match="there is no file"):
        read_keys(tmp_path / "none")
