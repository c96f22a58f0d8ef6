"""A DATA of persons that samples are taken out of: made by the jobs, in this process, with all their records.

Four persons with five clips, the third of which has two pieces, in three shards; one derived column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from annotate.columns import COLUMNS
from ingest.catalog import Catalog, write_catalog
from orchestration import plans
from orchestration.jobs import derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.finish import finish
from orchestration.jobs.pack import run_pack
from orchestration.units.unit import Output, Unit, store_output
from shards.reader import ShardReader
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import CatalogRow
from tests.support.latent_data import in_process
from tests.support.packed_data import annotation_members, media_members
from tests.support.speech_data import LENGTHS, arrays, speech
from tests.support.toy_column import ToySettings, toy_column

PERSONS = ("Ann Example", "Ann Example", "Bob", "Cleo", "Dan")
"""Person of each clip."""
CLIPS = tuple(f"folder-clip_{number}-mp4-abcd" for number in range(len(PERSONS)))
PIECES = {CLIPS[2]: (f"{CLIPS[2]}-cut0", f"{CLIPS[2]}-cut1")}
SAMPLES = tuple(key for clip in CLIPS for key in PIECES.get(clip, (clip,)))
PKEY = "0" * 16


def rows() -> list[CatalogRow]:
    """Catalog rows of the clips."""
    return [
        CatalogRow(
            key=clip,
            dataset="folder",
            source_id=f"clip_{number}",
            source=f"clip_{number}.mp4",
            person=PERSONS[number],
            split_group=PERSONS[number],
            licence="CC0-1.0",
        )
        for number, clip in enumerate(CLIPS)
    ]


def contents() -> dict[str, str | None]:
    """Key of a clip → hash of its source."""
    return {clip: f"{number}" * 64 for number, clip in enumerate(CLIPS)}


def build_ingested(root: Path) -> Storage:
    """What the data set is made of, annotated and not packed."""
    storage = Storage(root)
    catalog = rows()
    write_catalog(storage, Catalog(dataset="folder", rows=catalog, problems=[]))
    plan = plans.IngestPlan(units=dict.fromkeys(CLIPS, PKEY), contents=contents(), settings={})
    plans.write_plan(storage, plans.ingest_plan_name("folder"), plan)
    units = dict.fromkeys(SAMPLES, PKEY)
    faces = plans.AnnotatePlan(units=units, settings={"engine": "litert"}, model="m", model_sha256="0" * 64, order=0)
    plans.write_plan(storage, plans.annotate_job("v1"), faces)
    for number, row in enumerate(catalog):
        commit_clip(storage, row.key)
        for key in PIECES.get(row.key, (row.key,)):
            members = {key: annotation_members(key, arrays(number))}
            commit(storage, plans.annotate_job("v1"), key, members, LENGTHS[number], {})
    return storage


def build(root: Path) -> Storage:
    """The data set."""
    storage = build_ingested(root)
    run_pack(in_process(storage), "v1", ("min_shards=3", "val_fraction=0.3"))
    finish(storage, "v1")
    column = toy_column()
    COLUMNS[column.name] = column
    try:
        derive_worker._last.clear()
        run_derive(in_process(storage), column, ToySettings())
    finally:
        del COLUMNS[column.name]
    return storage


def commit_clip(storage: Storage, clip: str, pkey: str = PKEY) -> None:
    """Store what ingest makes of a clip, under some settings, and its commit record."""
    number = CLIPS.index(clip)
    row = rows()[number]
    details = {name: getattr(row, name) for name in ("dataset", "split_group", "licence", "person", "source")}
    members = {key: _media(row, key, number) for key in PIECES.get(clip, (clip,))}
    commit(storage, "ingest", clip, members, LENGTHS[number], details, pkey)


def _media(row: CatalogRow, key: str, number: int) -> dict[str, bytes]:
    frames = np.full((LENGTHS[number], 64, 64, 3), 10 * SAMPLES.index(key), np.uint8)
    assert row.person
    made = media_members(key, frames, speech(number), source_id=row.source_id, group=row.person)
    # Pieces follow one another in their source.
    start_s = PIECES.get(row.key, (row.key,)).index(key) * LENGTHS[number] / 25
    place = {"start_s": start_s, "end_s": start_s + LENGTHS[number] / 25}
    about = json.loads(made["json"]) | {"clip_key": row.key, "person": row.person} | place
    return made | {"json": json.dumps(about).encode()}


def commit(
    storage: Storage,
    job: str,
    key: str,
    made: Mapping[str, dict[str, bytes]],
    frames: int,
    details: dict[str, Any],
    pkey: str = PKEY,
) -> None:
    """Store a unit's samples, and its commit record."""
    unit = Unit(job=job, key=key, pkey=pkey, function="", payload={}, source=key, time_limit_s=1.0)
    scores: dict[str, dict[str, float | None]] = {}
    if job.startswith(plans.ANNOTATE_PREFIX):
        sound: dict[str, float | None] = dict.fromkeys(("audio_missing", "audio_silent", "audio_padded_fraction"), 0.0)
        scores = {name: dict(sound) for name in made}
    output = Output(contents=[(name, frames, members) for name, members in made.items()], scores=scores)
    stored = store_output(storage, unit, output)
    storage.write(dataroot.record(job, key, pkey), replace(stored, details=details).to_json())


def everything(storage: Storage) -> dict[str, dict[str, bytes]]:
    """Key → every member, as a reader gets them by the index."""
    reader = ShardReader(storage, split=None, kept=False, join=("toy",))
    return {sample.key: {suffix: bytes(content) for suffix, content in sample.members().items()} for sample in reader}
