"""Names of jobs, plans and pack units: under which name a job commits its records in DATA."""

from __future__ import annotations

from talkinghead.schema import media_shard_name

INGEST_JOB = "ingest"
INGEST_PLAN_PREFIX = "ingest-"


def ingest_plan_name(dataset: str) -> str:
    """Each data set of DATA has an ingest plan of its own."""
    return f"{INGEST_PLAN_PREFIX}{dataset}"


def annotate_job(version: str) -> str:
    """`annotate-<version>`: each annotation version has a ledger of its own."""
    return f"annotate-{version}"


PACK_PREFIX = "pack-"
PACK_MEDIA_JOB = f"{PACK_PREFIX}media"


def pack_annotation_job(version: str) -> str:
    """`pack-<version>`."""
    return f"{PACK_PREFIX}{version}"


def shard_key(shard: int) -> str:
    """Key of a shard's pack unit, `clips-000042` (media) as well as annotation."""
    return media_shard_name(shard).removesuffix(".tar")


ENCODE_PREFIX = "encode-"


def encode_job(version: str) -> str:
    """`encode-<version>`: each version has a ledger of its own."""
    return f"{ENCODE_PREFIX}{version}"
