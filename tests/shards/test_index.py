"""The index gives back the rows it was made of, in the same bytes each time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.index import build_index, parse_index, write_index
from talkinghead.files.storage import Storage
from talkinghead.schema import Member, SampleIndex


def row(shard: int = 0, ordinal: int = 0, **changes) -> SampleIndex:
    plain = SampleIndex(
        key=f"folder-{shard}-{ordinal}",
        clip_key=f"folder-{shard}",
        dataset="folder",
        shard=shard,
        ordinal=ordinal,
        num_frames=100,
        split="train",
        split_group="g",
        person=None,
        licence="CC0-1.0",
        keep=True,
        reason=None,
        reason_score=None,
        media=[Member(suffix="json", offset=512, size=3), Member(suffix="mp4", offset=2**40, size=2**33)],
        annotation=[Member(suffix="ann.json", offset=512, size=3), Member(suffix="mesh.npy", offset=1536, size=9)],
        scores={"sharpness": 0.5, "yaw": None},
    )
    return dataclasses.replace(plain, **changes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.sampled_from(["train", "val"])), max_size=6))
def test_round_trip(tmp_path_factory, shape):
    rows = [
        row(
            shard,
            ordinal,
            split=split,
            keep=keep,
            reason=None if keep else "blur",
            reason_score=None if keep else 0.25,
            person="p" if ordinal % 2 else None,
            annotation=[] if not keep else row().annotation,
            scores={"sharpness": 1.0 * ordinal} | ({"late": 2.0} if shard else {}),
        )
        for shard, (count, keep, split) in enumerate(shape)
        for ordinal in range(count)
    ]
    storage = Storage(tmp_path_factory.mktemp("index"))
    path, sha256 = write_index(storage, build_index("v1", iter(rows)))
    index = parse_index(storage.read(path), "v1", path)
    names = {name for r in rows for name in r.scores}
    expected = [dataclasses.replace(r, scores={n: r.scores.get(n) for n in names}) for r in rows]
    assert list(index.rows()) == expected
    assert [index.row(i) for i in range(len(index))] == expected
    assert write_index(storage, build_index("v1", rows)) == (path, sha256)
    assert write_index(storage, index) == (path, sha256)
    for shard in range(len(shape)):
        assert list(index.rows(index.shard_rows(shard))) == [r for r in expected if r.shard == shard]


def test_columns_are_flat_and_vectorised(tmp_path):
    storage = Storage(tmp_path)
    rows = [row(0, 0), row(0, 1, annotation=[], keep=False, reason="annotate_failed"), row(2, 0)]
    path, _ = write_index(storage, build_index("v1", rows))
    table = pq.read_table(tmp_path / path)
    assert {"mp4_offset", "mp4_size", "json_offset", "ann_json_size", "mesh_offset", "score_yaw"} <= {
        *table.column_names
    }
    assert table.schema.field("mp4_offset").type == pa.int64()
    index = parse_index(storage.read(path), "v1", path)
    assert index.numbers("mp4_offset").tolist() == [2**40] * 3
    assert index.has_member("mesh.npy").tolist() == [True, False, True]
    assert index.member("mesh.npy", 1) is None
    assert index.equals("reason", "annotate_failed").tolist() == [False, True, False]
    assert np.isnan(index.numbers("score_yaw")).all()
    assert index.members["annotation"] == ("ann.json", "mesh.npy")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, 0), row(0, 0)], "does not follow"),
        ([row(0, 1)], "does not follow"),
        ([row(1, 0), row(0, 0)], "does not follow"),
        ([row(0, 0), row(1, 0, key="folder-0-0")], "twice"),
        ([row(split="dev")], "split"),
        ([row(keep=False)], "reason"),
        ([row(reason="blur")], "reason"),
        ([row(annotation=[Member(suffix="json", offset=1, size=1)])], "json_offset"),
    ],
)
def test_wrong_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        build_index("v1", rows)


def test_other_schema_and_other_files_are_refused(tmp_path):
    storage = Storage(tmp_path)
    index = build_index("v1", [row()])
    path, _ = write_index(storage, index)
    with pytest.raises(ValueError, match="index of 'v1', not of v2"):
        parse_index(storage.read(path), "v2", path)
    newer = index.table.schema.metadata[b"talkinghead"].replace(b'"schema_version": 1', b'"schema_version": 2')
    index.table = index.table.replace_schema_metadata({b"talkinghead": newer})
    other, _ = write_index(storage, index)
    assert other != path, "another content has another name"
    with pytest.raises(ValueError, match="schema 2"):
        parse_index(storage.read(other), "v1", other)
    with pytest.raises(ValueError, match="no readable table"):
        parse_index(b"PAR1 and no more", "v1", "file")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table")
    with pytest.raises(ValueError, match="not an index"):
        parse_index((tmp_path / "table").read_bytes(), "v1", "file")
