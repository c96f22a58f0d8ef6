"""The time stamps of one stream's packets: where its clock jumps, and which stamps are damaged.

Packets are read without decoding. A *jump* is a step of the decode times by more than is allowed forwards, or
backwards. *Outliers* are a few packets whose stamps alone are off, among good neighbours.
"""

from __future__ import annotations

import itertools
import math
from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import av.container
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition, Stream

from talkinghead.media.media_file import audio_stream, packets_of

Kind = Literal["video", "audio"]

_BACKWARDS_S = 0.03  # decode times may go back by so little, less than a frame: jitter of sloppy muxers
_FEW = 12  # at most so many packets in a row are outliers; more are a part with a clock of its own
_FEW_AT_THE_ENDS = 3  # where only one neighbour says what is right
_FEW_OF_SOUND_ALONE = 1  # at the ends, where its clock never goes back: it may have paused
_REORDERING = 17  # most frames between decoding and presentation (H.264: 16)
_UNUSUAL = 3.0  # times the usual step: an unusual one
_USUAL_STEP_S = 0.04  # where no stamp says it
_WRAP = {"mpegts": 1 << 33, "mpeg": 1 << 33}  # demuxer → ticks after which its counters begin anew
_UNKNOWN = -(1 << 63)  # no time stamp
_BLOCK = 256  # packets that are searched at once


@dataclass
class StreamClock:
    """The time stamps of all packets of one stream, in file order. Times in seconds, as the file says them."""

    kind: Kind
    tick: Fraction
    """Seconds of one tick of the stamps."""
    places: np.ndarray
    """Number of each packet among those of both streams, int64 `[N]`."""
    unwrapped: np.ndarray
    """What was added to the stamps because the counter began anew, ticks, int64 `[N]`."""
    decode: np.ndarray
    """Decode times `[N]`; NaN where there is none."""
    shown: np.ndarray
    """Presentation times `[N]`; NaN where there is none; where it is damaged, one that fits the decode time."""
    step_s: float
    """Usual step from one packet to the next."""
    backwards_s: float
    """Largest step of the decode times backwards that is no jump."""
    outliers: frozenset[int] = frozenset()
    """Packets whose stamps are damaged."""
    jumps: list[int] = field(default_factory=list)
    """Packets before which the clock jumps, ascending."""

    def __len__(self) -> int:
        return len(self.places)

    def span(self, first: int, end: int) -> tuple[float, float] | None:
        """Start and end of what the packets `first .. end - 1` show, or None where no stamp says it."""
        for times in (self.shown[first:end], self.decode[first:end]):
            if len(times) and np.isfinite(times).any():
                return float(np.nanmin(times)), float(np.nanmax(times)) + self.step_s
        return None

    def before(self, packet: int) -> float:
        """Decode time of the last packet before a packet that has one; NaN: there is none."""
        return next((float(time) for time in self.decode[:packet][::-1] if not math.isnan(time)), math.nan)

    def reached(self, place: int) -> float:
        """Decode time that the stream has reached at a place of the file; NaN: it has not begun."""
        return self.before(int(np.searchsorted(self.places, place, side="right")))

    def first_from(self, packet: int, time_s: float) -> int:
        """First packet from `packet` on that is shown at `time_s` or later; the number of packets: there is none."""
        for begin in range(packet, len(self), _BLOCK):
            found = np.flatnonzero(self.shown[begin : begin + _BLOCK] >= time_s)
            if len(found):
                return begin + int(found[0])
        return len(self)

    def jump_after(self, packet: int) -> int:
        """The next packet after a packet before which the clock jumps; the number of packets: there is none."""
        place = int(np.searchsorted(self.jumps, packet, side="right"))
        return self.jumps[place] if place < len(self.jumps) else len(self)


def read_clocks(container: av.container.InputContainer, max_step_s: float) -> dict[Kind, StreamClock]:
    """The clocks of the best video and the best audio stream, from all packets of a file that was just opened.

    Args:
        container: The file.
        max_step_s: Largest step forwards that is no jump, seconds.

    Returns:
        A clock for each stream that has packets; none for a container that stores no time stamps (AVI).
    """
    streams: dict[Kind, Stream] = {}
    video, audio = container.streams.best("video"), audio_stream(container)
    if video is not None and not video.disposition & Disposition.attached_pic:
        streams["video"] = video
    if audio is not None:
        streams["audio"] = audio
    if not streams or container.format.name == "avi":
        return {}
    # Five numbers a packet.
    rows = {stream.index: tuple(array("q") for _ in range(5)) for stream in streams.values()}
    try:
        for place, packet in enumerate(packets_of(container, *streams.values())):
            if packet.size:
                values = place, packet.dts, packet.pts, packet.duration, packet.is_keyframe
                for row, value in zip(rows[packet.stream_index], values, strict=True):
                    row.append(_UNKNOWN if value is None else value)
    except FFmpegError:
        pass  # the file ends in the middle: what was read of it counts
    demuxer = container.format.name
    clocks: dict[Kind, StreamClock] = {
        kind: _clock(kind, stream, [np.frombuffer(row, np.int64) for row in rows[stream.index]], demuxer, max_step_s)
        for kind, stream in streams.items()
        if len(rows[stream.index][0])
    }
    if len(clocks) > 1 and demuxer in _WRAP:
        _match_counters(clocks["video"], clocks["audio"], _WRAP[demuxer])
    for clock in clocks.values():
        _find_damage(clock, max_step_s, alone=len(clocks) == 1)
    return clocks


