"""A DATA of persons in which lies everything that work, kills and damage leave next to a finished data set."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from annotate.columns import COLUMNS, FITS
from ingest.catalog import Catalog, read_catalog, write_catalog
from ingest.source_listing import Problem
from orchestration import plans
from orchestration.jobs import derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.duplicates import Duplicates
from orchestration.jobs.finish import finish
from orchestration.jobs.fit import run_fit
from orchestration.jobs.pack import run_pack
from orchestration.units.executor import Tally
from orchestration.units.records import Attempt, QuarantineRecord
from orchestration.units.unit import Unit, run_unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import CatalogRow
from tests.support.latent_data import InProcessUnitRunner, in_process
from tests.support.packed_data import annotation_members
from tests.support.removable_data import CLIPS, PIECES, PKEY, SAMPLES, build, commit, commit_clip, rows
from tests.support.speech_data import LENGTHS, arrays
from tests.support.toy_column import ToySettings, toy_column
from train.clip_choice import ClipChoice

COPY = "folder-copy-mp4-abcd"
"""Key of an input of the same bytes as the first clip."""
OTHER = "1" * 16
"""Provenance key of units that were done under other settings."""
SETTINGS = {"engine": "litert"}


class KilledError(Exception):
    """The process was killed."""


class KilledAtTheEnd(InProcessUnitRunner):
    """Runs all units, and is killed before their outputs are used."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run the units."""
        super().run(job, units, gpu_share=gpu_share)
        raise KilledError


def build_with_leftovers(root: Path) -> Storage:
    """The data set, of two annotation versions and two of a column."""
    storage = build(root)
    _duplicate(storage)
    _versions(storage)
    _fits(storage)
    _other_settings(storage)
    _failures(storage)
    _catalogs(storage)
    storage.write("report/index.html", b"<h1>Ann Example</h1>")
    # Last what was damaged, and set aside: whole copies, which name everybody.
    for folder in ("records", "plans", "catalog"):
        for file in storage.list(folder):
            storage.write(dataroot.damaged(file.path, 0), storage.read(file.path))
    return storage


def _duplicate(storage: Storage) -> None:
    """An input of equal bytes in the same SOURCE, rejected as such."""
    first = rows()[0]
    row = replace(first, key=COPY, source_id="copy", source="copy.mp4")
    plan = plans.find_ingest(storage, "folder")
    assert plan
    content = plan.contents[CLIPS[0]]
    unit = Duplicates({COPY: first}, {}, {}, ()).unit(row, content)
    run_unit(storage, unit, attempts=1)
    units, contents = plan.units | {COPY: unit.pkey}, plan.contents | {COPY: content}
    plans.write_plan(storage, plans.ingest_plan_name("folder"), replace(plan, units=units, contents=contents))
    catalog = read_catalog(storage, "folder")
    write_catalog(storage, replace(catalog, rows=sorted([*catalog.rows, row], key=lambda row: row.key)))


def _versions(storage: Storage) -> None:
    """A second annotation version, a second column, an annotation without a plan, and a plan of an older release."""
    about = {"settings": SETTINGS, "model": "m", "model_sha256": "0" * 64, "order": 1}
    units = dict.fromkeys(SAMPLES, PKEY)
    plans.write_plan(storage, plans.annotate_job("v2"), plans.AnnotatePlan(units=units, **about))
    for number, clip in enumerate(CLIPS):
        for key in PIECES.get(clip, (clip,)):
            members = {key: annotation_members(key, arrays(number))}
            for job in (plans.annotate_job("v2"), plans.annotate_job("v0")):
                commit(storage, job, key, members, LENGTHS[number], {})
    run_pack(in_process(storage), "v2")
    finish(storage, "v2")
    column = toy_column()
    COLUMNS[column.name] = column
    try:
        derive_worker._last.clear()
        run_derive(in_process(storage), column, ToySettings(scale=2.0))
    finally:
        del COLUMNS[column.name]
    storage.write(dataroot.old_plan(plans.annotate_job("v2")), json.dumps({"units": units, **about}).encode())


def _fits(storage: Storage) -> None:
    """A fit of everybody, one of a choice, and the sums of one that was killed."""
    speakers = FITS["speakers"]
    run_fit(in_process(storage), speakers, speakers.settings())
    run_fit(in_process(storage), speakers, speakers.settings(), ClipChoice(person=("Ann Example", "Bob")))
    killed = in_process(storage)
    runner = KilledAtTheEnd(storage=storage, cluster=killed.cluster, retry=killed.retry)
    with contextlib.suppress(KilledError):
        run_fit(runner, speakers, speakers.settings(), ClipChoice(person=("Bob", "Ann Example", "Cleo")))


def _other_settings(storage: Storage) -> None:
    """Clips that were ingested under other settings before."""
    for clip in (CLIPS[0], CLIPS[2], CLIPS[3]):
        commit_clip(storage, clip, OTHER)


def _failures(storage: Storage) -> None:
    """Units that failed, and some that were released."""
    told = [
        (plans.pack_annotation_job("v1"), "clips-000007", f"units/x.tar is damaged: the bytes of {SAMPLES[0]} differ"),
        (plans.annotate_job("v3"), SAMPLES[0], "no face"),
        (plans.INGEST_JOB, CLIPS[3], "/home/me/source/clip_0.mp4 is in the way"),
        (plans.annotate_job("v1"), SAMPLES[4], "nothing about anybody"),
    ]
    for job, key, message in told:
        attempts = [Attempt(cause="error:Test", message=message)]
        record = QuarantineRecord(job=job, key=key, pkey=OTHER, source=key, attempts=attempts)
        storage.write(dataroot.quarantine(job, key, OTHER), record.to_json())
        storage.write(dataroot.released(job, key, OTHER, 0), record.to_json())


def _catalogs(storage: Storage) -> None:
    """A catalog of another data set over the same SOURCE; both say which recordings are the same."""
    listed = CatalogRow(
        key="hdtf-WRA_Cleo-0-abcd",
        dataset="hdtf",
        source_id="WRA_Cleo",
        source=None,
        person="Cleo",
        split_group="WRA_Cleo",
        licence="CC-BY-4.0",
    )
    problems = [
        Problem(file="folder:clip_0.mp4", message="is the same recording as folder:clip_4.mp4 (sound differs in 3%)"),
        Problem(file="folder:clip_4.mp4", message="is the same recording as folder:clip_1.mp4 (sound differs in 3%)"),
        Problem(file="HDTF_TH_list.txt", line=7, message="'Ann Example' has no video"),
        Problem(file="HDTF_TH_list.txt", line=8, message="'Dan' has no video"),
    ]
    unused = ("clip_0.mp4", "clip_4.mp4")
    write_catalog(storage, Catalog(dataset="hdtf", rows=[listed], problems=problems, unused=unused))
    write_catalog(storage, replace(read_catalog(storage, "folder"), problems=problems, unused=("other.mp4",)))
