"""Packing given clips into a data set the way the jobs do: unit tars, plan, pack, index, manifest."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from shards.index import build_index, read_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.pack import PackedShard, pack_shard
from shards.plan import PlannedSample, plan_hash, plan_shards
from talkinghead import dataroot
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMNS
from talkinghead.column import encode_column
from talkinghead.derived import ColumnVersion
from talkinghead.files.storage import Storage
from talkinghead.media.audio import encode_wav
from talkinghead.media.encode import encode_mp4
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.sampletar import pack_samples
from talkinghead.schema import (
    MEDIA_MEMBERS,
    ClipInfo,
    Member,
    SampleIndex,
    annotation_shard_name,
    media_shard_name,
)

VERSION = "v1"


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """One sample to pack."""

    key: str
    num_frames: int
    media: dict[str, bytes]
    annotation: dict[str, bytes]
    split: str
    split_group: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    reason: str | None = None
    """Reason why it is not kept; None: it is kept."""


def media_members(key: str, frames: np.ndarray, audio: np.ndarray, *, source_id: str, group: str) -> dict[str, bytes]:
    """Media members of a clip of square `frames` `[F, S, S, 3]` with `audio` `[F * 640]`."""
    length, size = frames.shape[:2]
    info = ClipInfo(
        key=key,
        clip_key=key,
        dataset="folder",
        source_id=source_id,
        source=f"{source_id}.mp4",
        url=None,
        num_frames=length,
        width=size,
        height=size,
        start_s=0.0,
        end_s=length / 25,
        crop_box_px=(0.0, 0.0, 64.0, 64.0),
        crop_rule="none",
        source_width=size,
        source_height=size,
        source_fps=25.0,
        source_codec="h264",
        source_rotation=0,
        source_multi_face_fraction=0.0,
        source_pts=[k / 25 for k in range(length)],
        audio="present",
        audio_offset_samples=0,
        audio_padded_samples=0,
        av_duration_difference_s=0.0,
        person=None,
        split_group=group,
        licence="CC0-1.0",
        terms_url=None,
        notes=[],
        attributes={},
        ingest_key="0" * 16,
    )
    mp4 = encode_mp4(frames, size, size, EncoderSettings(preset="ultrafast"))
    found = {"json": json.dumps(asdict(info)).encode(), "mp4": mp4, "wav": encode_wav(audio)}
    return {suffix: found[suffix] for suffix in MEDIA_MEMBERS}


def annotation_members(key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Annotation members of a clip from its columns."""
    found = {column.member: encode_column(column, arrays[column.name]) for column in COLUMNS}
    found["ann.json"] = json.dumps({"key": key}).encode()
    return {suffix: found[suffix] for suffix in ANNOTATION_MEMBERS}


def pack_data(root: Path, clips: Sequence[PackedClip], *, min_shards: int) -> Storage:
    """A data set of these clips."""
    storage = Storage(root)
    by_key = {clip.key: clip for clip in clips}
    media: dict[str, PlannedSample] = {}
    annotations: dict[str, PlannedSample] = {}
    for clip in clips:
        for found, job, contents in ((media, "ingest", clip.media), (annotations, "annotate", clip.annotation)):
            planned = write_unit(storage, dataroot.unit(job, clip.key, "0" * 16), [(clip.key, contents)])[clip.key]
            found[clip.key] = PlannedSample(**{**vars(planned), "num_frames": clip.num_frames})
    plan = plan_shards({key: sample.length for key, sample in media.items()}, min_shards=min_shards)
    entries: dict[str, list[ShardEntry]] = {"media": [], "annotation": []}
    rows: list[SampleIndex] = []
    for number, keys in enumerate(plan):
        packed, entry = pack(storage, media_shard_name(number), [media[key] for key in keys])
        also, also_entry = pack(storage, annotation_shard_name(VERSION, number), [annotations[key] for key in keys])
        entries["media"].append(entry)
        entries["annotation"].append(also_entry)
        for ordinal, (sample, annotation) in enumerate(zip(packed.samples, also.samples, strict=True)):
            rows.append(_row(by_key[sample.key], number, ordinal, sample.members, annotation.members))
    index_path, index_sha256 = write_index(storage, build_index(VERSION, rows))
    kept = [row for row in rows if row.keep]
    manifest = DatasetManifest(
        datasets=["folder"],
        counts={"inputs": len(rows), "samples": len(rows), "frames": sum(row.num_frames for row in rows)},
        licences={"CC0-1.0": len(rows)},
        tool_versions={"talkinghead": "0.1.0"},
        plan_hash=plan_hash(plan),
        media=entries["media"],
        annotations=[
            AnnotationEntry(
                version=VERSION,
                index=index_path,
                index_sha256=index_sha256,
                shards=entries["annotation"],
                samples=len(rows),
                kept=len(kept),
                splits=dict(Counter(row.split for row in kept)),
            )
        ],
    )
    write_manifest(storage, manifest)
    return storage


