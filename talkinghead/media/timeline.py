"""The clock of a media file, read from all its packets: where it jumps, and which time stamps are damaged.

Time stamps are not always one running clock: two recordings were joined, a transport stream was interrupted, a bit was
flipped. `read_timeline` reads every packet of the best video and the best audio stream, without decoding, and finds

- *discontinuities*: steps of the decode times by more than `max_step_s` forwards, or backwards. What lies between two
  of them is a `Segment`. On the re-based timeline each segment's video follows that of the one before without a gap or
  an overlap, and its sound stays with it.
- *outliers*: a few packets whose stamps alone are off, among good neighbours. They lose their stamps and are placed
  where their neighbours say.

The rules:

- A file without either is *plain*: nothing about it changes.
- Streams that jump at the same place of the file have jumped together, and their segment has one offset.
- Where the video has a gap and the sound goes on through it, the segments have one offset too: the sound of the gap has
  no images, and is left out.
- Where one clock alone jumped (before and after the step, the other stream's stamps at that place of the file are what
  they were), only this stream gets another offset, so that it goes on without a gap; a segment begins there as well.
- A gap of the sound while the video goes on is no discontinuity: it is silence. So are steps forwards of sound
  alone whose clock never goes back, where they are not packets which are long anyway.
- A stream that begins only after the other one has ended begins with it instead.
- No packet is shown for longer than `max_step_s`, whatever header, edit list or duration says: the frames of a file are
  at most as many as that allows.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import av.container
import numpy as np
from av.packet import Packet

from talkinghead.media.media_file import MediaFile, open_media, start_of
from talkinghead.media.stream_clock import Kind, StreamClock, read_clocks
from talkinghead.timebase import FPS, MAX_STEP_S

_INTERLEAVING_S = 3.0  # streams that jump together do so within this much of the file
_PRIMING_S = 0.1  # most sound that comes before 0:00
_KEPT = 8  # timelines of files that were read last


@dataclass(frozen=True)
class Segment:
    """A part of a file in which its clock runs on. Times on the re-based timeline, unless named raw."""

    start_s: float
    end_s: float
    """End of its video (sound alone: of its sound), which is the start of the next segment; the last one: infinite."""
    raw_start_s: float
    """Presentation time of its first image (sound alone: sample) as the file says it, seconds."""
    raw_end_s: float
    """End of its last image as the file says it, seconds."""
    first_packets: dict[Kind, int]
    """Stream → number of the segment's first packet among the stream's packets in file order."""


@dataclass(frozen=True)
class _Shift:
    """What is subtracted from the time stamps of a stream's packets, from packet `first` on."""

    first: int
    ticks: int
    segment: int


@dataclass(frozen=True)
class Timeline:
    """What `read_timeline` found."""

    segments: tuple[Segment, ...]
    outliers: dict[Kind, frozenset[int]]
    """Stream → numbers of the packets whose stamps are damaged."""
    max_step_s: float
    frame_s: float
    """Usual time from one packet of the video (sound alone: of the sound) to the next."""
    is_plain: bool
    """Whether the time stamps are right as they stand; then packets pass a `StampMender` unchanged."""
    spans: dict[Kind, tuple[float, float]]
    """Stream → start and end on the re-based timeline; empty for a plain file, where the header says it."""
    _shifts: dict[Kind, tuple[_Shift, ...]] = field(repr=False)
    moved: bool = False
    """Whether a stream began only after the other one had ended, and was moved to begin with it."""

    def origin_of(self, container: av.container.InputContainer) -> float:
        """What is subtracted from the (mended) stamps in seconds to get times on the timeline."""
        return start_of(container) if self.is_plain else 0.0

    def segment_at(self, time_s: float) -> int:
        """Number of the segment at a time of the re-based timeline; before its start: the first."""
        return max(0, bisect.bisect_right(self.segments, time_s, key=lambda segment: segment.start_s) - 1)

    def mender(self, kind: Kind) -> StampMender:
        """A mender for the packets of a stream, which must be read from the start of the file, all of them."""
        return StampMender(kind, self.outliers.get(kind, frozenset()), self._shifts.get(kind, ()), self.segments)

    def notes(self) -> list[str]:
        """What is not plain about the file, in words: one line a finding."""
        found = []
        if count := len(self.segments) - 1:
            found.append(f"the clock jumps {_times(count)}: each part was moved to follow the one before")
        if count := sum(map(len, self.outliers.values())):
            found.append(f"{count} damaged time {'stamp' if count == 1 else 'stamps'}: placed where the neighbours say")
        if self.moved:
            found.append("a stream begins after the other one has ended: moved to begin with it")
        return found


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


