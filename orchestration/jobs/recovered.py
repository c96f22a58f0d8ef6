"""Plans and catalogs that were damaged, as far as the records of units and `DATASET.json` give them back.

What is packed must go on as it was made: the provenance keys of its units, and the settings of a finished version. The
rest is planned anew by the job whose plan it is.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ingest.fingerprints import Fingerprint
from orchestration import outcomes, plans
from orchestration.plans import INGEST_JOB, PACK_MEDIA_JOB
from orchestration.units.ledger import Ledger
from orchestration.units.records import SampleRecord, UnitRecord
from shards.manifest import AnnotationEntry, find_manifest
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.sampletar import read_members
from talkinghead.schema import CatalogRow, ClipInfo

log = logging.getLogger(__name__)

SETTINGS = "settings"
"""Detail of ingest's commit records: the settings that the clip was made with. Earlier releases did not note them."""
SOUND_DELAY = "sound_delay"
"""Detail of ingest's commit records: frames by which the sound was moved; missing where it was not."""


def packed_units(storage: Storage, job: str, pack_job: str) -> dict[str, UnitRecord]:
    """Key → commit record of the units of a job whose samples are in the shards of a pack job."""
    packed: dict[str, SampleRecord] = {}
    for record in outcomes.pack_records(storage, pack_job).values():
        packed |= {sample.key: sample for sample in record.samples}
    if not packed:
        return {}
    # A unit may have been done several times, under other settings: the bytes of its samples tell which time counts.
    return {
        record.key: record
        for record in Ledger(storage, job).commits()
        if any(
            (here := packed.get(sample.key)) is not None and here.sha256 == sample.sha256 for sample in record.samples
        )
    }


def ingest_plan(storage: Storage, dataset: str, known: Mapping[str, Fingerprint]) -> plans.IngestPlan:
    """Plan of the packed clips of a data set, without any where none is packed.

    Its settings are those that most of the clips were made with; where earlier releases did not note them, the
    defaults, but for the size.

    Args:
        storage: DATA, the data set's folder or bucket.
        dataset: Name of the data set.
        known: Source → fingerprint, by which it is noticed that the source of a packed clip has changed.
    """
    records = {
        key: record
        for key, record in packed_units(storage, INGEST_JOB, PACK_MEDIA_JOB).items()
        if record.details.get("dataset") == dataset
    }
    prints = {key: known.get(str(record.details.get("source"))) for key, record in records.items()}
    contents = {key: entry.sha256 for key, entry in prints.items() if entry is not None}
    return plans.IngestPlan(
        units={key: record.pkey for key, record in records.items()},
        contents=contents,
        settings=_settings(dataset, records.values()) or (_size(storage) if records else {}),
        sound_delays={
            content: delay
            for key, content in contents.items()
            if content is not None and isinstance(delay := records[key].details.get(SOUND_DELAY), int) and delay
        },
    )


def _settings(dataset: str, records: Iterable[UnitRecord]) -> dict[str, Any]:
    """Settings that most clips were made with; empty where no record notes them."""
    noted = [found for record in records if isinstance(found := record.details.get(SETTINGS), dict)]
    counts = Counter(canonical_json(found) for found in noted)
    if not counts:
        return {}
    [(most, number)] = counts.most_common(1)
    log.warning(
        "the settings of %s are those again that %d of its %d packed clips were made with, unless --ingest names them",
        dataset, number, len(noted),
    )  # fmt: skip
    return next(found for found in noted if canonical_json(found) == most)


def _size(storage: Storage) -> dict[str, Any]:
    """The setting of ingest that all clips of DATA share, from one that is packed."""
    log.warning("the settings of ingest are the defaults again, but for the size, unless --ingest names them")
    records = outcomes.pack_records(storage, PACK_MEDIA_JOB)
    lost = outcomes.lost_shards(storage, records.values())
    for key, (file, sample) in outcomes.packed_samples(storage, records).items():
        if file not in lost:
            content = read_members(storage.read_range, file, key, sample.members, "json")["json"]
            return {"size": ClipInfo.from_json(bytes(content)).width}
    return {}


def catalog_rows(storage: Storage, dataset: str, packed: set[str]) -> list[CatalogRow]:
    """Rows of the packed clips of a data set, from the records of their ingest."""
    rows = []
    for record in packed_units(storage, INGEST_JOB, PACK_MEDIA_JOB).values():
        names = CatalogRow.__dataclass_fields__.keys() & record.details.keys() - {"notes", "attributes"}
        if record.key in packed and record.details.get("dataset") == dataset:
            rows.append(CatalogRow.from_json({"key": record.key, **{name: record.details[name] for name in names}}))
    return sorted(rows, key=lambda row: row.key)


def annotate_plan(storage: Storage, version: str) -> plans.AnnotatePlan | None:
    """Plan of the packed samples of an annotation version; None where none is packed, or nothing says how it was
    made."""
    records = packed_units(storage, plans.annotate_job(version), plans.pack_annotation_job(version))
    if not records:
        return None
    manifest = find_manifest(storage)
    faces = manifest.of_kind("annotation") if manifest else []
    order = next((number for number, entry in enumerate(faces) if entry.version == version), len(faces))
    about = faces[order].details if order < len(faces) else next(iter(r.details for r in records.values()), {})
    if not isinstance(about.get("settings"), dict) or not isinstance(about.get("model"), str):
        return None
    return plans.AnnotatePlan(
        units={key: record.pkey for key, record in records.items()},
        settings=about["settings"],
        model=about["model"],
        model_sha256=str(about.get("model_sha256")),
        order=order,
    )


def column_plan(storage: Storage, column: str, version: str) -> plans.ColumnPlan | None:
    """Plan of the packed samples of a version of a derived column; None where none is packed, or nothing says what it
    was made of."""
    records = packed_units(storage, plans.column_job(column, version), plans.pack_annotation_job(version))
    manifest = find_manifest(storage)
    entries = {entry.version: entry for entry in (manifest.of_kind(column) if manifest else [])}
    if not records or version not in entries:
        return None
    return plans.ColumnPlan(
        units={key: record.pkey for key, record in records.items()},
        made_of=replace(entries[version].made_of, labels=[]),
    )


def shard_plan(storage: Storage) -> plans.ShardPlan:
    """Plan of the packed shards; others are planned anew."""
    records = outcomes.pack_records(storage, PACK_MEDIA_JOB)
    shards: list[list[str]] = []
    while (record := records.get(plans.shard_key(len(shards)))) is not None:
        shards.append([sample.key for sample in record.samples])
    manifest = find_manifest(storage)
    faces: list[AnnotationEntry] = manifest.of_kind("annotation") if manifest else []
    settings = faces[-1].details.get("splits") if faces else None
    settings = json.loads(json.dumps(settings)) if isinstance(settings, dict) else {}
    log.warning("the settings of the shards are the defaults again, but for their splits, unless --shards names them")
    return plans.ShardPlan(shards=shards, settings=settings)
