"""`DATASET.json` reads back as written, and a damaged one is refused with a clear message."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from shards.manifest import AnnotationEntry, DatasetManifest, find_column, find_latents, read_manifest, write_manifest
from talkinghead.files.storage import Storage
from tests.support.derived_data import TOY, ToySettings, add_fit, add_version


def test_round_trip_in_equal_bytes(built):
    manifest = read_manifest(built)
    assert DatasetManifest.from_json(manifest.to_json()) == manifest
    assert manifest.to_json() == built.read("DATASET.json")
    assert manifest.annotation() is manifest.annotation("v1")
    with pytest.raises(ValueError, match="only v1"):
        manifest.annotation("v2")


def latents(version: str, vae: str, size: int, entry: AnnotationEntry) -> AnnotationEntry:
    networks = {"vae": {"sha256": vae}, "image_encoder": {"sha256": "c"}}
    details = {"encoding": 1, "width": size, "height": size, **networks}
    return replace(entry, version=version, kind="latents", details=details, shards=[])


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
    value["annotations"][0]["kind"] = "../thoughts"
    copied.write("DATASET.json", json.dumps(value).encode())
    with pytest.raises(ValueError, match=r"newer talkinghead .*kind of version '../thoughts' must be"):
        read_manifest(copied)


def test_versions_of_columns_and_fits_say_what_they_were_made_of(copied):
    one = add_version(copied)
    fit = add_fit(copied, "basis")
    two = add_version(copied, settings=ToySettings(2), provenance={"weights": {"sha256": "a", "path": "/x"}},
                      fits={"basis": fit.sha256})  # fmt: skip
    manifest = read_manifest(copied)
    assert manifest.annotations[1:] == [one, two] and manifest.fits == [fit]
    assert manifest.annotation().version == "v1"
    assert manifest.derived("toy") == two and manifest.derived(f"toy@{one.version}") == manifest.derived(one.version)
    assert list(two.arrays.values()) == list(TOY.arrays) and two.made_of.fits == {"basis": fit.sha256}
    assert two.made_of.name == two.version and not two.made_of.is_same(one.made_of)
    # Files count by their content, wherever they were.
    assert find_column(manifest, "toy", {"number": 2}, {"weights": {"sha256": "a"}}) == two.version
    assert find_column(manifest, "toy", {"number": 2}, {"weights": {"sha256": "b"}}) is None
    assert find_column(manifest, "toy", {"number": 0}, {}, column_version=2) is None


def of_column(**changes):
    """A change of what the version of `toy` was made of."""
    return lambda value: (
        value
        | {
            "annotations": [
                value["annotations"][0],
                *(v | {"details": v["details"] | changes} for v in value["annotations"][1:]),
            ]
        }
    )


def of_fit(**changes):
    return lambda value: value | {"fits": [value["fits"][0] | changes]}


ARRAY = TOY.arrays[0].to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_column(column="other"), "of the column 'toy' and of 'other'"),
        (of_column(arrays=[ARRAY, ARRAY]), "describes an array twice"),
        (of_column(arrays=[ARRAY | {"name": "../x"}]), "column '../x' must be"),
        (of_column(arrays=[ARRAY | {"stored": "O"}]), "describes no column"),
        (of_column(arrays=[ARRAY | {"stored": "<f2,<f4"}]), "describes no column"),
        (of_column(arrays=[ARRAY | {"rows": 10**9}]), "describes no column"),
        (of_column(arrays=[ARRAY | {"shape": [-1]}]), "describes no column"),
        (of_column(arrays=[ARRAY | {"surprise": 1}]), "describes no column"),
        (of_column(arrays=[5]), "arrays is 5"),
        (of_column(pins={"annotation": 5}), "pins is 5"),
        (of_column(surprise=1), "no field 'surprise'"),
        (of_fit(name="../x"), "fit '../x' must be"),
        (of_fit(sha256="../../x"), "names no file of ours"),
        (of_fit(sha256="A" * 64), "names no file of ours"),
        (of_fit(index="/etc/passwd"), "names no file of ours"),
        (of_fit(annotation="../v1"), "annotation version '../v1'"),
        (of_fit(size=-1), "has -1 bytes"),
        (lambda value: value | {"fits": value["fits"] * 2}, "a fit occurs twice"),
    ],
)
def test_unusable_versions_of_columns_and_fits(copied, change, message):
    add_version(copied)
    add_fit(copied, "basis")
    read_manifest(copied)
    copied.write("DATASET.json", json.dumps(change(json.loads(copied.read("DATASET.json")))).encode())
    with pytest.raises(ValueError, match=message) as raised:
        read_manifest(copied)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def changed_shard(**changes):
    return lambda value: value | {"media": [value["media"][0] | changes, *value["media"][1:]]}


def changed_version(**changes):
    return lambda value: value | {"annotations": [value["annotations"][0] | changes]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value | {"schema_version": 99}, "newer talkinghead"),
        (lambda value: value | {"schema_version": 0}, "make shards"),
        (lambda value: value | {"surprise": 1}, "damaged"),
        (lambda value: {key: value[key] for key in value if key != "media"}, "damaged"),
        (lambda value: value | {"annotations": value["annotations"] * 2}, "occurs twice"),
        (lambda value: [], "damaged"),
        (lambda value: value | {"schema_version": "1"}, "schema '1'"),
        (lambda value: value | {"datasets": ["../x"]}, "data set '../x' must be"),
        (lambda value: value | {"counts": {"samples": "9"}}, "counts is '9', must be int"),
        (lambda value: value | {"licences": []}, r"licences is \[\]"),
        (changed_shard(name="../../etc/passwd"), "'../../etc/passwd' is listed in the place of clips-000000"),
        (changed_shard(name="clips-000001.tar"), "is listed in the place of"),
        (changed_shard(name="x\x1b[2J\n"), r"shard 'x\\x1b\[2J\\n' is"),
        (changed_shard(size=-1), "has -1 bytes"),
        (changed_shard(frames=1e300), "frames is 1e"),
        (changed_shard(sha256=None), "sha256 is None"),
        (changed_version(version="../v1"), "annotation version '../v1' must be"),
        (changed_version(version="x" * 10**6), "annotation version 'xxx"),
        (changed_version(index="/etc/passwd"), "'/etc/passwd' is no name of an index"),
        (changed_version(index="index/../../x.parquet"), "is no name of an index"),
        (changed_version(index_sha256=5), "index_sha256 is 5"),
        (changed_version(splits=None), "splits is None"),
        (changed_version(details=[]), r"details is \[\]"),
        (changed_version(kind="toy", details={}), "lacks|is None|has no|must be"),
        (changed_version(shards=[{"name": "ann/v2/ann-000000.tar"}]), "ShardEntry lacks"),
    ],
)
def test_unusable_manifest(copied, change, message):
    copied.write("DATASET.json", json.dumps(change(json.loads(copied.read("DATASET.json")))).encode())
    with pytest.raises(ValueError, match=message) as raised:
        read_manifest(copied)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "data", [b"[" * 10**5, b"\xff\xfe", b"nul", b'{"a": NaN', b"1" * 10**5, b'"' + b"\\ud800" * 9 + b'"']
)
def test_what_is_no_manifest(copied, data):
    copied.write("DATASET.json", data)
    with pytest.raises(ValueError, match=r"DATASET\.json (is damaged|has schema None)"):
        read_manifest(copied)


def test_a_manifest_that_is_no_file_or_too_large(copied):
    path = copied.local_root / "DATASET.json"
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"too large for a manifest"):
        read_manifest(copied)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a named pipe"):
        read_manifest(copied)


@pytest.mark.parametrize(
    "details", [{}, {"vae": 5, "width": "64"}, {"width": 64, "height": 64, "vae": {"sha256": 5}, "image_encoder": {}}]
)
def test_latents_that_do_not_say_how_they_were_made(built, details):
    manifest = read_manifest(built)
    with pytest.raises(ValueError, match=r"latents|provenance|vae"):
        replace(manifest.annotation(), version="l", kind="latents", shards=[], details=details)


def test_only_latents_may_not_name_their_column(built):
    face = read_manifest(built).annotation()
    old = latents("l", "v", 64, face)
    assert old.made_of.column == "latents" and set(old.arrays) == {"latents", "embedding"}
    with pytest.raises(ValueError, match="of the column 'mouth' and of 'latents'"):
        replace(old, kind="mouth")


def test_truncated_and_missing(copied):
    manifest = read_manifest(copied)
    copied.write("DATASET.json", copied.read("DATASET.json")[:200])
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(copied)
    write_manifest(copied, manifest)
    assert read_manifest(copied) == manifest
    with pytest.raises(FileNotFoundError, match="make shards"):
        read_manifest(Storage("/nonexistent/data"))
