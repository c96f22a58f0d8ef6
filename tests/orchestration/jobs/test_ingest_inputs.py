"""Packed clips whose files have other names or places now; what the catalog of the command before is needed for."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotate.sync import SCORES as SYNC_SCORES
from ingest.catalog import read_catalog
from orchestration import outcomes, plans
from orchestration.jobs.ingest import Source, run_ingest
from orchestration.jobs.ingest_inputs import GONE, NOT_TAKEN, REPLACED
from orchestration.report.accounting import account
from orchestration.report.state import data_state
from shards.index import read_index
from shards.manifest import read_manifest
from talkinghead import dataroot
from talkinghead.derived import Derived
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import Storage
from talkinghead.media.audio import decode_wav
from talkinghead.schema import ClipInfo, SampleIndex
from tests.support.derived_data import TOY, add_version
from tests.support.latent_data import in_process
from tests.support.mending import make_shards


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Storage:
    return Storage(shutil.copytree(finished, tmp_path / "data"))


@pytest.fixture
def source(sample_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_source, tmp_path / "above" / "source"))


def ingest(storage: Storage, source: Path, **options) -> None:
    run_ingest(in_process(storage), Source(source=str(source), **options), (), resolve_face_model())


def state(storage: Storage) -> dict[str, tuple[str, str | None]]:
    """Key of every planned clip → provenance key and content."""
    plan = plans.find_ingest(storage, "folder")
    assert plan is not None
    return {key: (pkey, plan.contents[key]) for key, pkey in plan.units.items()}


def packed(storage: Storage) -> dict[str, tuple[str, str | None]]:
    return {key: value for key, value in state(storage).items() if key in outcomes.packed_clips(storage).keys}


def test_a_renamed_packed_file_keeps_its_key(storage: Storage, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, known = packed(storage), outcomes.packed_clips(storage)
    first, second = sorted(source.glob("astronaut*"))[1:3]
    first.rename(source / "zzz.mkv")
    (source / "deep").mkdir()
    second.rename(source / "deep" / second.name)
    for _ in range(2):  # the next command finds it again
        with caplog.at_level(logging.WARNING):
            ingest(storage, source)
        assert packed(storage) == before and outcomes.packed_clips(storage) == known
        assert len(state(storage)) == len(read_catalog(storage, "folder").rows)
        rows = {row.source: row for row in read_catalog(storage, "folder").rows}
        assert {"zzz.mkv", f"deep/{second.name}"} <= rows.keys() and first.name not in rows
        assert all(GONE not in row.notes for row in rows.values())
    assert "keep their keys" in caplog.text and "no longer in SOURCE" not in caplog.text


def test_source_one_folder_higher_does_not_double_the_data_set(storage: Storage, source: Path) -> None:
    before = packed(storage)
    count = len(read_catalog(storage, "folder").rows)
    ingest(storage, source.parent)
    rows = read_catalog(storage, "folder").rows
    assert packed(storage) == before and len(rows) == count
    assert all((row.source or "").startswith("source/") for row in rows)
    # And back again.
    ingest(storage, source)
    assert packed(storage) == before and len(read_catalog(storage, "folder").rows) == count


def test_a_renamed_file_that_has_other_content_now_is_an_input_of_its_own_name(storage: Storage, source: Path) -> None:
    """SOURCE was given one folder higher, then a packed file was exchanged: both inputs had one name in the report."""
    file = sorted(source.glob("astronaut*"))[1]
    [packed_key] = [row.key for row in read_catalog(storage, "folder").rows if row.source == file.name]
    ingest(storage, source.parent)
    file.write_bytes(file.read_bytes() + b"\0\0\0\x08free")
    for _ in range(2):
        ingest(storage, source.parent)
        rows = [row for row in read_catalog(storage, "folder").rows if row.source == f"source/{file.name}"]
        assert {row.key: REPLACED in row.notes for row in rows} == {row.key: row.key == packed_key for row in rows}
        assert len(rows) == 2 and not any(GONE in row.notes for row in rows)
        accounting = account(data_state(storage, None))
        names = {outcome.row.key: outcome.input for outcome in accounting.inputs}
        assert len(set(names.values())) == len(names) == sum(accounting.by_fate().values())
        assert {names[row.key].removeprefix(f"folder:source/{file.name}") for row in rows} == {
            "", " (its content before)",
        }  # fmt: skip
    # The old content is back elsewhere: the packed clip has a file again.
    file.rename(file.with_name("new.mp4"))
    (source / "old.mp4").write_bytes(file.with_name("new.mp4").read_bytes()[:-8])
    ingest(storage, source.parent)
    [row] = [row for row in read_catalog(storage, "folder").rows if row.key == packed_key]
    assert row.source == "source/old.mp4" and not {GONE, REPLACED} & set(row.notes)


def test_a_file_that_is_gone_and_other_content_are_no_rename(storage: Storage, source: Path) -> None:
    before = packed(storage)
    first = sorted(source.glob("astronaut*"))[1]
    content = first.read_bytes()
    first.unlink()
    (source / "other.mp4").write_bytes(content + b"\0\0\0\x08free")
    ingest(storage, source)
    assert packed(storage) == before
    rows = {row.source: row for row in read_catalog(storage, "folder").rows}
    assert GONE in rows[first.name].notes and rows["other.mp4"].key not in before


def test_a_copy_of_a_packed_file_is_a_duplicate_whatever_its_name(storage: Storage, source: Path) -> None:
    before = packed(storage)
    shutil.copy(sorted(source.glob("astronaut*"))[1], source / "a.mp4")
    ingest(storage, source)
    assert packed(storage) == before
    (key,) = (row.key for row in read_catalog(storage, "folder").rows if row.source == "a.mp4")
    record = outcomes.ingest_results(storage)[key]
    assert record is not None and not isinstance(record, outcomes.QuarantineRecord)
    assert record.rejected[0].rejection.reason == "duplicate" and not record.samples


def test_a_catalog_that_cannot_be_read_is_made_again_where_nothing_is_packed(
    sample_source: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(sorted(sample_source.glob("astronaut*"))[0], source)
    storage = Storage(tmp_path / "data")
    storage.write(dataroot.catalog("folder"), b"no table")
    ingest(storage, source)
    assert len(read_catalog(storage, "folder").rows) == 1


def test_a_lost_rule_of_split_groups_must_be_named_again(sample_source: Path, tmp_path: Path) -> None:
    (tmp_path / "source" / "anna").mkdir(parents=True)
    shutil.copy(sorted(sample_source.glob("astronaut*"))[0], tmp_path / "source" / "anna")
    data, source = tmp_path / "data", tmp_path / "source"
    make_shards(data, source, group_by="parent")
    storage = Storage(data)
    before = read_catalog(storage, "folder")
    for path in (dataroot.catalog("folder"), dataroot.plan("ingest-folder")):
        storage.write(path, b"garbage")
    with pytest.raises(ValueError, match=r"name it again with GROUP_BY=<rule>"):
        make_shards(data, source)
    make_shards(data, source, group_by="parent")
    assert read_catalog(storage, "folder") == before


def test_a_limit_says_of_no_moved_file_that_it_is_gone(
    storage: Storage, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which file it is now is known by its content, and the limit keeps most of them from being read."""
    before = packed(storage)
    with caplog.at_level(logging.WARNING):
        ingest(storage, source.parent, limit=1)
    assert packed(storage) == before
    notes = {note for row in read_catalog(storage, "folder").rows for note in row.notes}
    assert "no longer in SOURCE" not in caplog.text and GONE not in notes and NOT_TAKEN in notes
    ingest(storage, source.parent)
    notes = {note for row in read_catalog(storage, "folder").rows for note in row.notes}
    assert not notes & {GONE, NOT_TAKEN}, "without a limit all are found again"


