"""Ingest as units: one per catalog row whose source is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.settings import IngestSettings
from orchestration.unit import Output, Unit
from talkinghead.config import from_json
from talkinghead.provenance import library_versions, provenance_key
from talkinghead.schema import CatalogRow
from talkinghead.storage import Storage

if TYPE_CHECKING:
    from ingest.source_folder import Fingerprint

JOB = "ingest"
PLAN_PREFIX = "ingest-"
VERSION = 1
LIBRARIES = ("av", "opencv-contrib-python", "numpy", "ai-edge-litert")
_WHOLE_FILE_LIMIT_S = 1800.0


def plan_name(dataset: str) -> str:
    """Each data set of DATA has an ingest plan of its own."""
    return f"{PLAN_PREFIX}{dataset}"


def plan_ingest(
    rows: Sequence[CatalogRow],
    fingerprints: Mapping[str, Fingerprint],
    source: str,
    settings: IngestSettings,
    detector: str,
    time_limit_s: float | None,
) -> list[Unit]:
    """Units for the rows that have a source, in key order (`detector`: sha256 of the face detector)."""
    libraries = library_versions(*LIBRARIES)
    units = []
    for row in sorted(rows, key=lambda row: row.key):
        if row.source is None:
            continue
        content = fingerprints[row.source]
        pkey = provenance_key(
            JOB,
            VERSION,
            parameters=settings,
            inputs={"row": row, "content": content.sha256 or "unreadable"},
            models={"detector": detector},
            libraries=libraries,
        )
        units.append(
            Unit(
                job=JOB,
                key=row.key,
                pkey=pkey,
                function="orchestration.jobs.ingest:run",
                payload={
                    "row": row.to_json(),
                    "source": source,
                    "fingerprint": asdict(content),
                    "settings": asdict(settings),
                    "detector_sha256": detector,
                },
                source=row.source,
                time_limit_s=time_limit_s or _time_limit(row),
            )
        )
    return units


def _time_limit(row: CatalogRow) -> float:
    if row.end_s is None:
        return _WHOLE_FILE_LIMIT_S
    # Decoding starts at a keyframe before the interval; ten times real time covers 1080p on a slow core.
    return 120.0 + 10.0 * (row.end_s - (row.start_s or 0.0))


class SourceChangedError(Exception):
    """The source is not what was fingerprinted; what was made of it must not count for that content."""


def run(storage: Storage, unit: Unit) -> Output:
    """Cut and crop one clip of the catalog."""
    from ingest.clip import ingest_clip
    from ingest.source_folder import Fingerprint, has_changed
    from orchestration.jobs.face import pin_threads, planned_detector
    from orchestration.records import RejectedPiece

    pin_threads()
    row = CatalogRow.from_json(unit.payload["row"])
    assert row.source is not None
    settings = from_json(IngestSettings, unit.payload["settings"])
    detector = planned_detector(unit.payload["detector_sha256"])
    folder, known = Path(unit.payload["source"]), Fingerprint(**unit.payload["fingerprint"])
    pieces = ingest_clip(row, folder / row.source, settings, detector, unit.pkey)
    if known.sha256 is not None and has_changed(folder, known):
        raise SourceChangedError(f"{folder / row.source} changed while it was ingested: run again when it is complete")
    output = Output(details=_about(row))
    for piece in pieces:
        if piece.contents is not None:
            output.contents.append((piece.key, piece.num_frames, dict(piece.contents)))
        elif piece.rejection is not None:
            output.rejected.append(RejectedPiece(key=piece.key, rejection=piece.rejection))
    return output


def _about(row: CatalogRow) -> dict[str, Any]:
    """What the index and the report need to know of the clip, so that they read no media."""
    names = ("dataset", "source_id", "source", "person", "split_group", "licence", "terms_url", "start_s", "end_s")
    return {name: getattr(row, name) for name in names}