def _clock(kind: Kind, stream: Stream, rows: list[np.ndarray], demuxer: str, max_step_s: float) -> StreamClock:
    """A stream's clock from its packets: places, decode times, presentation times, durations, and which are keys.

    Jumps and outliers are not yet looked for.
    """
    places, dts, pts, lengths, keys = rows
    wrap = _WRAP.get(demuxer)
    tick = stream.time_base or Fraction(1, 1000)
    if (dts == _UNKNOWN).all():
        dts = pts  # a stream without decode times is read by its presentation times, which are out of order
    elif demuxer.startswith("matroska") and (dts != pts).any() and (pts != _UNKNOWN).all():
        dts = _decode_order(pts, keys)
    known = np.flatnonzero(dts != _UNKNOWN)
    # A counter of 33 bits that begins anew goes on.
    turns = np.zeros(len(places), np.int64)
    if wrap is not None:
        turns[known[1:]] = -np.rint(np.diff(dts[known]) / wrap)
    unwrapped = np.cumsum(turns) * (wrap or 0)
    decode, shown = (np.where(stamps == _UNKNOWN, np.nan, (stamps + unwrapped) * float(tick)) for stamps in (dts, pts))
    # The usual step: between decode times, else what the packets say they last.
    for steps in (np.diff(decode[known]), lengths * float(tick)):
        steps = steps[(steps > 0) & (steps <= max_step_s)]
        if len(steps):
            break
    step_s = float(np.median(steps)) if len(steps) else _USUAL_STEP_S
    backwards_s = _REORDERING * step_s if dts is pts else _BACKWARDS_S
    return StreamClock(kind, tick, places, unwrapped, decode, shown, step_s, backwards_s)


def _match_counters(one: StreamClock, two: StreamClock, wrap: int) -> None:
    """Where a recording began just before its counter's end, one stream may have begun just after it."""
    firsts = [clock.decode[np.isfinite(clock.decode)][:_FEW] for clock in (one, two)]
    if not all(map(len, firsts)):
        return
    turns = round(float(np.median(firsts[0]) - np.median(firsts[1])) / float(wrap * one.tick))
    earlier = two if turns > 0 else one
    earlier.unwrapped += abs(turns) * wrap
    earlier.decode += abs(turns) * float(wrap * one.tick)
    earlier.shown += abs(turns) * float(wrap * one.tick)


