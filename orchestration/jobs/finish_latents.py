"""A version of latents as readers see it: its index, and its entry in `DATASET.json`, replaced last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestration import results
from orchestration.job_names import pack_annotation_job, shard_key
from orchestration.jobs.finish import in_order, remove_old_indexes, shard_entry
from orchestration.units.records import UnitRecord
from shards.index import Index, build_index, write_index
from shards.manifest import AnnotationEntry, read_manifest, write_manifest
from talkinghead.derived import EMBEDDING, LATENTS
from talkinghead.files.storage import Storage
from talkinghead.schema import Member, SampleIndex

log = logging.getLogger(__name__)

FAILED = "encode_failed"


def finish_latents(
    storage: Storage, version: str, samples: Index, encoded: results.Results, about: Mapping[str, Any]
) -> None:
    """Write the version's index and replace `DATASET.json`. Reads records only.

    Args:
        storage: DATA; every shard of the version is packed.
        version: Its name.
        samples: Index of a face annotation: which samples there are, and where.
        encoded: What became of them.
        about: Size and networks.
    """
    before = read_manifest(storage)
    records = results.pack_records(storage, pack_annotation_job(version))
    shards = [records[shard_key(number)] for number in range(len(before.media))]
    places = {sample.key: sample.members for record in shards for sample in record.samples}
    if late := sum(key not in places and isinstance(record, UnitRecord) for key, record in encoded.items()):
        log.warning(
            "%d samples were encoded only after their shard of %s was packed without them; make latents with another"
            " --version takes them in", late, version,
        )  # fmt: skip
    if missing := len(samples) - len(places):
        log.warning(
            "%s lacks %d of %d samples that could not be encoded: make quarantine", version, missing, len(samples)
        )
    index = build_index(version, _rows(samples, places))
    path, index_sha256 = write_index(storage, index)
    keep = index.numbers("keep")
    entry = AnnotationEntry(
        version=version,
        index=path,
        index_sha256=index_sha256,
        shards=[shard_entry(record) for record in shards],
        samples=len(index),
        kept=int(keep.sum()),
        splits=dict(sorted(Counter(index.texts("split")[keep]).items())),
        kind="latents",
        details={**about, "columns": [EMBEDDING, LATENTS]},
    )
    others = [other for other in before.annotations if other.version != version]
    after = replace(before, annotations=in_order(storage, [*others, entry]))
    write_manifest(storage, after)
    remove_old_indexes(storage, before, after)


def _rows(samples: Index, places: Mapping[str, list[Member]]) -> Iterator[SampleIndex]:
    """The same samples in the same places; what could not be encoded has no members and is not kept."""
    for row in samples.rows():
        members = places.get(row.key, [])
        yield replace(
            row,
            keep=bool(members),
            reason=None if members else FAILED,
            reason_score=None,
            annotation=members,
            scores={},
        )
