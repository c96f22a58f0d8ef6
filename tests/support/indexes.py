"""Opening the index of a version, as `DATASET.json` names it."""

from __future__ import annotations

from shards.index import Index, read_index
from shards.manifest import read_manifest
from talkinghead.files.storage import Storage


def open_index(storage: Storage, version: str) -> Index:
    """Index of a finished version."""
    return read_index(storage, read_manifest(storage).annotation(version))
