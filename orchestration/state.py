"""What stands in DATA now: the results of every job, read from plans and records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestration.jobs import pack
from orchestration.jobs.annotate import MediaSample, job_name
from orchestration.jobs.ingest import JOB as INGEST
from orchestration.jobs.plans import plan_names, read_plan
from orchestration.ledger import Ledger
from orchestration.records import QuarantineRecord, SampleRecord, UnitRecord
from talkinghead.storage import Storage

Results = dict[str, UnitRecord | QuarantineRecord | None]


def ingest_results(storage: Storage) -> Results:
    """Per clip key of every ingest plan: its record, or None while it is pending."""
    pairs: dict[str, str] = {}
    for name in plan_names(storage, "ingest-"):
        pairs |= read_plan(storage, name)["units"]
    return Ledger(storage, INGEST).results(pairs.items())


def annotate_results(storage: Storage, version: str) -> Results:
    """Per sample key of the version's plan: its record, or None while it is pending; empty without a plan."""
    names = plan_names(storage, f"annotate-{version}")
    if f"annotate-{version}" not in names:
        return {}
    return Ledger(storage, job_name(version)).results(read_plan(storage, f"annotate-{version}")["units"].items())


@dataclass(frozen=True, kw_only=True)
class IngestedSample:
    """A sample of ingest, with the record of the clip that it came from."""

    record: UnitRecord
    sample: SampleRecord

    @property
    def source(self) -> tuple[str, SampleRecord, str]:
        """File, sample and content hash, for packing."""
        assert self.record.file and self.record.file_sha256
        return self.record.file, self.sample, self.record.file_sha256


def ingested_samples(results: Mapping[str, UnitRecord | QuarantineRecord | None]) -> dict[str, IngestedSample]:
    """Sample key → sample, of every committed clip."""
    return {
        sample.key: IngestedSample(record=record, sample=sample)
        for record in results.values()
        if isinstance(record, UnitRecord)
        for sample in record.samples
    }


def pack_records(storage: Storage, job: str) -> dict[str, UnitRecord]:
    """Shard key → record, of every packed shard of a job (a shard is packed once and stays)."""
    ledger = Ledger(storage, job)
    results = ledger.results(sorted(ledger.committed))
    return {key: record for key, record in results.items() if isinstance(record, UnitRecord)}


def media_samples(storage: Storage, ingested: Mapping[str, IngestedSample]) -> list[MediaSample]:
    """Where each ingested sample's media are to be read: its shard when it is packed, else its unit's tar."""
    packed = {
        sample.key: (record.file, sample.members)
        for record in pack_records(storage, pack.MEDIA_JOB).values()
        for sample in record.samples
    }
    samples = []
    for key, item in ingested.items():
        file, members = packed.get(key, (item.record.file, item.sample.members))
        assert file and item.record.file_sha256
        samples.append(
            MediaSample(
                key=key,
                clip_key=item.record.key,
                num_frames=item.sample.num_frames,
                content_sha256=item.record.file_sha256,
                file=file,
                members=tuple(members),
            )
        )
    return samples
