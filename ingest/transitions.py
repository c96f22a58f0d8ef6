"""Finds gradual transitions: dissolves and wipes from one shot to another, and fades through one colour.

In a window over a dissolve most of the image changes, and everywhere by the same share at a time: each frame is a mix
of the first and the last one. In a wipe each place changes once, from what the first frame shows there to what the last
one does. What moves in front of a camera changes little of the image, or by other shares from place to place. Light
that changes is a mix, too, but the edges stay where they are. A fade is found by the contrast, which goes down to
nothing and comes back.

The search works on small grey images and holds a few hundred of them at most, however long the clip is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from ingest.settings import TransitionSettings

_SIDE = 24  # pixels of the grey images
_GAPS = (10, 14, 20, 28, 40, 56)  # lengths of the windows, frames
_PARTS = np.array([0.2, 0.35, 0.5, 0.65, 0.8])  # where in a window its frames are compared
_CHANGED = 10  # levels by which a place has changed
_LEAST_CHANGED = 0.4  # share of the image that must have changed
_MIXED = 0.12  # by which the shares of the last frame differ from place to place in a dissolve
_SWITCHED = 0.25  # by which they differ from 0 and 1 in a wipe
_RISE = 0.02  # least rise of the whole from one compared frame to the next
_SAME_SCENE = 0.5  # correlation of the edges from which on both ends of a window show one scene
_JUMP = 0.45  # share of the change that a hard cut makes in one frame
_REST = 6  # frames before and after a transition in which the image changes much less than in it
_RESTLESS = 0.7  # share of its change from which on that is not so
_MARGIN = 1  # frames on each side that may still show some of it
_SOFT = 0.08  # share of a transition before and after the ramp that fits it best
_LONGEST = 75  # frames; a slower change is motion
_TRIES = 6  # windows looked at closely in one block of frames
_BLOCK = 128  # frames that are searched at a time
_BEFORE = 64  # frames kept before them
_AFTER = _GAPS[-1] + _BEFORE  # frames needed after them
_FADE_STEP = 1.01  # factor by which the contrast rises from frame to frame in a fade
_LONGEST_FADE = 60  # frames
_FAINT = 0.15  # share of a clip's usual contrast that is as good as none
_LONGEST_FAINT = 8  # frames with so little
_SUDDEN = 0.6  # share of the contrast that is still there in the last frame before a hard change
_BRIGHT = 128  # levels of an image of one colour that may be a flash
_BRIDGE = 5  # frames between two transitions that are too few for a shot


@dataclass(frozen=True)
class Transition:
    """Frames `first .. end - 1` that belong to no shot."""

    first: int
    end: int
    kind: Literal["dissolve", "wipe", "fade", "blank"]
    """What they show; "blank": one colour, at the begin or the end of a clip, with the fade from or to it."""
    score: float
    """Share of the image that changes as it does in such a transition, 0 .. 1; of the contrast in fades."""


class TransitionDetector:
    """Detector of gradual transitions: takes the frames one by one and returns the transitions in the end."""

    def __init__(self, settings: TransitionSettings) -> None:
        """Start with no frame."""
        self._settings = settings
        self._images: list[np.ndarray] = []  # the last frames, uint8 `[24 * 24]`
        self._first = 0  # number of the first of them
        self._searched = 0  # number of the first frame at which no window has begun yet
        self._contrasts: list[float] = []  # of all frames, levels
        self._levels: list[float] = []  # mean brightness of all frames
        self._found: list[Transition] = []

    def add(self, image: np.ndarray, *, damaged: bool = False) -> None:
        """Take the next frame.

        Args:
            image: RGB uint8 `[H, W, 3]`, small.
            damaged: Whether it is damaged: the frame before it stands for it.
        """
        if damaged and self._images:
            grey = self._images[-1]
        else:
            small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).reshape(-1)
        self._images.append(grey)
        mean, deviation = cv2.meanStdDev(grey)
        self._levels.append(mean.item())
        self._contrasts.append(deviation.item())
        if self._first + len(self._images) >= self._searched + _BLOCK + _AFTER:
            self._search(self._searched + _BLOCK)

    def transitions(self) -> list[Transition]:
        """All transitions in order, without overlap."""
        self._search(self._first + len(self._images))
        blanks = _fades(np.array(self._contrasts), np.array(self._levels), self._settings)
        return _joined([*self._found, *blanks])

    def _search(self, end: int) -> None:
        """Search the windows that begin before frame `end`, and forget the frames that are not needed any more."""
        if not self._images:
            return
        images = np.stack(self._images)
        begin = self._searched - self._first
        candidates: list[_Window] = []
        for gap in _GAPS:
            candidates += _windows(images, begin, end - self._first, gap, self._settings)
        # The best first; what overlaps with what was found is the same transition.
        candidates.sort(key=lambda window: -window.score)
        tries = 0
        while candidates and tries < _TRIES:
            best = candidates[0]
            tries += 1
            found = _measured(images, best)
            if found is None:
                candidates = [
                    one for one in candidates if abs(one.first - best.first) > 3 or abs(one.end - best.end) > 3
                ]
                continue
            self._found.append(replace(found, first=found.first + self._first, end=found.end + self._first))
            candidates = [one for one in candidates if one.end <= found.first or one.first >= found.end]
        self._searched = end
        drop = max(0, end - _BEFORE - self._first)
        del self._images[:drop]
        self._first += drop


@dataclass(frozen=True)
class _Window:
    """A window that looks like a transition from its first frame to its last one, `end`."""

    first: int
    end: int
    kind: Literal["dissolve", "wipe"]
    score: float


def _windows(images: np.ndarray, begin: int, end: int, gap: int, settings: TransitionSettings) -> list[_Window]:
    """Windows of `gap` frames that begin at `begin .. end - 1` and look like a transition; images `[N, P]`."""
    end = min(end, len(images) - gap)
    if end <= begin:
        return []
    # Long windows that begin next to each other are nearly the same.
    starts = np.arange(begin, end, 1 + gap // 20)
    changed = _changed(images[starts], images[starts + gap])
    shares = np.count_nonzero(changed, axis=1) / changed.shape[1]
    parts = np.round(_PARTS * gap).astype(int)
    found = []
    for k in np.flatnonzero(shares >= _LEAST_CHANGED):
        here, mask, share = int(starts[k]), changed[k], float(shares[k])
        # How far each changed place has gone from the first frame to the last one, [5, places].
        progress = _progress(images[here + parts], images[here], images[here + gap], mask)
        middle = np.median(progress, axis=1)
        if _rises(middle):
            mixed = float((np.abs(progress - middle[:, None]) < _MIXED).mean(axis=1).min()) * share
            if mixed >= settings.dissolve:
                found.append(_Window(here, here + gap, "dissolve", mixed))
                continue
        switched = progress > 0.5
        if _rises(switched.mean(axis=1)):
            once = (switched[1:] >= switched[:-1]).all(axis=0)
            clear = (np.abs(progress - switched) < _SWITCHED) & once
            wiped = float(clear.mean(axis=1).min()) * share
            if wiped >= settings.wipe:
                found.append(_Window(here, here + gap, "wipe", wiped))
    return found


def _progress(images: np.ndarray, first: np.ndarray, last: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of the last image in each place of `images [n, P]` where the mask is set, `[n, places]`."""
    start = first[mask].astype(np.float32)
    return (images[:, mask] - start) / (last[mask] - start)


