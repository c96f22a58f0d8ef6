"""A data set with copies of every kind: equal bytes, encoded anew, renamed, and the same in another data set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.catalog import read_catalog
from orchestration import outcomes, plans
from orchestration.jobs.ingest import Source, run_ingest
from orchestration.split_groups import join_splits, related_groups
from orchestration.units.records import UnitRecord
from shards.plan import ShardSettings, assign_splits
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage
from tests.support.latent_data import in_process
from tests.support.talking_files import moving, portrait, voice, write_talk

FOLDERS = ("anna/talk", "anna/walk", "ben/talk")
ORIGINALS = 15
EQUAL = ((0, "ben/talk/x0.mp4"), (0, "anna/walk/x1.mp4"), (1, "anna/talk/zz.mp4"), (4, "a copy.mp4"),
         (7, "ben/talk/z (1).mp4"), (9, "anna/walk/y.mp4"))  # fmt: skip
"""Number of the original → name of a file of equal bytes."""
ANEW = (
    (2, "ben/talk/anew2.mp4", 160, True),
    (5, "anna/talk/anew5.mp4", 256, True),
    (8, "anna/walk/anew8.mp4", 200, False),
)
"""Number of the original → name, side and sound of a copy that was encoded anew."""
TRAINED = ShardSettings(val_fraction=0.3, test_fraction=0.2)


def original(number: int) -> str:
    return f"{FOLDERS[number % 3]}/clip{number:02d}.mp4"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory, sample_source: Path) -> Path:
    """24 files over three folders of two persons: 15 recordings, 6 files of equal bytes, 3 encoded anew."""
    folder = tmp_path_factory.mktemp("copies")
    face = portrait(sample_source)
    for number in range(ORIGINALS):
        write_talk(folder / original(number), moving(face, number), voice(number))
    for number, name, side, with_sound in ANEW:
        sound = 0.7 * voice(number) if with_sound else None
        write_talk(folder / name, moving(face, number), sound, quality=33, side=side)
    for number, name in EQUAL:
        shutil.copy(folder / original(number), folder / name)
    assert sum(path.is_file() for path in folder.rglob("*")) == 24
    return folder


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, copies: Path) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("data"))
    run_ingest(in_process(storage), Source(source=str(copies)), (), resolve_face_model())
    return storage


def records(storage: Storage) -> dict[str, UnitRecord]:
    """Source → commit record."""
    found = outcomes.ingest_results(storage).values()
    assert all(isinstance(record, UnitRecord) for record in found)
    return {record.details["source"]: record for record in found if isinstance(record, UnitRecord)}


def rejected(storage: Storage) -> dict[str, str]:
    """Source of each duplicate → what its rejection says."""
    return {
        source: record.rejected[0].rejection.detail
        for source, record in records(storage).items()
        if record.rejected and record.rejected[0].rejection.reason == "duplicate"
    }


def copy_data(storage: Storage, folder: Path) -> Storage:
    assert storage.local_root
    return Storage(shutil.copytree(storage.local_root, folder))


def test_each_content_is_one_input(ingested: Storage) -> None:
    found = rejected(ingested)
    equal: dict[int, list[str]] = {}
    for number, name in EQUAL:
        equal.setdefault(number, [original(number)]).append(name)
    expected = {}
    for names in equal.values():
        first, *others = sorted(names)
        expected.update(dict.fromkeys(others, f"the same bytes as folder:{first}"))
    assert found == expected and len(found) == 6
    # Counts add up: every file is one input with one outcome, and duplicates take no sample's place.
    assert len(records(ingested)) == 24
    assert Counter(bool(record.samples) for record in records(ingested).values()) == {True: 18, False: 6}


def test_copies_that_were_encoded_anew_are_found_and_listed_and_no_others(ingested: Storage) -> None:
    related = related_groups(ingested)
    found = {frozenset(related.described(match)) for match in related.matches}
    assert found == {frozenset((f"folder:{original(number)}", f"folder:{name}")) for number, name, _, _ in ANEW}
    listed = [str(problem) for problem in read_catalog(ingested, "folder").problems]
    assert len(listed) == 3 and all("is the same recording as folder:" in line for line in listed)


@pytest.mark.parametrize("persons", [False, True])
def test_no_recording_stands_in_two_splits(ingested: Storage, tmp_path: Path, copies: Path, persons: bool) -> None:
    storage = ingested
    if persons:
        storage = copy_data(ingested, tmp_path / "data")
        run_ingest(in_process(storage), Source(source=str(copies), group_by="level:1"), (), resolve_face_model())
        assert {record.details["person"] for record in records(storage).values()} == {"anna", "ben", None}
        # The rule is kept, so that nothing is done anew without it.
        before = plans.find_ingest(storage, "folder")
        run_ingest(in_process(storage), Source(source=str(copies)), (), resolve_face_model())
        assert plans.find_ingest(storage, "folder") == before
    groups = {source: record.details["split_group"] for source, record in records(storage).items()}
    same = [(original(number), name) for number, name, *_ in (*EQUAL, *ANEW)]
    related = related_groups(storage).groups
    leaks = 0
    for seed in range(20):
        settings = replace(TRAINED, seed=seed)
        splits, torn = join_splits(related.members().values(), {}, settings)
        assert not torn and splits.keys() == set(groups.values())
        assert all(splits[groups[one]] == splits[groups[other]] for one, other in same)
        alone = assign_splits(groups.values(), seed=seed, fractions=settings.fractions)
        leaks += any(alone[groups[one]] != alone[groups[other]] for one, other in same)
    assert leaks, "without it, copies stand in several splits"
    # All the others are on their own.
    sizes = Counter(map(len, related.members().values()))
    # Ben's folder holds copies of Anna's clips: with persons, all three groups (one is the file outside) are related.
    assert sizes == ({3: 1} if persons else {1: 7, 2: 7, 3: 1})


def test_the_outcome_does_not_depend_on_an_order(ingested: Storage, copies: Path, tmp_path: Path) -> None:
    """One file after the other, the last ones first."""
    files = sorted((path for path in copies.rglob("*.mp4")), reverse=True)
    source, storage = tmp_path / "source", Storage(tmp_path / "data")
    for part in (files[:12], files[12:]):
        for path in part:
            place = source / path.relative_to(copies)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
        run_ingest(in_process(storage), Source(source=str(source)), (), resolve_face_model())
    assert rejected(storage) == rejected(ingested)
    assert related_groups(storage).groups.members() == related_groups(ingested).groups.members()


def test_a_duplicate_whose_original_is_gone_is_an_input_again(copies: Path, tmp_path: Path) -> None:
    source, storage = tmp_path / "source", Storage(tmp_path / "data")
    source.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(copies / original(0), source / name)
    run_ingest(in_process(storage), Source(source=str(source)), (), resolve_face_model())
    assert list(rejected(storage)) == ["b.mp4"]
    (source / "a.mp4").unlink()
    run_ingest(in_process(storage), Source(source=str(source)), (), resolve_face_model())
    assert rejected(storage) == {} and [bool(record.samples) for record in records(storage).values()] == [True]


# --- several data sets in one DATA ------------------------------------------------------------------------------------

INTERVALS = "Ann.mp4 00:10-00:13 00:20-00:23\n"


@pytest.fixture
def two(copies: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder, and an HDTF with a released clip of equal bytes and one that was encoded anew."""
    folder, hdtf = tmp_path / "folder", tmp_path / "hdtf"
    folder.mkdir()
    hdtf.mkdir()
    for number in (2, 3):
        shutil.copy(copies / original(number), folder / f"mine{number}.mp4")
    shutil.copy(copies / original(3), hdtf / "Ann_0.mp4")
    shutil.copy(copies / ANEW[0][1], hdtf / "Ann_1.mp4")
    (hdtf / "WDA_annotion_time.txt").write_text(INTERVALS)
    return folder, hdtf


