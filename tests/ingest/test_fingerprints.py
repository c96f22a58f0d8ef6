"""Extents next to the hashes: stored, taken over, added to tables of older releases; a stranger's nonsense."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import fingerprints
from ingest.extent import UNKNOWN, Extent
from ingest.fingerprints import fingerprint, read_fingerprints, write_fingerprints
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.media_files import flat, write_video


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    write_video(tmp_path / "source" / "clip.mp4", [flat(256, 192, level) for level in range(50)])
    (tmp_path / "source" / "text.mp4").write_text("no video")
    return tmp_path / "source"


NAMES = ("clip.mp4", "text.mp4", "missing.mp4")


def test_they_are_read_once_and_stored(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fingerprint(source, NAMES)
    assert {path: entry.extent for path, entry in found.items()} == {
        "clip.mp4": Extent(seconds=2.0, frames=50, width=256, height=192),
        "missing.mp4": None,
        "text.mp4": UNKNOWN,
    }
    storage = Storage(tmp_path / "data")
    write_fingerprints(storage, "folder", found)
    assert read_fingerprints(storage, "folder") == found
    # Nothing is looked at again: there is no reader any more.
    monkeypatch.delattr(fingerprints.ExtentReader, "read")
    assert fingerprint(source, NAMES, found) == found


def rewrite(storage: Storage, change: dict[str, Any], columns: int | None = None) -> None:
    """The table, with other values in every row, and only its first columns."""
    path = dataroot.sources("folder")
    table = pq.read_table(io.BytesIO(storage.read(path)))
    schema = pa.schema(list(table.schema)[:columns])
    rows = [{**row, **change} for row in table.to_pylist()]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    storage.write(path, sink.getvalue())


def test_a_table_of_an_older_release_is_kept(source: Path, tmp_path: Path) -> None:
    """Its files are not hashed again; only their extents are added."""
    storage = Storage(tmp_path / "data")
    write_fingerprints(storage, "folder", fingerprint(source, ["clip.mp4"]))
    rewrite(storage, {"sha256": "f" * 64}, columns=6)
    known = read_fingerprints(storage, "folder")
    assert known["clip.mp4"].extent is None
    found = fingerprint(source, ["clip.mp4"], known)
    extent = Extent(seconds=2.0, frames=50, width=256, height=192)
    assert found == {"clip.mp4": replace(known["clip.mp4"], extent=extent)}
    assert found["clip.mp4"].sha256 == "f" * 64
    write_fingerprints(storage, "folder", found)
    assert read_fingerprints(storage, "folder") == found


@pytest.mark.parametrize("change", [{"seconds": float("inf")}, {"frames": -1}, {"width": -5}, {"error": "and a hash"}])
def test_a_table_of_nonsense_is_none(change: dict[str, Any], source: Path, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    write_fingerprints(storage, "folder", fingerprint(source, ["clip.mp4"]))
    rewrite(storage, change)
    assert read_fingerprints(storage, "folder") == {}
