"""Splits of groups that hold the same recordings: copies are found by content, and never stand in different splits.

A clip's split group is what its data set says, a person or a video. Two groups are related where a clip of one is a
copy of a clip of the other: of equal bytes, or encoded anew (`ingest/same_recording.py`), in any data set of DATA.
Related groups fall in one split, that of the alphabetically first name. So the split depends on names and contents
alone, not on an order; and what is packed keeps its split: where a related group was packed before, the others join it.

What is related is kept in DATA, with a hash of what it was found from, since several commands ask for it and a search
reads the record of every clip. The file may be lost or damaged at any time: then it is found anew.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ingest.same_recording import Groups, Match, find_matches
from ingest.signatures import Signature
from orchestration import outcomes, plans
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX, IngestPlan
from orchestration.units.records import UnitRecord
from shards.index import read_index
from shards.manifest import find_manifest
from shards.plan import ShardSettings, assign_splits
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.derived import ANNOTATION
from talkinghead.files.foreign import LinkError, parse_json
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.runtime.errors import one_line

log = logging.getLogger(__name__)

SIGNATURE = "signature"
"""Detail of ingest's commit records: the clip's signature. Earlier releases did not make any."""
STORED = "catalog/related.json.gz"
"""File in DATA that keeps what is related. It holds names: whoever takes a person out deletes it, too."""
_VERSION = 1  # of the search: what an older one found is not taken
_UNIT_BYTES = 1024  # of the file, uncompressed, for each clip
_LEAST_BYTES = 1 << 20
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Related:
    """What belongs together in DATA."""

    groups: Groups
    """Split groups, joined where they hold the same recordings."""
    matches: list[Match]
    """Clips of one recording that are no equal bytes, by which groups were joined."""
    sources: Mapping[str, str]
    """Key of a clip → data set and file, for messages; of the clips in the matches."""

    def described(self, match: Match) -> tuple[str, str]:
        """The two inputs of a match."""
        return self.sources.get(match.first, match.first), self.sources.get(match.second, match.second)


def related_groups(storage: Storage) -> Related:
    """Find the split groups of DATA that hold the same recordings, or read what was found before.

    Raises:
        ValueError: A plan or a record is none of ours.
    """
    # What this follows from, without opening a record: plans, and names and sizes of records.
    ingest_plans = {
        name: plan
        for name in plans.plan_names(storage, INGEST_PLAN_PREFIX)
        if (plan := plans.find_ingest(storage, name.removeprefix(INGEST_PLAN_PREFIX))) is not None
    }
    made_of = _made_of(storage, ingest_plans)
    limit = _LEAST_BYTES + _UNIT_BYTES * sum(len(plan.units) for plan in ingest_plans.values())
    if (stored := _stored(storage, made_of, limit)) is not None:
        return stored
    unreadable: outcomes.Unreadable = {}
    related = _find_related(storage, ingest_plans.values(), unreadable)
    # A record that cannot be read may be mended without another name or size.
    if ingest_plans and not unreadable:
        _store(storage, made_of, related, limit)
    return related


def _find_related(storage: Storage, ingest_plans: Iterable[IngestPlan], unreadable: outcomes.Unreadable) -> Related:
    records = {
        key: record
        for key, record in outcomes.ingest_results(storage, unreadable).items()
        if isinstance(record, UnitRecord)
    }
    group_of = {
        key: group for key, record in records.items() if isinstance(group := record.details.get("split_group"), str)
    }
    groups = Groups()
    for group in group_of.values():
        groups.root(group)

    # Equal bytes, whatever is cut out of them; rejected duplicates say as well who belongs together.
    same_bytes: dict[str, list[str]] = defaultdict(list)
    for plan in ingest_plans:
        for key, content in plan.contents.items():
            if content is not None and key in group_of:
                same_bytes[content].append(group_of[key])
    for names in same_bytes.values():
        for name in names[1:]:
            groups.join(names[0], name)

    # Encoded anew. Groups that are related already need no comparison.
    signatures = {}
    for key, record in records.items():
        if key in group_of and record.samples and (stored := record.details.get(SIGNATURE)) is not None:
            signatures[key] = _signature(stored, key)
    matches = find_matches(signatures, {key: groups.root(group_of[key]) for key in signatures})
    for match in matches:
        groups.join(group_of[match.first], group_of[match.second])
    sources = {}
    for key in sorted({key for match in matches for key in (match.first, match.second)}):
        details = records[key].details
        sources[key] = f"{details.get('dataset')}:{details.get('source') or key}"
    return Related(groups=groups, matches=matches, sources=sources)


def _signature(value: object, key: str) -> Signature:
    try:
        return Signature.from_json(value)
    except ValueError as error:
        raise ValueError(f"the commit record of {key} is no record of ours: {error}") from error


# --- what is kept in DATA ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What is related, as JSON."""

    version: int
    made_of: str
    """Hash of what it was found from."""
    groups: list[list[str]]
    """Names that belong together."""
    matches: list[Match]
    sources: dict[str, str]


def forget_related(storage: Storage) -> None:
    """Delete what is kept in DATA of related groups: it names persons, files and clips. It is found anew if needed."""
    storage.delete(STORED)


