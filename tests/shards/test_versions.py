"""What a data set holds, how large it is and who needs it, as people and programs read it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.manifest import read_manifest, write_manifest
from shards.pins import pin_run
from shards.versions import table, versions
from talkinghead.files.storage import Storage
from tests.support.derived_data import ToySettings, add_annotation, add_fit, add_version
from tests.support.shard_data import LENGTHS, sample_key


@pytest.fixture
def full(copied: Storage, tmp_path: Path) -> Storage:
    """A data set with two annotation versions, two derived ones, and two fits, read by two runs, one of them gone."""
    one = add_version(copied, failed=[sample_key(3)])
    fit = add_fit(copied, "basis", pins={"toy": one.version})
    two = add_version(copied, settings=ToySettings(2), provenance={"weights": {"sha256": "f" * 64, "name": "big"}},
                      pins={"annotation": "v1", "toy": one.version}, fits={"basis": fit.sha256})  # fmt: skip
    add_fit(copied, "speakers", b"others", fits={"basis": fit.sha256})
    add_annotation(copied, "v2")
    (tmp_path / "run").mkdir()
    pin_run(copied, str(tmp_path / "run"), versions=["v1", two.version], fits=[fit.sha256])
    pin_run(copied, "/gone", versions=["v2"])
    return copied


def test_sizes_needs_and_runs(full: Storage, tmp_path: Path) -> None:
    manifest = read_manifest(full)
    found = {item.name: item for item in versions(full)}
    one, two = (entry.version for entry in manifest.of_kind("toy"))
    basis, speakers = (f"{fit.name}@{fit.sha256[:12]}" for fit in manifest.fits)
    assert list(found) == ["v1", "v2", one, two, basis, speakers]
    assert [item.kind for item in found.values()] == ["annotation", "annotation", "toy", "toy", "fit", "fit"]
    # Bytes are those on the disk.
    for entry in manifest.annotations:
        names = [entry.index, *(shard.name for shard in entry.shards)]
        item = found[entry.version]
        assert item.bytes == sum(full.size(name) or 0 for name in names)
        assert item.frames and item.bytes_per_frame == item.bytes / item.frames
    assert (found["v1"].samples, found["v1"].kept, found["v1"].frames) == (9, 8, sum(LENGTHS))
    assert (found[one].samples, found[one].kept, found[one].frames) == (8, 8, sum(LENGTHS) - LENGTHS[3])
    assert found[speakers].bytes == len(b"others") and found[speakers].frames is None
    # Who was made from it, and who reads it.
    assert found["v1"].needed_by == [one, two, basis, speakers]
    assert (found["v2"].needed_by, found[one].needed_by) == ([], [two, basis])
    assert (found[basis].needed_by, found[speakers].needed_by) == ([two, speakers], [])
    run = str(tmp_path / "run")
    assert [[pin.run for pin in item.pins] for item in found.values()] == [[run], ["/gone"], [], [run], [run], []]


def test_the_table_and_its_json(full: Storage, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = str(full.local_root)
    assert main(["versions", "--data", data, "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [item["name"] for item in listed] == [item.name for item in versions(full)]
    assert listed[1]["runs"] == [{"host": listed[0]["runs"][0]["host"], "run": "/gone", "gone": True}]
    assert listed[3]["made_of"]["provenance"]["weights"]["name"] == "big"
    assert listed[0]["bytes_per_frame"] == listed[0]["bytes"] / listed[0]["frames"]
    assert main(["versions", "--data", data]) == 0
    text = capfd.readouterr().out
    lines = text.splitlines()
    assert lines[0].split() == ["version", "kind", "samples", "kept", "size", "a", "frame"]
    assert text == table(versions(full)) + "\n"
    two = next(number for number, line in enumerate(lines) if line.startswith(listed[3]["name"]))
    assert lines[two].split()[1:4] == ["toy", "9", "9"]
    basis = listed[4]["name"]
    assert lines[two + 1].split("of", 1)[1].strip() == (
        f"number=2, weights big {'f' * 12}, annotation v1, toy {listed[2]['name']}, {basis}"
    )
    assert lines[two + 2].strip() == f"runs      {tmp_path / 'run'} on {listed[0]['runs'][0]['host']}"
    assert "/gone on" in text and text.count("(gone)") == 1


def test_an_annotation_names_engine_and_model(copied: Storage) -> None:
    manifest = read_manifest(copied)
    details = {"engine": "litert", "model": "face_landmarker", "model_sha256": "0123456789abcdef", "settings": {}}
    write_manifest(copied, replace(manifest, annotations=[replace(manifest.annotation(), details=details)]))
    assert "made of   engine litert, model face_landmarker 0123456789ab" in table(versions(copied))


def test_texts_of_strangers_are_printable(full: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    """What a terminal obeys, line breaks, and texts without an end, in every place that a stranger can fill."""
    evil = "\x1b[2J\nv9  annotation\u202e\ud800"
    value = json.loads(full.read("DATASET.json"))
    value["annotations"][0]["details"] = {"engine": evil, "model": [evil], "model_sha256": evil, evil: evil}
    for entry in value["annotations"][2:]:
        entry["details"]["parameters"] = {evil: evil, "long": "x" * 10**5, "deep": [[evil]]}
        entry["details"]["provenance"] = {evil: {"sha256": evil, "name": evil}}
        entry["details"]["pins"] |= {evil: evil}
        entry["details"]["fits"] |= {evil: evil}
    for fit in value["fits"]:
        fit |= {"settings": {evil: evil}, "selection": {evil: [evil]}}
    full.write("DATASET.json", json.dumps(value).encode())
    pin_run(full, f"/{evil[:-1]}", versions=["v1"])
    for option in ([], ["--json"]):
        assert main(["versions", "--data", str(full.local_root), *option]) == 0
        captured = capfd.readouterr()
        assert all(line.isprintable() for line in captured.out.splitlines())
        assert not any(line.startswith("v9") for line in captured.out.splitlines()) and captured.err == ""
    assert max(map(len, table(versions(full)).splitlines())) < 2000


def test_no_data_set_and_damaged_pins_are_one_line(
    full: Storage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["versions", "--data", str(tmp_path / "nothing")]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    [pin] = [file for file in full.list("pins") if b"/gone" in full.read(file.path)]
    full.write(pin.path, b"{")
    assert main(["versions", "--data", str(full.local_root)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and pin.path in error and "remove it if no run needs it" in error


def test_versions_that_the_manifest_does_not_name_are_listed(full: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    """As growth of the shards leaves columns, and a killed job its half: they take room, and `drop` takes them away."""
    manifest = read_manifest(full)
    lost = manifest.of_kind("toy")[-1]
    entries = [entry for entry in manifest.annotations if entry is not lost]
    write_manifest(full, replace(manifest, annotations=entries))
    found = versions(full)[-1]
    assert (found.name, found.kind, found.samples, found.bytes_per_frame) == (lost.version, "unlisted", None, None)
    assert found.bytes == sum(shard.size for shard in lost.shards) and len(found.pins) == 1
    assert main(["versions", str(full.local_root)]) == 0
    assert "not in DATASET.json" in capfd.readouterr().out
    # A run reads it all the same.
    drop = ["drop", lost.version, "--data", str(full.local_root)]
    assert main(drop) == 2 and "is read by the run" in capfd.readouterr().err
    assert main([*drop, "--force"]) == 0 and found.name not in {item.name for item in versions(full)}
