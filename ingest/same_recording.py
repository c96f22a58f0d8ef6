"""Finds clips that show the same recording, by their signatures: encoded anew, renamed, cut out of a longer one.

Two clips match where the bits of their movement differ in less than a fifth, or those of their sound in little more
than a quarter. Measured on 18 real clips, each encoded anew in four ways, poor and small ones among them: movement
differs in 1 to 25 %, sound in 1 to 15 %, to 22 % where the beginning is cut off. Other clips differ in 46 % of their
movement and 41 % of their sound at least, and other moments of one clip in 28 and 41 %. So what matches is the same
recording; a silent copy of very poor quality, or a silent one with another beginning, is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingest.signatures import Signature

MOVEMENT_RATE = 0.2
"""Share of different bits below which two movements are of the same recording."""
SOUND_RATE = 0.28
"""Share of different bits below which two sounds are of the same recording."""

_LEAST_MOVEMENT = 12  # words that say something: 2.4 seconds at the default distance of detections
_LEAST_SOUND = 24  # words that are not quiet: 1.5 seconds
_NEIGHBOURS = 8  # clips that one is compared with for a part of a word; copies of copies follow from them
_HALVES, _MOST_BITS = (0xFFFF, 0xFFFF0000), (0xFFFFFF, 0xFFFFFF00)  # parts of a word that are looked up
_MANY_TRACKS, _MORE_BITS = 1 << 17, (0xFFFFF, 0x3FFFFC0, 0xFFFFF000)  # from so many on halves are too common
_AROUND = (-2, -1, 1, 2)  # words next to an equal part, in which copies are alike
_ALIKE_RATE = 0.4  # of their bits may differ; of others half do
_AT_ONCE = 1 << 20  # words that are sorted at a time
_WORDS_AT_ONCE = 1 << 20  # words that are compared at a time
_MIX = np.uint32(0x9E3779B1)


@dataclass(frozen=True, kw_only=True, order=True)
class Match:
    """Two clips of the same recording."""

    first: str
    """Key of the clip that comes first by key."""
    second: str
    by: str
    """`movement` or `sound`."""
    rate: float
    """Share of different bits."""


class Groups:
    """Names that belong together: union-find, in which the alphabetically first name stands for its group."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The name that stands for a name's group."""
        path = []
        while (above := self._parent.setdefault(name, name)) != name:
            path.append(name)
            name = above
        for below in path:
            self._parent[below] = name
        return name

    def join(self, one: str, other: str) -> None:
        """Make one group of two."""
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first

    def members(self) -> dict[str, list[str]]:
        """The name that stands for a group → all its names, sorted."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._parent):
            found.setdefault(self.root(name), []).append(name)
        return found


@dataclass(frozen=True)
class _Tracks:
    """Words of one kind, those of one track after the other."""

    words: np.ndarray
    """uint32 `[N]`; 0 says nothing."""
    starts: np.ndarray
    """First word of each track, and the end of the last one, int64 `[T + 1]`."""
    owners: np.ndarray
    """Clip of each track, int64 `[T]`."""

    @classmethod
    def of(cls, tracks: Sequence[tuple[int, np.ndarray]]) -> _Tracks:
        """From clip and words of each."""
        lengths = [0, *(len(words) for _, words in tracks)]
        return cls(
            words=np.concatenate([np.zeros(0, np.uint32), *(words for _, words in tracks)]),
            starts=np.cumsum(np.array(lengths, np.int64)),
            owners=np.array([owner for owner, _ in tracks], np.int64),
        )

    @property
    def lengths(self) -> np.ndarray:
        """Words of each track."""
        return np.diff(self.starts)


class _Joined:
    """Numbers that belong together: the least of each group stands for it. Made for many joins at a time."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        """Number → the one that stands for its group, int64 `[count]`."""

    def join(self, one: np.ndarray, other: np.ndarray) -> list[int]:
        """Join pairs, one after the other; returns which of them joined two groups."""
        needed, above = [], {}
        for number, pair in enumerate(zip(self.labels[one].tolist(), self.labels[other].tolist(), strict=True)):
            first, second = sorted(_top(above, label) for label in pair)
            if first != second:
                above[second] = first
                needed.append(number)
        if needed:
            tops = np.arange(len(self.labels))
            tops[list(above)] = [_top(above, label) for label in above]
            self.labels = tops[self.labels]
        return needed


def _top(above: dict[int, int], label: int) -> int:
    while label in above:
        label = above[label]
    return label


def find_matches(signatures: Mapping[str, Signature], groups: Mapping[str, str]) -> list[Match]:
    """Find the clips of one recording that stand in different groups.

    Time and memory grow with the number of clips, not with that of their pairs.

    Args:
        signatures: Key of a clip → its signature.
        groups: Key of a clip → its split group. Clips of one group are not compared.

    Returns:
        Matches, sorted; enough of them to connect all copies, not every pair of them. The same for any order.
    """
    keys = sorted(signatures)
    clips = [signatures[key] for key in keys]
    numbers = {name: number for number, name in enumerate(sorted({groups[key] for key in keys}))}
    group_of = np.array([numbers[groups[key]] for key in keys], np.int64)
    joined = _Joined(len(numbers))
    matches: list[Match] = []

    def search(by: str, tracks: _Tracks, *, aligned: bool, most: float, least_words: int) -> None:
        for one, other, offsets in _candidates(tracks, group_of[tracks.owners], joined, aligned=aligned):
            rates = _rates(tracks, one, other, offsets, least_words)
            found = np.flatnonzero(rates < most)
            first, second = tracks.owners[one[found]], tracks.owners[other[found]]
            for number in joined.join(group_of[first], group_of[second]):
                pair = sorted((keys[first[number]], keys[second[number]]))
                matches.append(Match(first=pair[0], second=pair[1], by=by, rate=round(float(rates[found[number]]), 4)))

    # Movement begins where the clip does. Steps of other lengths cannot be compared.
    for step in sorted({clip.step_frames for clip in clips}):
        tracks = _Tracks.of([(i, clip.movement) for i, clip in enumerate(clips) if clip.step_frames == step])
        search("movement", tracks, aligned=True, most=MOVEMENT_RATE, least_words=_LEAST_MOVEMENT)
    # Sound at the same place first, where half a word in common is rare enough to be looked up; then at any place.
    tracks = _Tracks.of([(i, words) for i, clip in enumerate(clips) for words in clip.sounds.values()])
    for aligned in (True, False):
        search("sound", tracks, aligned=aligned, most=SOUND_RATE, least_words=_LEAST_SOUND)
    return sorted(matches)


def _candidates(
    tracks: _Tracks, group_of: np.ndarray, joined: _Joined, *, aligned: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of tracks with a part of a word in common that are alike around it: two tracks and their offsets, `[P]`.

    Args:
        tracks: Words of each.
        group_of: Track → number of its group.
        joined: Groups; those that are joined already, also while this goes on, need no comparison.
        aligned: Whether the words must stand at the same place in both.
    """
    for parts, places, owners in _equal_parts(tracks) if aligned else _equal_parts_anywhere(tracks):
        for lag in range(1, _NEIGHBOURS + 1):
            equal = np.flatnonzero(parts[lag:] == parts[:-lag])
            if not len(equal):
                break
            labels = joined.labels[group_of[owners]]
            equal = equal[labels[equal] != labels[equal + lag]]
            one, other = owners[equal], owners[equal + lag]
            first, second = places[equal], places[equal + lag]
            alike = _alike(tracks, one, other, first, second)
            one, other, offsets = one[alike], other[alike], (first - second)[alike]
            if len(one):
                yield one, other, offsets


