"""Finds clips that show the same recording, by their signatures: encoded anew, renamed, cut out of a longer one.

Two clips match where the bits of their movement differ in less than a fifth, or those of their sound in little more
than a quarter. Measured on 18 real clips, each encoded anew in four ways, poor and small ones among them: movement
differs in 1 to 25 %, sound in 1 to 15 %, to 22 % where the beginning is cut off. Other clips differ in 46 % of their
movement and 41 % of their sound at least, and other moments of one clip in 28 and 41 %. So what matches is the same
recording; a silent copy of very poor quality, or a silent one with another beginning, is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_MANY_WORDS = 1 << 23  # of 90,000 clips: from here on only whole words are looked up, for parts would be too common
_HALVES, _MOST_BITS, _WHOLE = (0xFFFF, 0xFFFF0000), (0xFFFFFF, 0xFFFFFF00), (0xFFFFFFFF,)  # of a word


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


@dataclass(frozen=True)
class _Track:
    """Words of one kind, of one clip."""

    owner: int
    words: np.ndarray


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


def find_matches(signatures: Mapping[str, Signature], groups: Mapping[str, str]) -> list[Match]:
    """Find the clips of one recording that stand in different groups.

    Args:
        signatures: Key of a clip → its signature.
        groups: Key of a clip → its split group. Clips of one group are not compared.

    Returns:
        Matches, sorted; enough of them to connect all copies, not every pair of them. The same for any order.
    """
    keys = sorted(signatures)
    joined = Groups()
    matches = []
    for by, one, other, rate in _matching_pairs([signatures[key] for key in keys], [groups[key] for key in keys]):
        first, second = groups[keys[one]], groups[keys[other]]
        # What is connected by then needs no further match.
        if joined.root(first) != joined.root(second):
            joined.join(first, second)
            matches.append(Match(first=keys[one], second=keys[other], by=by, rate=round(rate, 4)))
    return sorted(matches)


def _matching_pairs(signatures: Sequence[Signature], groups: Sequence[str]) -> Iterator[tuple[str, int, int, float]]:
    """Kind, two clips and share of different bits, of all pairs that were compared and match."""
    numbers = {name: number for number, name in enumerate(sorted(set(groups)))}
    group_of = np.array([numbers[name] for name in groups], np.int64)
    many = sum(len(words) for s in signatures for words in (s.movement, *s.sounds.values())) > _MANY_WORDS
    # Movement begins where the clip does. Steps of other lengths cannot be compared.
    for step in sorted({signature.step_frames for signature in signatures}):
        tracks = [_Track(i, s.movement) for i, s in enumerate(signatures) if s.step_frames == step]
        pairs = _candidates(tracks, group_of, _WHOLE if many else _HALVES, aligned=True)
        yield from _verified("movement", tracks, pairs, MOVEMENT_RATE, _LEAST_MOVEMENT)
    # Sound at the same place first, where half a word in common is rare enough to be looked up; then at any place.
    tracks = [_Track(i, words) for i, s in enumerate(signatures) for words in s.sounds.values()]
    pairs = _candidates(tracks, group_of, _WHOLE if many else _HALVES, aligned=True)
    yield from _verified("sound", tracks, pairs, SOUND_RATE, _LEAST_SOUND)
    pairs = _candidates(tracks, group_of, _WHOLE if many else _MOST_BITS, aligned=False)
    yield from _verified("sound", tracks, pairs, SOUND_RATE, _LEAST_SOUND)


def _candidates(
    tracks: Sequence[_Track], group_of: np.ndarray, masks: Iterable[int], *, aligned: bool
) -> Iterator[tuple[int, int, int]]:
    """Pairs of tracks of different groups that have a part of a word in common, and the offset between the two.

    Args:
        tracks: Words of each.
        group_of: Clip → number of its group.
        masks: Bits that are to be the same, one part of a word after the other.
        aligned: Whether the words must stand at the same place in both.
    """
    if not tracks:
        return
    words = np.concatenate([track.words for track in tracks])
    lengths = [len(track.words) for track in tracks]
    track_of = np.repeat(np.arange(len(tracks)), lengths)
    place = np.concatenate([np.arange(length) for length in lengths]) if lengths else np.zeros(0, int)
    owner_group = group_of[np.array([track.owner for track in tracks])][track_of]
    spoken = words != 0
    words, track_of, place, owner_group = (values[spoken] for values in (words, track_of, place, owner_group))
    found: set[tuple[int, int, int]] = set()
    for mask in masks:
        part = (words & np.uint32(mask)).astype(np.uint64)
        part = (part << np.uint64(16)) + place.astype(np.uint64) if aligned else part
        # Equal parts become neighbours. Of many copies each is compared with the next few.
        order = np.lexsort((place, track_of, part))
        for lag in range(1, _NEIGHBOURS + 1):
            one, other = order[:-lag], order[lag:]
            same = (part[one] == part[other]) & (owner_group[one] != owner_group[other])
            one, other = one[same], other[same]
            found.update(
                zip(track_of[one].tolist(), track_of[other].tolist(), (place[one] - place[other]).tolist(), strict=True)
            )
    yield from sorted(found)


def _verified(
    by: str, tracks: Sequence[_Track], pairs: Iterable[tuple[int, int, int]], most: float, least_words: int
) -> Iterator[tuple[str, int, int, float]]:
    for one, other, offset in pairs:
        rate = _rate(tracks[one].words, tracks[other].words, offset, least_words)
        if rate < most:
            first, second = sorted((tracks[one].owner, tracks[other].owner))
            yield by, first, second, rate


def _rate(one: np.ndarray, other: np.ndarray, offset: int, least_words: int) -> float:
    """Share of different bits where word `offset` of one stands at word 0 of the other; 1 where too few can be told."""
    one, other = one[max(0, offset) :], other[max(0, -offset) :]
    length = min(len(one), len(other))
    one, other = one[:length], other[:length]
    told = (one != 0) & (other != 0)
    count = int(told.sum())
    if count < least_words:
        return 1.0
    return int(np.bitwise_count(one[told] ^ other[told]).sum()) / (32 * count)
