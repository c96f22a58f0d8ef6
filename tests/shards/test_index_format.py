"""An index that is a stranger's: what it may hold is checked for all rows when it is read."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.__main__ import main
from shards.index import parse_index
from shards.index_format import METADATA
from shards.manifest import read_manifest
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from tests.support.limited_call import call_limited

Change = Callable[[pa.Table], pa.Table]


def with_column(name: str, change: Callable[[list], list], kind: pa.DataType | None = None) -> Change:
    """Change of a column's values, which keeps its type unless another is given."""

    def changed(table: pa.Table) -> pa.Table:
        place, old = table.schema.get_field_index(name), table.schema.field(name)
        text = pa.types.is_dictionary(old.type)
        values = pa.array(change(table.column(name).to_pylist()), kind or (pa.string() if text else old.type))
        values = values if kind or not text else values.cast(old.type)
        return table.set_column(place, pa.field(name, values.type), values)

    return changed


def with_first(name: str, value: object) -> Change:
    return with_column(name, lambda values: [value, *values[1:]])


def with_label(name: str, value: str) -> Change:
    """A label that one row has, next to a good one."""

    def changed(table: pa.Table) -> pa.Table:
        values = pa.array([value, *["fine"] * (len(table) - 2), None], pa.string())
        return table.append_column(f"label_{name}", values.cast(pa.dictionary(pa.int32(), pa.string())))

    return changed


def with_labels(count: int) -> Change:
    def changed(table: pa.Table) -> pa.Table:
        for number in range(count):
            table = with_label(f"l{number}", "fine")(table)
        return table

    return changed


def with_notes(*notes: str | None, kind: pa.DataType | None = None) -> Change:
    """Notes on one row, next to a row with a good one and a row without."""

    def changed(table: pa.Table) -> pa.Table:
        values = [list(notes), *[["fine"]] * (len(table) - 2), None]
        return table.append_column("notes", pa.array(values, kind or pa.list_(pa.string())))

    return changed


def with_header(**changes: object) -> Change:
    def changed(table: pa.Table) -> pa.Table:
        header = json.loads(table.schema.metadata[METADATA]) | changes
        return table.replace_schema_metadata({METADATA: json.dumps(header)})

    return changed


def plant(storage: Storage, change: Change, **options) -> None:
    """Put a changed index in the place of the data set's, named by its hash in `DATASET.json`."""
    value = json.loads(storage.read("DATASET.json"))
    entry = value["annotations"][0]
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(storage.read(entry["index"])))), sink, **options)
    entry["index_sha256"] = hash_bytes(sink.getvalue())
    entry["index"] = dataroot.index(entry["version"], entry["index_sha256"])
    storage.write(entry["index"], sink.getvalue())
    storage.write("DATASET.json", json.dumps(value).encode())


