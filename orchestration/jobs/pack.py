"""Pack as units: one per shard, media and annotation apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from orchestration.records import SampleRecord, UnitRecord
from orchestration.unit import Output, Unit
from shards.plan import PlannedSample
from talkinghead.provenance import provenance_key
from talkinghead.schema import Member, annotation_shard_name, media_shard_name
from talkinghead.storage import Storage

VERSION = 1
PREFIX = "pack-"
MEDIA_JOB = f"{PREFIX}media"
_TIME_LIMIT_S = 3600.0


def annotation_job(version: str) -> str:
    """`pack-<version>`."""
    return f"{PREFIX}{version}"


def shard_key(shard: int) -> str:
    """Key of a shard's pack unit, `clips-000042` (media) as well as annotation."""
    return media_shard_name(shard).removesuffix(".tar")


def plan_pack(
    version: str | None,
    shard: int,
    samples: Sequence[PlannedSample],
    contents: Sequence[str],
    time_limit_s: float | None,
    blank: Sequence[str] = (),
) -> Unit:
    """The unit that packs one shard.

    Args:
        version: Annotation version; None for the media shard.
        shard: Number of the shard.
        samples: What goes in, in order.
        contents: Per sample, the sha256 of the file that it is copied from.
        time_limit_s: Wall-clock limit.
        blank: Keys of the samples whose annotation failed; noted on the record.
    """
    inputs = [[sample.key, content] for sample, content in zip(samples, contents, strict=True)]
    name = annotation_shard_name(version, shard) if version else media_shard_name(shard)
    return Unit(
        job=annotation_job(version) if version else MEDIA_JOB,
        key=shard_key(shard),
        pkey=provenance_key("pack", VERSION, parameters={"version": version, "shard": shard}, inputs=inputs),
        function="orchestration.jobs.pack:run",
        payload={"name": name, "samples": [asdict(sample) for sample in samples], "blank": list(blank)},
        source=name,
        time_limit_s=time_limit_s or _TIME_LIMIT_S,
    )


def run(storage: Storage, unit: Unit) -> Output:
    """Copy the samples of one shard into its tar."""
    from shards.pack import pack_shard

    samples = [
        PlannedSample(**{**sample, "members": tuple(Member(**member) for member in sample["members"])})
        for sample in unit.payload["samples"]
    ]
    with storage.staged(unit.payload["name"]) as sink:
        packed = pack_shard(storage, samples, sink)
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
    return Output(stored=record, details={"blank": unit.payload["blank"]})
