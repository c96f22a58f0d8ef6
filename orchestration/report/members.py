"""The few members of the shards that the report looks into, read by their byte range."""

from __future__ import annotations

import numpy as np

from talkinghead.annotation import COLUMN, QUALITY_FIELDS, decode_column
from talkinghead.files.storage import Storage
from talkinghead.schema import Member, SampleIndex, annotation_shard_name, media_shard_name


def read_media(storage: Storage, row: SampleIndex, suffix: str) -> bytes:
    """Content of `<key>.<suffix>` of a media shard.

    Raises:
        ValueError: The index lists no such member.
        OSError: The shard cannot be read there (`EOFError` when it is too short).
    """
    member = _find(row.media, row.key, suffix)
    return storage.read_range(media_shard_name(row.shard), member.offset, member.size)


def read_column(storage: Storage, version: str, row: SampleIndex, name: str) -> np.ndarray:
    """One annotation column of a sample, float32 with NaN where a frame has no face (`valid`: bool).

    Raises as `read_media` does; also `ValueError` when the member is no such column.
    """
    member = _find(row.annotation, row.key, COLUMN[name].member)
    data = storage.read_range(annotation_shard_name(version, row.shard), member.offset, member.size)
    return decode_column(COLUMN[name], data)


def quality_field(quality: np.ndarray, name: str) -> np.ndarray:
    """`[F]` values of one field of the quality column."""
    return quality[:, QUALITY_FIELDS.index(name)]


def _find(members: list[Member], key: str, suffix: str) -> Member:
    for member in members:
        if member.suffix == suffix:
            return member
    raise ValueError(f"the index lists no {key}.{suffix}")