def add_derived(
    storage: Storage,
    made_of: ColumnVersion,
    contents: Mapping[str, Mapping[str, bytes]],
    *,
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    version: str | None = None,
) -> str:
    """A version of a derived column, entered in `DATASET.json`; returns its name.

    Args:
        storage: The data set.
        made_of: What the version was made of.
        contents: Key → members of the sample; those that are not there could not be made.
        scores: Key → scores.
        labels: Key → labels.
        version: Name of the version; None: that of `made_of`.
    """
    manifest = read_manifest(storage)
    faces = manifest.annotation(made_of.pins.get("annotation"))
    samples = read_index(storage, faces)
    version = version or made_of.name
    shards, rows = [], []
    for number in range(len(manifest.media)):
        here = list(samples.rows(samples.shard_rows(number)))
        planned = []
        for row in here:
            if row.key in contents:
                path = dataroot.unit(f"derive-{version}", row.key, "0" * 16)
                unit = write_unit(storage, path, [(row.key, dict(contents[row.key]))])[row.key]
                planned.append(PlannedSample(**{**vars(unit), "num_frames": row.num_frames}))
        packed, entry = pack(storage, annotation_shard_name(version, number), planned)
        shards.append(entry)
        places = {sample.key: sample.members for sample in packed.samples}
        for row in here:
            made = row.key in places
            rows.append(
                replace(
                    row,
                    keep=made,
                    reason=None if made else "derive_failed",
                    reason_score=None,
                    annotation=places.get(row.key, []),
                    scores=dict((scores or {}).get(row.key, {})),
                    labels=dict((labels or {}).get(row.key, {})),
                )
            )
    index, sha256 = write_index(storage, build_index(version, rows))
    entry = AnnotationEntry(
        version=version,
        index=index,
        index_sha256=sha256,
        shards=shards,
        samples=len(rows),
        kept=sum(row.keep for row in rows),
        splits=dict(Counter(row.split for row in rows if row.keep)),
        kind=made_of.column,
        details=asdict(made_of),
    )
    write_manifest(storage, replace(manifest, annotations=[*manifest.annotations, entry]))
    return version


def npy(values: np.ndarray) -> bytes:
    """An `.npy` file, as a member of a shard."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0))
    return buffer.getvalue()


def write_unit(storage: Storage, path: str, contents: list[tuple[str, dict[str, bytes]]]) -> dict[str, PlannedSample]:
    """Output tar of a unit, and its samples as a plan names them."""
    storage.write(path, pack_samples(contents))
    offset, planned = 0, {}
    for key, members in contents:
        places = []
        for suffix, data in members.items():
            places.append(Member(suffix=suffix, offset=offset + 512, size=len(data)))
            offset += 512 + len(data) + -len(data) % 512
        planned[key] = PlannedSample.of_members(key=key, file=path, members=places, num_frames=0)
    return planned


def pack(storage: Storage, name: str, samples: list[PlannedSample]) -> tuple[PackedShard, ShardEntry]:
    with storage.staged(name) as sink:
        packed = pack_shard(storage, samples, sink)
    entry = ShardEntry(
        name=name, sha256=packed.sha256, size=packed.size, samples=len(packed.samples), frames=packed.num_frames
    )
    return packed, entry


def _row(clip: PackedClip, shard: int, ordinal: int, media: list[Member], annotation: list[Member]) -> SampleIndex:
    return SampleIndex(
        key=clip.key,
        clip_key=clip.key,
        dataset="folder",
        shard=shard,
        ordinal=ordinal,
        num_frames=clip.num_frames,
        split=clip.split,
        split_group=clip.split_group,
        person=None,
        licence="CC0-1.0",
        keep=clip.reason is None,
        reason=clip.reason,
        reason_score=0.0 if clip.reason else None,
        media=media,
        annotation=annotation,
        scores=dict(clip.scores),
    )
