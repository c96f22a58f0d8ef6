"""Splits a clip into pieces: at hard cuts and gradual transitions, where the face changes or is gone for long, and
where it grows too long.

A cut is a difference between two neighbouring frames that (1) stands out from its neighbours, which fast motion and
noise do not, and (2) lasts: the frame before it differs from all frames within reach after it, and the other way round,
which a flash does not. Repeated frames are left out first, or every frame of a slow source would stand out; so are
damaged ones. Motion is the larger the more time lies between two frames, so a step is divided by that time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ingest.faces import Sighting, Track, follow
from ingest.settings import CutSettings, IngestSettings
from ingest.transitions import Transition

THUMBNAIL = (48, 48)
"""Width and height of the images that are compared, pixels."""

_SAME = 0.3  # levels; a frame that differs by less from the one before it is its copy
_LONGEST_GAP = 4.0  # frames over which motion goes on growing, about
_LASTING_SHARE = 0.5  # share of the step across a cut that must still be there after `reach` frames
_CLOSE = 5  # frames between a cut and a transition that are too few for a shot
_BLEND_SHARE = 1 / 3  # the smaller of two neighbouring steps over the larger, where a cut is blended over two frames


class CutDetector:
    """Detector of hard cuts: takes the frames one by one, keeps only the last few, and returns the cuts in the end."""

    def __init__(self, settings: CutSettings) -> None:
        """Start with no frame."""
        self._settings = settings
        self._recent: deque[np.ndarray] = deque(maxlen=settings.reach + 2)
        # One entry per frame that takes part: its number, its step from the one before, how much of that step lasts.
        self._frames: list[int] = []
        self._steps: list[float] = []  # of 25 frames per second: what moves has moved farther in a longer time
        self._lasting: list[float] = []
        self.steps: list[float] = []
        """Difference of each frame from the last one before it that takes part, levels; 0 for the first."""

    def add(self, frame: np.ndarray, gap: float = 1.0, *, damaged: bool = False) -> bool:
        """Take the next frame.

        Args:
            frame: RGB uint8 `[H, W, 3]` of any size.
            gap: Time since the last frame that took part in the search, in 25ths of a second.
            damaged: Whether the image is damaged.

        Returns:
            Whether it takes part in the search: it is no copy of the frame before it, and not damaged.
        """
        thumbnail = cv2.resize(frame, THUMBNAIL, interpolation=cv2.INTER_AREA)
        step = _difference(self._recent[-1], thumbnail) if self._recent else 0.0
        self.steps.append(step)
        # A copy keeps its step, which `split` needs, but takes no part in the search for cuts. Nor does a damaged one:
        # it differs from those before and after the damage as frames of another shot do.
        if damaged or (self._recent and step < _SAME):
            return False
        self._frames.append(len(self.steps) - 1)
        step /= min(max(1.0, gap), _LONGEST_GAP)
        self._steps.append(step)
        self._lasting.append(step)
        # If there is a cut before frame c, then none of the pairs (c - 1, c + b) and (c - 1 - b, c) look alike.
        newest = len(self._steps) - 1
        for back, before in enumerate(reversed(self._recent)):
            difference = _difference(before, thumbnail)
            if 1 <= back <= self._settings.reach:
                self._lasting[newest - back] = min(self._lasting[newest - back], difference)
            if back < self._settings.reach:
                self._lasting[newest] = min(self._lasting[newest], difference)
        self._recent.append(thumbnail)
        return True

    def cuts(self) -> list[int]:
        """Frames that are the first of a new shot, ascending."""
        return [self._frames[k] for k in range(1, len(self._steps)) if self._is_cut(k)]

    def _is_cut(self, k: int) -> bool:
        """Whether there is a cut before the `k`-th frame that takes part."""
        # It must last, which a flash does not.
        settings = self._settings
        step, lasting = self._steps[k], self._lasting[k]
        if lasting < max(settings.least, _LASTING_SHARE * step):
            return False
        # Steps of the two frames on each side; step 0 is none, because frame 0 has no frame before it.
        neighbours = {i: self._steps[i] for i in range(max(1, k - 2), min(len(self._steps), k + 3)) if i != k}
        next_to_it = max((i for i in (k - 1, k + 1) if i in neighbours), key=lambda i: neighbours[i], default=None)
        if (
            next_to_it is not None
            and _BLEND_SHARE * step <= neighbours[next_to_it]
            and (self.steps[self._frames[next_to_it]], k) <= (self.steps[self._frames[k]], next_to_it)
        ):
            del neighbours[next_to_it]  # one cut over two frames, of which the larger step counts
        # It must stand out; the weaker the cut, the more.
        needed = settings.ratio * max(1.0, settings.difference / lasting)
        return step >= needed * max(neighbours.values(), default=0.0)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two images, levels."""
    return cv2.norm(a, b, cv2.NORM_L1) / a.size


