"""The sound of a file as mono samples on one grid of 16 kHz, whatever its rate and layout do on the way.

A run is sound of one rate and one layout, in one segment of the timeline. Each run is mixed and resampled by itself,
from a point at which its own grid of samples and ours meet, so that the place of a sample does not depend on where
reading began. The runs are then put on the common grid, each at its own time.
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
    """Mono sound at 16 kHz out of decoded frames.

    Gaps in the time stamps become silence, overlaps are cut, jitter is ignored. A lost packet is a gap, also where it
    is shorter than what may be jitter.

    Args:
        frames: Frames in the order of the file.
        mixes: How the channels are mixed; what is not named is mixed as `plain_mix` says.
        wanted: Interval in seconds on the timeline, in which samples that are no numbers are counted.
        begin_s: What ends before is left out, seconds on the timeline; None: nothing is.
        end_s: What begins after is left out; None: nothing is, and `SOUND_SECONDS` are the most.
        name: Name of the file, for messages.

    Raises:
        ValueError: The sound is longer than `SOUND_SECONDS`, and no end was named.
    """
    joined = _Joined()
    for (_, key), group in itertools.groupby(frames, lambda frame: (frame.segment, mix_key(frame))):
        layout, channels, rate = key
        expected = None if joined.end is None else round(joined.end * rate / SAMPLE_RATE)
        mix = mixes.get(key) or plain_mix(channels, layout)
        run = _Run(group, rate, mix, expected, wanted, begin_s, end_s, name)
        # Resample while it is decoded, so that the whole is in memory at 16 kHz only.
        joined.start()
        for part in run.resampled():
            joined.samples += memoryview(np.ascontiguousarray(part)).cast("B")  # pyright: ignore[reportArgumentType]
        joined.finish(run)
        if run.ended:
            break
    return joined.sound()


class _Joined:
    """Runs one after the other on the 16 kHz grid."""

    def __init__(self) -> None:
        self.samples = bytearray()  # float32; grows in place, where an array would be copied
        self.end: int | None = None  # grid position after the last sample
        self._offset = 0
        self._before = 0  # bytes before the present run
        self._gaps: list[tuple[int, int]] = []
        self._nan_samples = 0

    def start(self) -> None:
        """Begin a run; its samples are added to `samples`."""
        self._before = len(self.samples)

    def finish(self, run: _Run) -> None:
        """Put the samples since `start` where they belong."""
        skip, count, offset = run.extent()
        width = np.dtype(np.float32).itemsize
        del self.samples[self._before + (skip + count) * width :]
        count = min(count, (len(self.samples) - self._before) // width - skip)
        if count <= 0:
            del self.samples[self._before :]
            return
        if self.end is None:
            self._offset = self.end = offset
        # A run that begins late has silence before it, one that begins early loses what is there already.
        cut = min(count, max(0, self.end - offset))
        late = max(0, offset - self.end)
        self.samples[self._before : self._before + (skip + cut) * width] = bytes(late * width)
        if late:
            self._gaps.append((self.end, offset))
        self.end += late + count - cut
        self._gaps += [(run.on_grid(begin), run.on_grid(end)) for begin, end in run.gaps]
        self._nan_samples += run.nan_samples

    def sound(self) -> Sound:
        """All runs."""
        samples = np.frombuffer(self.samples, np.float32)
        return Sound(samples=samples, offset=self._offset, gaps=self._gaps, nan_samples=self._nan_samples)


class _Run:
    """Mono sound at the source's own rate, joined from decoded frames piece by piece.

    Args:
        frames: Frames of one rate and layout, at least one.
        rate: Their rate.
        mix: How their channels are mixed.
        expected: Position of the first sample where its frame has no time stamp, in samples; None: 0.
        wanted: Interval in which samples that are no numbers are counted.
        begin_s: What ends before is left out, seconds on the timeline; None: nothing is.
        end_s: What begins after is left out; None: nothing is, and `SOUND_SECONDS` are the most.
        name: Name of the file, for messages.
    """

    def __init__(
        self,
        frames: Iterator[SoundFrame],
        rate: int,
        mix: Mix,
        expected: int | None,
        wanted: tuple[float, float],
        begin_s: float | None,
        end_s: float | None,
        name: str,
    ) -> None:
        self._frames = frames
        self._rate = rate
        self._mix = mix
        self._first = expected is None
        self._wanted = wanted
        self._begin_s = begin_s
        self._end_s = end_s
        self._name = name
        self._position = expected or 0  # of the first sample on the timeline, in samples
        self._count = 0  # samples so far
        self.ended = False
        """Whether sound that begins after the end was met."""
        self.gaps: list[tuple[int, int]] = []
        """Begin and end of silence inside, in samples at the source's rate."""
        self.nan_samples = 0
        """Samples that were no numbers, in what was wanted."""

    def resampled(self) -> Iterator[np.ndarray]:
        """The sound at 16 kHz, in arrays float32 `[n]`; `extent` says what of it counts."""
        parts = self._joined()
        first = next(parts, None)
        if first is None:
            return
        parts = itertools.chain([first], parts)
        if self._rate == SAMPLE_RATE:
            yield from parts
        else:
            # The resampler puts its first output on its first input, so the input must start where both grids meet.
            lead = np.zeros(self._position % self._block, np.float32)
            yield from _resample(itertools.chain([lead], parts), self._rate)

    def extent(self) -> tuple[int, int, int]:
        """Samples to leave out of all that `resampled` gave, samples to keep after them, and their grid position."""
        # Leave out what the start before it added, and what the filter's end did.
        lead = self._position % self._block
        skip = -(-lead * SAMPLE_RATE // self._rate)
        total = (lead + self._count) * SAMPLE_RATE // self._rate
        offset = (self._position - lead) // self._block * (SAMPLE_RATE // math.gcd(self._rate, SAMPLE_RATE))
        return skip, max(0, total - skip), offset + skip

    def on_grid(self, position: int) -> int:
        """Position at the source's rate → on the 16 kHz grid."""
        return -(-position * SAMPLE_RATE // self._rate)

    @property
    def _block(self) -> int:
        """Samples from one to the next at which the source's grid and ours meet: 441 at 44.1 kHz, 3 at 48 kHz."""
        return self._rate // math.gcd(self._rate, SAMPLE_RATE)

    def _joined(self) -> Iterator[np.ndarray]:
        """Mono samples `[n]` at the source's rate, without gaps."""
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
            mono = self._mix.apply(frame.samples)
            # The first one that is wanted; the codec needed those before the span.
            if not self._count:
                if self._begin_s is not None and begin + len(mono) <= self._begin_s * self._rate:
                    continue
                self._position = expected = begin
            # Join it to the samples so far.
            step = self._step(frame, following, begin - expected)
            if step > 0:
                self._check_length(expected + step)  # a gap of hours is not filled first
                self.gaps.append((expected, expected + step))
                yield from self._silence(step)
            elif step < 0:
                mono = mono[-step:]
            if len(frame.bad):
                times = (frame.bad + expected + step) / self._rate
                self.nan_samples += int(np.sum((times >= self._wanted[0]) & (times < self._wanted[1])))
            yield self._counted(mono)

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
            yield self._counted(np.zeros(min(self._rate, count - begin), np.float32))

    def _counted(self, mono: np.ndarray) -> np.ndarray:
        self._count += len(mono)
        self._check_length(self._position + self._count)
        return mono

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


def _resample(parts: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Mono samples `[n]` at `rate` → at 16 kHz, the first on the first."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options=_FILTER)
    for number, second in enumerate(_blocks(parts, rate)):
        frame = AudioFrame.from_ndarray(second[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, number * rate, Fraction(1, rate)
        for out in resampler.resample(frame):
            yield out.to_ndarray()[0]
    for out in resampler.resample(None):
        yield out.to_ndarray()[0]


def _blocks(parts: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Samples `[n]` in arrays of one size; the last one may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            whole = np.concatenate(held)
            for begin in range(0, count - size + 1, size):
                yield whole[begin : begin + size]
            held = [whole[count // size * size :]]
            count = len(held[0])
    if count:
        yield np.concatenate(held)