def _made_of(storage: Storage, ingest_plans: Mapping[str, IngestPlan]) -> str:
    """Hash of all that related groups follow from: units and contents of the plans, names and sizes of the records."""
    digest = hashlib.sha256(canonical_json(_VERSION))
    for name, plan in sorted(ingest_plans.items()):
        digest.update(canonical_json([name, sorted(plan.units.items()), sorted(plan.contents.items())]))
    for file in storage.list(dataroot.records(INGEST_JOB), ".json"):
        digest.update(f"{file.path} {file.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stored(storage: Storage, made_of: str, limit: int) -> Related | None:
    """What was found before from the same; None where it is not there, or damaged."""
    try:
        data = storage.read(STORED, limit, "list of related groups")
        # The checksum at its end is compared there; what is longer than it may be never gets there.
        unpacked = zlib.decompressobj(wbits=31)
        text = unpacked.decompress(data, limit)
        if not unpacked.eof:
            raise ValueError("it is cut off, or too long")
        stored = from_json(_Stored, parse_json(text, storage.describe(STORED)))
    except FileNotFoundError:
        return None
    except (ValueError, zlib.error) as error:
        log.warning("%s cannot be read, and is made again: %s", storage.describe(STORED), one_line(str(error)))
        return None
    if (stored.version, stored.made_of) != (_VERSION, made_of):
        return None
    groups = Groups()
    for names in stored.groups:
        for name in names:
            groups.join(names[0], name)
    return Related(groups=groups, matches=stored.matches, sources=stored.sources)


def _store(storage: Storage, made_of: str, related: Related, limit: int) -> None:
    """Keep what was found. Where it cannot be kept, it is found anew the next time."""
    stored = _Stored(
        version=_VERSION,
        made_of=made_of,
        groups=list(related.groups.members().values()),
        matches=related.matches,
        sources=dict(related.sources),
    )
    text = canonical_json(asdict(stored))
    if len(text) > limit:
        log.warning("what is related in %s takes %d bytes: too much to be kept", storage.uri, len(text))
        return
    packer = zlib.compressobj(wbits=31)
    try:
        storage.write(STORED, packer.compress(text) + packer.flush())
    except (OSError, LinkError) as error:
        log.warning("what is related in %s cannot be kept: %s", storage.uri, one_line(str(error)))


# --- splits -----------------------------------------------------------------------------------------------------------


def splits_of(storage: Storage, groups: Iterable[str], settings: ShardSettings) -> dict[str, str]:
    """Split of each group of DATA. Groups that cannot stand in one split any more are logged.

    Args:
        storage: DATA, the data set's folder or bucket.
        groups: Split groups of the samples; may repeat.
        settings: Seed and fractions of the splits.
    """
    wanted = set(groups)
    related = related_groups(storage).groups
    for name in wanted:
        related.root(name)
    before = packed_splits(storage, settings)
    splits, torn = join_splits(related.members().values(), before, settings)
    for names in torn[:_SHOWN]:
        shown = ", ".join(f"{name} ({before[name]})" for name in names if name in before)
        log.warning("the same recordings are packed in several splits, and stay there: %s", shown)
    if len(torn) > _SHOWN:
        log.warning("… and %d more groups of the same recordings in several splits", len(torn) - _SHOWN)
    return {name: splits[name] for name in wanted}


def join_splits(
    related: Iterable[list[str]], before: Mapping[str, str], settings: ShardSettings
) -> tuple[dict[str, str], list[list[str]]]:
    """Give related groups one split.

    Args:
        related: Lists of groups that belong together, each sorted.
        before: Group → split in which it was packed.
        settings: Seed and fractions of the splits.

    Returns:
        Group → split; and those lists whose groups were packed in several splits before. Those keep theirs, and what
        is new among them takes the split of the first.
    """
    splits: dict[str, str] = {}
    torn = []
    for names in related:
        known = [before[name] for name in names if name in before]
        split = (
            known[0] if known else assign_splits(names[:1], seed=settings.seed, fractions=settings.fractions)[names[0]]
        )
        splits.update({name: before.get(name, split) for name in names})
        if len(set(known)) > 1:
            torn.append(names)
    return splits, torn


def packed_splits(storage: Storage, settings: ShardSettings) -> dict[str, str]:
    """Split of each group in the newest index; empty without one, or where seed or fractions were changed since."""
    manifest = find_manifest(storage)
    entries = manifest.of_kind(ANNOTATION) if manifest else []
    if not entries:
        return {}
    index = read_index(storage, entries[-1])
    before = dict(zip(index.texts("split_group").tolist(), index.texts("split").tolist(), strict=True))
    # Releases that did not note the settings gave each group the split of its own name.
    made_with = entries[-1].details.get("splits")
    if made_with is not None:
        return before if made_with == split_settings(settings) else {}
    return before if assign_splits(before, seed=settings.seed, fractions=settings.fractions) == before else {}


def split_settings(settings: ShardSettings) -> dict[str, float | int]:
    """What the splits were made with, for the details of an annotation version in `DATASET.json`."""
    return {"seed": settings.seed, "val_fraction": settings.val_fraction, "test_fraction": settings.test_fraction}
