"""A small synthetic data set: nine clips of known content in three shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.annotation import COLUMNS
from talkinghead.column import Column, encode_column
from talkinghead.derived import ColumnVersion
from talkinghead.files.storage import Storage
from talkinghead.schema import check_key
from tests.support.packed_data import VERSION, PackedClip, add_derived, annotation_members, media_members, pack_data

LENGTHS = (31, 60, 26, 40, 45, 12, 33, 50, 38)
SIZE = 64


def sample_key(number: int) -> str:
    return check_key(f"folder-clip_{number:02d}-abcd")


def clip_frames(number: int) -> np.ndarray:
    """Frames whose grey level identifies frame and clip, `[F, 64, 64, 3]`."""
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
    return media_members(
        sample_key(number),
        clip_frames(number),
        clip_audio(number),
        source_id=f"clip_{number}",
        group=f"group-{number // 2}",
    )


def annotation_contents(number: int) -> dict[str, bytes]:
    return annotation_members(sample_key(number), clip_arrays(number))


def build(root: Path) -> Storage:
    """A data set of three shards; clip 5 is dropped by a filter."""
    return pack_data(root, [_clip(number) for number in range(len(LENGTHS))], min_shards=3)


def _clip(number: int) -> PackedClip:
    return PackedClip(
        key=sample_key(number),
        num_frames=LENGTHS[number],
        media=media_contents(number),
        annotation=annotation_contents(number),
        split="val" if number // 2 == 3 else "train",
        split_group=f"group-{number // 2}",
        scores={"sharpness": number * 1.5, "yaw": None if number == 5 else 3.0},
        reason="no_face" if number == 5 else None,
    )


TRACE = (
    Column("trace_steps", (2,), "cm", np.dtype("<i2"), 1 / 64),
    Column("trace_fast", (3,), "", np.dtype("<f2"), rows=2),
    Column("trace_level", (), "", np.dtype("u1"), rows=4, blank=255),
    Column("trace_clip", (None,), "", np.dtype("<f4"), rows="clip"),
)
"""Arrays of the derived column `trace`, in every form there is."""


def trace_arrays(number: int) -> dict[str, np.ndarray]:
    """Arrays of one clip, as they come back from a shard."""
    rng = np.random.default_rng(500 + number)
    length = LENGTHS[number]
    steps = (rng.integers(-1000, 1000, (length, 2)) / 64).astype(np.float32)
    steps[~clip_arrays(number)["valid"]] = np.nan
    return {
        "trace_steps": steps,
        "trace_fast": rng.random((2 * length, 3)).astype(np.float16),
        "trace_level": rng.integers(0, 256, 4 * length).astype(np.uint8),
        "trace_clip": rng.random((1, 5), np.float32),
    }


def made_of(column: str, arrays: Sequence[Column] = (), **changes: Any) -> ColumnVersion:
    """What a version of a derived column was made of."""
    plain = ColumnVersion(
        column=column,
        column_version=1,
        parameters={},
        provenance={},
        pins={"annotation": VERSION},
        arrays=[array.to_json() for array in arrays],
    )
    return replace(plain, **changes)


def add_trace(storage: Storage, *, without: Sequence[int] = (), **changes: Any) -> str:
    """A version of `trace`, with the score `confidence` (none for clip 4) and the label `side`; returns its name."""
    numbers = [number for number in range(len(LENGTHS)) if number not in without]
    contents = {}
    for number in numbers:
        arrays = trace_arrays(number)
        members = {array.member: encode_column(array, arrays[array.name]) for array in TRACE}
        contents[sample_key(number)] = dict(sorted({"trace.json": b"{}", **members}.items()))
    about = made_of("trace", TRACE, scores=["confidence"], labels=["side"], **changes)
    return add_derived(
        storage,
        about,
        contents,
        scores={sample_key(number): {"confidence": None if number == 4 else 0.5 * number} for number in numbers},
        labels={sample_key(number): {"side": "left" if number % 2 else "right"} for number in numbers if number != 6},
    )
