"""The pack job: samples are copied into shards, the media once, and each version of their columns apart.

`run_pack` deals the samples out to shards, packs the media shards that are missing, then the annotation shards of one
version; `pack_columns` serves every kind of version. A unit is a shard, and `run` is what a worker does with one. A
packed shard never changes: the plan only grows, and content that changed under a packed shard is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestration import outcomes, plans
from orchestration.jobs import recovered
from orchestration.jobs.removed import strip_removed
from orchestration.overrides import settings_with
from orchestration.plans import PACK_MEDIA_JOB, shard_key
from orchestration.units.executor import UnitRunner
from orchestration.units.ledger import Ledger
from orchestration.units.output_tar import OutputChangedError
from orchestration.units.records import QuarantineRecord, SampleRecord, UnitRecord
from orchestration.units.unit import Output, Unit, packed_before, store_output
from shards.manifest import DatasetManifest, ShardEntry, find_manifest
from shards.pack import PackedShard, pack_shard
from shards.plan import PlannedSample, ShardSettings, plan_shards
from shards.shard_names import next_revision
from talkinghead.annotation import blank_arrays
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_file, provenance_key
from talkinghead.schema import Member, annotation_shard_name, media_shard_name

VERSION = 1
"""Version of the job in its provenance keys. No library is in them: packing copies bytes."""
BLANK = "blank"
"""Provenance key of a row of NaN, in place of an annotation that could not be made."""
_TIME_LIMIT_S = 3600.0
_TRIES = 3  # of writing a shard, where one who was taken over writes it meanwhile

# Sample key → sample.
Ingested = Mapping[str, outcomes.IngestedSample]


@dataclass(frozen=True, kw_only=True)
class PackedFrom:
    """What packing has read of the samples: `finish` need not read the records, many small files, again."""

    ingested: Ingested
    annotated: outcomes.Results
    """Sample key → outcome of its annotation."""


# --- the whole job ----------------------------------------------------------------------------------------------------


def run_pack(runner: UnitRunner, version: str, overrides: Sequence[str] = ()) -> PackedFrom:
    """Pack the media shards that are missing, then the version's annotation shards.

    Args:
        runner: Runs the units, on its DATA.
        version: Name of the annotation version.
        overrides: `ShardSettings` as NAME=VALUE; the others stay as the shards were planned before.

    Returns:
        What was read of the samples, for `finish`.

    Raises:
        ValueError: A sample is not annotated yet, the content of a packed shard has changed, or a shard cannot be
            packed.
        JobStoppedError: The machine is at fault.
    """
    storage = runner.storage
    recovered.restore_shard_plan(storage)

    # What to pack: every ingested sample, once the fate of its annotation is known.
    strip_removed(storage)
    ingested = outcomes.ingested_samples(storage)
    annotated = outcomes.annotate_results(storage, version)
    if pending := [key for key, result in annotated.items() if result is None]:
        raise ValueError(f"{len(pending)} samples are not annotated yet (first: {pending[0]}): run make annotate first")

    # Which sample goes into which shard.
    settings = shard_settings(storage, overrides)
    _check_splits(storage, settings)
    shards = _plan_shards(storage, ingested, annotated, settings)

    # The media shards.
    if lost := {key for keys in shards for key in keys} - ingested.keys():
        raise ValueError(
            f"{min(lost)} is planned for a shard, but no ingest plan and record of {storage.uri} hold it: ingest its"
            f" clip again with {outcomes.ingest_again(storage, min(lost))}"
        )
    media = []
    packed = outcomes.pack_records(storage, PACK_MEDIA_JOB)
    gone = outcomes.lost_shards(storage, packed.values())
    manifest = find_manifest(storage)
    for number, keys in enumerate(shards):
        parts = [_part(ingested[key].record, ingested[key].sample) for key in keys]
        unit = plan_pack(None, number, parts, runner.retry.time_limit_s)
        media.append(_in_place(unit, packed.get(unit.key), gone, manifest.media[number:] if manifest else ()))
    _check_immutable(media, packed)
    there = {key for key, record in packed.items() if record.file not in gone}
    wanted = [key for unit, keys in zip(media, shards, strict=True) if unit.key not in there for key in keys]
    outcomes.check_media(storage, wanted, ingested, packed)
    _pack(runner, PACK_MEDIA_JOB, media)
    _check_same_media(manifest, outcomes.pack_records(storage, PACK_MEDIA_JOB) if wanted else packed)

    # The annotation shards, parallel to them: a row of NaN for a packed sample that this version could not annotate.
    pack_columns(runner, version, shards, annotated, _blank_rows(storage, version, ingested))
    return PackedFrom(ingested=ingested, annotated=annotated)


def pack_columns(
    runner: UnitRunner,
    version: str,
    shards: Sequence[Sequence[str]],
    results: outcomes.Results,
    blank: Callable[[str, QuarantineRecord | None], UnitRecord] | None = None,
) -> None:
    """Pack the shards of one version's columns that are missing, parallel to the media shards.

    Args:
        runner: Runs the units, on its DATA.
        version: Name of the version, of annotations or latents.
        shards: Sample keys of each media shard, in order.
        results: Sample key → outcome of its unit.
        blank: Function that stores a row for a sample without a result, given its key and its failure, if any. None:
            such samples are left out.

    Raises:
        ValueError: A shard cannot be packed.
        JobStoppedError: The machine is at fault.
    """
    # A packed shard is never packed again: what could be annotated only later stays a row of NaN in it.
    job = plans.pack_annotation_job(version)
    storage = runner.storage
    packed = outcomes.pack_records(storage, job)
    lost = outcomes.lost_shards(storage, packed.values())
    manifest = find_manifest(storage)
    entries = next((e.shards for e in (manifest.annotations if manifest else ()) if e.version == version), [])
    units = []
    for number, keys in enumerate(shards):
        before = packed.get(shard_key(number))
        if before is not None and before.file not in lost:
            continue
        # The columns of the same samples in the same order as in the media shard. A shard that is lost is packed as it
        # was, without what could be made only later.
        made = (
            keys
            if before is None
            else {sample.key for sample in before.samples}.difference(outcomes.blank_rows(before))
        )
        parts, failed = [], []
        for key in keys:
            record = results.get(key) if key in made else None
            if not isinstance(record, UnitRecord):
                failed.append(key)
                if blank is None:
                    continue
                record = blank(key, record if isinstance(record := results.get(key), QuarantineRecord) else None)
            parts.append(_part(record, record.samples[0]))
        unit = plan_pack(version, number, parts, runner.retry.time_limit_s, failed)
        unit = _in_place(unit, before, lost, entries[number:])
        if before is not None and before.pkey != unit.pkey:
            # A shard out of which samples were removed is packed from fewer than its key says.
            if [(sample.key, sample.sha256) for sample in before.samples] != [(s.key, s.sha256) for s, _ in parts]:
                raise ValueError(
                    f"{storage.describe(unit.source)} is gone, and what it was packed from has changed: put it back"
                    " from a copy, or make another version (make reannotate ANN=<new version>, or make derive)"
                )
            unit = replace(unit, pkey=before.pkey)
        units.append(unit)
    _pack(runner, job, units)


def _in_place(unit: Unit, before: UnitRecord | None, lost: set[str], entries: Sequence[ShardEntry]) -> Unit:
    """A unit that packs a shard where it lies, with the bytes that it has; if it is lost, with those that it had.

    A shard that held removed samples, and was not rewritten yet, cannot come out as it was. It is packed without them
    under the name of its next revision, which the rewriting would have given it.

    Args:
        unit: The unit, under the name that its number gives.
        before: Commit record of the shard; None without one.
        lost: Names of the shards that are gone.
        entries: Entries of `DATASET.json`, of which the first is this shard's; empty where it has none.
    """
    name = before.file if before else entries[0].name if entries else None
    name = name or unit.source
    removed = bool(before and before.details.get("removed")) or any(
        entry.removed for entry in entries[:1] if entry.name == name
    )
    if removed and (before is None or name in lost):
        # Its record does not count any more, and is set aside by the runner.
        return replace(unit, source=next_revision(name), payload=unit.payload | {"name": next_revision(name)})
    return replace(unit, source=name, payload=unit.payload | {"name": name}, is_packed=True)


def shard_settings(storage: Storage, overrides: Sequence[str] = ()) -> ShardSettings:
    """Settings of the shards as planned before, else the defaults, with the user's overrides."""
    plan = plans.find_shards(storage)
    return settings_with(ShardSettings, plan.settings if plan else {}, overrides)


