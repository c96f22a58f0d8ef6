"""A small synthetic data set: nine clips of known content in three shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from talkinghead.annotation import COLUMNS
from talkinghead.files.storage import Storage
from talkinghead.schema import check_key
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

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
