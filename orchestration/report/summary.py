"""Numbers of the report, the value of `report.json`:

report_version          2
annotation_version      annotation version that the report is about
previous_version        annotation version compared with, or null
model_sha256            hash of the landmark model; null when nothing is annotated
model_sha256s           hashes of all landmark models that made the annotations
engines                 landmark engines that made the annotations
inputs                  number of catalog rows of all data sets
inputs_by_outcome       {sample, rejected, quarantined, pending}: inputs; they add up to `inputs`
rejected                {reason: inputs}
quarantined             {cause: inputs}
pending                 inputs without an outcome yet; 0 when every job is finished
samples                 kept samples; one input may give several (its pieces)
pieces                  {total, sample, rejected, quarantined, pending, rejected_reasons, quarantined_causes}: the
                        same account by piece; an input that gave none is not in it
notes                   [{kind, inputs, samples, left_out, examples: [{key, note}]}], what was unusual about the sources
                        and how it was handled, by kind; `left_out` are the pieces that are no samples
unusual_scores          [{score, title, above, samples, left_out, largest}], scores of which samples have a value above
                        that of ordinary clips
funnel                  [{job, passed, lost: [{outcome, reason, inputs}]}]
frames, hours           length of the kept samples, at 25 frames per second
frames_indexed          frames of all samples in the index, kept or not
persons                 different persons among the kept samples, as far as the metadata names them
split_groups            different split groups among the kept samples
splits                  {split: {samples, frames, hours, persons, split_groups}}, kept samples
datasets                {dataset: {inputs, sample, rejected, quarantined, pending, samples, frames, hours}}
metadata                {dataset: {problems, unused, left_out, there, released}}: unreadable metadata, videos that no
                        metadata names, clips that LIMIT cut off; how many of the listed clips are in SOURCE, and how
                        many of those as clips that somebody has cut out already
licences                [{licence, terms_urls, datasets, inputs, samples, hours}]
shards                  number of media shards
bytes_media             size of the media shards
bytes_annotation        size of the annotation shards of this version
bytes_per_frame         {member: bytes}, over all samples in the index that have the member
jobs                    {job: {units, frames, seconds, cpu_seconds, wall_seconds, frames_per_second,
                        cpu_ms_per_frame, retried}}; `seconds` are summed over workers, `wall_seconds` are null
                        when unknown, and `frames_per_second` is then that of one worker
columns                 versions of derived columns, each {column, version, column_version, finished, parameters,
                        provenance: {setting: {name, sha256}}, pins, fits, planned, made, pending, failures:
                        {cause: samples}, samples, missing, frames, bytes, bytes_per_frame, scores, labels}.
                        `planned` samples are made, failed or pending (null: DATA has no plan of it); `samples` are
                        those in its shards, which readers see, and `missing` those of the data set that are not in
                        them. One that is not finished is not in DATASET.json, and has none. Further
                          scores {name: {count, missing, min, p05, median, p95, max}}, over `samples`
                          labels {name: {samples, values: {value: samples}, other_values, other_samples}}, the most
                                 frequent values; the others are only counted
fits                    global fits, each {name, version, sha256, clips, bytes, annotation, selection, settings, pins,
                        fits}
settings                how the annotations were made and filtered, as the data set records it
difference              changes since the version before (see `VersionDifference.to_json`), or null
errors                  everything that does not add up; empty when all is well
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from orchestration.plans import INGEST_JOB, PACK_MEDIA_JOB, annotate_job, pack_annotation_job
from orchestration.report.accounting import FATES, Accounting, count_reasons
from orchestration.report.columns import column_errors, column_numbers, fit_errors, fit_numbers
from orchestration.report.diff import VersionDifference
from orchestration.report.state import DataState
from orchestration.report.unusual import count_notes, count_scores
from orchestration.units.records import UnitRecord
from shards.manifest import DatasetManifest, ShardEntry
from talkinghead.files.storage import Storage
from talkinghead.schema import SPLITS, SampleIndex, annotation_shard_name, media_shard_name
from talkinghead.timebase import FPS

REPORT_VERSION = 2


def summarise(
    storage: Storage,
    state: DataState,
    accounting: Accounting,
    manifest: DatasetManifest | None,
    difference: VersionDifference | None,
) -> dict[str, Any]:
    """The value of `report.json`, whose fields the module's docstring explains.

    Args:
        storage: DATA; only the sizes of shards are asked for.
        state: State of the data set.
        accounting: Outcome of every input.
        manifest: Content of `DATASET.json`; None before the first packing.
        difference: Changes since the version before; None without one.
    """
    # What several fields below are made of.
    kept = [row for row in state.index if row.keep]
    models = _details(state, "model_sha256")
    media, annotation, shard_errors = _shard_sizes(storage, state, manifest)
    pieces = accounting.pieces
    fates = {fate: sum(piece.fate == fate for piece in pieces) for fate in FATES}
    funnel = [
        {
            "job": job.job,
            "passed": job.passed,
            "lost": [{"outcome": fate, "reason": why, "inputs": n} for (fate, why), n in job.lost.items()],
        }
        for job in accounting.funnel()
    ]
    by_fate = accounting.by_fate()
    return {
        "report_version": REPORT_VERSION,
        "annotation_version": state.version,
        "previous_version": state.previous_version,
        "model_sha256": models[0] if models else None,
        "model_sha256s": models,
        "engines": _details(state, "engine"),
        "inputs": len(accounting.inputs),
        "inputs_by_outcome": by_fate,
        "rejected": accounting.reasons("rejected"),
        "quarantined": accounting.reasons("quarantined"),
        "pending": by_fate["pending"],
        "samples": len(kept),
        "pieces": {
            "total": len(pieces),
            **fates,
            "rejected_reasons": count_reasons(pieces, "rejected"),
            "quarantined_causes": count_reasons(pieces, "quarantined"),
        },
        "notes": [count.to_json() for count in count_notes(accounting)],
        "unusual_scores": count_scores(state.index),
        "funnel": funnel,
        **_size(kept),
        "frames_indexed": sum(row.num_frames for row in state.index),
        **_people(kept),
        "splits": {split: _split([row for row in kept if row.split == split]) for split in SPLITS},
        "datasets": _datasets(accounting, kept),
        "metadata": {name: dataclasses.asdict(notes) for name, notes in state.metadata.items()},
        "licences": _licences(state, kept),
        "shards": len({row.shard for row in state.index}),
        "bytes_media": media,
        "bytes_annotation": annotation,
        "bytes_per_frame": _bytes_per_frame(state.index),
        "jobs": job_speeds(state),
        "columns": [column_numbers(column) for column in state.columns],
        "fits": [fit_numbers(entry) for entry in state.fits],
        "settings": _settings(manifest, state),
        "difference": difference.to_json() if difference else None,
        "errors": [
            *accounting.errors,
            *shard_errors,
            *column_errors(storage, state, len(manifest.media) if manifest else 0),
            *fit_errors(storage, state.fits),
            *_split_errors(state.index),
        ],
    }


def job_speeds(state: DataState) -> dict[str, dict[str, Any]]:
    """Job → units, time and speed by its commit records; in the order of the work."""
    jobs = (INGEST_JOB, annotate_job(state.version), PACK_MEDIA_JOB, pack_annotation_job(state.version))
    records: dict[str, list[UnitRecord]] = {name: [] for name in jobs}
    # Records know their job; derived columns and global fits add jobs of their own at the end.
    units: list[Any] = [*state.ingest.values(), *state.annotate.values(), *state.pack]
    units.extend(record for column in state.columns for record in column.units)
    units.extend(state.fit_parts)
    for record in units:
        if isinstance(record, UnitRecord):
            records.setdefault(record.job, []).append(record)
    return {
        name: _speed(done, state.wall_frames.get(name), state.wall_seconds.get(name))
        for name, done in records.items()
        if done
    }


def _speed(records: list[UnitRecord], wall_frames: int | None, wall_seconds: float | None) -> dict[str, Any]:
    """One entry of `jobs`."""
    frames = sum(record.frames for record in records)
    seconds = sum(record.seconds for record in records)
    cpu_seconds = sum(record.cpu_seconds for record in records)
    # A pass that was killed left no wall time: its frames must not count into the speed of the others.
    clocked, clock = (wall_frames, wall_seconds) if wall_frames and wall_seconds else (frames, seconds)
    return {
        "units": len(records),
        "frames": frames,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "wall_seconds": wall_seconds,
        "frames_per_second": round(clocked / clock, 2) if clock and frames else None,
        "cpu_ms_per_frame": round(1000 * cpu_seconds / frames, 3) if frames else None,
        "retried": sum(record.attempts > 1 for record in records),
    }


def _size(rows: Iterable[SampleIndex]) -> dict[str, Any]:
    frames = sum(row.num_frames for row in rows)
    return {"frames": frames, "hours": round(frames / FPS / 3600, 6)}


def _people(rows: Iterable[SampleIndex]) -> dict[str, int]:
    # Data sets name persons and groups on their own: the same name in two of them means two.
    pairs = [(row.dataset, row.person, row.split_group) for row in rows]
    persons = {(dataset, person) for dataset, person, _ in pairs if person is not None}
    return {"persons": len(persons), "split_groups": len({(dataset, group) for dataset, _, group in pairs})}


def _split(rows: list[SampleIndex]) -> dict[str, Any]:
    return {"samples": len(rows), **_size(rows), **_people(rows)}


def _datasets(accounting: Accounting, kept: list[SampleIndex]) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("inputs", *FATES), 0))
    for outcome in accounting.inputs:
        counts[outcome.row.dataset]["inputs"] += 1
        counts[outcome.row.dataset][outcome.fate] += 1
    rows: dict[str, list[SampleIndex]] = defaultdict(list)
    for row in kept:
        rows[row.dataset].append(row)
    return {name: {**counts[name], "samples": len(rows[name]), **_size(rows[name])} for name in sorted(counts)}


def _licences(state: DataState, kept: list[SampleIndex]) -> list[dict[str, Any]]:
    # Inputs and terms from the catalog, whether they became samples or not; samples and hours from the index.
    inputs: dict[str, int] = defaultdict(int)
    urls: dict[str, set[str]] = defaultdict(set)
    datasets: dict[str, set[str]] = defaultdict(set)
    for row in state.catalog:
        inputs[row.licence] += 1
        datasets[row.licence].add(row.dataset)
        if row.terms_url:
            urls[row.licence].add(row.terms_url)
    rows: dict[str, list[SampleIndex]] = defaultdict(list)
    for row in kept:
        rows[row.licence].append(row)
    return [
        {
            "licence": name,
            "terms_urls": sorted(urls[name]),
            "datasets": sorted(datasets[name]),
            "inputs": inputs[name],
            "samples": len(rows[name]),
            "hours": _size(rows[name])["hours"],
        }
        for name in sorted(inputs.keys() | rows.keys(), key=lambda name: (-len(rows[name]), name))
    ]


def _bytes_per_frame(index: list[SampleIndex]) -> dict[str, float]:
    # Only the frames of samples that have the member count, so that a rare one does not look small.
    sizes: dict[str, int] = defaultdict(int)
    frames: dict[str, int] = defaultdict(int)
    for row in index:
        for member in (*row.media, *row.annotation):
            sizes[member.suffix] += member.size
            frames[member.suffix] += row.num_frames
    return {name: round(sizes[name] / frames[name], 2) for name in sorted(sizes) if frames[name]}


def _shard_sizes(storage: Storage, state: DataState, manifest: DatasetManifest | None) -> tuple[int, int, list[str]]:
    """Sizes in bytes of the media shards and of the annotation shards on the disk, and errors about them."""
    # Sizes that `DATASET.json` promises, of the shards that it names.
    numbers = sorted({row.shard for row in state.index})
    versions = manifest.annotations if manifest else []
    of_version = [entry for made in versions if made.version == state.version for entry in made.shards]
    there = {"media": manifest.media if manifest else [], "annotation": of_version}
    committed: dict[str, ShardEntry] = {entry.name: entry for entries in there.values() for entry in entries}
    plain = {"media": media_shard_name, "annotation": functools.partial(annotation_shard_name, state.version)}
    names = {
        archive: [entries[number].name if number < len(entries) else plain[archive](number) for number in numbers]
        for archive, entries in there.items()
    }
    # Sizes as they are: a shard that is missing or cut short is an error.
    totals, errors = dict.fromkeys(names, 0), []
    for archive, shards in names.items():
        for name in shards:
            size = storage.size(name)
            totals[archive] += size or 0
            if size is None:
                errors.append(f"{name} is in the index, but not in DATA")
            elif name in committed and committed[name].size != size:
                errors.append(f"{name} has {size} bytes, DATASET.json says {committed[name].size}")
    return totals["media"], totals["annotation"], errors


def _split_errors(index: list[SampleIndex]) -> list[str]:
    """Error about split groups that are in more than one split: training and test would share a person or a video."""
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in index:
        splits[row.dataset, row.split_group].add(row.split)
    # A group in two splits can only come from a damaged index: splits are dealt to whole groups.
    torn = sorted(group for (_, group), found in splits.items() if len(found) > 1)
    return [f"{len(torn)} split groups stand in more than one split: {', '.join(torn[:3])}"] if torn else []


def _details(state: DataState, name: str) -> list[str]:
    """Distinct values of one detail in the annotation records, sorted."""
    records = [record for record in state.annotate.values() if isinstance(record, UnitRecord)]
    return sorted({str(record.details[name]) for record in records if record.details.get(name)})


def _settings(manifest: DatasetManifest | None, state: DataState) -> dict[str, Any]:
    """Value of `settings`: what `DATASET.json` records about the version, and the thresholds in use."""
    settings: dict[str, Any] = {}
    if manifest:
        settings.update(next((made.details for made in manifest.annotations if made.version == state.version), {}))
        settings["tool_versions"] = manifest.tool_versions
    if state.filters:
        settings["filters"] = dataclasses.asdict(state.filters)
    return settings
