"""Versions of derived columns and global fits for a packed data set, without the jobs that make them."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shards.index import build_index, read_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, FitEntry, ShardEntry, read_manifest, write_manifest
from talkinghead.annotation import COLUMN
from talkinghead.column import Column, decode_column
from talkinghead.derived import ANNOTATION, Derived, DerivedColumn, derived_members, version_of
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from talkinghead.sampletar import pack_samples, walk_members
from talkinghead.schema import Member, SampleIndex, annotation_shard_name


@dataclass(frozen=True)
class ToySettings:
    """Settings of the column `toy`: two versions of other settings are two versions."""

    number: int = 0


TOY = DerivedColumn(
    name="toy",
    version=1,
    arrays=(
        Column("toy_rows", (3,), "cm", np.dtype("<f2")),
        Column("toy_steps", (2,), "cm", np.dtype("<i2"), step=0.01, rows=2),
        Column("toy_clip", (4,), "", np.dtype("<f4"), rows="clip"),
        Column("toy_count", (), "", np.dtype("<i4"), rows="clip"),
    ),
    scores=("toy_score",),
    needs=("valid",),
    settings=ToySettings,
    provenance=lambda settings: {},
    open=lambda settings, fits, device: lambda sample: Derived(),
)
"""A column with a row for each frame, with two rows of compact integers, and with one row for each clip."""


def toy(row: SampleIndex, valid: np.ndarray) -> Derived:
    """What `toy` makes of a sample: numbers that tell sample and row, NaN where there is no face."""
    frames = np.arange(row.num_frames)
    rows = np.stack([frames, frames + 0.5, np.full_like(frames, row.ordinal)], 1).astype(np.float32)
    steps = np.repeat(rows[:, :2], 2, axis=0) / 10
    rows[~valid] = steps[~np.repeat(valid, 2)] = np.nan
    clip = np.array([[row.shard, row.ordinal, row.num_frames, 1.5]], np.float32)
    arrays = {"toy_rows": rows, "toy_steps": steps, "toy_clip": clip, "toy_count": np.array([row.num_frames])}
    return Derived(arrays=arrays, scores={"toy_score": row.ordinal / 2})


def add_version(
    storage: Storage,
    column: DerivedColumn = TOY,
    make: Callable[[SampleIndex, np.ndarray], Derived] = toy,
    *,
    settings: Any = None,
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
    pins: Mapping[str, str] | None = None,
    fits: Mapping[str, str] | None = None,
    failed: Collection[str] = (),
) -> AnnotationEntry:
    """Make a version of a derived column of all samples, and enter it in `DATASET.json`.

    Args:
        storage: A packed data set (`pack_data`).
        column: The column.
        make: (row of the newest face annotation's index, its `valid`) → what the column makes of the sample.
        settings: Settings of the column; None: their defaults.
        provenance: Setting that names a file → its `sha256`.
        pins: What it was made from; None: the newest face annotation.
        fits: Name of a global fit → SHA-256 of its file.
        failed: Keys of samples of which it could not be made.

    Returns:
        Its entry.
    """
    manifest = read_manifest(storage)
    faces = manifest.annotation()
    pins = {ANNOTATION: faces.version} if pins is None else pins
    made_of = version_of(column, settings or column.settings(), provenance or {}, pins, fits or {})
    labels: set[str] = set()
    rows: list[SampleIndex] = []
    shards: list[ShardEntry] = []
    index = read_index(storage, faces)
    for number, media in enumerate(manifest.media):
        samples = list(index.rows(index.shard_rows(number)))
        contents: list[tuple[str, dict[str, bytes]]] = []
        derived: dict[str, Derived] = {}
        for row in samples:
            if row.key not in failed:
                valid = _valid(storage, faces, row)
                derived[row.key] = make(row, valid)
                about = {column.stored_names.key_field: "0" * 16}
                members = derived_members(column, derived[row.key], row.num_frames, valid, about)
                contents.append((row.key, members))
                labels |= derived[row.key].labels.keys()
        data = pack_samples(contents)
        name = annotation_shard_name(made_of.name, number)
        storage.write(name, data)
        there = [row for row in samples if row.key in derived]
        frames = sum(row.num_frames for row in there)
        shards.append(ShardEntry(name=name, sha256=hash_bytes(data), size=len(data), samples=len(there), frames=frames))
        places: dict[str, list[Member]] = {}
        for key, member in walk_members(io.BytesIO(data)):
            places.setdefault(key, []).append(member)
        rows += [_row(row, places.get(row.key, []), derived.get(row.key), column) for row in samples]
        assert len(samples) == media.samples
    path, sha256 = write_index(storage, build_index(made_of.name, rows))
    kept = [row for row in rows if row.keep]
    entry = AnnotationEntry(
        version=made_of.name,
        index=path,
        index_sha256=sha256,
        shards=shards,
        samples=len(rows),
        kept=len(kept),
        splits={split: sum(row.split == split for row in kept) for split in sorted({row.split for row in kept})},
        kind=column.name,
        details=asdict(replace(made_of, labels=sorted(labels))),
    )
    others = [other for other in manifest.annotations if other.version != entry.version]
    write_manifest(storage, replace(manifest, annotations=[*others, entry]))
    return entry


def add_fit(
    storage: Storage,
    name: str,
    content: bytes = b"sums",
    *,
    annotation: str | None = None,
    pins: Mapping[str, str] | None = None,
    fits: Mapping[str, str] | None = None,
) -> FitEntry:
    """Enter a global fit with any content in `DATASET.json`.

    Args:
        storage: A packed data set.
        name: Name of the fit.
        content: Content of its file.
        annotation: Annotation version that it was made of; None: the newest.
        pins: Name of a derived column → the version of it that was read.
        fits: Name of another fit → SHA-256 of its file.
    """
    manifest = read_manifest(storage)
    faces = manifest.annotation(annotation)
    entry = FitEntry(
        name=name,
        version=1,
        sha256=hash_bytes(content),
        size=len(content),
        settings={},
        selection={},
        annotation=faces.version,
        index=faces.index,
        pins=dict(pins or {}),
        fits=dict(fits or {}),
        clips=faces.splits["train"],
    )
    storage.write(entry.path, content)
    write_manifest(storage, replace(manifest, fits=[*manifest.fits, entry]))
    return entry


def add_annotation(storage: Storage, version: str) -> AnnotationEntry:
    """Enter the newest face annotation a second time, under another name."""
    manifest: DatasetManifest = read_manifest(storage)
    faces = manifest.annotation()
    shards = []
    for number, shard in enumerate(faces.shards):
        storage.write(annotation_shard_name(version, number), storage.read(shard.name))
        shards.append(replace(shard, name=annotation_shard_name(version, number)))
    path, sha256 = write_index(storage, build_index(version, read_index(storage, faces).rows()))
    entry = replace(faces, version=version, index=path, index_sha256=sha256, shards=shards)
    others = [other for other in manifest.annotations if other.kind != ANNOTATION]
    write_manifest(storage, replace(manifest, annotations=[*manifest.of_kind(ANNOTATION), entry, *others]))
    return entry


def _valid(storage: Storage, faces: AnnotationEntry, row: SampleIndex) -> np.ndarray:
    """Frames of a sample that have a face, `[F]` bool."""
    place = next(member for member in row.annotation if member.suffix == "valid.npy")
    data = storage.read_range(faces.shards[row.shard].name, place.offset, place.size)
    return decode_column(COLUMN["valid"], data).astype(bool)


def _row(row: SampleIndex, members: list[Member], derived: Derived | None, column: DerivedColumn) -> SampleIndex:
    labels: dict[str, Any] = {"labels": dict(derived.labels)} if derived and derived.labels else {}
    return replace(
        row,
        keep=bool(members),
        reason=None if members else column.stored_names.failed,
        reason_score=None,
        annotation=members,
        scores=dict(derived.scores) if derived else {},
        **labels,
    )
