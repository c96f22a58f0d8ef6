"""`DATASET.json` reads back as written, and a damaged one is refused with a clear message."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shards.manifest import AnnotationEntry, DatasetManifest, find_latents, read_manifest, write_manifest
from talkinghead.derived import ENCODING
from talkinghead.files.storage import Storage


def test_round_trip_in_equal_bytes(built):
    manifest = read_manifest(built)
    assert DatasetManifest.from_json(manifest.to_json()) == manifest
    assert manifest.to_json() == built.read("DATASET.json")
    assert manifest.annotation() is manifest.annotation("v1")
    with pytest.raises(ValueError, match="only v1"):
        manifest.annotation("v2")


def latents(version: str, vae: str, size: int, entry: AnnotationEntry) -> AnnotationEntry:
    networks = {"vae": {"sha256": vae}, "image_encoder": {"sha256": "c"}}
    details = {"encoding": ENCODING, "width": size, "height": size, **networks}
    return replace(entry, version=version, kind="latents", details=details)


def test_latents_are_found_by_what_they_are_and_never_opened_by_default(built):
    manifest = read_manifest(built)
    face = manifest.annotation()
    entries = [face, latents("a", "v", 64, face), latents("b", "w", 64, face), latents("c", "v", 64, face)]
    both = DatasetManifest.from_json(replace(manifest, annotations=entries).to_json())
    assert both.annotation() == face and both.annotation("b").kind == "latents"
    assert [entry.version for entry in both.of_kind("latents")] == ["a", "b", "c"]
    networks = {"vae": {"sha256": "v"}, "image_encoder": {"sha256": "c", "name": "anything"}}
    assert find_latents(both, networks, 64, 64) == "c"
    assert find_latents(both, networks, 64, 32) is None
    unnamed = latents("d", "v", 64, face)
    unnamed = replace(unnamed, details={name: value for name, value in unnamed.details.items() if name != "encoding"})
    assert find_latents(replace(both, annotations=[face, unnamed]), networks, 64, 64) == "d"
    older = [replace(entry, details=entry.details | {"encoding": 0}) for entry in both.of_kind("latents")]
    assert find_latents(replace(both, annotations=[face, *older]), networks, 64, 64) is None
    assert find_latents(both, networks | {"vae": {"sha256": "x"}}, 64, 64) is None
    assert find_latents(manifest, networks, 64, 64) is None
    with pytest.raises(ValueError, match="no annotations yet"):
        replace(both, annotations=entries[1:]).annotation()


def test_a_manifest_from_before_there_were_kinds(copied):
    value = json.loads(copied.read("DATASET.json"))
    for entry in value["annotations"]:
        del entry["kind"]
    copied.write("DATASET.json", json.dumps(value).encode())
    assert read_manifest(copied).annotation().kind == "annotation"
    value["annotations"][0]["kind"] = "thoughts"
    copied.write("DATASET.json", json.dumps(value).encode())
    with pytest.raises(ValueError, match=r"of kind 'thoughts'.* newer talkinghead"):
        read_manifest(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value | {"schema_version": 99}, "newer talkinghead"),
        (lambda value: value | {"schema_version": 0}, "make shards"),
        (lambda value: value | {"surprise": 1}, "damaged"),
        (lambda value: {key: value[key] for key in value if key != "media"}, "damaged"),
        (lambda value: value | {"annotations": value["annotations"] * 2}, "occurs twice"),
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