def _decode_order(pts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Decode times for a container that stores none: what is decoded in a row is shown in the order of time.

    FFmpeg makes some up as well, but stumbles for long after a jump.
    """
    last = len(pts) - 1
    far = _REORDERING * max(1, int(np.median(np.diff(np.sort(pts))))) if last else 0
    # A group of images begins with a key frame, and where the clock jumps: all about there are far from all before.
    packets = np.arange(1, len(pts))
    jumps = np.ones(last, bool)
    for before, after in itertools.product((1, 2, 3), (0, 1, 2)):
        jumps &= np.abs(pts[np.minimum(packets + after, last)] - pts[np.maximum(packets - before, 0)]) > far
    borders = [0, *(np.flatnonzero(jumps | (keys[1:] > 0)) + 1).tolist(), len(pts)]
    return np.concatenate([np.sort(pts[first:end]) for first, end in itertools.pairwise(borders)])


def _find_damage(clock: StreamClock, max_step_s: float, *, alone: bool) -> None:
    """Find a clock's jumps and outliers.

    Args:
        clock: The stream.
        max_step_s: Largest step forwards.
        alone: Whether there is no other stream.
    """
    known = np.flatnonzero(np.isfinite(clock.decode))
    if not len(known):
        return
    # Sound that never goes back may have paused, or its packets are long: its steps are gaps.
    pauses = clock.kind == "audio" and alone and bool((np.diff(clock.decode[known]) >= 0).all())
    moved = _find_jumps(clock, known, max_step_s, _FEW_OF_SOUND_ALONE if pauses else _FEW_AT_THE_ENDS)
    if pauses:
        clock.jumps = []
    _find_outliers(clock, moved, max_step_s)


def _find_jumps(clock: StreamClock, known: np.ndarray, max_step_s: float, few_at_the_ends: int) -> np.ndarray:
    """Set the clock's `jumps`, and replace decode times that are off by what their neighbours say.

    Args:
        clock: The stream.
        known: Numbers of the packets that have a decode time.
        max_step_s: Largest step forwards.
        few_at_the_ends: Most packets at the start or the end that fit nothing and are off; more are a jump.

    Returns:
        Packets whose decode times were off.
    """
    times = clock.decode[known]
    off = _off_by_little(clock, times, max_step_s)
    # Runs of packets whose clock runs on: `first .. end - 1` of the remaining ones.
    rest = np.flatnonzero(~off)
    steps = np.diff(times[rest])
    borders = (
        np.flatnonzero((steps > max_step_s + np.diff(rest) * clock.step_s) | (steps < -clock.backwards_s)) + 1
    ).tolist()
    # Where a run goes on after a few packets as one before them ended, these few are off.
    kept: list[tuple[int, int]] = []
    for first, end in itertools.pairwise([0, *borders, len(rest)]):
        near = (b for b in reversed(range(len(kept))) if first - kept[b][1] <= _FEW)
        back = next((b for b in near if _goes_on(clock, times, rest[kept[b][1] - 1], rest[first], max_step_s)), None)
        if back is None:
            kept.append((first, end))
        else:
            off[rest[kept[back][1] : first]] = True
            kept[back:] = [(kept[back][0], end)]
    # So are a packet or two at the start or the end that fit nothing.
    if len(kept) > 1 and kept[0][1] - kept[0][0] <= min(few_at_the_ends, kept[1][1] - kept[1][0] - 1):
        off[rest[: kept.pop(0)[1]]] = True
    if len(kept) > 1 and kept[-1][1] - kept[-1][0] <= min(few_at_the_ends, kept[-2][1] - kept[-2][0] - 1):
        off[rest[kept.pop()[0] :]] = True
    clock.jumps = [int(known[rest[first]]) for first, _ in kept[1:]]
    # Their decode times, from those of their neighbours.
    moved, good = known[off], known[~off]
    inner = (moved > good[0]) & (moved < good[-1])
    clock.decode[moved[inner]] = np.interp(moved[inner], good, clock.decode[good])
    early, late = moved[moved < good[0]], moved[moved > good[-1]]
    clock.decode[early] = clock.decode[good[0]] - (good[0] - early) * clock.step_s
    clock.decode[late] = clock.decode[good[-1]] + (late - good[-1]) * clock.step_s
    return moved


def _off_by_little(clock: StreamClock, times: np.ndarray, max_step_s: float) -> np.ndarray:
    """Which packets are off by whatever they are: a few between a step backwards and one forwards, bool `[N]`."""
    off = np.zeros(len(times), bool)
    steps = np.diff(times)
    for back in np.flatnonzero(steps < -clock.backwards_s).tolist():
        least = max(-steps[back] / 2, _UNUSUAL * clock.step_s)
        # Too late: from a step forwards up to here. Too early: from here up to a step forwards.
        low = max(0, back - _FEW)
        for window, begin in ((steps[low:back], low), (steps[back + 1 : back + 1 + _FEW], back + 1)):
            if len(window) and window.max() >= least:
                forward = begin + int(window.argmax())
                first, end = (forward + 1, back + 1) if forward < back else (back + 1, forward + 1)
                if _goes_on(clock, times, first - 1, end, max_step_s):
                    off[first:end] = True
                    steps[first - 1 : end] = 0.0
                    break
    return off


def _goes_on(clock: StreamClock, times: np.ndarray, last: int, first: int, max_step_s: float) -> bool:
    """Whether packet `first` follows packet `last` as if those between them had their usual length."""
    step = times[first] - times[last]
    return bool(-clock.backwards_s <= step <= max_step_s + (first - last - 1) * clock.step_s)


def _find_outliers(clock: StreamClock, moved: np.ndarray, max_step_s: float) -> None:
    """Set the clock's `outliers`: packets whose presentation time is far from where their decode time puts them.

    Args:
        clock: The stream.
        moved: Packets whose decode time was off.
        max_step_s: Largest step forwards.
    """
    delays = clock.shown - clock.decode
    known = np.flatnonzero(np.isfinite(delays))
    if not len(known):
        return
    usual = float(np.median(delays[known]))
    far = np.abs(delays[known] - usual)
    # Delays vary as reordering makes them, and with pauses between frames by the length of these.
    calm = far[~np.isin(known, moved)] if len(moved) < len(known) else far
    ordinary = np.sort(calm)[: len(calm) - min(len(calm) - 1, max(3, len(calm) // 20))]
    reordering = min(float(ordinary[-1]) + _UNUSUAL * clock.step_s, _REORDERING * clock.step_s)
    steps = np.diff(clock.decode)
    paused = bool((steps[(steps <= max_step_s)] > _UNUSUAL * clock.step_s).any())
    most = np.full(len(known), max(max_step_s, _REORDERING * clock.step_s) if paused else reordering)
    most[np.isin(known, moved)] = reordering
    damaged = known[far > most]
    clock.outliers = frozenset(damaged.tolist())
    clock.shown[damaged] = clock.decode[damaged] + usual
