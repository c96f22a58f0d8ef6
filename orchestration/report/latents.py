"""Versions of latents beside the annotation that the report is about: how large they are, what could not be encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestration import results
from orchestration.job_names import pack_annotation_job
from orchestration.units.records import QuarantineRecord, UnitRecord
from shards.manifest import AnnotationEntry, DatasetManifest
from talkinghead.derived import NETWORKS
from talkinghead.files.storage import Storage


@dataclass(frozen=True, kw_only=True)
class LatentsState:
    """One version of latents."""

    entry: AnnotationEntry
    encode: Mapping[str, UnitRecord | QuarantineRecord | None] = field(default_factory=dict)
    """Sample key → what became of its unit."""
    pack: list[UnitRecord] = field(default_factory=list)
    """Commit records of its shards."""

    @property
    def units(self) -> list[UnitRecord]:
        """Every committed unit."""
        return [*(record for record in self.encode.values() if isinstance(record, UnitRecord)), *self.pack]

    @property
    def quarantined(self) -> list[QuarantineRecord]:
        """Samples that could not be encoded."""
        return [record for record in self.encode.values() if isinstance(record, QuarantineRecord)]


def latents_states(storage: Storage, manifest: DatasetManifest) -> list[LatentsState]:
    """The versions of latents that `DATASET.json` names."""
    return [
        LatentsState(
            entry=entry,
            encode=results.encode_results(storage, entry.version),
            pack=list(results.pack_records(storage, pack_annotation_job(entry.version)).values()),
        )
        for entry in manifest.of_kind("latents")
    ]


def latents_numbers(storage: Storage, states: list[LatentsState]) -> tuple[list[dict[str, Any]], list[str]]:
    """`latents` of `report.json`, and what is wrong with the files."""
    numbers, errors = [], []
    for state in states:
        entry = state.entry
        for shard in entry.shards:
            size = storage.size(shard.name)
            if size is None:
                errors.append(f"{shard.name} is in DATASET.json, but not in DATA")
            elif size != shard.size:
                errors.append(f"{shard.name} has {size} bytes, DATASET.json says {shard.size}")
        frames, total = (sum(getattr(shard, name) for shard in entry.shards) for name in ("frames", "size"))
        numbers.append(
            {
                "version": entry.version,
                "width": entry.details["width"],
                "height": entry.details["height"],
                "networks": {name: entry.details[name]["name"] for name in NETWORKS},
                "samples": entry.kept,
                "missing": entry.samples - entry.kept,
                "frames": frames,
                "bytes": total,
                "bytes_per_frame": round(total / frames, 2) if frames else None,
            }
        )
    return numbers, errors
