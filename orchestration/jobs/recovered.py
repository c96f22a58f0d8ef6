"""Plans and catalogs that were damaged, as far as the records of units and `DATASET.json` give them back.

What is packed must go on as it was made: the provenance keys of its units, and the settings of a finished version. The
rest is planned anew by the job whose plan it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from ingest.fingerprints import Fingerprint
from orchestration import outcomes, plans
from orchestration.plans import INGEST_JOB, PACK_MEDIA_JOB
from orchestration.units.ledger import Ledger
from orchestration.units.records import SampleRecord, UnitRecord
from shards.manifest import AnnotationEntry, find_manifest
from talkinghead.files.storage import Storage
from talkinghead.sampletar import read_members
from talkinghead.schema import CatalogRow, ClipInfo

log = logging.getLogger(__name__)


def packed_units(storage: Storage, job: str, pack_job: str) -> dict[str, UnitRecord]:
    """Key → commit record of the units of a job whose samples are in the shards of a pack job."""
    packed: dict[str, SampleRecord] = {}
    for record in outcomes.pack_records(storage, pack_job).values():
        packed |= {sample.key: sample for sample in record.samples}
    ledger = Ledger(storage, job)
    found = {}
    # A unit may have been done several times, under other settings: the bytes of its samples tell which time counts.
    for pair in sorted(ledger.committed):
        record = ledger.results([pair])[pair[0]]
        if isinstance(record, UnitRecord) and any(
            (here := packed.get(sample.key)) is not None and here.sha256 == sample.sha256 for sample in record.samples
        ):
            found[record.key] = record
    return found


def ingest_plan(storage: Storage, dataset: str, known: Mapping[str, Fingerprint]) -> plans.IngestPlan:
    """Plan of the packed clips of a data set. Its settings are the defaults, but for the size.

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
    return plans.IngestPlan(
        units={key: record.pkey for key, record in records.items()},
        contents={key: entry.sha256 for key, entry in prints.items() if entry is not None},
        settings=_size(storage) if records else {},
    )


def _size(storage: Storage) -> dict[str, Any]:
    """The setting of ingest that all clips of DATA share, from one that is packed."""
    lost = outcomes.lost_shards(storage, outcomes.pack_records(storage, PACK_MEDIA_JOB).values())
    for key, (file, sample) in outcomes.packed_samples(storage).items():
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
    """Plan of the packed samples of an annotation version; None where nothing says how it was made."""
    records = packed_units(storage, plans.annotate_job(version), plans.pack_annotation_job(version))
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
