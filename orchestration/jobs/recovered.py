"""Plans and catalogs that were damaged, as far as the records of units and `DATASET.json` give them back.

What is packed must go on as it was made: the provenance keys of its units, and the settings of a finished version. The
rest is planned anew by the job whose plan it is.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ingest.fingerprints import Fingerprint
from orchestration import outcomes, plans
from orchestration.plans import INGEST_JOB, PACK_MEDIA_JOB
from orchestration.units.ledger import Ledger
from orchestration.units.records import SampleRecord, UnitRecord
from shards.manifest import AnnotationEntry, find_manifest
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.sampletar import read_members
from talkinghead.schema import CatalogRow, ClipInfo

log = logging.getLogger(__name__)

SETTINGS = "settings"
"""Detail of ingest's commit records: the settings that the clip was made with. Earlier releases did not note them."""
SOUND_DELAY = "sound_delay"
"""Detail of ingest's commit records: frames by which the sound was moved; missing where it was not."""
CONTENT = "content"
"""Detail of ingest's commit records: SHA-256 of the source. Earlier releases did not note it."""


def packed_units(
    storage: Storage, job: str, pack_job: str, made: Sequence[UnitRecord] | None = None
) -> dict[str, UnitRecord]:
    """Key → commit record of the units of a job whose samples are in the shards of a pack job.

    Args:
        storage: DATA, the data set's folder or bucket.
        job: Name of the job.
        pack_job: Name of the pack job.
        made: All commit records of the job; None: they are read.
    """
    packed: dict[str, SampleRecord] = {}
    for record in outcomes.pack_records(storage, pack_job).values():
        packed |= {sample.key: sample for sample in record.samples}
    if not packed:
        return {}
    # A unit may have been done several times, under other settings: the bytes of its samples tell which time counts.
    return {
        record.key: record
        for record in (Ledger(storage, job).commits() if made is None else made)
        if any(
            (here := packed.get(sample.key)) is not None and here.sha256 == sample.sha256 for sample in record.samples
        )
    }


def ingest_plan(storage: Storage, dataset: str, known: Mapping[str, Fingerprint]) -> plans.IngestPlan:
    """Plan of the packed clips of a data set, without any where none is packed.

    Its settings are those that most of the packed clips, else of all clips, were made with; where earlier releases did
    not note them, the defaults, but for the size. The sound of sources is moved as the records say.

    Args:
        storage: DATA, the data set's folder or bucket.
        dataset: Name of the data set.
        known: Source → fingerprint, of which the content is taken where a record does not note it.
    """
    # Clips that are not packed are planned anew, but as the user wanted them.
    made = [record for record in Ledger(storage, INGEST_JOB).commits() if record.details.get("dataset") == dataset]
    packed = packed_units(storage, INGEST_JOB, PACK_MEDIA_JOB, made)
    contents: dict[str, str | None] = {
        key: content for key, record in packed.items() if (content := _content(record, known)) is not None
    }
    return plans.IngestPlan(
        units={key: record.pkey for key, record in packed.items()},
        contents=contents,
        settings=_settings(dataset, packed.values()) or (_size(storage) if packed else _settings(dataset, made)),
        sound_delays=_sound_delays(dataset, [*made, *packed.values()], known),
    )


def _content(record: UnitRecord, known: Mapping[str, Fingerprint]) -> str | None:
    """SHA-256 of a clip's source; None where it is not known."""
    noted = record.details.get(CONTENT)
    if isinstance(noted, str):
        return noted
    entry = known.get(str(record.details.get("source")))
    return entry.sha256 if entry is not None else None


