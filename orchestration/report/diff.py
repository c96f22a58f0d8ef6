"""Difference between an annotation version and the one before, clip by clip.

Which samples are kept is compared over the whole index. Landmarks and meshes are read from the shards, for an even
choice of clips when there are many, so that the time does not grow with the data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.reader import read_column
from talkinghead.files.storage import Storage
from talkinghead.schema import SampleIndex

PIXELS = 512
"""Width and height of the image in whose pixels landmark changes are given."""
MOST_CLIPS = 200
"""Most clips whose landmarks and meshes are read."""
MM_PER_CM = 10.0


@dataclass(frozen=True, kw_only=True)
class ClipDifference:
    """Distance between two annotations of one clip, over the frames in which both find a face."""

    key: str
    frames: int
    """Number of frames with a face in both."""
    landmark_mean_px: float
    """Mean over frames and points of the distance in the image plane, pixels at 512; NaN without common frames."""
    landmark_max_px: float
    """Largest of these distances."""
    mesh_mean_mm: float
    """Mean over frames and vertices of the distance in space, millimetres; NaN without common frames."""
    mesh_max_mm: float
    """Largest of these distances."""
    gained: int
    """Number of frames that had no face and have one now."""
    lost: int
    """Number of frames that had a face and have none now."""


@dataclass(frozen=True, kw_only=True)
class VersionDifference:
    """Changes from one annotation version to the next."""

    previous: str
    """Name of the version before."""
    version: str
    """Name of the version that the report is about."""
    clips: list[ClipDifference]
    """Clips whose landmarks and meshes were compared, most changed first."""
    common: int
    """Number of samples that both versions hold."""
    added: int
    """Number of samples that only the new version holds."""
    removed: int
    """Number of samples that only the version before holds."""
    now_kept: int
    """Number of common samples that the filters dropped before and keep now."""
    now_dropped: int
    """Number of common samples that the filters kept before and drop now."""
    dropped_reasons: dict[str, int]
    """Reason → number of newly dropped samples, most frequent first."""
    unreadable: list[str]
    """Clips that could not be compared, one line each."""

    def to_json(self) -> dict[str, Any]:
        """Totals and the most changed clips, for `report.json`; NaN becomes None, since JSON has none."""
        value = dataclasses.asdict(self)
        clips = value.pop("clips")
        value["compared"] = len(clips)
        value["worst_clips"] = [{name: _finite(entry) for name, entry in clip.items()} for clip in clips[:20]]
        # Means over all frames: each clip counts by its number of frames.
        weights = np.array([clip.frames for clip in self.clips], np.float64)
        for name in ("landmark_mean_px", "mesh_mean_mm"):
            values = np.array([getattr(clip, name) for clip in self.clips], np.float64)
            value[name] = float(np.nansum(values * weights) / weights.sum()) if weights.sum() else None
        for name in ("landmark_max_px", "mesh_max_mm"):
            value[name] = max((getattr(clip, name) for clip in self.clips if clip.frames), default=None)
        value["frames"] = int(weights.sum())
        value["frames_gained"] = sum(clip.gained for clip in self.clips)
        value["frames_lost"] = sum(clip.lost for clip in self.clips)
        return value


def compare_versions(
    storage: Storage,
    previous: tuple[str, Sequence[SampleIndex]],
    current: tuple[str, Sequence[SampleIndex]],
    *,
    most: int = MOST_CLIPS,
) -> VersionDifference:
    """Compare two annotation versions of one data set.

    Args:
        storage: DATA.
        previous: Name and index rows of the version before.
        current: Name and index rows of the version that the report is about.
        most: Most clips whose landmarks and meshes are read, chosen by the hash of their key.
    """
    # In the order of a hash, so that the first ones are an even choice, and the same in every report.
    before = {row.key: row for row in previous[1]}
    after = {row.key: row for row in current[1]}
    common = sorted(before.keys() & after.keys(), key=lambda key: hashlib.sha256(key.encode()).digest())
    # Landmarks and meshes of some clips.
    clips: list[ClipDifference] = []
    unreadable: list[str] = []
    for key in common[:most]:
        try:
            clips.append(_compare_clip(storage, (previous[0], before[key]), (current[0], after[key])))
        except (OSError, EOFError, ValueError) as error:
            unreadable.append(f"{key}: {error}")
    clips.sort(key=lambda clip: (-_or_zero(clip.landmark_mean_px), -(clip.gained + clip.lost), clip.key))
    # Verdicts of all common samples.
    dropped = [after[key] for key in common if before[key].keep and not after[key].keep]
    return VersionDifference(
        previous=previous[0],
        version=current[0],
        clips=clips,
        common=len(common),
        added=len(after) - len(common),
        removed=len(before) - len(common),
        now_kept=sum(after[key].keep and not before[key].keep for key in common),
        now_dropped=len(dropped),
        dropped_reasons=dict(Counter(row.reason or "unknown" for row in dropped).most_common()),
        unreadable=unreadable,
    )


def _compare_clip(storage: Storage, old: tuple[str, SampleIndex], new: tuple[str, SampleIndex]) -> ClipDifference:
    """Compare the columns of one clip in two versions; each side is the version's name and the clip's row."""
    columns = {name: [read_column(storage, *side, name) for side in (old, new)] for name in ("landmarks", "mesh")}
    was, is_ = (read_column(storage, *side, "valid") for side in (old, new))
    if len(was) != len(is_):
        raise ValueError(f"{len(was)} frames in {old[0]}, {len(is_)} in {new[0]}")
    both = was & is_  # [F]
    # Distances [frames, points]: landmarks in the image plane (x and y are shares of its width and height), mesh
    # vertices in space (centimetres).
    pixels = np.linalg.norm((columns["landmarks"][1] - columns["landmarks"][0])[both, :, :2], axis=-1) * PIXELS
    millimetres = np.linalg.norm((columns["mesh"][1] - columns["mesh"][0])[both], axis=-1) * MM_PER_CM
    pixels = pixels[np.isfinite(pixels)]  # a model without irises leaves their rows NaN
    return ClipDifference(
        key=new[1].key,
        frames=int(both.sum()),
        landmark_mean_px=float(pixels.mean()) if pixels.size else float("nan"),
        landmark_max_px=float(pixels.max()) if pixels.size else float("nan"),
        mesh_mean_mm=float(millimetres.mean()) if millimetres.size else float("nan"),
        mesh_max_mm=float(millimetres.max()) if millimetres.size else float("nan"),
        gained=int((is_ & ~was).sum()),
        lost=int((was & ~is_).sum()),
    )


def _or_zero(value: float) -> float:
    return value if np.isfinite(value) else 0.0


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
