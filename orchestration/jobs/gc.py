"""Freeing what DATA no longer needs: files of packed units, old indexes, unfinished files, removed samples.

Shards that hold removed samples are rewritten without them, some at a time: new files, new indexes, then
`DATASET.json`, then the records of the jobs; only then the old files go. A reader sees the old shards or the new ones.
Shards that `DATASET.json` does not list, which a later command may list again, are rewritten by their records alone.
That it is under way is noted first (`removed/pending.json`), so that the next command that writes brings the records in
line after a kill; everything else starts anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from orchestration import outcomes, plans
from orchestration.jobs.remove import pack_jobs
from orchestration.jobs.removed import forget_inputs, planned_clips
from orchestration.jobs.stripped_segments import strip_segments
from orchestration.plans import INGEST_JOB, PACK_MEDIA_JOB, pack_annotation_job, shard_key
from orchestration.units.ledger import Ledger
from orchestration.units.records import SampleRecord, UnitRecord
from shards.index import MOST_BYTES, Index, parse_index, read_index
from shards.manifest import DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.pins import forget_gone, pinned_indexes, read_pins
from shards.plan import PlannedSample
from shards.removal import copy_shard, holed, rewritten
from shards.removal_records import PENDING, Pending, RemovalList, find_pending, write_pending
from shards.shard_names import next_revision
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.files.storage import Storage, StoredFile
from talkinghead.sampletar import BLOCK, END_OF_ARCHIVE, end_of
from talkinghead.schema import Member

AT_ONCE_BYTES = 8 << 30
"""Size of the shards that are rewritten before the next `DATASET.json`: room for so much must be on the disk."""

_MEDIA_SHARD = re.compile(r"clips-\d{6}(?:\.r\d{1,6})?\.tar")
_COLUMN_SHARD = re.compile(r"ann/([A-Za-z0-9][A-Za-z0-9_-]{0,30})/ann-\d{6}(?:\.r\d{1,6})?\.tar")
_FIT_FILE = re.compile(r"fits/[^/]+/([0-9a-f]{64})\.npz")

# Kinds of what goes, in the order in which they are told.
REMOVED = "removed samples out of shards"
UNITS = "files of packed units"
INDEXES = "old indexes"
SHARDS = "unfinished shards"
FITS = "unfinished fits"
KINDS = (REMOVED, UNITS, INDEXES, SHARDS, FITS)


@dataclass(kw_only=True)
class Freed:
    """What a collection removes."""

    files: Counter[str] = field(default_factory=Counter)
    """Kind → files; of rewritten shards, those that are replaced."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Kind → bytes that are free afterwards."""
    samples: int = 0
    """Removed samples whose media are taken out of shards."""
    runs: list[str] = field(default_factory=list)
    """Runs that have pinned an index that is replaced, or a version of it."""

    def add(self, kind: str, size: int) -> None:
        """Count a file."""
        self.files[kind] += 1
        self.bytes[kind] += size