def _sound_delays(dataset: str, records: Iterable[UnitRecord], known: Mapping[str, Fingerprint]) -> dict[str, int]:
    """SHA-256 of a source → frames by which its sound was moved.

    Args:
        dataset: Name of the data set.
        records: Commit records of its clips, of which the later ones count where they contradict each other.
        known: Source → fingerprint.
    """
    found: dict[str, int] = {}
    lost = set()
    for record in records:
        delay = record.details.get(SOUND_DELAY)
        if type(delay) is int and delay:
            if (content := _content(record, known)) is None:
                lost.add(record.key)
            else:
                found[content] = delay
    if found:
        log.warning(
            "the sound of %d sources of %s is moved as their records say, unless --align-sound names other delays",
            len(found), dataset,
        )  # fmt: skip
    if lost:
        log.warning(
            "the sound of %d clips of %s was moved, and it is lost which sources are theirs: packed clips stay as they"
            " are, for others name the data set again that measured the delays (--align-sound DATA)",
            len(lost), dataset,
        )  # fmt: skip
    return found


def _settings(dataset: str, records: Iterable[UnitRecord]) -> dict[str, Any]:
    """Settings that most clips were made with; empty where no record notes them."""
    noted = [found for record in records if isinstance(found := record.details.get(SETTINGS), dict)]
    counts = Counter(canonical_json(found) for found in noted)
    if not counts:
        return {}
    [(most, number)] = counts.most_common(1)
    log.warning(
        "the settings of %s are those again that %d of its %d clips were made with, unless --ingest names others",
        dataset, number, len(noted),
    )  # fmt: skip
    return next(found for found in noted if canonical_json(found) == most)


def _size(storage: Storage) -> dict[str, Any]:
    """The setting of ingest that all clips of DATA share, from one that is packed."""
    log.warning(
        "the settings of ingest are the defaults again, but for the size: where they were others, name them with"
        " ARGS='--ingest NAME=VALUE …'"
    )
    records = outcomes.pack_records(storage, PACK_MEDIA_JOB)
    lost = outcomes.lost_shards(storage, records.values())
    for key, (file, sample) in outcomes.packed_samples(storage, records).items():
        if file not in lost:
            content = read_members(storage.read_range, file, key, sample.members, "json")["json"]
            return {"size": ClipInfo.from_json(bytes(content)).width}
    return {}


def catalog_rows(storage: Storage, dataset: str, packed: set[str]) -> list[CatalogRow]:
    """Rows of the packed clips of a data set, from the records of their ingest."""
    records = packed_units(storage, INGEST_JOB, PACK_MEDIA_JOB).values()
    rows = (_row(record) for record in records if record.key in packed)
    return sorted((row for row in rows if row and row.dataset == dataset), key=lambda row: row.key)


def planned_rows(storage: Storage, plan: plans.IngestPlan) -> list[CatalogRow]:
    """Rows of the clips of a plan, from the records of their ingest; without those that failed or are pending."""
    records = Ledger(storage, INGEST_JOB).results(plan.units.items()).values()
    rows = (_row(record) for record in records if isinstance(record, UnitRecord))
    return sorted((row for row in rows if row), key=lambda row: row.key)


def _row(record: UnitRecord) -> CatalogRow | None:
    """Row of a clip, as far as the record of its ingest tells it; None where it tells nothing, as of a removed clip."""
    if "dataset" not in record.details:
        return None
    names = CatalogRow.__dataclass_fields__.keys() & record.details.keys() - {"notes", "attributes"}
    about = {"key": record.key, "source_id": record.key, **{name: record.details[name] for name in names}}
    return CatalogRow.from_json(about)


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


def restore_shard_plan(storage: Storage) -> None:
    """Write the plan of the packed shards again where it is damaged, or gone. Only for the writer of DATA."""
    damaged = plans.set_aside_damaged(storage, plans.SHARD_PLAN)
    if damaged or plans.find_shards(storage) is None:
        plan = shard_plan(storage)
        if plan.shards:
            plans.write_plan(storage, plans.SHARD_PLAN, plan)
        if plan.shards and not damaged:
            log.warning("%s is gone: it is made again", storage.describe(dataroot.plan(plans.SHARD_PLAN)))


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
    if shards:
        log.warning(
            "the settings of new shards are the defaults again, but for their splits: where they were others, name them"
            " with make shards ARGS='--shards NAME=VALUE …'"
        )
    return plans.ShardPlan(shards=shards, settings=settings)
