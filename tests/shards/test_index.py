"""The index gives back the rows it was made of, in the same bytes each time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import index as index_module
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
            labels={"mood": ("happy", "très triste")[ordinal % 2]} | ({"late": "yes"} if shard else {}),
            notes=["deinterlaced", "2 broken packets skipped"][: ordinal % 3],
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


@pytest.mark.skipif(pa.__version__ != "26.0.1", reason="another pyarrow may write other bytes")
def test_an_index_without_labels_keeps_its_bytes(tmp_path):
    """Its name is a hash of them: data sets of earlier releases stay as they are."""
    rows = [
        row(0, 0),
        row(0, 1, annotation=[], keep=False, reason="blur", reason_score=0.25, scores={"late": 2.0}),
        row(2, 0, person="p"),
    ]
    _, sha256 = write_index(Storage(tmp_path), build_index("v1", rows))
    assert sha256 == "564938d19769dd86e22af75c1b7b877dc216f112c6805acaa437408266f97f12"


def test_notes(tmp_path):
    storage = Storage(tmp_path)
    rows = [row(0, 0), row(0, 1, notes=["hlg tone-mapped to BT.709", "äh…"]), row(1, 0, notes=["deinterlaced"])]
    path, sha256 = write_index(storage, build_index("v1", rows))
    schema = pq.read_schema(tmp_path / path)
    assert schema.names[-1] == "notes" and schema.field("notes").nullable
    index = parse_index(storage.read(path), "v1", path)
    assert [r.notes for r in index.rows()] == [r.notes for r in rows] == [index.row(i).notes for i in range(3)]
    assert write_index(storage, index) == (path, sha256)
    # Without notes there is no column, so that the bytes are those of an index from before there were notes.
    plain = [dataclasses.replace(r, notes=[]) for r in rows]
    bare, _ = write_index(storage, build_index("v1", plain))
    assert "notes" not in pq.read_schema(tmp_path / bare).names
    assert [r.notes for r in parse_index(storage.read(bare), "v1", bare).rows()] == [[], [], []]


@pytest.mark.parametrize("note", ["", "a\nb", "\x1b[2J", "x" * 501])
def test_a_note_is_a_short_printable_line(note):
    with pytest.raises(ValueError, match=r"a note is .*, must have 1 to 500 printable characters"):
        build_index("v1", [row(0, 0, notes=["fine", note])])
    with pytest.raises(ValueError, match="has more than 64 notes"):
        build_index("v1", [row(0, 0, notes=["fine"] * 65)])


def test_labels(tmp_path):
    storage = Storage(tmp_path)
    rows = [row(0, 0), row(0, 1, labels={"mood": "sad", "age": "old"}), row(0, 2, labels={"mood": "happy"})]
    path, sha256 = write_index(storage, build_index("v1", rows))
    schema = pq.read_schema(tmp_path / path)
    assert schema.names[-2:] == ["label_age", "label_mood"], "sorted"
    assert all(schema.field(name).nullable and pa.types.is_dictionary(schema.field(name).type)
               for name in schema.names[-2:])  # fmt: skip
    index = parse_index(storage.read(path), "v1", path)
    assert index.label_names == ["age", "mood"]
    assert index.label("mood").tolist() == [None, "sad", "happy"]
    assert index.equals("label_mood", "sad", "glad").tolist() == [False, True, False]
    assert index.distinct("label_mood") == ["happy", "sad"]
    assert index.distinct("label_mood", np.array([True, True, False])) == ["sad"]
    assert index.is_absent("label_age").tolist() == [True, False, True]
    assert [r.labels for r in index.rows()] == [{}, {"mood": "sad", "age": "old"}, {"mood": "happy"}]
    # The order in which labels occur does not matter.
    turned = [dataclasses.replace(r, labels=dict(reversed(r.labels.items()))) for r in rows]
    assert write_index(storage, build_index("v1", turned)) == (path, sha256)


def test_labels_of_several_row_groups(tmp_path, monkeypatch):
    """Each row group has a table of its own of the different texts."""
    monkeypatch.setattr(index_module, "_ROW_GROUP", 2)
    storage = Storage(tmp_path)
    moods = ["a", "b", "c", "b", "d", "a", "e"]
    path, _ = write_index(
        storage, build_index("v1", [row(0, n, labels={"mood": mood}) for n, mood in enumerate(moods)])
    )
    index = parse_index(storage.read(path), "v1", path)
    assert index.label("mood").tolist() == moods and [r.labels["mood"] for r in index.rows()] == moods
    assert index.equals("label_mood", "b", "e").tolist() == [mood in "be" for mood in moods]


def test_members_that_are_named_like_scores_and_labels(tmp_path):
    """`score_x.npy` has columns that begin like those of a score, and is none."""
    storage = Storage(tmp_path)
    members = [Member(suffix=name, offset=512, size=9) for name in ("label_y.npy", "score_x.npy")]
    made = row(annotation=members, scores={"x": 1.0}, labels={"y": "z"})
    path, _ = write_index(storage, build_index("v1", [made]))
    index = parse_index(storage.read(path), "v1", path)
    assert index.score_names == ["x"] and index.label_names == ["y"] and list(index.rows()) == [made]
    for wrong in ({"scores": {"x_offset": 1.0}}, {"labels": {"y_size": "z"}}):
        with pytest.raises(ValueError, match=r"would have the index column \w+_x_offset|_y_size"):
            build_index("v1", [dataclasses.replace(made, **wrong)])


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
    assert index.texts("reason").tolist() == [None, "annotate_failed", None], "absent, not another row's"
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
        ([row(labels={"mood": ""})], "label mood is ''"),
        ([row(labels={"mood": "a\nb"})], "must have 1 to 200 printable"),
        ([row(labels={"mood": "x" * 201})], "must have 1 to 200 printable"),
        ([row(labels={"a/b": "x"})], "label 'a/b' must be"),
        ([row(labels={f"l{number}": "x" for number in range(65)})], "more than 64 labels"),
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