def _check_splits(storage: Storage, settings: ShardSettings) -> None:
    """Raise `ValueError` if splits would change between annotation versions: a sample that one version trains on must
    not be tested in another."""
    before = shard_settings(storage)
    changed = (settings.seed, settings.fractions) != (before.seed, before.fractions)
    if changed and (manifest := find_manifest(storage)) and len(manifest.annotations) > 1:
        raise ValueError(
            "DATA holds several annotation versions, whose splits must agree: seed and fractions stay as they are"
        )


def _plan_shards(
    storage: Storage, ingested: Ingested, annotated: outcomes.Results, settings: ShardSettings
) -> list[list[str]]:
    """Sample keys of each shard, planned and written.

    Packed shards stay as they are. A planned shard that is not packed yet loses the samples that are gone. New samples
    get new shards after them.
    """
    wanted = {key for key in ingested if isinstance(annotated.get(key), UnitRecord)}
    packed = {key for key, _ in Ledger(storage, PACK_MEDIA_JOB).committed}
    # Also of a shard whose record could not be read, and was set aside.
    manifest = find_manifest(storage)
    packed |= {shard_key(number) for number in range(len(manifest.media) if manifest else 0)}
    existing: list[list[str]] = []
    if before := plans.find_shards(storage):
        for number, keys in enumerate(before.shards):
            frozen = shard_key(number) in packed
            existing.append([key for key in keys if frozen or key in wanted])
    # Numbers follow from positions, so an emptied shard can be dropped only at the end.
    while existing and not existing[-1]:
        existing.pop()
    planned = {key for keys in existing for key in keys}
    # Before anything is packed the plan is on the disk: a rerun after a crash packs the same shards.
    shards = plan_shards(
        {key: sum(member.size for member in ingested[key].sample.members) for key in wanted - planned},
        target_bytes=settings.target_mib << 20,
        min_shards=settings.min_shards,
        seed=settings.seed,
        existing=existing,
    )
    plans.write_plan(storage, plans.SHARD_PLAN, plans.ShardPlan(shards=shards, settings=asdict(settings)))
    return shards


