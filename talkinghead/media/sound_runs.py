"""The sound of a file on one grid of samples, whatever its rate and layout do on the way.

A run is sound of one rate and one layout, in one segment of the timeline. Each run is mixed and resampled by itself,
from a point at which its own grid of samples and the common one meet, so that the place of a sample does not depend on
where reading began. The runs are then put on the common grid, each at its own time.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame

from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.limits import SOUND_SECONDS
from talkinghead.media.mono import Mix, plain_mix
from talkinghead.media.sound_frames import SoundFrame
from talkinghead.timebase import SAMPLE_RATE

MixKey = tuple[tuple[str, ...] | None, int, int]
"""Layout, number of channels and rate: sound that is mixed alike."""

_JITTER_S = 0.04  # time stamps may be this far off the running count of samples without meaning a gap
_SETTLES = 8  # frames; a smaller step that all of them keep is no jitter, but a lost packet or one that came twice
_FILTER = {"filter_size": "64"}  # taps per phase; images at -95 dB, pass band to 7.5 kHz (measured)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """Mono sound on the 16 kHz grid of a timeline."""

    samples: np.ndarray
    """Float32 `[N]`."""
    offset: int
    """Grid position of the first sample; may be negative."""
    gaps: list[tuple[int, int]]
    """Begin and end, on the grid, of silence that stands for sound that is missing inside."""
    nan_samples: int
    """Samples at the source's rate that were no numbers, in what was wanted."""


def mix_key(frame: SoundFrame) -> MixKey:
    """What decides how a frame is mixed."""
    return frame.layout, len(frame.samples), frame.rate


def join_runs(
    frames: Iterable[SoundFrame],
    mixes: Mapping[MixKey, Mix],
    wanted: tuple[float, float],
    begin_s: float | None,
    end_s: float | None,
    name: str,
) -> Sound:
    """Mono sound at 16 kHz out of decoded frames; arguments and errors are those of `SoundRuns`."""
    runs = SoundRuns(frames, mixes, name, wanted=wanted, begin_s=begin_s, end_s=end_s)
    # Only the whole at 16 kHz is in memory, in bytes: they grow in place, where an array would be copied.
    samples = bytearray()
    for piece in runs.pieces():
        samples += np.ascontiguousarray(piece[0]).data.cast("B")
    return Sound(
        samples=np.frombuffer(samples, np.float32), offset=runs.offset, gaps=runs.gaps, nan_samples=runs.nan_samples
    )


class SoundRuns:
    """The runs of a file one after the other on a common grid, as one or two channels.

    Gaps in the time stamps become silence, overlaps are cut, jitter is ignored. A lost packet is a gap, also where it
    is shorter than what may be jitter.
    """

    def __init__(
        self,
        frames: Iterable[SoundFrame],
        mixes: Mapping[MixKey, Mix],
        name: str,
        *,
        rate: int = SAMPLE_RATE,
        channels: int = 1,
        wanted: tuple[float, float] = (-math.inf, math.inf),
        begin_s: float | None = None,
        end_s: float | None = None,
    ) -> None:
        """Decode nothing yet.

        Args:
            frames: Frames in the order of the file.
            mixes: How the channels are mixed; what is not named is mixed as `plain_mix` says.
            name: Name of the file, for messages.
            rate: Rate of the grid, Hz.
            channels: 1 for mono, 2 for stereo, see `Mix.stereo`.
            wanted: Interval in seconds on the timeline, in which samples that are no numbers are counted.
            begin_s: What ends before is left out, seconds on the timeline; None: nothing is.
            end_s: What begins after is left out; None: nothing is, and `SOUND_SECONDS` are the most.
        """
        self.offset: int = 0
        """Position of the first sample on the grid, once there is a piece."""
        self.gaps: list[tuple[int, int]] = []
        """Begin and end, on the grid, of silence that stands for sound that is missing inside."""
        self.nan_samples = 0
        """Samples at the source's rate that were no numbers, in what was wanted."""
        self._frames = frames
        self._mixes = mixes
        self._name = name
        self._rate = rate
        self._channels = channels
        self._wanted = wanted
        self._begin_s = begin_s
        self._end_s = end_s
        self._end: int | None = None  # position after the last sample so far

    def pieces(self) -> Iterator[np.ndarray]:
        """The sound from `offset` on without gaps, in arrays float32 `[channels, n]`.

        Raises:
            ValueError: The sound is longer than `SOUND_SECONDS`, and no end was named.
        """
        for (_, key), group in itertools.groupby(self._frames, lambda frame: (frame.segment, mix_key(frame))):
            layout, channels, rate = key
            expected = None if self._end is None else round(self._end * rate / self._rate)
            mix = self._mixes.get(key) or plain_mix(channels, layout)
            limits = self._begin_s, self._end_s
            run = _Run(group, rate, mix, self._rate, self._channels, expected, self._wanted, limits, self._name)
            yield from self._placed(run)
            self.gaps += [(run.on_grid(begin), run.on_grid(end)) for begin, end in run.gaps]
            self.nan_samples += run.nan_samples
            if run.ended:
                break

    def _placed(self, run: _Run) -> Iterator[np.ndarray]:
        """A run's samples where they belong: one that begins late has silence before it, an early one loses some."""
        position: int | None = None
        for part in run.resampled():
            if not part.shape[1]:
                continue
            position = run.offset if position is None else position
            if self._end is None:
                self.offset = self._end = position
            end = self._end
            if position > end:
                self.gaps.append((end, position))
                for begin in range(end, position, self._rate):
                    yield np.zeros((self._channels, min(self._rate, position - begin)), np.float32)
                end = position
            kept = part[:, max(0, end - position) :]
            position += part.shape[1]
            self._end = end + kept.shape[1]
            if kept.shape[1]:
                yield kept


