"""After `remove` and `gc`, no file of DATA holds the person: neither a name, nor a key, nor a byte of the media."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.catalog import read_catalog, write_catalog
from orchestration import plans
from orchestration.jobs.finish import finish
from orchestration.jobs.gc import run_gc
from orchestration.jobs.matched import Matched, match_keys, match_person
from orchestration.jobs.pack import run_pack
from orchestration.jobs.remove import run_remove
from orchestration.jobs.removed import strip_removed
from orchestration.jobs.traces import Names
from orchestration.report.accounting import account
from orchestration.report.state import data_state
from shards.manifest import read_manifest
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.data_contents import contents_of
from tests.support.latent_data import in_process
from tests.support.leftover_data import COPY, build_with_leftovers
from tests.support.removable_data import CLIPS, PIECES, SAMPLES, everything
from tests.support.tars import read_tar

PIECE, OTHER_PIECE = PIECES[CLIPS[2]]


def nobody_read(run: str, keys: Collection[str]) -> tuple[int, int]:
    raise ValueError("no run here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The data set with everything in it, which must not be changed."""
    return build_with_leftovers(tmp_path_factory.mktemp("leftovers") / "data")


@pytest.fixture
def storage(built: Storage, tmp_path: Path) -> Storage:
    assert built.local_root
    return Storage(shutil.copytree(built.local_root, tmp_path / "data"))


def media_of(storage: Storage, keys: Collection[str]) -> list[bytes]:
    """Files of samples in the shards and units, of media and of all columns, but those that others have as well."""
    assert storage.local_root
    mine, others = set(), set()
    for path in storage.local_root.rglob("*.tar"):
        for key, members in read_tar(path.read_bytes()):
            (mine if key in keys else others).update(members.values())
    return sorted(mine - others)


def left_of(storage: Storage, texts: Collection[str], contents: Collection[bytes]) -> dict[str, list[str]]:
    """Path → what is in the file, or its name, of texts and contents."""
    assert storage.local_root
    found: dict[str, list[str]] = {}
    patterns = {text: re.compile(rb"(?<![\w-])" + re.escape(text.encode()) + rb"(?![\w-])") for text in texts}
    for path, data in contents_of(storage.local_root):
        here = [text for text, pattern in patterns.items() if pattern.search(data) or pattern.search(path.encode())]
        here += ["media" for content in contents if content in data]
        if here:
            found[path] = here
    return found


def remove(storage: Storage, matched: Matched) -> None:
    run_remove(storage, matched, nobody_read)
    run_gc(storage)


def check_whole(storage: Storage, keys: Collection[str]) -> None:
    """What is left is a data set that readers and jobs are content with."""
    assert set(everything(storage)) == set(keys)
    report = verify(storage, deep=True)
    assert (report.problems, report.unknown) == ([], [])
    assert account(data_state(storage, None)).errors == []
    for version in ("v1", "v2"):
        strip_removed(storage)
        run_pack(in_process(storage), version)
        finish(storage, version)
    assert set(everything(storage)) == set(keys) and verify(storage).problems == []


def test_the_data_has_everything_in_it(built: Storage) -> None:
    """Else the tests below show nothing."""
    found = left_of(built, ["Ann Example", *SAMPLES[:2], PIECE, COPY], media_of(built, [*SAMPLES[:2], PIECE]))
    kinds = {re.sub(r"[-/][^/]*(?:/.*)?$", "", path) for path in found}
    kinds |= {"/".join(path.split("/")[:2]) for path in found}
    for kind in (
        *("ann/v1", "ann/v2", "clips", "catalog", "catalog/related.json.gz", "index", "report", "fits/speakers"),
        *("records/ingest", "records/annotate-v0", "units/ingest", "units/annotate-v0", "quarantine/pack-v1"),
        *("quarantine/annotate-v3", "released/pack-v1", "damaged/records", "damaged/plans", "damaged/catalog"),
    ):
        assert kind in kinds, kind
    assert built.list("units/derive-toy") == [] and any("fit-speakers" in file.path for file in built.list("units"))
    assert len(read_manifest(built).fits) == 2
    assert len({entry.version for entry in read_manifest(built).annotations}) == 4


