"""Samples come out of a tar as they went in, with one read."""

from __future__ import annotations

import io

import pytest

from talkinghead.files.storage import Storage
from talkinghead.sampletar import pack_samples, read_members, write_sample
from talkinghead.schema import Member

FIRST = {"json": b"{}", "mp4": bytes(range(256)) * 5, "wav": b"sound" * 200}
SECOND = {"json": b"[]", "mp4": b"other", "wav": b""}


@pytest.fixture
def storage(tmp_path) -> Storage:
    storage = Storage(tmp_path)
    storage.write("clips.tar", pack_samples([("first", FIRST), ("second", SECOND)]))
    return storage


def places() -> list[Member]:
    """Places of the second sample's members."""
    sink = io.BytesIO()
    write_sample(sink, 0, "first", FIRST)
    return write_sample(sink, sink.tell(), "second", SECOND)


def test_members_come_back_with_one_read(storage: Storage) -> None:
    reads = []

    def read(path: str, offset: int, length: int) -> bytes:
        reads.append(length)
        return storage.read_range(path, offset, length)

    assert read_members(read, "clips.tar", "second", places()) == SECOND
    assert read_members(read, "clips.tar", "second", places()[::-1], "mp4", "json") == {"mp4": b"other", "json": b"[]"}
    assert len(reads) == 2


def test_a_member_that_is_not_there_is_named(storage: Storage) -> None:
    with pytest.raises(ValueError, match=r"clips\.tar has no second\.npy"):
        read_members(storage.read_range, "clips.tar", "second", places(), "mp4", "npy")