@dataclass(frozen=True)
class Stretch:
    """A stretch of a clip: frames `first .. end - 1`, and the dominant face in them (None when there is none)."""

    first: int
    end: int
    face: Track | None
    transition: Transition | None = None
    """The change from one shot to another that it is; then it has no face."""

    @property
    def num_frames(self) -> int:
        """Length of the stretch in frames."""
        return self.end - self.first


def split(
    num_frames: int,
    cuts: Iterable[int],
    steps: list[float],
    sightings: list[Sighting],
    settings: IngestSettings,
    transitions: Iterable[Transition] = (),
) -> list[Stretch]:
    """Split a clip into stretches that cover all its frames without overlap, in order.

    Args:
        num_frames: Number of frames in the clip.
        cuts: First frames of new shots, or after a jump of the clock.
        steps: Difference of each frame from the one before, `[F]`; where a face appears or goes between two detections,
            the split is put at the largest one.
        sightings: All faces found, in order of frames.
        settings: Limits for gaps and lengths.
        transitions: Gradual transitions, in order, without overlap: a stretch each, if a face is seen next to it.
    """
    cuts = sorted(set(cuts))
    seen = [sighting.frame for sighting in sightings]
    changes = {}
    for change in transitions:
        if _is_near_face(change, seen, settings):
            grown = _with_cuts(change, cuts)
            cuts = [cut for cut in cuts if not grown.first <= cut <= grown.end]
            changes[grown.first] = grown
    # Each shot on its own: a track never crosses a cut, and a face that was found only once or twice is a mistake.
    borders = sorted({0, *cuts, *changes, *(change.end for change in changes.values()), num_frames})
    stretches: list[Stretch] = []
    for first, end in itertools.pairwise(borders):
        if first in changes:
            stretches.append(Stretch(first, end, None, changes[first]))
            continue
        inside = [sighting for sighting in sightings if first <= sighting.frame < end]
        tracks = follow(inside, every=settings.detect_every, max_gap=settings.max_gap)
        tracks = [track for track in tracks if len(track.sightings) >= settings.min_sightings]
        stretches += _split_shot(first, end, tracks, steps, settings)
    return [part for stretch in stretches for part in _split_long(stretch, settings.max_frames)]


def _is_near_face(change: Transition, seen: list[int], settings: IngestSettings) -> bool:
    """Whether faces were found shortly before or after a transition; where there are none, nothing is kept anyway."""
    low, high = change.first - settings.max_gap, change.end + settings.max_gap
    near = [frame for frame in seen if low <= frame < change.first or change.end <= frame < high]
    return len(near) >= settings.min_sightings


def _with_cuts(change: Transition, cuts: list[int]) -> Transition:
    """The transition up to the cuts next to it: what is between them is too short for a shot."""
    close = [cut for cut in cuts if change.first - _CLOSE <= cut <= change.end + _CLOSE]
    return replace(change, first=min([change.first, *close]), end=max([change.end, *close]))


def _split_shot(
    first: int, end: int, tracks: list[Track], steps: list[float], settings: IngestSettings
) -> list[Stretch]:
    """Stretches of one shot: that of the dominant face, and recursively those of the frames before and after it."""
    tracks = [track for track in tracks if first <= track.first and track.last < end]
    if end <= first:
        return []
    if not tracks:
        return [Stretch(first, end, None)]
    # Frames near the dominant face belong to it; the rest is split again, by the faces that lie wholly in it.
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
    """Border between the dominant face's stretch and the frames `first .. end - 1` before or after its sightings.

    The frames stay with the face when they are few and show nobody else.
    """
    others = any(first <= track.first and track.last < end for track in tracks)
    if end - first < settings.max_gap and not others:
        return first if before else end
    # The face came or went between two detections: split there, where the image changed most.
    every = settings.detect_every
    low, high = (max(first + 1, end - every + 1), end + 1) if before else (first, min(first + every, end))
    if high <= low:
        return end if before else first
    return low + int(np.argmax(steps[low:high]))


def _split_long(stretch: Stretch, max_frames: int) -> list[Stretch]:
    """Even parts of a stretch that is too long; one without a face stays whole, because it is rejected anyway."""
    parts = -(-stretch.num_frames // max_frames)
    if parts <= 1 or stretch.face is None:
        return [stretch]
    borders = [stretch.first + stretch.num_frames * part // parts for part in range(parts + 1)]
    return [Stretch(a, b, stretch.face) for a, b in itertools.pairwise(borders)]
