"""The fit job: a global fit over the kept training clips, mapped over parts and merged in their order.

`run_fit` plans a unit per part, runs those that are not done, merges their sums and enters the fit in `DATASET.json`;
`run` is what a worker does with one part. Parts, merges and bytes are those of `shards.fits`, whatever number of
workers there are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from annotate.columns import FITS
from orchestration import outcomes, plans
from orchestration.units.executor import UnitRunner
from orchestration.units.records import UnitRecord
from orchestration.units.unit import JobStoppedError, Output, Unit
from shards.fit_files import FitFileError, FitSource, find_fit, fit_key, read_fit, write_fit
from shards.fits import fit_part, frames_of, keys_of, merge_parts, plan_parts, reader_for, source_of
from shards.manifest import FitEntry, read_manifest, write_manifest
from shards.reader import ShardReader
from shards.selection import Selection
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.derived import Fit
from talkinghead.files.storage import Storage
from talkinghead.global_fit import GlobalFit
from talkinghead.npz import decode_npz, encode_npz
from talkinghead.provenance import provenance_key
from talkinghead.sampletar import read_members
from train.clip_choice import ClipChoice

log = logging.getLogger(__name__)

_SUMS = "sums.npz"
_CLIP_LIMIT_S = 30.0  # wall-clock time that a clip of a part may take
_LEAST_LIMIT_S = 180.0

# --- the whole job ----------------------------------------------------------------------------------------------------


def run_fit(runner: UnitRunner, fit: GlobalFit, settings: Any, clips: ClipChoice | None = None) -> Fit:
    """Make a global fit, after the fits that it needs, unless DATA has it already.

    Args:
        runner: Runs the units, on its DATA, which holds a finished data set.
        fit: The fit.
        settings: Its settings.
        clips: Choice of the clips; None: all kept training clips.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: A column is missing, a part could not be made, or the clips do not allow the fit.
        JobStoppedError: The machine is at fault.
    """
    storage, clips = runner.storage, clips or ClipChoice()
    needed = {name: run_fit(runner, FITS[name], settings_for(FITS[name], settings), clips) for name in fit.fits}

    # What it is made of; the same once more is not made again.
    selection = clips.selection()
    reader = reader_for(fit, storage, annotation=clips.annotation, join=clips.join, selection=selection)
    source, parts = source_of(reader, settings, selection, needed), plan_parts(fit, reader)
    keys = keys_of(reader, parts)
    job = f"{plans.FIT_PREFIX}{fit.name}-{fit_key(fit, source)[:12]}"
    plans.set_aside_damaged(storage, job)
    try:
        found = find_fit(
            storage, reader.manifest, fit, settings, source.index, selection, source.pins, needed=needed, keys=keys
        )
    except FitFileError as error:
        log.warning("%s; it is made anew", error)
        found = None
    if found is not None:
        log.info("%s is there: %s", fit.name, dataroot.fit(fit.name, found.sha256))
        _remove_sums(storage, job)  # of a command that was killed before it came to that
        return found

    # The plan: a unit per part. It is written before anything runs.
    units = plan_fit(fit, source, reader, parts, job, runner.retry.time_limit_s)
    plan = plans.FitPlan(units=plans.pairs(units), fit=fit.name, key=fit_key(fit, source))
    plans.write_plan(storage, job, plan)

    # Map, then merge in the order of the parts. Sums are deleted once the fit is made: where it has been lost since,
    # their records do not count any more.
    for record in outcomes.fit_records(storage, job).values():
        if record.file is None or not storage.exists(record.file):
            storage.delete(dataroot.record(record.job, record.key, record.pkey))
    runner.run(job, units)
    records = outcomes.fit_records(storage, job)
    if lacking := [unit.key for unit in units if unit.key not in records]:
        raise ValueError(
            f"{len(lacking)} parts of {fit.name} could not be made (first: {lacking[0]}); see make quarantine"
            f" DATA={storage.uri}, mend the cause, then make retry"
        )
    sums = merge_parts(fit, _sums(storage, [records[unit.key] for unit in units]), frames_of(reader, parts))
    if sums is None:
        raise ValueError(f"{storage.uri} has no training clip for the fit {fit.name}: look at make report")
    entry = write_fit(storage, fit, source, keys, fit.finish(sums, settings, needed))

    # Last the manifest, which makes the fit visible; then the sums are not needed any more.
    manifest = read_manifest(storage)
    write_manifest(storage, replace(manifest, fits=[*_others(manifest.fits, entry), entry]))
    _remove_sums(storage, job)
    log.info("%s of %d clips: %s", fit.name, entry.clips, entry.path)
    return read_fit(storage, entry.name, entry.sha256)


def _remove_sums(storage: Storage, job: str) -> None:
    for file in storage.list(dataroot.units(job), ".tar"):
        if dataroot.is_unit(file.path, job):
            storage.delete(file.path)


def settings_for(fit: GlobalFit, like: Any) -> Any:
    """Settings of a fit that another one needs: those that both have are the same."""
    known = {name for name in fit.settings.__dataclass_fields__ if hasattr(like, name)}
    return fit.settings(**{name: getattr(like, name) for name in known})


def _others(entries: Sequence[FitEntry], entry: FitEntry) -> list[FitEntry]:
    return [other for other in entries if (other.name, other.sha256) != (entry.name, entry.sha256)]


def _sums(storage: Storage, records: Sequence[UnitRecord]) -> Iterator[dict[str, np.ndarray]]:
    """Sums of the parts, in order, one in memory at a time."""
    for record in records:
        assert record.file
        content = read_members(storage.read_range, record.file, record.key, record.samples[0].members, _SUMS)[_SUMS]
        yield decode_npz(bytes(content), storage.describe(record.file))[0]


# --- its units --------------------------------------------------------------------------------------------------------


def plan_fit(
    fit: GlobalFit,
    source: FitSource,
    reader: ShardReader,
    parts: Sequence[Sequence[int]],
    job: str,
    time_limit_s: float | None,
) -> list[Unit]:
    """Plan one unit per part.

    Args:
        fit: The fit.
        source: What it is made of.
        reader: Reader of its clips.
        parts: Sample numbers of each part.
        job: Name of the job.
        time_limit_s: Wall-clock limit of a unit in seconds; None: from the number of its clips.
    """
    key = fit_key(fit, source)
    common = {"fit": fit.name, **source.to_json(), "num_frames": frames_of(reader, parts)}
    return [
        Unit(
            job=job,
            key=f"part-{number:06d}",
            pkey=provenance_key(job, fit.version, parameters={"part": number}, inputs=[key, *keys_of(reader, [part])]),
            function="orchestration.jobs.fit:run",
            payload={**common, "part": number},
            source=f"part {number} of {len(parts)} of {fit.name}",
            time_limit_s=time_limit_s or _LEAST_LIMIT_S + _CLIP_LIMIT_S * len(part),
        )
        for number, part in enumerate(parts)
    ]


# --- in a worker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """A fit with its clips, opened for all parts that this process gets."""

    fit: GlobalFit
    settings: Any
    fits: Mapping[str, Fit]
    reader: ShardReader
    parts: list[list[int]]


_last: dict[tuple[str, str], _Opened] = {}


def run(storage: Storage, unit: Unit) -> Output:
    """Make the sums of one part."""
    from orchestration.jobs.worker import pin_threads

    pin_threads()
    opened = _open(storage, unit)
    part = opened.parts[unit.payload["part"]]
    num_frames = unit.payload["num_frames"]
    sums = fit_part(opened.fit, opened.settings, opened.fits, opened.reader, part, num_frames)
    frames = frames_of(opened.reader, [part])
    return Output(contents=[(unit.key, frames, {_SUMS: encode_npz(sums, {})})], details={"clips": len(part)})


def _open(storage: Storage, unit: Unit) -> _Opened:
    key = (storage.uri, unit.job)
    if key not in _last:
        _last.clear()
        _last[key] = _opened(storage, unit.payload)
    return _last[key]


def _opened(storage: Storage, payload: Mapping[str, Any]) -> _Opened:
    """Open the clips of the plan.

    Raises:
        JobStoppedError: The data set has changed since the plan was made, or a fit that is needed cannot be read.
    """
    fit = FITS[payload["fit"]]
    try:
        selection = from_json(Selection, payload["selection"])
        join = [f"{name}@{version}" for name, version in payload["pins"].items()]
        reader = reader_for(fit, storage, annotation=payload["annotation"], join=join, selection=selection)
        fits = {name: read_fit(storage, name, sha256) for name, sha256 in payload["fits"].items()}
    except (ValueError, OSError) as error:
        raise JobStoppedError(f"a worker cannot open the clips of {fit.name}: {error}") from error
    if reader.manifest.annotation(reader.version).index != payload["index"]:
        raise JobStoppedError(f"{storage.uri} has changed since the plan of {fit.name} was made: run it again")
    return _Opened(fit, from_json(fit.settings, payload["settings"]), fits, reader, plan_parts(fit, reader))