def sync_scores(late: str, lag: float) -> Callable[[SampleIndex, np.ndarray], Derived]:
    """The column `sync` says that the sound of one clip is late, and nothing of the others."""

    def scores(row: SampleIndex, _: np.ndarray) -> Derived:
        if row.clip_key != late:
            return Derived(scores=dict.fromkeys(SYNC_SCORES))
        return Derived(scores=dict(zip(SYNC_SCORES, (lag, 0.4, 0.5, 0.0), strict=True)))

    return scores


def clip_of(storage: Storage, key: str) -> tuple[ClipInfo, np.ndarray]:
    """Provenance and sound of an ingested clip that is one piece."""
    record = outcomes.ingested_samples(storage)[key].record
    assert record.file is not None
    with storage.local_copy(record.file) as path, tarfile.open(path) as tar:
        members = [tar.extractfile(f"{key}.{suffix}") for suffix in ("json", "wav")]
        info, wav = (member.read() for member in members if member is not None)
    return ClipInfo.from_json(info), decode_wav(wav)


def test_sound_that_another_data_set_found_late_is_moved(
    storage: Storage, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only of that source, and of no clip that is packed; a later command goes on so, until it is told otherwise."""
    first, *others = sorted(key for key in outcomes.ingested_samples(storage) if "cut" not in key)
    rows = {row.key: row.num_frames for row in read_index(storage, read_manifest(storage).annotation()).rows()}
    assert rows[first] >= 75, "long enough to count"
    add_version(storage, replace(TOY, name="sync", arrays=(), scores=SYNC_SCORES), sync_scores(first, 6.0), pins={})
    with pytest.raises(ValueError, match="whose packed clips never change"):
        ingest(storage, source, align_sound=storage.uri)

    second = Storage(tmp_path / "second")
    ingest(second, source, align_sound=storage.uri)
    plan = plans.find_ingest(second, "folder")
    assert plan is not None and plan.sound_delays == {plan.contents[first]: 5}
    (info, sound), (before, whole) = clip_of(second, first), clip_of(storage, first)
    assert (before.sound_shift_frames, info.sound_shift_frames) == (0, 5)
    assert any("sound moved back by 5 frames" in note for note in info.notes)
    assert np.array_equal(sound[: -5 * 640], whole[5 * 640 :]), "the sound of frame 5 goes with frame 0"
    assert 4 * 640 < info.audio_padded_samples - before.audio_padded_samples <= 5 * 640, "after the end there is none"
    units, known = state(second), state(storage)
    assert units[first] != known[first] and all(units[key] == known[key] for key in others)

    ingest(second, source)
    assert state(second) == units, "as before"
    # Also where the plan is damaged, and the table of fingerprints with it.
    second.write(dataroot.plan("ingest-folder"), b"no plan")
    second.write(dataroot.sources("folder"), b"no table")
    with caplog.at_level(logging.WARNING):
        ingest(second, source)
    assert state(second) == units and plans.find_ingest(second, "folder") == plan
    assert "the sound of 1 sources of folder is moved as their records say" in caplog.text
    # Records of releases that did not note the content.
    for file in second.list("records/ingest"):
        record = json.loads(second.read(file.path))
        record["details"].pop("content", None)
        second.write(file.path, json.dumps(record).encode())
    for path in (dataroot.plan("ingest-folder"), dataroot.sources("folder")):
        second.write(path, b"garbage")
    with caplog.at_level(logging.WARNING):
        ingest(second, source)
    assert "the sound of 1 clips of folder was moved, and it is lost which sources" in caplog.text
    ingest(second, source, align_sound="none")
    assert state(second)[first] == known[first]
