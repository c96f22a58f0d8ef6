"""Follows faces from look to look through a shot, and picks the one that the clip is about."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the upright frame."""

_STEP = 0.75  # a face moves at most this part of its size from one look to the next
_FAR = 2.0  # … and this part in any gap
_GROWTH = 2.0  # sizes of one face in neighbouring looks differ by less than this factor


class FoundFace(Protocol):
    """One face that a detector found (coordinates normalised by the image's width and height)."""

    @property
    def score(self) -> float:
        """0 .. 1"""
        ...

    @property
    def box(self) -> Box:
        """x0, y0, x1, y1"""
        ...


class Detector(Protocol):
    """Finds faces in an RGB uint8 image `[H, W, 3]`."""

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> Sequence[FoundFace]:
        """The faces, best score first."""
        ...


@dataclass(frozen=True)
class Sighting:
    """A face in one frame."""

    frame: int
    box: Box
    score: float

    @property
    def size(self) -> float:
        """Longer side in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def center(self) -> np.ndarray:
        """`[2]` x, y in pixels."""
        return np.array([self.box[0] + self.box[2], self.box[1] + self.box[3]]) / 2


@dataclass(frozen=True)
class Track:
    """The same face in successive looks."""

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
        """How much the track dominates: area times score, over all sightings."""
        return sum(sighting.size**2 * sighting.score for sighting in self.sightings)


def follow(sightings: list[Sighting], *, every: int, max_gap: int) -> list[Track]:
    """Link sightings into tracks, nearest pairs first; a track that was not seen for more than `max_gap` frames ends.

    Args:
        sightings: In order of frames.
        every: Frames between two looks.
        max_gap: Longest gap in frames that a track bridges.
    """
    tracks: list[list[Sighting]] = []
    for frame, group in itertools.groupby(sightings, key=lambda sighting: sighting.frame):
        here = list(group)
        pairs = []
        for t, track in enumerate(tracks):
            gap = frame - track[-1].frame
            if gap <= max_gap + every - 1:
                limit = min(_FAR, _STEP * gap / every)
                pairs += [(d, t, s) for s, sighting in enumerate(here) if (d := _distance(track[-1], sighting)) < limit]
        taken_tracks: set[int] = set()
        taken: set[int] = set()
        for _, t, s in sorted(pairs):
            if t not in taken_tracks and s not in taken:
                tracks[t].append(here[s])
                taken_tracks.add(t)
                taken.add(s)
        tracks += [[sighting] for s, sighting in enumerate(here) if s not in taken]
    return [Track(tuple(track)) for track in tracks]


def _distance(a: Sighting, b: Sighting) -> float:
    """Distance of the centres in face sizes; infinite when the sizes do not fit."""
    small, large = sorted([a.size, b.size])
    if small <= 0 or large > _GROWTH * small:
        return float("inf")
    return float(np.linalg.norm(a.center - b.center)) / large
