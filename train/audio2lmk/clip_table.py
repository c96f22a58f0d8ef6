"""Table of the training clips of a run: speaker, rest pose and loudness of each, as `prepare` derived them.

Written into the run's folder (`clips.parquet`), and read into arrays that reading processes share.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotate.fits.speakers import ClipFacts
from talkinghead.files.foreign import read_limited
from talkinghead.motion.speakers import Speakers
from talkinghead.tables import read_table

FILE = "clips.parquet"
_MOST_BYTES = 1 << 30  # a clip takes some 200
_LONGEST_KEY = 255  # bytes; the array of the keys has as many for each
_SCHEMA = {
    "key": pa.string(),
    "speaker": pa.string(),
    "rest": pa.list_(pa.float64()),
    "speech_mean": pa.float64(),
    "speech_variance": pa.float64(),
}


class ClipTable:
    """The table of N clips, read and checked.

    Args:
        path: File of the table.
        speakers: Speakers of the run.

    Raises:
        ValueError: The file, which may be a stranger's, is no such table.
    """

    def __init__(self, path: Path, speakers: Speakers) -> None:
        table = read_table(read_limited(path, _MOST_BYTES, "table of clips"), str(path), _check_schema)
        table = table.sort_by("key")
        rest = table.column("rest").combine_chunks()
        lengths = rest.value_lengths().to_numpy(zero_copy_only=False)
        if any(column.null_count for column in table.columns) or (lengths != 16).any():
            raise ValueError(f"{path} is damaged: a clip lacks a value; take another RUN")
        keys = [key.encode() for key in table.column("key").to_pylist()]
        if max(map(len, keys), default=0) > _LONGEST_KEY:
            raise ValueError(f"{path} is damaged: a key is too long; take another RUN")
        self._keys = np.array(keys)
        # Clips are matched to speakers by name: the numbers are those of the exported model, too. Without a face there
        # is none, and all frames are masked anyway.
        names = table.column("speaker").to_pylist()
        self.identities = np.array([speakers.identity(name) if name in speakers else 0 for name in names], np.int64)
        """Number of the speaker of each clip, `[N]`."""
        self.rest_poses = rest.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4, 4)
        """Rest poses, `[N, 4, 4]` canonical → camera."""
        levels = [table.column(name).to_numpy() for name in ("speech_mean", "speech_variance")]
        self.speech_levels = np.stack(levels, axis=1).astype(np.float32)
        """Mean and variance of the whole audio of each clip, `[N, 2]`."""

    def row(self, key: str) -> int:
        """Row of a training clip."""
        wanted = key.encode()
        row = int(self._keys.searchsorted(wanted))
        assert self._keys[row : row + 1] == wanted, f"{key} is no clip of this run"
        return row


def write_clips(path: Path, clips: ClipFacts) -> None:
    """Write the table of the clips of a fit."""
    columns = [
        clips.keys,
        clips.speakers,
        clips.rest.reshape(-1, 16).tolist(),
        clips.speech_mean,
        clips.speech_variance,
    ]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.values(), strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(list(_SCHEMA.items()))), path)


def _check_schema(schema: pa.Schema) -> None:
    if {name: schema.field(name).type for name in schema.names} != _SCHEMA:
        raise ValueError(f"a run's {FILE} has other columns: take another RUN")
