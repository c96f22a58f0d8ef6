"""A small DATA folder with every kind of outcome in it, made without running any job."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from annotate.filters import FilterSettings
from orchestration.outcomes import UnitState
from orchestration.plans import annotate_job
from orchestration.report.state import DataState
from orchestration.units.records import Attempt, QuarantineRecord, RejectedPiece, SampleRecord, UnitRecord
from shards.index import build_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, ShardEntry, write_manifest
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMNS, QUALITY_FIELDS
from talkinghead.column import encode_column
from talkinghead.files.storage import Storage
from talkinghead.media.audio import encode_wav
from talkinghead.media.encode import encode_mp4
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.provenance import hash_bytes
from talkinghead.sampletar import END_OF_ARCHIVE, write_sample
from talkinghead.schema import (
    MEDIA_MEMBERS,
    CatalogRow,
    Member,
    Rejection,
    SampleIndex,
    annotation_shard_name,
    media_shard_name,
)
from talkinghead.timebase import SAMPLES_PER_FRAME

Kind = Literal["kept", "filtered", "unannotatable", "uncut", "unreadable", "waiting", "missing"]
"""Outcome of a clip: sample, rejected by a filter, annotation quarantined, rejected by ingest, ingest quarantined,
pending, no source file."""

Content = dict[str, bytes]
MODEL = "64" * 32
PER_SHARD = 4


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One sample that ingest put out."""

    key: str
    kind: Kind = "kept"
    num_frames: int = 30
    reason: str = "small_face"
    score: float | None = 81.5
    scores: Mapping[str, float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One input; `pieces` default to one of the clip's own kind."""

    key: str
    kind: Kind = "kept"
    dataset: str = "folder"
    source: str | None = "a.mp4"
    person: str | None = None
    pieces: tuple[Piece, ...] = ()
    split: str = "train"
    message: str = "the file is cut short"
    reason: str = "no_face"
    rejected: tuple[RejectedPiece, ...] = ()
    notes: Mapping[str, list[str]] | None = None
    """Key of a piece → its notes; None: a record of a release before there were notes."""

    @property
    def made(self) -> tuple[Piece, ...]:
        """Samples that ingest put out."""
        if self.pieces or self.kind in ("uncut", "unreadable", "missing"):
            return self.pieces
        return (Piece(key=self.key, kind=self.kind),)

    @property
    def row(self) -> CatalogRow:
        """Catalog row of the clip."""
        return CatalogRow(
            key=self.key,
            dataset=self.dataset,
            source_id=self.key,
            source=None if self.kind == "missing" else self.source,
            start_s=1.5,
            person=self.person,
            split_group=self.person or self.key,
            licence="CC BY 4.0",
            terms_url="https://example.org/terms?a=1&b=2",
        )


@cache
def tiny_media(num_frames: int) -> Content:
    """A grey clip of 64 pixels that grows brighter, and its sound."""
    frames = (np.full((64, 64, 3), 40 + 5 * (k % 40), np.uint8) for k in range(num_frames))
    samples = np.sin(np.arange(num_frames * SAMPLES_PER_FRAME) * 0.05).astype(np.float32) * 0.5
    mp4 = encode_mp4(frames, 64, 64, EncoderSettings(preset="ultrafast"))
    return {"json": b"{}\n", "mp4": mp4, "wav": encode_wav(samples)}


def tiny_annotation(num_frames: int, *, shift: float = 0.0, missing: int = 0) -> Content:
    """Columns of a face of random points moved by `shift` (of the image, and in cm); the last frames have none."""
    dice = np.random.default_rng(7)
    arrays: dict[str, np.ndarray] = {
        column.name: np.broadcast_to(
            dice.uniform(0.25, 0.75, column.row_shape).astype(np.float32), (num_frames, *column.row_shape)
        ).copy()
        for column in COLUMNS
    }
    arrays["landmarks"][:, :, 0] += shift
    arrays["mesh"][:, :, 0] += shift
    arrays["quality"][:, QUALITY_FIELDS.index("mouth_opening")] = np.linspace(0, 0.4, num_frames)
    arrays["valid"] = np.arange(num_frames) < num_frames - missing
    for name, values in arrays.items():
        if name != "valid":
            values[~arrays["valid"]] = np.nan
    return encode_annotation(arrays)


def encode_annotation(arrays: Mapping[str, np.ndarray]) -> Content:
    """Members of one sample in an annotation shard."""
    contents = {column.member: encode_column(column, arrays[column.name]) for column in COLUMNS}
    contents["ann.json"] = b"{}\n"
    return {suffix: contents[suffix] for suffix in ANNOTATION_MEMBERS}


def write_data(
    storage: Storage,
    clips: Sequence[Clip],
    versions: Sequence[str] = ("v1",),
    *,
    media: Callable[[Piece], Content] = lambda piece: tiny_media(piece.num_frames),
    annotation: Callable[[Piece, str], Content] = lambda piece, _: tiny_annotation(piece.num_frames),
    filters: FilterSettings | None = None,
) -> DataState:
    """Write shards, indexes and `DATASET.json`, as the finished jobs leave them; returns the last version's state."""
    assert versions
    packed = [(clip, piece) for clip in clips for piece in clip.made if piece.kind in ("kept", "filtered")]
    places, media_shards = _write_shards(storage, packed, media_shard_name, media, MEDIA_MEMBERS)
    entries, rows = [], []
    for version in versions:
        annotated, shards = _write_shards(
            storage,
            packed,
            lambda number, v=version: annotation_shard_name(v, number),
            lambda piece, v=version: annotation(piece, v),
            ANNOTATION_MEMBERS,
        )
        rows = [
            _index_row(clip, piece, number, places[number], annotated[number])
            for number, (clip, piece) in enumerate(packed)
        ]
        path, sha = write_index(storage, build_index(version, rows))
        entry = AnnotationEntry(
            version=version,
            index=path,
            index_sha256=sha,
            shards=shards,
            samples=len(rows),
            kept=sum(row.keep for row in rows),
            splits={},
        )
        entries.append(entry)
    manifest = DatasetManifest(
        datasets=sorted({clip.dataset for clip in clips}),
        counts={},
        licences={},
        tool_versions={"talkinghead": "0.1.0", "mediapipe": "1.2.2"},
        plan_hash="",
        media=media_shards,
        annotations=entries,
    )
    write_manifest(storage, manifest)
    return data_state(clips, rows, versions, filters)


def data_state(
    clips: Sequence[Clip], index: list[SampleIndex], versions: Sequence[str], filters: FilterSettings | None = None
) -> DataState:
    """State of a data set whose jobs ended as the clips say."""
    job = annotate_job(versions[-1])
    return DataState(
        version=versions[-1],
        catalog=[clip.row for clip in clips],
        ingest={clip.key: ingest_state(clip) for clip in clips},
        annotate={piece.key: annotate_state(clip, piece, job) for clip in clips for piece in clip.made},
        pack=[],
        index=index,
        previous_version=versions[-2] if len(versions) > 1 else None,
        filters=filters,
        wall_frames={job: 200},
        wall_seconds={job: 1.25},
    )


def ingest_state(clip: Clip) -> UnitState:
    """Outcome of ingest for a clip."""
    pkey = "0" * 16
    if clip.kind == "unreadable":
        attempt = Attempt(cause="error:InvalidDataError", message=clip.message, trace="Traceback\n  <av>", alone=True)
        return QuarantineRecord(job="ingest", key=clip.key, pkey=pkey, source=clip.source or "", attempts=[attempt])
    details = {} if clip.notes is None else {"notes": dict(clip.notes)}
    if clip.kind == "uncut":
        rejected = [RejectedPiece(key=clip.key, rejection=Rejection(reason=clip.reason, score=0.02, detail="2 %"))]
        return UnitRecord(job="ingest", key=clip.key, pkey=pkey, rejected=rejected, cpu_seconds=0.5, details=details)
    if clip.kind == "missing" or (clip.kind == "waiting" and not clip.pieces):
        return None
    frames = sum(piece.num_frames for piece in clip.made)
    return UnitRecord(
        job="ingest",
        key=clip.key,
        pkey=pkey,
        samples=[
            SampleRecord(key=piece.key, num_frames=piece.num_frames, members=[], sha256="") for piece in clip.made
        ],
        rejected=list(clip.rejected),
        frames=frames,
        seconds=frames * 0.02,
        cpu_seconds=frames * 0.018,
        details=details,
    )


def annotate_state(clip: Clip, piece: Piece, job: str) -> UnitState:
    """Outcome of annotation for a sample."""
    pkey = "1" * 16
    if piece.kind == "waiting":
        return None
    if piece.kind == "unannotatable":
        attempts = [Attempt(cause="crash:SIGSEGV", message=clip.message, seconds=3.5)]
        return QuarantineRecord(job=job, key=piece.key, pkey=pkey, source=piece.key, attempts=attempts)
    return UnitRecord(
        job=job,
        key=piece.key,
        pkey=pkey,
        samples=[SampleRecord(key=piece.key, num_frames=piece.num_frames, members=[], sha256="")],
        frames=piece.num_frames,
        seconds=piece.num_frames * 0.012,
        cpu_seconds=piece.num_frames * 0.011,
        details={"model_sha256": MODEL, "engine": "litert"},
    )


def _write_shards(
    storage: Storage,
    packed: Sequence[tuple[Clip, Piece]],
    name: Callable[[int], str],
    content: Callable[[Piece], Content],
    suffixes: Sequence[str],
) -> tuple[list[list[Member]], list[ShardEntry]]:
    places: list[list[Member]] = []
    entries = []
    for number in range(-(-len(packed) // PER_SHARD)):
        part = packed[number * PER_SHARD : (number + 1) * PER_SHARD]
        sink = io.BytesIO()
        for _, piece in part:
            contents = content(piece)
            assert list(contents) == list(suffixes)
            places.append(write_sample(sink, sink.tell(), piece.key, contents))
        sink.write(END_OF_ARCHIVE)
        data = sink.getvalue()
        storage.write(name(number), data)
        frames = sum(piece.num_frames for _, piece in part)
        sha = hash_bytes(data)
        entries.append(ShardEntry(name=name(number), sha256=sha, size=len(data), samples=len(part), frames=frames))
    return places, entries


def _index_row(clip: Clip, piece: Piece, number: int, media: list[Member], annotation: list[Member]) -> SampleIndex:
    keep = piece.kind == "kept"
    return SampleIndex(
        key=piece.key,
        clip_key=clip.key,
        dataset=clip.dataset,
        shard=number // PER_SHARD,
        ordinal=number % PER_SHARD,
        num_frames=piece.num_frames,
        split=clip.split,
        split_group=clip.row.split_group,
        person=clip.person,
        licence=clip.row.licence,
        keep=keep,
        reason=None if keep else piece.reason,
        reason_score=None if keep else piece.score,
        media=media,
        annotation=annotation,
        scores=dict(piece.scores or {}),
        notes=list((clip.notes or {}).get(piece.key, ())),
    )
