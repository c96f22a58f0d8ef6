"""Versions that do not fit together are refused by name, before anything of them is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shards.index import build_index, read_index, write_index
from shards.manifest import read_manifest, write_manifest
from shards.reader import ShardReader
from talkinghead.column import Column
from talkinghead.derived import ColumnVersion
from talkinghead.files.storage import Storage
from tests.support.packed_data import add_derived, npy
from tests.support.shard_data import add_trace, made_of, sample_key

FACTOR = Column("factor", (), "", np.dtype("<f4"), rows="clip")


def add_factor(storage: Storage, value: float = 1.0, about: ColumnVersion | None = None, **options) -> str:
    """A version of a column `factor`, of clips 0 and 1."""
    contents = {sample_key(number): {"factor.npy": npy(np.full(1, value, "<f4"))} for number in range(2)}
    return add_derived(storage, about or made_of("factor", [FACTOR]), contents, **options)


def with_settings(column: str, **changes) -> ColumnVersion:
    return made_of(column, [FACTOR] if column == "factor" else (), **changes)


def test_a_column_is_named_by_itself_or_with_its_version(copied):
    old = add_factor(copied, 1.0)
    new = add_factor(copied, 2.0, with_settings("factor", parameters={"size": 2}))
    for name, version, value in (
        ("factor", new, 2.0),
        (f"factor@{old}", old, 1.0),
        (old, old, 1.0),
        (f"factor@{new}", new, 2.0),
    ):
        reader = ShardReader(copied, join=(name, version), columns=("factor",))
        assert reader.joined == {"factor": version}
        assert reader.find(sample_key(1)).annotation("factor", 7, 3).tolist() == [value]
    with pytest.raises(ValueError, match=f"{old} and {new} are versions of the same column"):
        ShardReader(copied, join=(old, new))
    for wrong in ("facto", "factor@factor-000000000000", f"trace@{old}", "v1", "annotation", "annotation@v1"):
        with pytest.raises(ValueError, match=r"no derived column '.*make derive COLUMNS="):
            ShardReader(copied, join=(wrong,))


def test_columns_of_different_fits_are_refused(copied):
    one, two = "1" * 64, "2" * 64
    first = add_factor(copied, 1.0, with_settings("factor", fits={"basis": one, "faces": one}))
    other = add_derived(copied, with_settings("other", fits={"basis": two}), {})
    same = add_derived(copied, with_settings("same", fits={"basis": one, "voices": two}), {})
    assert ShardReader(copied, join=(first, same)).joined == {"factor": first, "same": same}
    for pair in ((first, other), (other, first)):
        with pytest.raises(ValueError, match=r"different fits of 'basis'") as raised:
            ShardReader(copied, join=pair)
        assert first in str(raised.value) and other in str(raised.value) and "\n" not in str(raised.value)


def test_a_column_that_pins_another_version_of_a_joined_one_is_refused(copied):
    old = add_factor(copied, 1.0)
    new = add_factor(copied, 2.0, with_settings("factor", parameters={"size": 2}))
    user = add_derived(copied, with_settings("user", pins={"annotation": "v1", "factor": old}), {})
    assert ShardReader(copied, join=("user", old)).joined == {"user": user, "factor": old}
    for pair in (("user", "factor"), ("factor", "user")):
        with pytest.raises(ValueError, match=f"{user} was made from {old}, which is not {new}: join factor@{old}"):
            ShardReader(copied, join=pair)


def add_annotation(storage: Storage, version: str) -> None:
    """A second face annotation with the same rows and the same shards."""
    manifest = read_manifest(storage)
    entry = manifest.annotation()
    index, sha256 = write_index(storage, build_index(version, read_index(storage, entry).rows()))
    new = dataclasses.replace(entry, version=version, index=index, index_sha256=sha256, shards=[])
    faces, derived = manifest.of_kind("annotation"), [e for e in manifest.annotations if e.kind != "annotation"]
    write_manifest(storage, dataclasses.replace(manifest, annotations=[*faces, new, *derived]))


def test_a_column_of_another_annotation_is_refused_unless_it_needs_none(copied):
    made = add_factor(copied)
    free = add_derived(copied, with_settings("free", pins={}), {})
    assert ShardReader(copied, join=(made, free)).joined == {"factor": made, "free": free}
    add_annotation(copied, "v2")
    assert ShardReader(copied).version == "v2"
    with pytest.raises(ValueError, match=f"{made} was made from the annotation v1, not from v2.*read version v1"):
        ShardReader(copied, join=(made,))
    assert ShardReader(copied, version="v1", join=(made, free)).joined == {"factor": made, "free": free}
    assert ShardReader(copied, join=(free,)).joined == {"free": free}


def test_versions_of_other_samples_are_refused(copied):
    version = add_factor(copied)
    manifest = read_manifest(copied)
    entry = manifest.annotation(version)
    rows = list(read_index(copied, entry).rows())
    for changed in (rows[:-1], [*rows[:-1], dataclasses.replace(rows[-1], key="folder-other")]):
        index, sha256 = write_index(copied, build_index(version, changed))
        broken = dataclasses.replace(entry, index=index, index_sha256=sha256)
        write_manifest(copied, dataclasses.replace(manifest, annotations=[manifest.annotation(), broken]))
        with pytest.raises(ValueError, match=r"do not hold the same samples.*make derive COLUMNS=factor"):
            ShardReader(copied, join=("factor",))
    copied.write(entry.index, copied.read(index))
    write_manifest(copied, manifest)
    with pytest.raises(ValueError, match="not the index that"):
        ShardReader(copied, join=("factor",))


def test_two_columns_with_an_array_of_one_name_are_refused(copied):
    """Which of them is meant could not be told; nor may a column take the place of the annotation's."""
    version = add_factor(copied)
    twin = add_derived(copied, made_of("twin"), {sample_key(0): {"factor.npy": npy(np.ones(1, "<f4"))}})
    with pytest.raises(ValueError, match=rf"{version} and {twin} both have factor\.npy"):
        ShardReader(copied, join=("factor", "twin"))
    thief = add_derived(copied, made_of("thief"), {sample_key(0): {"mesh.npy": npy(np.ones(1, "<f4"))}})
    with pytest.raises(ValueError, match=rf"v1 and {thief} both have mesh\.npy"):
        ShardReader(copied, join=("thief",))


def test_a_derived_version_can_be_read_alone(copied):
    version = add_trace(copied)
    reader = ShardReader(copied, version=version, split=None, kept=False)
    assert reader.version == version and reader.joined == {}
    assert reader.find(sample_key(1)).annotation("trace_fast", 2, 3).shape == (6, 3)
    with pytest.raises(ValueError, match=rf"{version} has no 'mesh'|no 'mesh' in annotation version {version}"):
        reader[0].annotation("mesh")