def _check_immutable(units: Sequence[Unit], packed: Mapping[str, UnitRecord]) -> None:
    """Raise `ValueError` if a packed shard would now be packed from other content."""
    changed = [unit for unit in units if unit.key in packed and packed[unit.key].pkey != unit.pkey]
    if changed:
        raise ValueError(
            f"{changed[0].source} was packed from other content than DATA holds now. Shards are immutable: "
            "use a new DATA folder for the new content"
        )


def _check_same_media(manifest: DatasetManifest | None, records: Mapping[str, UnitRecord]) -> None:
    """Raise `ValueError` if a media shard that was packed again has other bytes than readers expect."""
    for number, entry in enumerate(manifest.media if manifest else ()):
        record = records.get(shard_key(number))
        if record is not None and record.file == entry.name and record.file_sha256 != entry.sha256:
            raise ValueError(
                f"{entry.name} was packed again with other bytes than DATASET.json names: put it and its record back"
                " from a copy, or make the data set anew in another DATA"
            )


def _blank_rows(
    storage: Storage, version: str, ingested: Ingested
) -> Callable[[str, QuarantineRecord | None], UnitRecord]:
    """Function that stores rows of NaN for a sample that could not be annotated, so that the shards of all versions
    stay parallel.

    Args:
        storage: DATA, the data set's folder or bucket.
        version: Name of the annotation version.
        ingested: The samples.

    Returns:
        Function of a sample's key and its failure, if any. It gives a record to pack from, which is not committed: the
        sample still counts as not annotated. It raises `ValueError` where the version has no plan.
    """

    @functools.cache
    def read_plan() -> plans.AnnotatePlan:  # of all samples: once, and only where one has failed
        if (plan := plans.find_annotate(storage, version)) is None:
            raise ValueError(f"{storage.uri} has no plan of annotation version {version}: run make annotate")
        return plan

    def blank(key: str, failure: QuarantineRecord | None) -> UnitRecord:
        from annotate.clip import encode_annotation

        plan = read_plan()
        about: dict[str, Any] = {
            "annotate_key": BLANK,
            "engine": plan.settings["engine"],
            "model": plan.model,
            "model_sha256": plan.model_sha256,
            "failed": failure.cause if failure else "not annotated",
        }
        num_frames = ingested[key].sample.num_frames
        contents = encode_annotation(blank_arrays(num_frames), about)
        # Stored like a unit's output, which is what packing copies from.
        job = plans.annotate_job(version)
        unit = Unit(job=job, key=key, pkey=BLANK, function="", payload={}, source=key, time_limit_s=0.0)
        return store_output(storage, unit, Output(contents=[(key, num_frames, contents)]))

    return blank


def _pack(runner: UnitRunner, job: str, units: Sequence[Unit]) -> None:
    """Run the pack units, and raise `ValueError` unless every shard is there: readers need all of them."""
    _remove_unfinished(runner.storage, job, units)
    # The ledger, not the tally: a shard may also have failed in an earlier command, and still be in quarantine.
    runner.run(job, units)
    committed = Ledger(runner.storage, job).committed
    if lacking := [unit for unit in units if (unit.key, unit.pkey) not in committed]:
        raise ValueError(
            f"{len(lacking)} shards could not be packed (first: {lacking[0].source}); "
            f"see make quarantine DATA={runner.storage.uri}, mend the cause, then make retry"
        )


