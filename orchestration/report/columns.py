"""Derived columns and global fits in numbers: entries of `columns` and `fits` in `report.json`, and what is wrong.

A version that is not in `DATASET.json` is half made: it is counted, and has no sample that a reader sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from orchestration.report.charts import LARGEST
from orchestration.report.state import ColumnState, DataState
from orchestration.units.ledger import causes
from orchestration.units.records import UnitRecord
from shards.index import Index
from shards.index_format import SCORE
from shards.manifest import AnnotationEntry, FitEntry
from talkinghead.config import shown
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json

MOST_VALUES = 50
"""Most values of a label that are listed; the others are only counted."""
_PERCENTILES = {"min": 0, "p05": 5, "median": 50, "p95": 95, "max": 100}
_MOST_BYTES = 10_000  # of parameters and the like, which may be a stranger's
_EXAMPLES = 3

# --- numbers ----------------------------------------------------------------------------------------------------------


def column_numbers(column: ColumnState) -> dict[str, Any]:
    """Entry of `columns`, whose fields the docstring of `orchestration.report.summary` explains."""
    made_of, entry, results = column.made_of, column.entry, column.results
    made = sum(isinstance(record, UnitRecord) for record in results.values())
    samples, shards = (entry.kept, entry.shards) if entry else (0, [])
    frames, size = (sum(getattr(shard, name) for shard in shards) for name in ("frames", "size"))
    return {
        "column": made_of.column,
        "version": column.version,
        "column_version": made_of.column_version,
        "finished": entry is not None,
        "parameters": _bounded(made_of.parameters),
        "provenance": _bounded(
            {
                setting: {"name": about.get("name"), "sha256": about.get("sha256")}
                for setting, about in made_of.provenance.items()
            }
        ),
        "pins": _bounded(made_of.pins),
        "fits": _bounded(made_of.fits),
        "planned": len(results) if results else None,
        "made": made if results else None,
        "pending": sum(record is None for record in results.values()) if results else None,
        "failures": dict(causes(column.quarantined).most_common()),
        "samples": samples,
        "missing": (entry.samples if entry else len(results)) - samples,
        "frames": frames,
        "bytes": size,
        "bytes_per_frame": round(size / frames, 2) if frames else None,
        "scores": _scores(column.index) if column.index else {},
        "labels": _labels(column.index) if column.index else {},
    }


def fit_numbers(entry: FitEntry) -> dict[str, Any]:
    """Entry of `fits`, likewise."""
    return {
        "name": entry.name,
        "version": entry.version,
        "sha256": entry.sha256,
        "clips": entry.clips,
        "bytes": entry.size,
        "annotation": entry.annotation,
        "selection": _bounded(entry.selection),
        "settings": _bounded(entry.settings),
        "pins": _bounded(entry.pins),
        "fits": _bounded(entry.fits),
    }


def _scores(index: Index) -> dict[str, dict[str, float | None]]:
    """Name of a score → how it is spread over the samples that have the column."""
    found = {}
    for name in index.score_names:
        values = index.numbers(f"{SCORE}{name}")[index.numbers("keep")]
        measured = np.clip(values[np.isfinite(values)], -LARGEST, LARGEST)
        places = np.percentile(measured, list(_PERCENTILES.values())).tolist() if measured.size else [None] * 5
        counts = {"count": measured.size, "missing": values.size - measured.size}
        found[name] = {**counts, **dict(zip(_PERCENTILES, places, strict=True))}
    return found


def _labels(index: Index) -> dict[str, dict[str, Any]]:
    """Name of a label → its most frequent values, with the number of samples that have them."""
    found = {}
    for name in index.label_names:
        counts = Counter(value for value in index.label(name)[index.numbers("keep")].tolist() if value is not None)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        others = ranked[MOST_VALUES:]
        found[name] = {
            "samples": counts.total(),
            "values": dict(ranked[:MOST_VALUES]),
            "other_values": len(others),
            "other_samples": sum(count for _, count in others),
        }
    return found


def _bounded(value: dict[str, Any]) -> dict[str, Any] | str:
    """An object of a file in DATA; a short text about one that is large, or that JSON cannot hold."""
    try:
        return value if len(canonical_json(value)) <= _MOST_BYTES else shown(value)
    except ValueError:
        return shown(value)


# --- what does not add up ---------------------------------------------------------------------------------------------


def column_errors(storage: Storage, state: DataState, num_shards: int) -> Iterator[str]:
    """Contradictions between the shards, indexes and records of derived columns, one line each.

    Args:
        storage: DATA; only the sizes of shards are asked for.
        state: State of the data set.
        num_shards: Number of its media shards.
    """
    keys = [row.key for row in state.index]
    for column in state.columns:
        if column.entry is not None and column.index is not None:
            yield from _shard_errors(storage, column.entry, column.index, num_shards)
            yield from _record_errors(column, column.entry, column.index, keys)


def fit_errors(storage: Storage, entries: Sequence[FitEntry]) -> Iterator[str]:
    """Global fits whose files are not what `DATASET.json` promises, one line each."""
    for entry in entries:
        yield from _size_errors(storage, entry.path, entry.size)


def _shard_errors(storage: Storage, entry: AnnotationEntry, index: Index, num_shards: int) -> Iterator[str]:
    """Whether the shards lie there as they were committed, parallel to the media shards, with the index's samples."""
    if len(entry.shards) != num_shards:
        yield f"{entry.version} has {len(entry.shards)} shards, the data set has {num_shards}"
    keep, frames = index.numbers("keep"), index.numbers("num_frames")
    if (len(index), int(keep.sum())) != (entry.samples, entry.kept):
        yield (
            f"{entry.version} has {int(keep.sum())} of {len(index)} samples by its index, DATASET.json says"
            f" {entry.kept} of {entry.samples}"
        )
    for number, shard in enumerate(entry.shards):
        yield from _size_errors(storage, shard.name, shard.size)
        rows = index.shard_rows(number)
        there = frames[rows][keep[rows]]
        if (len(there), int(there.sum())) != (shard.samples, shard.frames):
            yield (
                f"{shard.name} has {shard.samples} samples with {shard.frames} frames, the index of {entry.version}"
                f" has {len(there)} with {int(there.sum())}"
            )