def _rises(values: np.ndarray) -> bool:
    """Whether the whole changes all the time, and not before or after the middle only."""
    return bool((np.diff(values) > _RISE).all()) and 0.2 < values[len(values) // 2] < 0.8


def _measured(images: np.ndarray, window: _Window) -> Transition | None:
    """The transition in a window with its exact ends; None where it is none after all."""
    if _is_one_scene(images[window.first], images[window.end]):
        return None
    # The window may be shorter or longer than the transition: its ends are those of the ramp that fits its course best,
    # measured a second time against frames outside of it.
    first, last = _ends(images, window.first, window.end, window)
    begin, end = _ends(images, max(0, first - 1), min(len(images) - 1, last + 1), window)
    first, last = max(0, begin - 1), min(len(images) - 1, end + 1)
    # A hard cut is found elsewhere, and has its own conditions.
    inside = _course(images, first, last, first, last, window)
    if end - begin > _LONGEST or np.diff(inside).max() > _JUMP:
        return None
    # Before and after it the image rests, as far as there are frames.
    change = _changed_share(images[first], images[last])
    for one, other in ((max(0, first - _REST), first), (last, min(last + _REST, len(images) - 1))):
        if _changed_share(images[one], images[other]) > _RESTLESS * change:
            return None
    # A soft begin or end is outside of the straight ramp.
    margin = _MARGIN + round(_SOFT * (end - begin))
    return Transition(max(0, begin + 1 - margin), min(len(images), end + margin), window.kind, round(window.score, 4))


def _ends(images: np.ndarray, first: int, last: int, window: _Window) -> tuple[int, int]:
    """Last frame before and first frame after the change from frame `first` to frame `last`, in a wider range."""
    around = (last - first) // 2 + _REST
    low, high = max(0, first - around), min(len(images) - 1, last + around)
    begin, end = _ramp(_course(images, low, high, first, last, window))
    return low + begin, low + end


def _ramp(course: np.ndarray) -> tuple[int, int]:
    """Last frame before and first frame after the ramp that fits a course best, level before and after."""
    count = len(course)
    edges = np.arange(0, count, 1 + count // 60)
    one, other = np.triu_indices(len(edges), 1)
    begins, ends = edges[one], edges[other]
    times = np.arange(count, dtype=np.float32)
    ramps = np.clip((times - begins[:, None]) / (ends - begins)[:, None], 0, 1)
    # The least squares of a scaled and moved ramp: the largest correlation.
    ramps -= ramps.mean(axis=1, keepdims=True)
    fit = ramps @ (course - course.mean()) / np.linalg.norm(ramps, axis=1)
    best = int(np.argmax(fit))
    return int(begins[best]), int(ends[best])


def _course(images: np.ndarray, low: int, high: int, first: int, last: int, window: _Window) -> np.ndarray:
    """How far the image has gone from frame `first` to `last` in each of the frames `low .. high`."""
    mask = _changed(images[first], images[last])
    if not mask.any():
        return np.zeros(high - low + 1)
    progress = np.clip(_progress(images[low : high + 1], images[first], images[last], mask), -1, 2)
    return np.median(progress, axis=1) if window.kind == "dissolve" else np.clip(progress, 0, 1).mean(axis=1)


def _changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return cv2.absdiff(a, b).reshape(a.shape) > _CHANGED


def _changed_share(a: np.ndarray, b: np.ndarray) -> float:
    return float(_changed(a, b).mean())


def _is_one_scene(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the edges of two images are in the same places, in whatever light."""
    edges = []
    for image in (a, b):
        square = image.reshape(_SIDE, _SIDE)
        both = np.stack([cv2.Sobel(square, cv2.CV_32F, 1, 0), cv2.Sobel(square, cv2.CV_32F, 0, 1)])
        edges.append(both - both.mean())
    size = np.sqrt((edges[0] ** 2).sum() * (edges[1] ** 2).sum())
    return bool((edges[0] * edges[1]).sum() > _SAME_SCENE * size) if size > 0 else False


def _fades(contrasts: np.ndarray, levels: np.ndarray, settings: TransitionSettings) -> list[Transition]:
    """Fades through one colour, and frames of one colour at the ends of a clip.

    Args:
        contrasts: Standard deviation of the brightness, `[F]` in levels.
        levels: Mean of the brightness, `[F]` in levels.
        settings: Thresholds.
    """
    found = []
    for begin, stop in _blank_runs(contrasts, settings):
        first, end = begin, stop
        # The contrast goes down to it, and comes back after it.
        while first > max(0, begin - _LONGEST_FADE) and contrasts[first - 1] > _FADE_STEP * contrasts[first]:
            first -= 1
        while end < min(len(contrasts), stop + _LONGEST_FADE) and contrasts[end] > _FADE_STEP * contrasts[end - 1]:
            end += 1
        at_end = begin == 0 or stop == len(contrasts)
        # A flash of a camera is bright at once.
        sudden = contrasts[max(begin, 1) - 1] > _SUDDEN * contrasts[first]
        is_flash = sudden and stop - begin < settings.shortest and levels[begin] > _BRIGHT
        if at_end or (end - first >= settings.shortest and not is_flash):
            around = max(float(contrasts[first]), float(contrasts[end - 1]), 1e-6)
            score = max(0.0, 1 - float(contrasts[begin:stop].min()) / around)
            found.append(Transition(first, end, "blank" if at_end else "fade", round(score, 4)))
    return found


def _blank_runs(contrasts: np.ndarray, settings: TransitionSettings) -> list[tuple[int, int]]:
    """First frames and ends of the runs of frames of one colour; none where there is nothing else."""
    if settings.blank == 0 or not len(contrasts) or contrasts.max() < settings.blank:
        return []
    # A short fade may leave a little of the contrast in each of its frames; a longer run is a dark shot.
    faint = contrasts < max(settings.blank, _FAINT * float(np.median(contrasts)))
    runs = [run for run in _runs(faint) if run[1] - run[0] <= _LONGEST_FAINT]
    for run in _runs(contrasts < settings.blank):
        if not any(first <= run[0] and run[1] <= end for first, end in runs):
            runs.append(run)
    return sorted(runs)


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and end of each run of set flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _joined(transitions: Iterable[Transition]) -> list[Transition]:
    """Transitions in order; what overlaps, or leaves too few frames between for a shot, is one."""
    joined: list[Transition] = []
    for one in sorted(transitions, key=lambda one: (one.first, one.end)):
        if joined and one.first < joined[-1].end + _BRIDGE:
            last = joined[-1]
            main = last if last.kind == "blank" or (one.kind != "blank" and last.score >= one.score) else one
            joined[-1] = replace(main, first=last.first, end=max(last.end, one.end))
        else:
            joined.append(one)
    return joined
