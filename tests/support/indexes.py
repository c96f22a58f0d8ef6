"""Opening the index of a version, as `DATASET.json` names it, and changing its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from shards.index import Index, build_index, read_index, write_index
from shards.manifest import read_manifest, write_manifest
from talkinghead.files.storage import Storage


def open_index(storage: Storage, version: str) -> Index:
    """Index of a finished version."""
    return read_index(storage, read_manifest(storage).annotation(version))


def edit_rows(storage: Storage, change: Callable[[list], None]) -> None:
    """Rewrite the index of the newest version and let `DATASET.json` name the new one."""
    manifest = read_manifest(storage)
    entry = manifest.annotation()
    rows = list(read_index(storage, entry).rows())
    change(rows)
    storage.delete(entry.index)
    path, sha256 = write_index(storage, build_index(entry.version, rows))
    entry = dataclasses.replace(entry, index=path, index_sha256=sha256)
    write_manifest(storage, dataclasses.replace(manifest, annotations=[entry]))