def _record_errors(column: ColumnState, entry: AnnotationEntry, index: Index, keys: Sequence[str]) -> Iterator[str]:
    """Whether every sample of the data set is made, failed or pending, and every one in the shards was made."""
    version, mine = entry.version, index.texts("key").tolist()
    if mine != keys:
        yield f"{version} is not about the samples of the annotation, in their order"
    if column.results:  # else DATA was copied without its plans
        if lost := set(mine) ^ column.results.keys():
            yield f"{len(lost)} samples are only in the plan or only in the index of {version}: {_examples(lost)}"
        made = {key for key, record in column.results.items() if isinstance(record, UnitRecord)}
        there = {key for key, kept in zip(mine, index.numbers("keep").tolist(), strict=True) if kept}
        if lost := there - made:
            yield f"{len(lost)} samples in the shards of {version} have no commit record: {_examples(lost)}"
    hashes = {record.file: record.file_sha256 for record in column.pack}
    for shard in entry.shards:
        if hashes.get(shard.name, shard.sha256) != shard.sha256:
            yield f"{shard.name} was committed with another hash than DATASET.json says"


def _size_errors(storage: Storage, path: str, promised: int) -> Iterator[str]:
    size = storage.size(path)
    if size is None:
        yield f"{path} is in DATASET.json, but not in DATA"
    elif size != promised:
        yield f"{path} has {size} bytes, DATASET.json says {promised}"


def _examples(keys: Iterable[str]) -> str:
    found = sorted(keys)
    return ", ".join(found[:_EXAMPLES]) + (", …" if len(found) > _EXAMPLES else "")