def _remove_unfinished(storage: Storage, job: str, units: Sequence[Unit]) -> None:
    """Remove files under the names of shards that are to be packed, which no record and no reader knows.

    A command that was killed between a shard and its record has left them, perhaps with other settings.
    """
    known = {key for key, _ in Ledger(storage, job).committed}
    manifest = find_manifest(storage)
    listed = {shard.name for shard in manifest.media} if manifest else set()
    listed |= {shard.name for entry in (manifest.annotations if manifest else ()) for shard in entry.shards}
    for unit in units:
        if unit.key not in known and unit.payload["name"] not in listed:
            storage.delete(unit.payload["name"])


# --- its units --------------------------------------------------------------------------------------------------------


Part = tuple[PlannedSample, str]
"""Sample that goes into a shard, and the SHA-256 of the tar that it is copied from."""


def _part(record: UnitRecord, sample: SampleRecord) -> Part:
    assert record.file and record.file_sha256
    planned = PlannedSample.of_members(
        key=sample.key,
        file=record.file,
        members=sample.members,
        num_frames=sample.num_frames,
        sha256=sample.sha256,
    )
    return planned, record.file_sha256


def plan_pack(
    version: str | None,
    shard: int,
    parts: Sequence[Part],
    time_limit_s: float | None,
    blank: Sequence[str] = (),
) -> Unit:
    """Plan the unit that packs one shard.

    Args:
        version: Name of the version whose columns are packed; None: media.
        shard: Number of the shard.
        parts: Samples of the shard, in order.
        time_limit_s: Wall-clock limit in seconds; None: an hour.
        blank: Keys of the samples whose columns could not be made; noted on the record.
    """
    # Key and content of every sample in order: the bytes of the shard are a function of them.
    inputs = [[sample.key, content] for sample, content in parts]
    name = annotation_shard_name(version, shard) if version else media_shard_name(shard)
    return Unit(
        job=plans.pack_annotation_job(version) if version else PACK_MEDIA_JOB,
        key=shard_key(shard),
        pkey=provenance_key("pack", VERSION, parameters={"version": version, "shard": shard}, inputs=inputs),
        function="orchestration.jobs.pack:run",
        payload={"name": name, "samples": [asdict(sample) for sample, _ in parts], "blank": list(blank)},
        source=name,
        time_limit_s=time_limit_s or _TIME_LIMIT_S,
    )


# --- in a worker ------------------------------------------------------------------------------------------------------


def run(storage: Storage, unit: Unit) -> Output:
    """Copy the samples of one shard into its tar."""
    samples = [
        PlannedSample(**{**sample, "members": tuple(Member(**member) for member in sample["members"])})
        for sample in unit.payload["samples"]
    ]
    packed = _store(storage, unit, samples)
    # Samples are copied byte for byte, so the hash of each is the one that its unit recorded.
    record = UnitRecord(
        job=unit.job,
        key=unit.key,
        pkey=unit.pkey,
        samples=[
            SampleRecord(key=done.key, num_frames=done.num_frames, members=done.members, sha256=sample.sha256 or "")
            for done, sample in zip(packed.samples, samples, strict=True)
        ],
        file=unit.payload["name"],
        file_bytes=packed.size,
        file_sha256=packed.sha256,
        frames=packed.num_frames,
    )
    epoch = {} if storage.epoch is None else {outcomes.EPOCH: storage.epoch}
    return Output(stored=record, details={"blank": unit.payload["blank"]} | epoch)


def _store(storage: Storage, unit: Unit, samples: Sequence[PlannedSample]) -> PackedShard:
    """Pack one shard into its file, or find it there with the same bytes.

    It is streamed to a temporary file, which takes its name only when it is complete and synced, and only if nothing
    has it: a worker that was taken over in this very moment cannot replace what others read.

    Raises:
        OutputChangedError: Its file is known, to a record or to readers, and has other bytes.
    """
    before, name = packed_before(storage, unit), unit.payload["name"]
    for _ in range(_TRIES):
        packed = None
        try:
            with storage.staged(name, new=True) as sink:
                packed = pack_shard(storage, samples, sink)
                if before is not None and before.file_sha256 != packed.sha256:
                    raise OutputChangedError(name)
            return packed
        except FileExistsError:
            # By a worker that died before its commit, or whose record was lost: then it is as it should be. Or by one
            # that packs otherwise and was taken over while it wrote: then nobody knows its file, and it goes.
            if packed is not None and _sha256(storage, name) == packed.sha256:
                return packed
            _remove_unfinished(storage, unit.job, [unit])
            if storage.exists(name):
                break
    raise OutputChangedError(name)


def _sha256(storage: Storage, name: str) -> str:
    """SHA-256 of a shard that is there."""
    with storage.local_copy(name) as path:
        return hash_file(path)
