"""Makes a small synthetic data set the way the jobs make one: unit tars, plan, pack, index, manifest."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from shards.index import build_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, ShardEntry, write_manifest
from shards.pack import PackedShard, pack_shard
from shards.plan import PlannedSample, plan_hash, plan_shards
from talkinghead import dataroot
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMNS, encode_column
from talkinghead.media.encode import encode_mp4
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.wav import encode_wav
from talkinghead.sampletar import pack_samples
from talkinghead.schema import (
    MEDIA_MEMBERS,
    ClipInfo,
    Member,
    SampleIndex,
    annotation_shard_name,
    check_key,
    media_shard_name,
)
from talkinghead.storage import Storage

LENGTHS = (31, 60, 26, 40, 45, 12, 33, 50, 38)
SIZE = 64
VERSION = "v1"


def sample_key(number: int) -> str:
    return check_key(f"folder-clip_{number:02d}-abcd")


def clip_frames(number: int) -> np.ndarray:
    """Frames whose grey level tells frame and clip: `[F, 64, 64, 3]`."""
    length = LENGTHS[number]
    level = (np.arange(length) * 4 + number) % 256
    frames = np.empty((length, SIZE, SIZE, 3), np.uint8)
    frames[:] = level[:, None, None, None]
    return frames


def clip_audio(number: int) -> np.ndarray:
    samples = np.random.default_rng(number).integers(-32768, 32768, LENGTHS[number] * 640)
    return (samples / 32768).astype(np.float32)


def clip_arrays(number: int) -> dict[str, np.ndarray]:
    """Random annotation; every ninth frame and the whole of clip 5 has no face."""
    rng = np.random.default_rng(100 + number)
    length = LENGTHS[number]
    valid = (np.arange(length) % 9 != 4) & (number != 5)
    arrays = {column.name: rng.random((length, *column.shape), np.float32) for column in COLUMNS}
    for values in arrays.values():
        values[~valid] = np.nan
    return arrays | {"valid": valid}


def media_contents(number: int) -> dict[str, bytes]:
    key = sample_key(number)
    length = LENGTHS[number]
    info = ClipInfo(
        key=key,
        clip_key=key,
        dataset="folder",
        source_id=f"clip_{number}",
        source=f"clip_{number}.mp4",
        url=None,
        num_frames=length,
        width=SIZE,
        height=SIZE,
        start_s=0.0,
        end_s=length / 25,
        crop_box_px=(0.0, 0.0, 64.0, 64.0),
        crop_rule="none",
        source_width=SIZE,
        source_height=SIZE,
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
        split_group=f"group-{number // 2}",
        licence="CC0-1.0",
        terms_url=None,
        notes=[],
        attributes={},
        ingest_key="0" * 16,
    )
    mp4 = encode_mp4(clip_frames(number), SIZE, SIZE, EncoderSettings(preset="ultrafast"))
    found = {"json": json.dumps(asdict(info)).encode(), "mp4": mp4, "wav": encode_wav(clip_audio(number))}
    return {suffix: found[suffix] for suffix in MEDIA_MEMBERS}


def annotation_contents(number: int) -> dict[str, bytes]:
    arrays = clip_arrays(number)
    found = {column.member: encode_column(column, arrays[column.name]) for column in COLUMNS}
    found["ann.json"] = json.dumps({"key": sample_key(number)}).encode()
    return {suffix: found[suffix] for suffix in ANNOTATION_MEMBERS}


def write_unit(storage: Storage, path: str, contents: list[tuple[str, dict[str, bytes]]]) -> dict[str, PlannedSample]:
    """A unit's output tar, and its samples as a plan names them."""
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


def build(root: Path, lengths: tuple[int, ...] = LENGTHS) -> Storage:
    """A data set of three shards; clip 5 is dropped by a filter."""
    storage = Storage(root)
    media: dict[str, PlannedSample] = {}
    annotations: dict[str, PlannedSample] = {}
    for number, length in enumerate(lengths):
        key = sample_key(number)
        for found, job, contents in (
            (media, "ingest", media_contents(number)),
            (annotations, "annotate", annotation_contents(number)),
        ):
            planned = write_unit(storage, dataroot.unit(job, key, "0" * 16), [(key, contents)])[key]
            found[key] = PlannedSample(**{**vars(planned), "num_frames": length})
    plan = plan_shards({key: sample.length for key, sample in media.items()}, min_shards=3)
    entries: dict[str, list[ShardEntry]] = {"media": [], "annotation": []}
    rows: list[SampleIndex] = []
    for number, keys in enumerate(plan):
        packed, entry = pack(storage, media_shard_name(number), [media[key] for key in keys])
        also, also_entry = pack(storage, annotation_shard_name(VERSION, number), [annotations[key] for key in keys])
        entries["media"].append(entry)
        entries["annotation"].append(also_entry)
        for ordinal, (clip, annotation) in enumerate(zip(packed.samples, also.samples, strict=True)):
            rows.append(_row(clip.key, number, ordinal, clip.num_frames, clip.members, annotation.members))
    index = build_index(VERSION, rows)
    index_path, index_sha256 = write_index(storage, index)
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


def _row(key: str, shard: int, ordinal: int, frames: int, media: list[Member], annotation: list[Member]) -> SampleIndex:
    number = int(key.split("_")[1][:2])
    return SampleIndex(
        key=key,
        clip_key=key,
        dataset="folder",
        shard=shard,
        ordinal=ordinal,
        num_frames=frames,
        split="val" if number // 2 == 3 else "train",
        split_group=f"group-{number // 2}",
        person=None,
        licence="CC0-1.0",
        keep=number != 5,
        reason="no_face" if number == 5 else None,
        reason_score=0.0 if number == 5 else None,
        media=media,
        annotation=annotation,
        scores={"sharpness": number * 1.5, "yaw": None if number == 5 else 3.0},
    )
