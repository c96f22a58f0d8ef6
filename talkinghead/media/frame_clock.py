"""Resamples frames to the project's constant rate on their presentation time.

Never by stride or average rate: a file with a variable rate, a late start or a gap keeps its timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from talkinghead.timebase import frame_time, frames_in


class Timed(Protocol):
    """Anything that is shown from a point in time on."""

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""
        ...

    @property
    def end_s(self) -> float:
        """When it would end if nothing followed, seconds."""
        ...


T = TypeVar("T", bound=Timed)


def constant_rate(frames: Iterable[T], start_s: float, end_s: float | None, tick_s: float) -> Iterator[T]:
    """For each output frame the source frame that it shows.

    Output frame `k` shows the last source frame with `time_s <= start_s + k/25 + tick_s/2`; half a tick forgives the
    rounding of time stamps. There are as many output frames as whole 25ths fit before the end of the last source frame
    or `end_s`, whichever comes first.

    Args:
        frames: Source frames in presentation order; the first must not be later than `start_s`. A frame that goes back
            in time is left out.
        start_s: Time of output frame 0.
        end_s: End of the interval, exclusive; None: to the end of the source.
        tick_s: Resolution of the source's time stamps.
    """
    limit = None if end_s is None else frames_in(end_s - start_s + tick_s / 2)
    shown: T | None = None
    k = 0
    for frame in frames:
        if shown is not None and frame.time_s < shown.time_s:
            continue
        while (
            shown is not None and (limit is None or k < limit) and start_s + frame_time(k) + tick_s / 2 < frame.time_s
        ):
            yield shown
            k += 1
        if limit is not None and k >= limit:
            return
        assert shown is not None or frame.time_s <= start_s + tick_s / 2, "the first frame comes after the start"
        shown = frame
    if shown is None:
        return
    last = frames_in(shown.end_s - start_s + tick_s / 2)
    while k < (last if limit is None else min(last, limit)):
        yield shown
        k += 1