def test_the_same_in_two_data_sets_is_one_input_in_either_order(two: tuple[Path, Path], tmp_path: Path) -> None:
    folder, hdtf = (str(path) for path in two)
    sources = [Source(source=folder), Source(dataset="hdtf", source=hdtf)]
    members = []
    for order in (sources, sources[::-1]):
        storage = Storage(tmp_path / f"data-{order[0].dataset}")
        for source in order:
            run_ingest(in_process(storage), source, (), resolve_face_model())
        # The one with metadata stays, also where it came second.
        assert rejected(storage) == {"mine3.mp4": "the same bytes as hdtf:Ann_0.mp4"}
        assert all(plans.find_ingest(storage, name) for name in ("hdtf", "folder"))
        related = related_groups(storage)
        assert [related.described(match) for match in related.matches] == [("folder:mine2.mp4", "hdtf:Ann_1.mp4")]
        members.append(related.groups.members())
        assert any(len(names) == 3 for names in members[-1].values()), "both files, and Ann"
    assert members[0] == members[1]


def test_a_clip_whose_original_in_another_data_set_is_gone_is_pending(two: tuple[Path, Path], tmp_path: Path) -> None:
    folder, hdtf = two
    storage = Storage(tmp_path / "data")
    for source in (Source(source=str(folder)), Source(dataset="hdtf", source=str(hdtf))):
        run_ingest(in_process(storage), source, (), resolve_face_model())
    (hdtf / "Ann_0.mp4").unlink()
    run_ingest(in_process(storage), Source(dataset="hdtf", source=str(hdtf)), (), resolve_face_model())
    assert "mine3.mp4" not in records(storage)
    run_ingest(in_process(storage), Source(source=str(folder)), (), resolve_face_model())
    assert records(storage)["mine3.mp4"].samples and rejected(storage) == {}


def test_a_signature_is_a_few_hundred_bytes(ingested: Storage) -> None:
    made = [record for record in records(ingested).values() if record.samples]
    assert max(len(json.dumps(record.details["signature"])) for record in made) < 500
    assert all("signature" not in record.details for record in records(ingested).values() if not record.samples)