def _equal_parts(tracks: _Tracks) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each place and part of a word: the parts, their places and tracks, `[N]`, sorted by part."""
    masks = _HALVES if len(tracks.owners) <= _MANY_TRACKS else _MORE_BITS
    lengths = tracks.lengths
    for place in range(int(lengths.max(initial=0))):
        owners = np.flatnonzero(lengths > place)
        words = tracks.words[tracks.starts[owners] + place]
        told = words != 0
        words, owners = words[told], owners[told]
        for mask in masks:
            parts, order = _sorted_parts(words, mask, owners, place)
            yield parts, np.full(len(order), place), owners[order]


def _equal_parts_anywhere(tracks: _Tracks) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same for words at any place, a share of the words at a time."""
    shares = 1 << max(0, len(tracks.words) // _AT_ONCE).bit_length()
    for mask in _MOST_BITS:
        for share in range(shares):
            at = np.concatenate(
                [np.zeros(0, np.int64), *(_of_share(tracks.words, begin, mask, share, shares)
                                          for begin in range(0, len(tracks.words), _AT_ONCE))]
            )  # fmt: skip
            owners = np.searchsorted(tracks.starts, at, side="right") - 1
            places = at - tracks.starts[owners]
            parts, order = _sorted_parts(tracks.words[at], mask, owners, places)
            yield parts, places[order], owners[order]


def _of_share(words: np.ndarray, begin: int, mask: int, share: int, shares: int) -> np.ndarray:
    """Which of the words from `begin` on belong to a share: equal parts are in one."""
    some = words[begin : begin + _AT_ONCE]
    mixed = ((some & np.uint32(mask)) * _MIX) >> np.uint32(16)
    return begin + np.flatnonzero((some != 0) & (mixed % np.uint32(shares) == share))


def _sorted_parts(
    words: np.ndarray, mask: int, owners: np.ndarray, places: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Parts of words, sorted, and their order: where many are equal, each place has another one, so that of a common
    part other tracks become neighbours each time."""
    drawn = (owners * 0x9E3779B1 + places * 0x85EBCA77) & 0xFFFFFFFF
    sorted_by = ((words & np.uint32(mask)).astype(np.uint64) << np.uint64(32)) | drawn.astype(np.uint64)
    order = np.argsort(sorted_by, kind="stable")
    return (sorted_by[order] >> np.uint64(32)).astype(np.uint32), order


def _alike(tracks: _Tracks, one: np.ndarray, other: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether tracks may be alike by a few words around one place in each: one in a hundred others are. `[P]` bool."""
    told, different = np.zeros(len(one), np.int64), np.zeros(len(one), np.int64)
    lengths = tracks.lengths
    for step in _AROUND:
        there = (first + step >= 0) & (second + step >= 0)
        there &= (first + step < lengths[one]) & (second + step < lengths[other])
        mine = tracks.words[np.where(there, tracks.starts[one] + first + step, 0)]
        others = tracks.words[np.where(there, tracks.starts[other] + second + step, 0)]
        there &= (mine != 0) & (others != 0)
        told += there
        different += np.where(there, np.bitwise_count(mine ^ others), 0)
    return different <= _ALIKE_RATE * 32 * told


def _rates(tracks: _Tracks, one: np.ndarray, other: np.ndarray, offsets: np.ndarray, least_words: int) -> np.ndarray:
    """Shares of different bits where word `offset` of one stands at word 0 of the other; 1 where too few can be told.

    Args:
        tracks: Words of each.
        one: Tracks, `[P]`.
        other: Tracks that they are compared with, `[P]`.
        offsets: Words by which the others begin later, `[P]`.
        least_words: Words that must be told in both.
    """
    first, second = np.maximum(offsets, 0), np.maximum(-offsets, 0)
    lengths = np.minimum(tracks.lengths[one] - first, tracks.lengths[other] - second)
    begins = tracks.starts[one] + first, tracks.starts[other] + second
    rates = np.ones(len(one))
    at_once = max(1, _WORDS_AT_ONCE // int(lengths.max(initial=1)))
    for start in range(0, len(one), at_once):
        some = slice(start, start + at_once)
        steps = np.arange(int(lengths[some].max()))
        there = steps < lengths[some, None]
        mine, others = (tracks.words[np.where(there, begin[some, None] + steps, 0)] for begin in begins)
        there &= (mine != 0) & (others != 0)
        told = there.sum(axis=1)
        different = np.where(there, np.bitwise_count(mine ^ others), 0).sum(axis=1, dtype=np.int64)
        rates[some] = np.where(told >= least_words, different / np.maximum(32 * told, 1), 1.0)
    return rates
