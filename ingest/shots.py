"""Splits a clip into pieces: at cuts, where the face changes or is gone for long, and where it grows too long."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ingest.faces import Sighting, Track, follow
from ingest.settings import IngestSettings


@dataclass(frozen=True)
class Stretch:
    """Frames `first .. end - 1`, with the face they are about; None when there is none."""

    first: int
    end: int
    face: Track | None

    @property
    def num_frames(self) -> int:
        """Length."""
        return self.end - self.first


def split(
    num_frames: int, cuts: list[int], steps: list[float], sightings: list[Sighting], settings: IngestSettings
) -> list[Stretch]:
    """Stretches that cover all frames without overlap, in order.

    Args:
        num_frames: Frames of the clip.
        cuts: First frames of new shots.
        steps: Difference of each frame from the one before; a face that changes does so at the largest one.
        sightings: All faces found, in order of frames.
        settings: Gaps and lengths.
    """
    borders = [0, *cuts, num_frames]
    stretches: list[Stretch] = []
    for first, end in itertools.pairwise(borders):
        inside = [sighting for sighting in sightings if first <= sighting.frame < end]
        tracks = follow(inside, every=settings.detect_every, max_gap=settings.max_gap)
        tracks = [track for track in tracks if len(track.sightings) >= settings.min_sightings]
        stretches += _split_shot(first, end, tracks, steps, settings)
    return [part for stretch in stretches for part in _split_long(stretch, settings.max_frames)]


def _split_shot(
    first: int, end: int, tracks: list[Track], steps: list[float], settings: IngestSettings
) -> list[Stretch]:
    """One shot: the dominant face's stretch, and what lies before and behind it."""
    tracks = [track for track in tracks if first <= track.first and track.last < end]
    if end <= first:
        return []
    if not tracks:
        return [Stretch(first, end, None)]
    face = max(tracks, key=lambda track: track.weight)
    left = _border(first, face.first, tracks, steps, settings, before=True)
    right = _border(face.last + 1, end, tracks, steps, settings, before=False)
    return [
        *_split_shot(first, left, tracks, steps, settings),
        Stretch(left, right, face),
        *_split_shot(right, end, tracks, steps, settings),
    ]


def _border(
    first: int, end: int, tracks: list[Track], steps: list[float], settings: IngestSettings, *, before: bool
) -> int:
    """Where the frames `first .. end - 1` beside the dominant face's sightings are split from it.

    They stay with it when they are few and show nobody else.
    """
    others = any(first <= track.first and track.last < end for track in tracks)
    if end - first < settings.max_gap and not others:
        return first if before else end
    # The face came or went between two looks: there, where the picture changed most.
    every = settings.detect_every
    low, high = (max(first + 1, end - every + 1), end + 1) if before else (first, min(first + every, end))
    if high <= low:
        return end if before else first
    return low + int(np.argmax(steps[low:high]))


def _split_long(stretch: Stretch, max_frames: int) -> list[Stretch]:
    parts = -(-stretch.num_frames // max_frames)
    if parts <= 1 or stretch.face is None:
        return [stretch]
    borders = [stretch.first + stretch.num_frames * part // parts for part in range(parts + 1)]
    return [Stretch(a, b, stretch.face) for a, b in itertools.pairwise(borders)]