def run_gc(
    storage: Storage,
    *,
    dry_run: bool = False,
    force: bool = False,
    at_once: int = AT_ONCE_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Freed:
    """Free what DATA, whose lock the caller holds, no longer needs.

    Args:
        storage: DATA.
        dry_run: Only say what would go.
        force: Rewrite shards also while runs of training read them.
        at_once: Bytes of shards that are rewritten before the next `DATASET.json`; at least one shard number is.
        progress: Called with (shards rewritten, total).

    Raises:
        FileNotFoundError: There is no finished data set, or a shard that would have to be rewritten is gone.
        ValueError: A shard that would have to be rewritten is damaged, or runs have pinned an index of it.
    """
    manifest, freed = read_manifest(storage), Freed()
    if not dry_run and (before := find_pending(storage)) is not None and before.job == "gc":
        finish_gc(storage, before)
    numbers, unlisted = holed(manifest), _unlisted(storage, manifest)
    freed.samples = sum(shard.removed for shard in manifest.media)
    freed.samples += sum(record.details["removed"] for record in unlisted if record.job == PACK_MEDIA_JOB)
    _refuse_lost(storage, manifest)
    if numbers or unlisted:
        freed.runs = sorted({f"{pin.run} on {pin.host}" for pin in read_pins(storage) if not pin.is_gone})
    if freed.runs and not (force or dry_run):
        more = f" and {len(freed.runs) - 1} more" if freed.runs[1:] else ""
        raise ValueError(
            f"shards are rewritten that the run {shown(freed.runs[0])}{more} reads, which cannot go on after that: add"
            " --force (make gc ARGS=--force) if it will not; python -m train seen RUN tells before what it has learnt"
        )
    if dry_run:
        _foresee(storage, manifest, numbers, unlisted, freed)
    else:
        write_pending(storage, Pending(job="gc"))
        _rewrite(storage, numbers, at_once, freed, progress or (lambda done, total: None))
        _rewrite_unlisted(storage, unlisted, freed)
    if not dry_run and (removed := RemovalList(storage)):
        # A worker that a removal did not wait for may have committed a segment after it.
        strip_segments(storage, partial(removed.has, "key"))
    for kind, file in _unneeded(storage):
        freed.add(kind, file.size)
        if not dry_run:
            storage.delete(file.path)
    if not dry_run:
        forget_inputs(storage)
        forget_gone(storage)
        storage.delete(PENDING)
    return freed


def finish_gc(storage: Storage, pending: Pending) -> None:
    """Bring the records in line with `DATASET.json` after a collection that was killed, and delete the shards whose
    place others have taken, or which were to take others' places."""
    manifest = read_manifest(storage)
    _align(storage, manifest)
    if pending.files:
        named = {shard.name for _, _, shard in _shards(manifest)}
        named |= {record.file for job in pack_jobs(storage) for record in outcomes.pack_records(storage, job).values()}
        for path in sorted(set(pending.files) - named):
            storage.delete(path)
    storage.delete(PENDING)


def _refuse_lost(storage: Storage, manifest: DatasetManifest) -> None:
    """Raise `FileNotFoundError` if a shard that is to be rewritten is gone, before anything is begun."""
    for version, _, shard in _shards(manifest):
        if shard.removed and not storage.exists(shard.name):
            again = f"make shards DATA={storage.uri}" if version is None else manifest.annotation(version).command
            raise FileNotFoundError(
                f"{storage.describe(shard.name)} is gone, so it is not rewritten: {again} packs it again, without the"
                " removed samples"
            )


# --- shards with removed samples --------------------------------------------------------------------------------------


def _rewrite(
    storage: Storage, numbers: list[int], at_once: int, freed: Freed, progress: Callable[[int, int], None]
) -> None:
    """Rewrite shards, in parts that each end with a whole data set."""
    done = 0
    for part in _parts(read_manifest(storage), numbers, at_once):
        before = read_manifest(storage)
        # Noted first, both names of each: on an object store nothing else finds those that a kill leaves.
        holes = [shard.name for _, number, shard in _shards(before) if shard.removed and number in part]
        write_pending(storage, Pending(job="gc", files=[*holes, *map(next_revision, holes)]))
        made = rewritten(storage, before, part)
        write_manifest(storage, made.manifest)
        _align(storage, made.manifest)
        new = {(name, number): shard for name, number, shard in _shards(made.manifest)}
        for name, number, shard in _shards(before):
            if shard.removed and number in part:
                freed.add(REMOVED, shard.size - new[name, number].size)
        for shard in made.old:
            storage.delete(shard.name)
        done += len(part)
        progress(done, len(numbers))


def _shards(manifest: DatasetManifest) -> Iterator[tuple[str | None, int, ShardEntry]]:
    """Version (None: media), number and entry of every shard."""
    yield from ((None, number, shard) for number, shard in enumerate(manifest.media))
    for entry in manifest.annotations:
        yield from ((entry.version, number, shard) for number, shard in enumerate(entry.shards))


def _parts(manifest: DatasetManifest, numbers: list[int], at_once: int) -> Iterator[list[int]]:
    """Numbers of shards in lists, each of as many as there is room for, at least one."""
    sizes: Counter[int] = Counter()
    for _, number, shard in _shards(manifest):
        sizes[number] += shard.size if shard.removed else 0
    part: list[int] = []
    for number in numbers:
        if part and sum(sizes[other] for other in part) + sizes[number] > at_once:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def _align(storage: Storage, manifest: DatasetManifest) -> None:
    """Make the records of the shards say what `DATASET.json` and the indexes say."""
    opened: dict[str, Index] = {}

    def index_of(version: str) -> Index:
        if version not in opened:
            opened[version] = read_index(storage, manifest.annotation(version))
        return opened[version]

    for version in [None, *(entry.version for entry in manifest.annotations)]:
        job = pack_annotation_job(version) if version else PACK_MEDIA_JOB
        shards = manifest.annotation(version).shards if version else manifest.media
        if not Ledger(storage, job).committed:  # a copy of the data set alone
            continue
        records = outcomes.pack_records(storage, job)
        for number, shard in enumerate(shards):
            record = records.get(shard_key(number))
            if record is None or record.file == shard.name or not storage.exists(shard.name):
                continue  # a shard that is lost is packed again, by the record that there is
            index = index_of(version or manifest.annotation().version)
            places = {row.key: row.annotation if version else row.media for row in index.rows(index.shard_rows(number))}
            aligned = _aligned(record, shard, places)
            storage.write(dataroot.record(job, record.key, record.pkey), aligned.to_json())


def _aligned(record: UnitRecord, shard: ShardEntry, places: Mapping[str, list[Member]]) -> UnitRecord:
    """Record of a shard that is in another file now."""
    samples: list[SampleRecord] = [
        replace(sample, members=places[sample.key]) for sample in record.samples if places.get(sample.key)
    ]
    return replace(
        record,
        samples=samples,
        file=shard.name,
        file_bytes=shard.size,
        file_sha256=shard.sha256,
        frames=shard.frames,
        details={name: value for name, value in record.details.items() if name != "removed"},
    )


def _foresee(
    storage: Storage, manifest: DatasetManifest, numbers: list[int], unlisted: list[UnitRecord], freed: Freed
) -> None:
    """Count what rewriting shards would free."""
    indexes = {entry.version: read_index(storage, entry) for entry in manifest.annotations}
    newest = manifest.annotation().version
    for version, number, shard in _shards(manifest):
        if number in numbers and shard.removed:
            index = indexes[version or newest]
            rows = index.rows(index.shard_rows(number))
            members = [found for row in rows if (found := row.annotation if version else row.media)]
            freed.add(REMOVED, shard.size - _size(members))
    for record in unlisted:
        freed.add(REMOVED, record.file_bytes - _size(sample.members for sample in record.samples))


def _size(samples: Iterable[list[Member]]) -> int:
    """Size of a shard of samples, in bytes."""
    sizes = (end_of(members) - (min(member.offset for member in members) - BLOCK) for members in samples)
    return sum(sizes) + len(END_OF_ARCHIVE)


# --- shards that DATASET.json does not list ---------------------------------------------------------------------------


def _unlisted(storage: Storage, manifest: DatasetManifest) -> list[UnitRecord]:
    """Records of the shards that hold removed samples and are not listed: of a version that lacks new shards or that a
    lost `DATASET.json` has listed, or of shards that were packed and not finished."""
    named = {shard.name for _, _, shard in _shards(manifest)}
    return [
        record
        for job in pack_jobs(storage)
        for record in outcomes.pack_records(storage, job).values()
        if record.details.get("removed") and record.file and record.file not in named and storage.exists(record.file)
    ]


def _rewrite_unlisted(storage: Storage, records: list[UnitRecord], freed: Freed) -> None:
    """Rewrite shards by their records, which alone lead to them."""
    for record in records:
        assert record.file and record.file_sha256
        target = next_revision(record.file)
        write_pending(storage, Pending(job="gc", files=[record.file, target]))
        samples = [
            PlannedSample.of_members(
                key=sample.key, file=record.file, members=sample.members, num_frames=sample.num_frames
            )
            for sample in record.samples
        ]
        made = copy_shard(storage, record.file, record.file_sha256, samples)
        entry = ShardEntry(
            name=target, sha256=made.sha256, size=made.size, samples=len(made.samples), frames=made.num_frames
        )
        aligned = _aligned(record, entry, {sample.key: sample.members for sample in made.samples})
        storage.write(dataroot.record(record.job, record.key, record.pkey), aligned.to_json())
        storage.delete(record.file)
        freed.add(REMOVED, record.file_bytes - made.size)


# --- whole files ------------------------------------------------------------------------------------------------------


def _unneeded(storage: Storage) -> Iterator[tuple[str, StoredFile]]:
    """Files that nothing needs, each with its kind. Only files with names of our forms are among them."""
    manifest = read_manifest(storage)
    yield from ((UNITS, file) for file in _unit_files(storage))
    named, pinned = {entry.index for entry in manifest.annotations}, pinned_indexes(storage)
    removed = RemovalList(storage)
    for file in storage.list(dataroot.INDEX_FOLDER, ".parquet"):
        kept = file.path in pinned and not _lists_removed(storage, file.path, removed)
        if dataroot.is_index(file.path) and file.path not in named and not kept:
            yield INDEXES, file
    yield from ((SHARDS, file) for file in _shard_files(storage, manifest))
    needed = {fit.sha256 for fit in manifest.fits} | {sha256 for pin in read_pins(storage) for sha256 in pin.fits}
    for file in storage.list("fits", ".npz"):
        if (found := _FIT_FILE.fullmatch(file.path)) and found[1] not in needed:
            yield FITS, file


def _lists_removed(storage: Storage, path: str, removed: RemovalList) -> bool:
    """Whether an index that a run has pinned lists a removed sample: then it goes all the same."""
    version = path.removeprefix(f"{dataroot.INDEX_FOLDER}/").partition(".")[0]
    try:
        index = parse_index(storage.read(path, MOST_BYTES, "index"), version, storage.describe(path))
    except ValueError:  # damaged: of no use to anybody
        return True
    return bool(removed) and any(removed.has("key", key) for key in index.texts("key"))


def _unit_files(storage: Storage) -> Iterator[StoredFile]:
    """Outputs of units whose samples all lie in a shard, or that have no record.

    The tar of a segment that has no record may be about to get one, from a worker that is late, as long as a plan names
    the segment: it stays.
    """
    names = plans.plan_names(storage, plans.ANNOTATE_PREFIX, *plans.COLUMN_PREFIXES)
    for job in (INGEST_JOB, *names):
        version = None if job == INGEST_JOB else job.partition("-")[2]
        pack = PACK_MEDIA_JOB if version is None else pack_annotation_job(version)
        packed: set[str] = set()
        for record in outcomes.pack_records(storage, pack).values():
            # A row of NaN in a shard is not what a unit has made since.
            packed |= {sample.key for sample in record.samples} - set(outcomes.blank_rows(record))
        # The files first: what is committed meanwhile is then among the records.
        files = [file for file in storage.list(dataroot.units(job), ".tar") if dataroot.is_unit(file.path, job)]
        keys = {file.path.rpartition("/")[2].partition(".")[0] for file in files}
        # Records that count: of a unit that was done under several settings, the one that a plan names.
        plan = plans.find_plan(storage, job)
        planned = planned_clips(storage) if version is None else plan.units if plan else {}
        ledger = Ledger(storage, job)
        ledger.committed = {
            pair
            for pair in ledger.committed
            if (pair[0] in keys or ledger.segment_of(pair) in keys) and planned.get(*pair) == pair[1]
        }
        needed = {
            record.file for record in ledger.commits() if any(sample.key not in packed for sample in record.samples)
        }
        awaited = set(plan.segments.values()) - ledger.segments.keys() if isinstance(plan, plans.ColumnPlan) else set()
        for file in files:
            segment = dataroot.segment_of_tar(file.path)
            if file.path not in needed and (segment is None or segment[1] not in awaited):
                yield file


def _shard_files(storage: Storage, manifest: DatasetManifest) -> Iterator[StoredFile]:
    """Files of shards that neither `DATASET.json` nor a record names."""
    named = {shard.name for _, _, shard in _shards(manifest)}
    recorded: dict[str, set[str | None]] = {}

    def is_recorded(job: str, path: str) -> bool:
        if job not in recorded:
            recorded[job] = {record.file for record in outcomes.pack_records(storage, job).values()}
        return path in recorded[job]

    for file in storage.list("ann", ".tar"):
        found = _COLUMN_SHARD.fullmatch(file.path)
        if found and file.path not in named and not is_recorded(pack_annotation_job(found[1]), file.path):
            yield file
    for file in _top_files(storage):
        if file.path not in named and not is_recorded(PACK_MEDIA_JOB, file.path):
            yield file


def _top_files(storage: Storage) -> Iterator[StoredFile]:
    """Media shards, which lie in DATA itself."""
    if storage.local_root is None:
        return  # no listing of a bucket's top without all that lies below it
    for path in sorted(storage.local_root.iterdir()):
        if _MEDIA_SHARD.fullmatch(path.name) and (size := storage.size(path.name)) is not None:
            yield StoredFile(path.name, size)
