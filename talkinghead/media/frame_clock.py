"""Resamples a source's frames to the project's rate, on their presentation time, never by stride or average rate.

A file with a variable rate, a late start or a gap keeps its timing. Damaged clocks are mended before, see
`talkinghead/media/timeline.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from talkinghead.timebase import FPS, frame_time, frames_in


class Timed(Protocol):
    """Anything with a presentation time."""

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""
        ...

    @property
    def end_s(self) -> float:
        """End in seconds if nothing follows."""
        ...


T = TypeVar("T", bound=Timed)


def constant_rate(frames: Iterable[T], start_s: float, end_s: float | None, tick_s: float) -> Iterator[T]:
    """The source frame that each output frame shows.

    Output frame `k` shows the last source frame with `time_s <= start_s + k/25 + tick_s/2`; half a tick forgives the
    rounding of time stamps. There are as many output frames as whole 25ths fit before the end of the last source frame
    or `end_s`, whichever comes first.

    Args:
        frames: Source frames in presentation order; the first one is shown from `start_s` on, also where it is later.
            A frame that goes back in time is left out.
        start_s: Time of output frame 0, seconds.
        end_s: End of the interval, exclusive, seconds; None: to the end of the source.
        tick_s: Resolution of the source's time stamps, seconds.
    """
    limit = None if end_s is None else frames_in(end_s - start_s + tick_s / 2)
    shown: T | None = None
    k = 0
    for frame in frames:
        if shown is not None and frame.time_s < shown.time_s:
            continue
        # The frame before is shown at every output time until this one begins.
        while (
            shown is not None and (limit is None or k < limit) and start_s + frame_time(k) + tick_s / 2 < frame.time_s
        ):
            yield shown
            k += 1
        if limit is not None and k >= limit:
            return
        shown = frame
    if shown is None:
        return
    # The last frame is shown until its own end.
    last = frames_in(shown.end_s - start_s + tick_s / 2)
    while k < (last if limit is None else min(last, limit)):
        yield shown
        k += 1


def gap_between(one: Timed, two: Timed) -> float:
    """Time from one source frame to a later one in 25ths of a second.

    1 where every output frame shows the next source frame; 2 where a frame was dropped, in the source or for being a
    copy. Motion between the two frames is as many times as large as at 25 frames per second.
    """
    return (two.time_s - one.time_s) * FPS
