"""Delays of the sound of sources, as the column `sync` measured them in a packed data set, to be undone by an ingest.

Media shards never change, so a delay that was measured in one DATA is undone where the same sources are ingested into
another (`ingest --align-sound DATA`). Sources are told by their content, whatever they are called.

A delay is undone only where it is clear. Most sources have a measured lag of 0 to 2 frames, and a measurement is right
to a frame; so lags around `USUAL_LAG` are left alone, and larger ones are brought there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from annotate.sync import OWN_LAG
from orchestration import plans
from shards.joined import JoinedVersions
from shards.manifest import read_manifest
from talkinghead.files.storage import Storage
from talkinghead.schema import DATASETS

NO_DELAYS = "none"
"""Name that stands for no data set: nothing is moved."""
USUAL_LAG = 1
"""Lag in frames that sources in sync are measured to have."""
CLEAR = 3
"""Distance in frames from `USUAL_LAG` at which a lag is a delay."""
LEAST_FRAMES = 75
"""Frames of the shortest clip whose lag counts."""
LEAST_CONFIDENCE, LEAST_CORRELATION, MOST_APART = 0.25, 0.2, 1.0
"""Bounds of the column's scores beyond which a clip's lag does not count."""
_LAG, _CONFIDENCE, _CORRELATION, _APART = "sync_lag", "sync_confidence", "sync_correlation", "sync_halves_apart"


def clear_delay(lags: Iterable[float]) -> int:
    """Frames by which a source's sound is too late (below 0: too early); 0 where that is not clear.

    Args:
        lags: Lags of the source's clips that count. They must agree within a frame: otherwise the source has no delay
            of its own.
    """
    known = list(lags)
    if not known:
        return 0
    middle = float(np.median(known))
    if max(abs(lag - middle) for lag in known) > 1 or abs(middle - USUAL_LAG) < CLEAR:
        return 0
    return int(np.floor(middle + 0.5)) - USUAL_LAG


def measured_delays(storage: Storage) -> dict[str, int]:
    """SHA-256 of each source with a clear delay → frames by which its sound is too late, -8 … 6.

    Where the sound of a source was moved when this DATA was ingested, the delay is that of the source itself.

    Args:
        storage: Packed data set with the column `sync`.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: It has no column `sync`; the message tells how to make it.
    """
    # The source of each clip, by content, and by how much its sound was moved.
    contents: dict[str, str] = {}
    moved: dict[str, int] = {}
    for dataset in DATASETS:
        if plan := plans.find_ingest(storage, dataset):
            contents |= {key: content for key, content in plan.contents.items() if content is not None}
            moved |= plan.sound_delays
    # The lags that count, by source.
    lags: dict[str, list[float]] = defaultdict(list)
    for clip_key, lag in _lags(storage):
        if clip_key in contents:
            lags[contents[clip_key]].append(lag)
    # A source whose sound was moved already has both delays.
    return {
        content: delay
        for content in sorted({*lags, *moved})
        if (delay := moved.get(content, 0) + clear_delay(lags.get(content, ())))
    }


def _lags(storage: Storage) -> Iterator[tuple[str, float]]:
    """Clip key and lag in frames of each sample in which it was measured well."""
    versions = JoinedVersions(storage, read_manifest(storage), None, ("sync",))
    index, sync = versions.first.index, versions.opened["sync"]
    lag, confidence, correlation, apart = (sync.score(n) for n in (_LAG, _CONFIDENCE, _CORRELATION, _APART))
    # Missing scores are NaN, which compare false.
    counts = (index.numbers("num_frames") >= LEAST_FRAMES) & (np.abs(lag) <= OWN_LAG) & (apart <= MOST_APART)
    counts &= (confidence >= LEAST_CONFIDENCE) & (correlation >= LEAST_CORRELATION)
    for row in np.flatnonzero(counts):
        yield index.text("clip_key", int(row)) or "", float(lag[row])