class _Run:
    """Sound of one rate and layout, joined from decoded frames piece by piece.

    Args:
        frames: Frames of one rate and layout, at least one.
        rate: Their rate.
        mix: How their channels are mixed.
        grid_rate: Rate of the common grid.
        channels: 1 or 2, for mono or stereo.
        expected: Position of the first sample where its frame has no time stamp, in samples; None: 0.
        wanted: Interval in which samples that are no numbers are counted.
        limits: What ends before and what begins after is left out, seconds on the timeline; None: nothing is, and
            `SOUND_SECONDS` are the most.
        name: Name of the file, for messages.
    """

    def __init__(
        self,
        frames: Iterator[SoundFrame],
        rate: int,
        mix: Mix,
        grid_rate: int,
        channels: int,
        expected: int | None,
        wanted: tuple[float, float],
        limits: tuple[float | None, float | None],
        name: str,
    ) -> None:
        self._frames = frames
        self._rate = rate
        self._mix = mix
        self._grid_rate = grid_rate
        self._channels = channels
        self._first = expected is None
        self._wanted = wanted
        self._begin_s, self._end_s = limits
        self._name = name
        self._position = expected or 0  # of the first sample on the timeline, in samples
        self._count = 0  # samples so far
        self.offset: int = 0
        """Position of the first sample that `resampled` gives, on the grid; known with its first part."""
        self.ended = False
        """Whether sound that begins after the end was met."""
        self.gaps: list[tuple[int, int]] = []
        """Begin and end of silence inside, in samples at the source's rate."""
        self.nan_samples = 0
        """Samples that were no numbers, in what was wanted."""

    def resampled(self) -> Iterator[np.ndarray]:
        """The sound at the rate of the grid, in arrays float32 `[channels, n]`."""
        parts = self._joined()
        first = next(parts, None)
        if first is None:
            return
        parts = itertools.chain([first], parts)
        # The source's grid and the common one meet every so many samples: 441 at 44.1 kHz, 3 at 48 kHz.
        common = math.gcd(self._rate, self._grid_rate)
        block = self._rate // common
        lead = self._position % block
        skip = -(-lead * self._grid_rate // self._rate)
        self.offset = (self._position - lead) // block * (self._grid_rate // common) + skip
        if self._rate == self._grid_rate:
            yield from parts
            return
        # The resampler puts its first output on its first input, so the input must start where both grids meet. What
        # this adds at the start is left out again, and what the filter's end adds, which comes last.
        given = 0
        silence = np.zeros((self._channels, lead), np.float32)
        for part in _resample(itertools.chain([silence], parts), self._rate, self._grid_rate, self._channels):
            total = (lead + self._count) * self._grid_rate // self._rate
            yield part[:, max(0, skip - given) : max(0, total - given)]
            given += part.shape[1]

    def on_grid(self, position: int) -> int:
        """Position at the source's rate → on the common grid."""
        return -(-position * self._grid_rate // self._rate)

    def _joined(self) -> Iterator[np.ndarray]:
        """Samples `[channels, n]` at the source's rate, without gaps."""
        for frame, following in _with_following(self._frames):
            # Where the frame begins: by its time stamp, else right after the one before.
            expected = self._position + self._count
            begin = expected if frame.begin is None else frame.begin
            if self._end_s is not None and begin >= self._end_s * self._rate:
                self.ended = True
                if self._begin_s is None:  # what is read from 0 on has silence until there
                    self._position = 0 if self._first and not self._count else self._position
                    missing = math.ceil(self._end_s * self._rate) - self._position - self._count
                    yield from self._silence(missing)
                break
            mixed = self._mix.stereo(frame.samples) if self._channels == 2 else self._mix.apply(frame.samples)[None]
            # The first one that is wanted; the codec needed those before the span.
            if not self._count:
                if self._begin_s is not None and begin + mixed.shape[1] <= self._begin_s * self._rate:
                    continue
                self._position = expected = begin
            # Join it to the samples so far.
            step = self._step(frame, following, begin - expected)
            if step > 0:
                self._check_length(expected + step)  # a gap of hours is not filled first
                self.gaps.append((expected, expected + step))
                yield from self._silence(step)
            elif step < 0:
                mixed = mixed[:, -step:]
            if len(frame.bad):
                kept = frame.bad[frame.bad >= -step]  # not those that an overlap cuts off
                times = (kept + expected + step) / self._rate
                self.nan_samples += int(np.sum((times >= self._wanted[0]) & (times < self._wanted[1])))
            yield self._counted(mixed)

    def _step(self, frame: SoundFrame, following: Iterable[SoundFrame], step: int) -> int:
        """Samples of silence to put before a frame, or (negative) to cut off it, given how far its time stamp is off
        the running count of samples; 0 for jitter.
        """
        length = frame.samples.shape[1]
        whole = round(step / length) * length
        whole = whole if abs(whole - step) <= frame.tick else step  # the time stamp may be rounded to a millisecond
        if abs(step) > _JITTER_S * self._rate:
            return whole
        # A packet that is lost, or came twice, shifts all that follows, by its own length.
        least = max(length / 2, 2 * frame.tick, self._rate * 2e-3)
        if abs(step) < least:
            return 0
        kept, ahead = [], length
        for later in following:
            if later.begin is not None and frame.begin is not None:
                kept.append(abs(later.begin - frame.begin - ahead) < least / 2)
            ahead += later.samples.shape[1]
        if not frame.after_damage and (len(kept) < 2 or not all(kept)):
            return 0
        return whole

    def _silence(self, count: int) -> Iterator[np.ndarray]:
        """Silence of any length, a second at a time."""
        for begin in range(0, count, self._rate):
            yield self._counted(np.zeros((self._channels, min(self._rate, count - begin)), np.float32))

    def _counted(self, samples: np.ndarray) -> np.ndarray:
        self._count += samples.shape[1]
        self._check_length(self._position + self._count)
        return samples

    def _check_length(self, end: int) -> None:
        """Raise `ValueError` where the sound up to a position is longer than what is read whole."""
        if self._end_s is None and max(end, end - self._position) > SOUND_SECONDS * self._rate:
            raise UnreadableMediaError(
                "too_long",
                f"the sound of {self._name} is longer than {SOUND_SECONDS:.0f} s, the most that is read whole, or its"
                " time stamps leave a gap of hours",
            )


def _with_following(frames: Iterator[SoundFrame]) -> Iterator[tuple[SoundFrame, Iterable[SoundFrame]]]:
    """Each frame with those that come next, `_SETTLES` at most."""
    ahead: deque[SoundFrame] = deque()
    while True:
        while len(ahead) <= _SETTLES and (frame := next(frames, None)) is not None:
            ahead.append(frame)
        if not ahead:
            return
        yield ahead.popleft(), ahead


def _resample(parts: Iterator[np.ndarray], rate: int, new_rate: int, channels: int) -> Iterator[np.ndarray]:
    """Samples `[channels, n]` at `rate` → at `new_rate`, the first on the first."""
    layout = "stereo" if channels == 2 else "mono"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=new_rate, options=_FILTER)
    for number, second in enumerate(_blocks(parts, rate)):
        frame = AudioFrame.from_ndarray(second, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, number * rate, Fraction(1, rate)
        for out in resampler.resample(frame):
            yield out.to_ndarray()
    for out in resampler.resample(None):
        yield out.to_ndarray()


def _blocks(parts: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Samples `[channels, n]` in contiguous arrays of one size; the last one may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for part in parts:
        held.append(part)
        count += part.shape[1]
        if count >= size:
            whole = np.concatenate(held, axis=1)
            for begin in range(0, count - size + 1, size):
                yield np.ascontiguousarray(whole[:, begin : begin + size])
            held = [whole[:, count // size * size :]]
            count = held[0].shape[1]
    if count:
        yield np.ascontiguousarray(np.concatenate(held, axis=1))
