"""Mean expression of the training clips: the motion of a driver that does not attend to the sound."""

from __future__ import annotations

import numpy as np

from annotate.fits.speakers import SPEAKERS, read_speakers
from shards.fit_files import read_fit
from shards.order import spread
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.motion.annotated import MOTION_COLUMNS, annotated_motion

MOST_CLIPS = 64
"""Training clips that are looked at where the data set holds no fit of its speakers."""


def mean_expression(storage: Storage, version: str | None) -> tuple[np.ndarray | None, str]:
    """Mean of the training clips' meshes less the neutral one of their speakers.

    Args:
        storage: Data set.
        version: Annotation version; None: the newest.

    Returns:
        Offset `[468, 3]` cm, None without training clips; and a sentence on where it is from.
    """
    reader = ShardReader(storage, version=version, split="train", columns=MOTION_COLUMNS)
    index = reader.manifest.annotation(version).index
    for entry in reversed(reader.manifest.fits):
        if (entry.name, entry.version, entry.index) == (SPEAKERS.name, SPEAKERS.version, index):
            found = read_speakers(read_fit(storage, entry.name, entry.sha256)).speakers
            return found.mean_offset, f"The mean motion is that of the fit over {entry.clips} training clips."
    total, frames, clips = np.zeros((NUM_VERTICES, 3)), 0, 0
    for number in spread(len(reader), MOST_CLIPS):
        sample = reader[number]
        valid = sample.annotation("valid").astype(bool)
        if not valid.any():
            continue
        columns = {name: sample.annotation(name) for name in MOTION_COLUMNS}
        motion = annotated_motion(columns, width=sample.info.width, height=sample.info.height)
        total += (motion.meshes()[valid] - motion.neutral).sum(axis=0, dtype=np.float64)
        frames, clips = frames + int(valid.sum()), clips + 1
    if not frames:
        return None, "The data set has no training clip with a face, so there is no mean motion."
    return (total / frames).astype(np.float32), f"The mean motion is that of {clips} training clips."