class StampMender:
    """Mends the time stamps of one stream's packets, which it counts: afterwards they lie on the re-based timeline."""

    def __init__(
        self, kind: Kind, outliers: frozenset[int], shifts: tuple[_Shift, ...], segments: tuple[Segment, ...]
    ) -> None:
        self._kind: Kind = kind
        self._outliers = outliers
        self._shifts = shifts
        self._segments = segments
        self._number = -1
        self._shift = -1  # the one in use

    def mend(self, packet: Packet) -> int | None:
        """Mend a packet's stamps in place; call it for every packet in file order, before decoding.

        Returns:
            Number of the packet's segment; None: it lies wholly after the end of its segment's video (sound without
            images, where the video has a gap) and is to be left out.
        """
        if not self._shifts or not packet.size:  # plain, or the empty packet after the last one
            return 0
        self._number += 1
        while self._shift + 1 < len(self._shifts) and self._shifts[self._shift + 1].first <= self._number:
            self._shift += 1
        shift = self._shifts[self._shift]
        if self._number in self._outliers:
            packet.pts = packet.dts = None
            return shift.segment
        if packet.dts is not None:
            packet.dts -= shift.ticks
        if packet.pts is not None:
            packet.pts -= shift.ticks
            if self._kind == "audio" and packet.pts * packet.time_base >= self._segments[shift.segment].end_s:
                return None
        return shift.segment


_cache: OrderedDict[tuple[str, int, int, float], Timeline] = OrderedDict()


def read_timeline(file: MediaFile, max_step_s: float = MAX_STEP_S) -> Timeline:
    """Read the clock of a file from all its packets. The last few are remembered while their files stay unchanged.

    Args:
        file: Path or seekable stream.
        max_step_s: Largest step forwards that is no discontinuity, seconds.

    Raises:
        ValueError: The file cannot be opened.
    """
    key = None
    if not isinstance(file, Path):
        file.seek(0)
    elif file.is_file():
        facts = file.stat()
        key = (str(file.absolute()), facts.st_size, facts.st_mtime_ns, max_step_s)
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    with open_media(file) as container:
        timeline = join(read_clocks(container, max_step_s), max_step_s, start_of(container))
    if not isinstance(file, Path):
        file.seek(0)
    if key is not None:
        _cache[key] = timeline
        if len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return timeline


@dataclass(frozen=True)
class _Event:
    """A place of the file where a segment begins."""

    video: int | None = None
    """Packet before which the video's clock jumps; None: it runs on."""
    audio: int | None = None
    """Packet before which the sound's clock jumps; None: it runs on."""
    common: bool = False
    """Whether the sound moves as the video does, although its own clock runs on."""


def join(
    clocks: dict[Kind, StreamClock], max_step_s: float = MAX_STEP_S, shown_start_s: float | None = None
) -> Timeline:
    """One timeline from the clocks of a file's streams.

    Args:
        clocks: The clocks.
        max_step_s: Largest step forwards that is no discontinuity, seconds.
        shown_start_s: Time in the file that players show as 0:00, as its header says it; None: that of the earliest
            packet. It is believed where it is at most `_PRIMING_S` after that, and no image comes before it.
    """
    master = clocks.get("video", clocks.get("audio"))
    frame_s = 1 / FPS if master is None else master.step_s
    events = _events(clocks, max_step_s)
    late = _late(clocks, max_step_s)
    outliers: dict[Kind, frozenset[int]] = {kind: clock.outliers for kind, clock in clocks.items() if clock.outliers}
    wrapped = any(clock.unwrapped.any() for clock in clocks.values())
    if not events and not outliers and not wrapped and not any(late.values()):
        whole = Segment(0.0, math.inf, 0.0, math.inf, dict.fromkeys(clocks, 0))
        return Timeline((whole,), {}, max_step_s, frame_s, True, {}, {})
    joiner = _Joiner(clocks, late, shown_start_s)
    for event in events:
        joiner.begin(event)
    joiner.end()
    shifts: dict[Kind, tuple[_Shift, ...]] = {kind: joiner.shifts_of(kind) for kind in clocks}
    moved = any(late.values())
    return Timeline(tuple(joiner.segments), outliers, max_step_s, frame_s, False, joiner.spans(), shifts, moved)


