"""`DATASET.json` reads back as written and says clearly what is wrong with it."""

from __future__ import annotations

import json

import pytest

from shards.manifest import DatasetManifest, read_manifest, write_manifest
from talkinghead.storage import Storage


def test_round_trip_in_equal_bytes(built):
    manifest = read_manifest(built)
    assert DatasetManifest.from_json(manifest.to_json()) == manifest
    assert manifest.to_json() == built.read("DATASET.json")
    assert manifest.annotation() is manifest.annotation("v1")
    with pytest.raises(ValueError, match="only v1"):
        manifest.annotation("v2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value | {"schema_version": 99}, "newer talkinghead"),
        (lambda value: value | {"schema_version": 0}, "make shards"),
        (lambda value: value | {"surprise": 1}, "damaged"),
        (lambda value: {key: value[key] for key in value if key != "media"}, "damaged"),
        (lambda value: value | {"annotations": value["annotations"] * 2}, "stands twice"),
        (lambda value: [], "damaged"),
    ],
)
def test_unusable_manifest(copied, change, message):
    copied.write("DATASET.json", json.dumps(change(json.loads(copied.read("DATASET.json")))).encode())
    with pytest.raises(ValueError, match=message):
        read_manifest(copied)


def test_truncated_and_missing(copied):
    manifest = read_manifest(copied)
    copied.write("DATASET.json", copied.read("DATASET.json")[:200])
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(copied)
    write_manifest(copied, manifest)
    assert read_manifest(copied) == manifest
    with pytest.raises(FileNotFoundError, match="make shards"):
        read_manifest(Storage("/nonexistent/data"))