STRANGE: dict[str, tuple[Change, str]] = {
    "key upwards": (with_first("key", "../../../tmp/x"), "key '../../../tmp/x' has other characters"),
    "key absolute": (with_first("key", "/etc/passwd"), "key '/etc/passwd' has"),
    "key with a dot": (with_first("key", "a.b"), "key 'a.b' has"),
    "key with an escape": (with_first("key", "a\x1b[2J\nb"), r"key 'a\x1b[2J\nb' has"),
    "key too long": (with_first("key", "x" * 91), "has other characters"),
    "key empty": (with_first("key", ""), "key '' has"),
    "key of a million letters": (with_first("key", "ü" * 10**6), "has other characters"),
    "key null": (with_first("key", None), "a row has no key"),
    "clip key": (with_first("clip_key", "a/b"), "clip_key 'a/b' has"),
    "data set": (with_first("dataset", "../hdtf"), "dataset '../hdtf' must be"),
    "split": (with_first("split", "dev"), "split 'dev' is none of"),
    "reason": (with_first("reason", "no\nface"), r"reason 'no\nface' must be"),
    "licence": (with_first("licence", "x" * 2000), "has 2,000 characters"),
    "shard below zero": (with_first("shard", -1), "shard is -1"),
    "shard far away": (with_column("shard", lambda shards: [*shards[:-1], 2**30]), "shard is 1073741824"),
    "shards in another order": (with_column("shard", lambda shards: shards[::-1]), "not in the order of the shards"),
    "shard null": (with_first("shard", None), "a row has no"),
    "ordinal": (with_first("ordinal", -5), "ordinal is -5"),
    "no frames": (with_first("num_frames", 0), "num_frames is 0"),
    "offset below zero": (with_first("mp4_offset", -512), "mp4_offset is -512"),
    "offset far away": (with_first("mp4_offset", 2**62), "mp4_offset is 46"),
    "size below zero": (with_first("landmarks_size", -1), "landmarks_size is -1"),
    "offset without size": (with_first("wav_size", None), "wav has an offset without a size"),
    "keep null": (with_first("keep", None), "a row has no"),
    "type": (with_column("num_frames", lambda values: values, pa.int64()), "column 'num_frames' is int64"),
    "nested": (with_column("person", lambda values: [["p"]] * len(values), pa.list_(pa.string())), "'person' is list"),
    "missing column": (lambda table: table.drop_columns(["split_group"]), "no column split_group"),
    "unknown column": (lambda table: table.append_column("more", table.column("keep")), "column 'more' is bool"),
    "column twice": (lambda table: table.append_column("keep", table.column("keep")), "column 'keep' is bool"),
    "score's name": (
        lambda table: table.append_column("score_<b>", pa.array(np.zeros(len(table)))), "score '<b>' must be"
    ),
    "label's name": (with_label("<b>", "x"), "label '<b>' must be"),
    "label's type": (lambda table: table.append_column("label_a", table.column("key")), "column 'label_a' is string"),
    "label with an escape": (with_label("a", "\x1b[2J"), r"label a is '\x1b[2J', must have"),
    "label of a thousand letters": (with_label("a", "ü" * 1000), "must have 1 to 200 printable characters"),
    "label empty": (with_label("a", ""), "label a is '', must have"),
    "many labels": (with_labels(65), "it has 65 labels, may have 64"),
    "note with an escape": (with_notes("fine", "\x1b[2J"), r"a note is '\x1b[2J', must have"),
    "note of a thousand letters": (with_notes("ü" * 1000), "must have 1 to 500 printable characters"),
    "note empty": (with_notes(""), "a note is '', must have"),
    "note null": (with_notes(None), "a note is '', must have"),
    "many notes": (with_notes(*["fine"] * 65), "a row has 65 notes, may have 64"),
    "notes' type": (with_notes(kind=pa.list_(pa.large_string())), "column 'notes' is list<"),
    "no header": (lambda table: table.replace_schema_metadata({}), "not an index"),
    "header no JSON": (lambda table: table.replace_schema_metadata({METADATA: "{"}), "is no JSON"),
    "header a list": (lambda table: table.replace_schema_metadata({METADATA: "[]"}), "has schema None"),
    "header nested": (lambda table: table.replace_schema_metadata({METADATA: "[" * 10**5}), "nested too deeply"),
    "members no lists": (with_header(members={"media": "mp4", "annotation": []}), "members is 'mp4', must be"),
    "members of another archive": (with_header(members={"media": [], "x": []}), "it has members in"),
    "member upwards": (with_header(members={"media": ["../x"], "annotation": []}), "member '../x' must be"),
    "member twice": (with_header(members={"media": ["mp4", "mp4"], "annotation": []}), "two members would have"),
}  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE)
def test_a_strange_index_is_one_line(copied: Storage, strange: str, capfd: pytest.CaptureFixture[str]) -> None:
    change, said = STRANGE[strange]
    plant(copied, change)
    entry = read_manifest(copied).annotation()
    with pytest.raises(ValueError) as raised:
        parse_index(copied.read(entry.index), entry.version, entry.index)
    message = str(raised.value)
    assert said in message and message.startswith((entry.index, "the header of")) and len(message) < 500
    assert message.isprintable()
    # Every command ends in that line; verify goes on and lists it.
    assert main(["ls", "--data", str(copied.local_root)]) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]
    assert main(["verify", "--data", str(copied.local_root)]) == 1
    assert said in capfd.readouterr().err


def many_rows(rows: int, person: str) -> Change:
    """The first row many times."""

    def changed(table: pa.Table) -> pa.Table:
        return with_first("person", person)(table).take(pa.array(np.zeros(rows, np.int64)))

    return changed


@pytest.mark.parametrize(
    ("rows", "person", "said"),
    [
        (300_000, "x" * 1000, "more than 268,435,456 bytes of memory"),
        (200_000, "x", "lists 200,000 samples in it"),
    ],
    ids=["long texts", "many rows in one shard"],
)
def test_a_small_index_cannot_ask_for_much(copied: Storage, rows: int, person: str, said: str) -> None:
    plant(copied, many_rows(rows, person), compression="zstd")
    assert (copied.size(read_manifest(copied).annotation().index) or 0) < 1 << 20
    code = "from shards.__main__ import main\ndef call(data): return main(['verify', '--data', data])"
    called = call_limited(code, copied.local_root)
    assert called.said == "1" and said in called.stderr and "Traceback" not in called.stderr
    assert called.memory < 1 << 30


def test_data_that_was_copied_says_nothing_of_the_machine(built: Storage, tmp_path: Path) -> None:
    assert built.local_root
    shutil.copytree(built.local_root, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        if path.is_file():
            assert str(built.local_root).encode() not in path.read_bytes()
