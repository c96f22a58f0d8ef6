"""Inputs that were removed and lie in SOURCE still: which they are, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.jobs.matched import match_keys
from orchestration.jobs.removed import (
    content_of,
    find_removed,
    nameless,
    removed_pkey,
    removed_unit,
    run,
    strip_removed,
)
from orchestration.outcomes import ingested_samples
from orchestration.units.unit import run_unit
from shards.removal_records import REASON, Piece, RemovalList, RemovalRecord, digests, hashed, write_record
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import CatalogRow
from tests.support.removable_data import CLIPS, PIECES, SAMPLES, build, build_ingested, contents, rows


def removed(folder: Path, pieces: Sequence[Piece] = (), **values: list[str]) -> RemovalList:
    storage = Storage(folder)
    known: dict[str, Any] = {f"{kind}s": digests("salt", kind, texts) for kind, texts in values.items()}  # type: ignore[arg-type]
    known["pieces"] = [hashed("salt", piece) for piece in pieces]
    about = RemovalRecord(time="", removed=1, unpacked=0, inputs=1, versions=[], salt="salt", **known)
    write_record(storage, "removed/20261130T000000Z-00000000.json", about)
    return RemovalList(storage)


def test_a_clip_is_known_by_key_content_and_person(tmp_path: Path) -> None:
    catalog, prints = rows(), contents()
    content = content_of(catalog[3], prints[CLIPS[3]])
    assert content
    found = removed(tmp_path, clip=[CLIPS[2]], content=[content], person=["Ann Example"])
    assert set(find_removed(found, catalog, prints)) == {CLIPS[0], CLIPS[1], CLIPS[2], CLIPS[3]}
    # Another name, another person's folder, the same bytes; and a new clip of the person.
    renamed = replace(catalog[3], key="folder-other-mp4-abcd", source="other.mp4", person=None, split_group="x")
    new = replace(catalog[4], key="folder-new-mp4-abcd", source="new.mp4", person=None, split_group="Ann Example")
    known = prints | {renamed.key: prints[CLIPS[3]], new.key: "9" * 64}
    assert set(find_removed(found, [renamed, new, catalog[4]], known)) == {renamed.key, new.key}


def test_another_part_of_the_same_file_is_another_input(tmp_path: Path) -> None:
    row = rows()[3]
    content = content_of(row, "a" * 64)
    assert content
    found = removed(tmp_path, content=[content])
    part = replace(row, key="folder-part-mp4-abcd", start_s=1.0, end_s=2.0)
    assert find_removed(found, [part], {part.key: "a" * 64}) == {}
    assert find_removed(found, [part], {part.key: None}) == {}


def test_without_removals_nothing_is_looked_at(tmp_path: Path) -> None:
    assert find_removed(RemovalList(Storage(tmp_path)), rows(), contents()) == {}


def test_its_unit_rejects_it_under_a_key_of_its_own(tmp_path: Path) -> None:
    row = rows()[0]
    unit = removed_unit(row)
    assert (unit.key, unit.pkey) == (row.key, removed_pkey(row.key)) and unit.pkey.startswith("removed-")
    output = run(Storage(tmp_path), unit)
    assert [(piece.key, piece.rejection.reason) for piece in output.rejected] == [(row.key, REASON)]
    assert "Ann Example" not in str(unit.payload) + str(output.details)


def test_its_row_of_the_catalog_names_nobody() -> None:
    row = nameless(replace(rows()[0], attributes='{"name": "Ann Example"}', notes=("Ann Example",)))
    assert "Ann Example" not in str(row.to_json()) and isinstance(row, CatalogRow)
    assert (row.key, row.source) == (CLIPS[0], "clip_0.mp4")


def test_a_piece_that_was_cut_again_is_rejected_again(tmp_path: Path) -> None:
    storage = build(tmp_path / "data")
    gone, stays = PIECES[CLIPS[2]]
    removed(tmp_path / "data", [Piece(key=gone)], key=[gone])
    strip_removed(storage)
    samples = ingested_samples(storage)
    assert set(samples) == set(SAMPLES) - {gone}
    made = samples[stays]
    assert [(piece.key, piece.rejection.reason) for piece in made.record.rejected] == [(gone, REASON)]
    assert made.record.file and gone.encode() not in storage.read(made.record.file)
    before = storage.read(made.record.file)
    strip_removed(storage)
    assert storage.read(made.record.file) == before


@pytest.mark.parametrize("content", [None, "a" * 64])
def test_content_is_what_cannot_be_told_from_a_name(content: str | None) -> None:
    one, two = rows()[0], replace(rows()[1], person="x")
    assert content_of(one, content) == content_of(two, content)
    assert (content_of(one, content) is None) is (content is None)


def test_a_piece_is_known_by_its_place_under_other_settings(tmp_path: Path) -> None:
    """The same moment has another key there, and its key stands for another moment."""
    storage = build_ingested(tmp_path / "data")
    clip, (first, second) = CLIPS[2], PIECES[CLIPS[2]]
    content = contents()[clip]
    where = matched_place(storage, second)
    removed(tmp_path / "data", [Piece(key=first, content=content, start_s=where[0], end_s=where[1])], key=[first])
    strip_removed(storage)
    assert first in ingested_samples(storage) and second not in ingested_samples(storage)


def test_a_renamed_copy_loses_the_piece_too(tmp_path: Path) -> None:
    storage = build_ingested(tmp_path / "data")
    first, second = PIECES[CLIPS[2]]
    start_s, end_s = matched_place(storage, second)
    gone = Piece(key="folder-renamed-mp4-abcd-cut1", content=contents()[CLIPS[2]], start_s=start_s, end_s=end_s)
    removed(tmp_path / "data", [gone])
    strip_removed(storage)
    assert first in ingested_samples(storage) and second not in ingested_samples(storage)


def matched_place(storage: Storage, key: str) -> tuple[float, float]:
    """Where a piece lies in its source, as a removal notes it."""
    (piece,) = match_keys(storage, [key]).pieces
    assert piece.key == key and piece.content == contents()[CLIPS[2]]
    assert piece.start_s is not None and piece.end_s is not None
    return piece.start_s, piece.end_s


def test_records_of_removed_inputs_go_when_no_plan_names_them(tmp_path: Path) -> None:
    storage = build_ingested(tmp_path / "data")
    removed(tmp_path / "data", clip=["folder-old-mp4-abcd"])
    old = removed_unit(replace(rows()[0], key="folder-old-mp4-abcd"))
    run_unit(storage, old, attempts=1)
    path = dataroot.record(old.job, old.key, old.pkey)
    assert storage.exists(path)
    strip_removed(storage)
    assert not storage.exists(path) and len(storage.list("records/ingest")) == len(CLIPS)
