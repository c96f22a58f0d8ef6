"""What the report is made from: the state of a run as its plan sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from annotate.filters import FilterSettings
from orchestration.records import QuarantineRecord, UnitRecord
from talkinghead.schema import CatalogRow, SampleIndex, check_version

UnitState = UnitRecord | QuarantineRecord | None
"""What became of one unit: its commit record, its quarantine record, or None while it has neither."""

INGEST_JOB = "ingest"
PACK_MEDIA_JOB = "pack-media"


def annotate_job(version: str) -> str:
    """Name of the annotation job of one version, as its records have it."""
    return f"annotate-{version}"


def pack_job(version: str) -> str:
    """Name of the job that packs the annotation shards of one version, as its records have it."""
    return f"pack-{version}"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All inputs of one DATA folder and what became of their units under the parameters of the current plan.

    A unit that was done under other parameters is not done: its state here is None. So the plan decides which of
    several records of one key counts, and the report only adds up.
    """

    version: str
    """The annotation version reported on."""
    catalog: list[CatalogRow]
    """The rows of all data sets in DATA: the inputs."""
    ingest: Mapping[str, UnitState]
    """Clip key → state. A row without a source file has no unit and need not be listed."""
    annotate: Mapping[str, UnitState]
    """Sample key → state of its annotation of `version`."""
    pack: list[UnitRecord]
    """Commit records of `pack-media` and `pack-<version>`."""
    index: list[SampleIndex]
    """Rows of `version`'s index; empty before packing."""
    previous_version: str | None = None
    """The annotation version to compare with; None when this is the first."""
    filters: FilterSettings | None = None
    """Thresholds the index was filtered with; drawn into the histograms, and the index is checked against them."""
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    """Job → seconds on the clock that the last run spent in it; without it speeds are per worker-second."""

    def __post_init__(self) -> None:
        check_version(self.version)
        if self.previous_version == self.version:
            raise ValueError(f"annotation version {self.version} cannot be compared with itself")
