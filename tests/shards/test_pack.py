"""Packing copies the same bytes every time, and notices when a unit's file does not match its record."""

from __future__ import annotations

import hashlib

import pytest

from shards.pack import pack_shard
from talkinghead.files.storage import Storage
from talkinghead.sampletar import pack_samples
from tests.support.packed_data import write_unit
from tests.support.tars import read_tar

CONTENTS = {
    f"key-{n}": {"json": b"{}" * n, "mp4": bytes([n]) * (700 * n), "landmarks.npy": b"x" * 512 * n} for n in range(5)
}


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


@pytest.fixture
def planned(storage):
    """Five samples in three unit files."""
    found = {}
    for name, keys in (("a", [0, 1]), ("b", [2]), ("c", [3, 4])):
        found |= write_unit(storage, f"units/x/{name}.tar", [(f"key-{n}", CONTENTS[f"key-{n}"]) for n in keys])
    return found


def test_shard_equals_a_tar_written_at_once(storage, planned, tmp_path):
    order = ["key-3", "key-0", "key-4", "key-2", "key-1"]
    packed = pack_shard(storage, [planned[key] for key in order], tmp_path / "out.tar")
    data = (tmp_path / "out.tar").read_bytes()
    assert data == pack_samples([(key, CONTENTS[key]) for key in order])
    assert (packed.size, packed.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [key for key, _ in read_tar(data)] == order
    for sample in packed.samples:
        for member in sample.members:
            assert data[member.offset : member.offset + member.size] == CONTENTS[sample.key][member.suffix]


def test_empty_shard(storage, tmp_path):
    assert pack_shard(storage, [], tmp_path / "out.tar").size == 1024


@pytest.mark.parametrize("damage", ["other key", "other size", "cut short", "header bit", "padding bit"])
def test_replaced_unit_file_is_found(storage, planned, tmp_path, damage):
    path = tmp_path / "units/x/b.tar"
    data = bytearray(path.read_bytes())
    match damage:
        case "other key":
            data = bytearray(pack_samples([("key-9", CONTENTS["key-2"])]))
        case "other size":
            data = bytearray(pack_samples([("key-2", CONTENTS["key-2"] | {"json": b"{}"})]))
        case "cut short":
            del data[2000:]
        case "header bit":
            data[100] ^= 1
        case "padding bit":
            data[512 + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"b\.tar"):
        pack_shard(storage, list(planned.values()), tmp_path / "out.tar")


def test_missing_file_and_double_key(storage, planned, tmp_path):
    with pytest.raises(ValueError, match="twice"):
        pack_shard(storage, [planned["key-1"], planned["key-1"]], tmp_path / "out.tar")
    (tmp_path / "units/x/b.tar").unlink()
    with pytest.raises(FileNotFoundError):
        pack_shard(storage, list(planned.values()), tmp_path / "out.tar")
