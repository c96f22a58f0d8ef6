"""Damage anywhere in a data set ends in a result or in one line, whatever command meets it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.manifest import read_manifest
from shards.pins import pin_run
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from tests.support.derived_data import add_fit, add_version

TURNS = 6


def damage(data: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, a part cut off, doubled or overwritten."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        # Beginnings and ends hold the headers.
        near = rng.choice([0, max(0, len(changed) - 600), rng.randrange(len(changed))])
        place = min(len(changed) - 1, near + rng.randrange(600))
        match rng.randrange(8):
            case 0:
                del changed[place:]
            case 1:
                changed[place:place] = changed[: rng.randrange(2000)]
            case 2:
                changed[place : place + 20] = rng.randbytes(20)
            case _:
                changed[place] ^= 1 << rng.randrange(8)
        if not changed:
            break
    return bytes(changed)


def adopt(storage: Storage) -> None:
    """Let `DATASET.json` name the indexes as they are now, as a stranger who changed one would."""
    value = json.loads(storage.read("DATASET.json"))
    for entry in value["annotations"]:
        entry["index_sha256"] = hash_bytes(storage.read(entry["index"]))
    storage.write("DATASET.json", json.dumps(value).encode())


def read_all(storage: Storage) -> None:
    """Open the data set and read each sample in every way; a damaged one is a `ValueError`."""
    try:
        reader = ShardReader(storage, split=None, kept=False)
    except (ValueError, FileNotFoundError):
        return
    for number in range(len(reader)):
        sample = reader[number]
        for read in (
            lambda sample=sample: sample.info,
            lambda sample=sample: sample.audio(0, 1),
            lambda sample=sample: sample.video(0, 1),
            lambda sample=sample: sample.annotation("landmarks"),
            lambda sample=sample: sample.annotation("valid", 0, 1),
            lambda sample=sample: sample.members(),
        ):
            try:
                read()
            except ValueError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["DATASET.json", "index", "clips-000001.tar", "ann/v1/ann-000001.tar"])
def test_damage_is_a_result_or_one_line(
    built: Storage, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert built.local_root
    rng = random.Random(name)
    name = read_manifest(built).annotation().index if name == "index" else name
    whole = built.read(name)
    shutil.copytree(built.local_root, tmp_path / "data")
    storage = Storage(tmp_path / "data")
    manifest = storage.read("DATASET.json")
    for turn in range(TURNS):
        storage.write("DATASET.json", manifest)
        storage.write(name, damage(whole, rng))
        if name.startswith("index"):
            adopt(storage)
        export = ["export-aniportrait", "--limit", "2", "--out", str(tmp_path / "out")]
        for command in (["verify"], ["ls"], export):
            status = main([*command, "--data", str(tmp_path / "data")])
            captured = capfd.readouterr()
            assert status in (0, 1, 2) and "Traceback" not in captured.err
            # One line on failure; nothing is left of an export that failed.
            assert status == 0 or captured.err.splitlines()[-1].startswith("error: "), (turn, command)
            assert (tmp_path / "out").exists() == (command[0] == "export-aniportrait" and status == 0)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
        read_all(storage)


@pytest.mark.parametrize("what", ["DATASET.json", "shard", "index", "fit", "pin"])
def test_damage_to_derived_columns_fits_and_pins_is_a_result_or_one_line(
    built: Storage, tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert built.local_root
    rng = random.Random(what)
    data, backup = tmp_path / "data", tmp_path / "backup"
    shutil.copytree(built.local_root, data)
    storage = Storage(data)
    fit = add_fit(storage, "basis", bytes(range(200)))
    toy = add_version(storage, fits={"basis": fit.sha256})
    pin_run(storage, "/run", versions=["v1"], fits=[fit.sha256])
    pin = storage.list("pins")[0].path
    name = {"shard": toy.shards[1].name, "index": toy.index, "fit": fit.path, "pin": pin}.get(what, what)
    shutil.copytree(data, backup)
    whole = storage.read(name)
    for turn in range(TURNS):
        storage.write(name, damage(whole, rng))
        if what == "index":
            adopt(storage)
        drop = ["drop", toy.version, "--force"]
        for command in (["verify"], ["ls", "--version", toy.version], ["versions"], ["versions", "--json"], drop):
            status = main([*command, "--data", str(data)])
            captured = capfd.readouterr()
            assert status in (0, 1, 2) and "Traceback" not in captured.err, (turn, command)
            assert status == 0 or captured.err.splitlines()[-1].startswith("error: "), (turn, command)
            assert (captured.out + captured.err).replace("\n", "").replace("\t", "").isprintable(), (turn, command)
        # What `drop` removed comes back.
        shutil.copytree(backup, data, dirs_exist_ok=True)


def test_every_way_of_reading_works_on_a_whole_data_set(built: Storage) -> None:
    reader = ShardReader(built, split=None, kept=False)
    assert [dataclasses.asdict(reader[number].info)["key"] for number in range(len(reader))] == reader.keys