class _Joiner:
    """Puts segments one after the other.

    Args:
        clocks: The clocks of the streams.
        late: Stream → seconds by which it begins too late.
        shown_start_s: Time in the file that players show as 0:00; None: nothing says it.
    """

    def __init__(self, clocks: dict[Kind, StreamClock], late: dict[Kind, float], shown_start_s: float | None) -> None:
        self._clocks = clocks
        self._master: Kind = "video" if "video" in clocks else "audio"
        self.segments: list[Segment] = []
        # Offset: time in the file less time on the re-based timeline, whose zero is the earliest start, or that of
        # players: sound may begin before it, because its codec needs some samples to get going.
        origin = math.inf
        for kind, clock in clocks.items():
            if span := clock.span(0, clock.jump_after(0)):
                origin = min(origin, span[0] - late[kind])
        origin = 0.0 if origin == math.inf else origin
        video = clocks.get("video")
        images = video.span(0, video.jump_after(0)) if video is not None else None
        if images and shown_start_s is not None and origin < shown_start_s <= min(origin + _PRIMING_S, images[0]):
            origin = shown_start_s
        self._offsets: dict[Kind, float] = {kind: origin + late[kind] for kind in clocks}
        self._firsts: dict[Kind, int] = dict.fromkeys(clocks, 0)  # packets that the segment begins with
        self._begin_s = 0.0
        self._moves: dict[Kind, list[tuple[int, float]]] = {kind: [] for kind in clocks}  # a first packet, its offset
        self._note_moves()

    def begin(self, event: _Event) -> None:
        """End a segment, and begin the next one."""
        offsets, firsts = self._offsets, self._firsts
        video, audio = self._clocks.get("video"), self._clocks.get("audio")
        if video is not None and event.video is not None:
            end_s = self._end_of("video", event.video)
            before = offsets["video"]
            offsets["video"] = self._offset_from("video", event.video, end_s)
            next_video, next_audio = event.video, event.audio
            if event.audio is not None and audio is not None:
                # Both clocks jump: to stamps that belong together, or each by as much.
                apart_s = abs(float(video.decode[event.video] - audio.decode[event.audio]))
                together = apart_s <= _INTERLEAVING_S
                offsets["audio"] = offsets["video"] if together else offsets["audio"] + offsets["video"] - before
            elif event.common and audio is not None:
                offsets["audio"] += offsets["video"] - before
        else:
            assert event.audio is not None, "an event is a jump of a clock"
            end_s = self._end_of("audio", event.audio)
            offsets["audio"] = self._offset_from("audio", event.audio, end_s)
            next_video, next_audio = None, event.audio
        self._close(end_s, next_video if self._master == "video" else next_audio)
        # A stream whose clock runs on goes over to the new segment at the same time.
        for kind, clock in self._clocks.items():
            packet = next_video if kind == "video" else next_audio
            found = packet if packet is not None else clock.first_from(firsts[kind], end_s + offsets[kind])
            firsts[kind] = min(found, clock.jump_after(firsts[kind]))
        self._begin_s = end_s
        self._note_moves()

    def end(self) -> None:
        """End the last segment."""
        self._close(math.inf, None)

    def spans(self) -> dict[Kind, tuple[float, float]]:
        """Start and end of each stream on the re-based timeline."""
        spans: dict[Kind, tuple[float, float]] = {}
        for kind, clock in self._clocks.items():
            first, last = self._moves[kind][0], self._moves[kind][-1]
            begin, end = clock.span(0, clock.jump_after(0)), clock.span(last[0], len(clock))
            start_s = begin[0] - first[1] if begin else 0.0
            spans[kind] = start_s, max(start_s, end[1] - last[1] if end else self._begin_s)
        return spans

    def shifts_of(self, kind: Kind) -> tuple[_Shift, ...]:
        """What is subtracted from a stream's stamps: the offsets, less what its counter lacks since it began anew."""
        clock, moves = self._clocks[kind], self._moves[kind]
        begins = [first for first, _ in moves]
        wraps = (np.flatnonzero(np.diff(clock.unwrapped)) + 1).tolist()
        shifts = []
        for first in sorted({*begins, *wraps}):
            segment = bisect.bisect_right(begins, first) - 1
            unwrapped = int(clock.unwrapped[first]) if first < len(clock) else 0
            shifts.append(_Shift(first, round(moves[segment][1] / clock.tick) - unwrapped, segment))
        return tuple(shifts)

    def _note_moves(self) -> None:
        for kind, offset in self._offsets.items():
            self._moves[kind].append((self._firsts[kind], offset))

    def _close(self, end_s: float, next_packet: int | None) -> None:
        clock, first = self._clocks[self._master], self._firsts[self._master]
        offset = self._moves[self._master][-1][1]
        span = clock.span(first, len(clock) if next_packet is None else next_packet)
        start, end = span or (self._begin_s + offset, self._begin_s + offset)
        if next_packet is None and end_s < math.inf:  # only the sound's clock jumps
            end = end_s + offset
        # Such a jump may lie between two images that are stored in another order than they are shown in.
        start = max(start, self._begin_s + offset)
        self.segments.append(Segment(self._begin_s, end_s, start, end, dict(self._firsts)))

    def _end_of(self, kind: Kind, packet: int) -> float:
        """End of a stream's packets up to the next segment's first one, on the re-based timeline."""
        span = self._clocks[kind].span(self._firsts[kind], packet)
        return self._begin_s if span is None else max(self._begin_s, span[1] - self._offsets[kind])

    def _offset_from(self, kind: Kind, packet: int, time_s: float) -> float:
        """The offset with which the packets from a jump on begin at a time of the re-based timeline."""
        clock = self._clocks[kind]
        span = clock.span(packet, clock.jump_after(packet))
        return self._offsets[kind] if span is None else span[0] - time_s


