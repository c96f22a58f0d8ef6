"""Ingest everything that a source holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.settings import IngestSettings
from orchestration import results
from orchestration.executor import Tally
from orchestration.jobs import ingest
from orchestration.jobs.plans import plan_names, read_plan, write_plan
from orchestration.overrides import settings_with
from orchestration.runs.runner import Runner
from orchestration.unit import Unit
from talkinghead import dataroot
from talkinghead.storage import Storage

if TYPE_CHECKING:
    from ingest.catalog import Catalog
    from ingest.source_folder import Fingerprint
    from talkinghead.face.model import FaceModel

log = logging.getLogger(__name__)

GONE = "packed; its source is no longer in SOURCE"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which data set, and where its videos lie."""

    dataset: str = "folder"
    """hdtf, celebv-hq, vfhq or folder."""
    source: str | None = None
    """Folder with the videos. Without one, what DATA holds already is used."""
    metadata: str | None = None
    """Folder (or file) with the data set's own metadata (default: looked for in SOURCE)."""
    limit: int | None = None
    """Take only so many clips, those with a source file first."""


def run_ingest(runner: Runner, source: Source, overrides: Sequence[str], model: FaceModel) -> Tally:
    """Read the metadata, fingerprint the sources, cut and crop every clip.

    Args:
        runner: DATA.
        source: What to ingest.
        overrides: Settings as NAME=VALUE; the others stay as the data set was ingested before.
        model: Its detector finds the faces.

    Raises:
        ValueError: No such source or setting; a packed clip's source has changed; another clip size than is packed.
        RunError: The machine is at fault.
    """
    from ingest.catalog import write_catalog

    if source.source is None:
        raise ValueError("SOURCE is missing: the folder with the videos")
    storage, folder, name = runner.storage, Path(source.source).absolute(), ingest.plan_name(source.dataset)
    before: dict[str, Any] = {"units": {}, "contents": {}, "settings": {}}
    if name in plan_names(storage, name):
        before = read_plan(storage, name)
    settings = settings_with(IngestSettings, before["settings"], overrides)
    packed = results.packed_clips(storage)
    _check_size(storage, name, packed, settings)

    catalog, gone = _catalog(storage, source, folder, packed)
    prints = _fingerprints(storage, source.dataset, folder, catalog, gone)
    detector = model.detector_sha256
    rows = [row for row in catalog.rows if row.key not in gone]
    units = ingest.plan_ingest(rows, prints, str(folder), settings, detector, runner.retry.time_limit_s)
    contents = {row.key: prints[row.source].sha256 for row in rows if row.source is not None}
    units = _keep_packed(before, units, contents, packed)
    write_catalog(storage, catalog)
    write_plan(
        storage,
        name,
        units,
        extra={key: before["units"][key] for key in gone},
        settings=asdict(settings),
        contents=contents | {key: before["contents"][key] for key in gone},
    )
    missing = len(catalog.rows) - len(units) - len(gone)
    log.info("%s: %d clips in the catalog, %d without a source file", source.dataset, len(catalog.rows), missing)
    return runner.run(ingest.JOB, units)


def _check_size(storage: Storage, name: str, packed: set[str], settings: IngestSettings) -> None:
    """All clips of DATA are made with one size setting: batches are stacked from them."""
    others = [other for other in plan_names(storage, ingest.PLAN_PREFIX) if other != name or packed]
    sizes = {read_plan(storage, other)["settings"]["size"] for other in others}
    if other := sizes - {settings.size}:
        raise ValueError(
            f"DATA holds clips of size {other.pop()}, not {settings.size}: use a new DATA for another size"
        )


def _catalog(storage: Storage, source: Source, folder: Path, packed: set[str]) -> tuple[Catalog, set[str]]:
    """The catalog of what SOURCE holds now, with the rows of packed clips that it no longer has; and their keys."""
    from ingest.catalog import build_catalog, read_catalog

    metadata = Path(source.metadata) if source.metadata else None
    outputs = [storage.local_root] if storage.local_root else []
    catalog = build_catalog(source.dataset, folder, metadata, source.limit, exclude=outputs)
    for problem in catalog.problems:
        log.warning("metadata: %s", problem)
    if not catalog.rows:
        raise ValueError(f"no clips: neither metadata nor media of {source.dataset} found in {source.source}")
    if not packed or not storage.exists(dataroot.catalog(source.dataset)):
        return catalog, set()
    here = {row.key for row in catalog.rows if row.source is not None}
    kept = [row for row in read_catalog(storage, source.dataset).rows if row.key in packed - here]
    gone = {row.key for row in kept}
    if gone:
        log.warning("%d packed clips are no longer in SOURCE; they stay in their shards", len(gone))
    marked = [row if GONE in row.notes else replace(row, notes=(*row.notes, GONE)) for row in kept]
    rows = [row for row in catalog.rows if row.key not in gone] + marked
    return replace(catalog, rows=sorted(rows, key=lambda row: row.key)), gone


def _fingerprints(
    storage: Storage, dataset: str, folder: Path, catalog: Catalog, gone: set[str]
) -> dict[str, Fingerprint]:
    from ingest.source_folder import fingerprint, read_fingerprints, write_fingerprints

    paths = {row.source for row in catalog.rows if row.source is not None and row.key not in gone}
    known = read_fingerprints(storage, dataset)
    prints = fingerprint(folder, paths, known)
    if prints != known:
        write_fingerprints(storage, dataset, prints)
    return prints


def _keep_packed(
    before: dict[str, Any], units: Sequence[Unit], contents: dict[str, str | None], packed: set[str]
) -> list[Unit]:
    """Clips that are in a shard stay as they were ingested, also under newer libraries or settings."""
    kept, frozen = [], 0
    for unit in units:
        old = before["units"].get(unit.key, unit.pkey)
        if unit.key in packed and old != unit.pkey:
            if contents[unit.key] is None:
                raise ValueError(f"{unit.source} is packed, but cannot be read any more: give it back, or move it away")
            if before["contents"].get(unit.key) != contents[unit.key]:
                raise ValueError(
                    f"{unit.source} has changed since its clip was packed. Shards are immutable: "
                    "give the new file another name, or use a new DATA folder"
                )
            unit, frozen = replace(unit, pkey=old), frozen + 1
        kept.append(unit)
    if frozen:
        log.warning(
            "%d packed clips were ingested with other settings, metadata or libraries and stay as they are", frozen
        )
    return kept
