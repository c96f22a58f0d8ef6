"""What the report is made from: the state of a run as its plan sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from annotate.filters import FilterSettings
from orchestration.report.latents import LatentsState
from orchestration.units.records import QuarantineRecord, UnitRecord
from talkinghead.schema import CatalogRow, SampleIndex, check_version

UnitState = UnitRecord | QuarantineRecord | None
"""What became of one unit: its commit record, its quarantine record, or None while it has neither."""


@dataclass(frozen=True, kw_only=True)
class MetadataNotes:
    """What of a data set gave no input."""

    problems: list[str]
    """Parts of the metadata, or of SOURCE, that could not be read."""
    unused: list[str]
    """Videos in SOURCE that belong to no clip of the metadata."""
    left_out: int
    """Clips that LIMIT cut off."""


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
    latents: list[LatentsState] = field(default_factory=list)
    """Versions of latents beside it."""
    metadata: Mapping[str, MetadataNotes] = field(default_factory=dict)
    """Data set → what gave no input."""
    wall_frames: Mapping[str, int] = field(default_factory=dict)
    """Job → frames that the runs in `wall_seconds` put out."""
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    """Job → seconds on the clock of the runs that came to their end; without it speeds are per worker-second."""

    def __post_init__(self) -> None:
        check_version(self.version)
        if self.previous_version == self.version:
            raise ValueError(f"annotation version {self.version} cannot be compared with itself")