def _events(clocks: dict[Kind, StreamClock], max_step_s: float) -> list[_Event]:
    """Where segments begin, in the order of the file; jumps that are mere gaps of the sound are taken off its clock."""
    video, audio = clocks.get("video"), clocks.get("audio")
    if video is None or audio is None:
        images = [] if video is None else [_Event(video=jump) for jump in video.jumps]
        return images or ([] if audio is None else [_Event(audio=jump) for jump in audio.jumps])
    # Jumps of both streams at the same place of the file are one.
    pairs: dict[int, int] = {}
    waiting = list(audio.jumps)
    for jump in video.jumps:
        near = next((other for other in waiting if _are_one(video, jump, audio, other, max_step_s)), None)
        if near is not None:
            pairs[jump] = near
            waiting.remove(near)
    audio.jumps = sorted({*pairs.values(), *(jump for jump in waiting if not _is_gap(audio, jump, video))})
    both = [_Event(jump, pairs.get(jump), jump not in pairs and _is_gap(video, jump, audio)) for jump in video.jumps]
    sound = [_Event(audio=jump) for jump in audio.jumps if jump not in set(pairs.values())]
    return sorted(both + sound, key=lambda e: video.places[e.video] if e.video is not None else audio.places[e.audio])


def _are_one(video: StreamClock, jump: int, audio: StreamClock, other: int, max_step_s: float) -> bool:
    """Whether two jumps are one: near each other in the file, and to stamps that belong together, or by as much."""
    between = sorted((int(video.places[jump]), int(audio.places[other])))
    for clock in (video, audio):
        first, end = np.searchsorted(clock.places, between)
        if (end - first) * clock.step_s > _INTERLEAVING_S:
            return False
    one, two = video.decode[jump], audio.decode[other]
    steps = one - video.before(jump), two - audio.before(other)
    return bool(abs(one - two) <= _INTERLEAVING_S or abs(steps[0] - steps[1]) <= max_step_s)


def _is_gap(clock: StreamClock, jump: int, other: StreamClock) -> bool:
    """Whether a stream has a gap at a jump: the other stream goes on through most of it."""
    before = clock.before(jump)
    step = float(clock.decode[jump]) - before
    last = int(np.flatnonzero(clock.decode[:jump] == before)[-1])
    # Where the other stream's first packet comes later in the file, it passes what it holds from its start on.
    begin = other.reached(int(clock.places[last]))
    begin = float(np.nanmin(other.decode)) if math.isnan(begin) else begin
    return step > 0 and other.reached(int(clock.places[jump])) - begin >= step / 2


def _late(clocks: dict[Kind, StreamClock], max_step_s: float) -> dict[Kind, float]:
    """Stream → seconds by which it begins too late: only after the other one has ended."""
    late: dict[Kind, float] = dict.fromkeys(clocks, 0.0)
    spans = {kind: clock.span(0, clock.jump_after(0)) for kind, clock in clocks.items()}
    for kind in clocks:
        one, two = spans[kind], spans.get("audio" if kind == "video" else "video")
        if one and two and one[0] > two[1] + max_step_s:
            late[kind] = one[0] - two[0]
    return late