def test_nothing_is_left_of_a_person(storage: Storage, built: Storage) -> None:
    keys, media = SAMPLES[:2], media_of(built, SAMPLES[:2])
    assert len(media) > 10
    remove(storage, match_person(storage, "Ann Example"))
    assert left_of(storage, ["Ann Example"], media) == {}
    # Their files are in SOURCE still, and accounted for.
    accounts = re.compile(r"catalog/folder\.parquet|plans/ingest-folder\.parquet|records/ingest/../[^/]*\.removed-.*")
    left = left_of(storage, [*keys, COPY, "clip_0.mp4", "clip_1.mp4", "copy.mp4"], [])
    assert [path for path in left if not accounts.fullmatch(path)] == []
    assert read_manifest(storage).fits == [] and not [file for file in storage.list("units") if "fit-" in file.path]
    check_whole(storage, SAMPLES[2:])
    # Once the files have left SOURCE, their names are gone as well.
    plan, catalog = plans.find_ingest(storage, "folder"), read_catalog(storage, "folder")
    assert plan
    gone = {CLIPS[0], CLIPS[1], COPY}
    units = {key: pkey for key, pkey in plan.units.items() if key not in gone}
    plans.write_plan(storage, plans.ingest_plan_name("folder"), replace(plan, units=units))
    write_catalog(storage, replace(catalog, rows=[row for row in catalog.rows if row.key not in gone]))
    strip_removed(storage)
    assert left_of(storage, [*keys, COPY, "clip_0.mp4", "clip_1.mp4", "copy.mp4"], []) == {}


def test_nothing_is_left_of_a_piece(storage: Storage, built: Storage) -> None:
    media = media_of(built, [PIECE])
    assert media
    matched = match_keys(storage, [PIECE])
    remove(storage, matched)
    # Its clip is accounted for with it.
    left = left_of(storage, [PIECE], media)
    assert list(left) == [path for path in left if path.startswith("records/ingest/") and left[path] == [PIECE]]
    assert len(left) == 1
    check_whole(storage, set(SAMPLES) - {PIECE})


def test_what_tells_of_others_stays(storage: Storage) -> None:
    mine = ["units/fit-speakers-0123456789ab/notes.txt", "quarantine/mine.json", "records/annotate-v1/mine.txt"]
    for path in mine:
        storage.write(path, b"notes of a user")
    commands = {name: dataroot.command(1, name) for name in ("00000001", "00000002")}
    storage.write(commands["00000001"], b'{"command": "python -m orchestration basis --person \'Ann Example\'"}')
    storage.write(commands["00000002"], b'{"command": "python -m orchestration basis --person Dan"}')
    run_remove(storage, match_person(storage, "Ann Example"), nobody_read)
    assert [file.path for file in storage.list(dataroot.COMMANDS_FOLDER)] == [commands["00000002"]]
    catalog = read_catalog(storage, "hdtf")
    assert [problem.message for problem in catalog.problems] == ["'Dan' has no video"]
    assert catalog.unused == ("clip_4.mp4",) and len(catalog.rows) == 1
    for folder in (dataroot.QUARANTINE_FOLDER, "released"):
        names = [file.path.split("/")[1] for file in storage.list(folder) if file.path not in mine]
        assert names == [plans.annotate_job("v1")]
    assert all(map(storage.exists, mine))
    # Records of other settings of other clips, too.
    assert any(CLIPS[3] in file.path for file in storage.list("damaged"))
    assert len([file for file in storage.list("units/ingest") if CLIPS[3] in file.path]) == 2


def test_names_are_whole_names() -> None:
    names = Names(["folder-clip_0-mp4-abcd"], ["Ann Example", "clip_0.mp4"])
    for text in ("folder-clip_0-mp4-abcd: x", "/source/clip_0.mp4 is bad", "by Ann Example.", "folder:clip_0.mp4 (x)"):
        assert names.are_in(text), text
    for text in ("folder-clip_0-mp4-abcd-cut00", "myclip_0.mp4", "clip_0.mp4.part", "Ann Examples", "Joann Example"):
        assert not names.are_in(text), text
