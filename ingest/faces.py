"""Faces followed through a shot, from detection to detection, as tracks; the heaviest track is the dominant face."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the upright frame."""

_STEP = 0.75  # most that a face moves from one detection to the next, in its own sizes
_FAR = 2.0  # most that it moves in a gap of any length, in its own sizes
_GROWTH = 2.0  # largest factor between the sizes of one face in successive detections


class FoundFace(Protocol):
    """One face that a detector found; coordinates normalised by the image's width and height."""

    @property
    def score(self) -> float:
        """Confidence of the detector, 0 .. 1."""
        ...

    @property
    def box(self) -> Box:
        """Box x0, y0, x1, y1, each 0 .. 1 inside the image."""
        ...


class Detector(Protocol):
    """A face detector for RGB uint8 images `[H, W, 3]`."""

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> Sequence[FoundFace]:
        """Faces in an image, best score first; `small_faces` searches for small ones too."""
        ...


@dataclass(frozen=True)
class Sighting:
    """A face found in one frame."""

    frame: int
    box: Box
    score: float

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def center(self) -> np.ndarray:
        """Centre of the box, `[2]` x, y in pixels."""
        return np.array([self.box[0] + self.box[2], self.box[1] + self.box[3]]) / 2


@dataclass(frozen=True)
class Track:
    """One face in successive detections."""

    sightings: tuple[Sighting, ...]

    @property
    def first(self) -> int:
        """Frame of the first sighting."""
        return self.sightings[0].frame

    @property
    def last(self) -> int:
        """Frame of the last sighting."""
        return self.sightings[-1].frame

    @property
    def weight(self) -> float:
        """Weight by which tracks are compared: sum of squared size times score over all sightings."""
        return sum(sighting.size**2 * sighting.score for sighting in self.sightings)


def follow(sightings: list[Sighting], *, every: int, max_gap: int) -> list[Track]:
    """Link sightings into tracks, nearest pairs first; a track without a sighting for more than `max_gap` frames ends.

    Args:
        sightings: All sightings, in order of frames.
        every: Frames from one detection to the next.
        max_gap: Longest gap in frames that a track bridges.
    """
    tracks: list[list[Sighting]] = []
    for frame, group in itertools.groupby(sightings, key=lambda sighting: sighting.frame):
        here = list(group)
        # Candidates: each live track with each face near enough for the time since its last sighting.
        # `every - 1`, because a face that came back between two detections is found at the next one.
        pairs = []
        for t, track in enumerate(tracks):
            gap = frame - track[-1].frame
            if gap <= max_gap + every - 1:
                limit = min(_FAR, _STEP * gap / every)
                pairs += [(d, t, s) for s, sighting in enumerate(here) if (d := _distance(track[-1], sighting)) < limit]
        # Greedy matching, smallest distance first: each track and each face is used once.
        taken_tracks: set[int] = set()
        taken: set[int] = set()
        for _, t, s in sorted(pairs):
            if t not in taken_tracks and s not in taken:
                tracks[t].append(here[s])
                taken_tracks.add(t)
                taken.add(s)
        # Faces that continue no track begin new ones.
        tracks += [[sighting] for s, sighting in enumerate(here) if s not in taken]
    return [Track(tuple(track)) for track in tracks]


def _distance(a: Sighting, b: Sighting) -> float:
    """Distance of the centres in face sizes; infinite when the sizes do not fit."""
    small, large = sorted([a.size, b.size])
    if small <= 0 or large > _GROWTH * small:
        return float("inf")
    return float(np.linalg.norm(a.center - b.center)) / large
