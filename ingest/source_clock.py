"""Times as a source's own clock says them, and where they lie on its re-based timeline.

A data set's metadata names intervals by the time that players show. Where a source's clock jumps, its frames are read
on a timeline that goes on without the jump (`talkinghead/media/timeline.py`); intervals are looked for in the source's
own time, and what is reported is in it, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from talkinghead.media.timeline import Timeline

_SAME_CLOCK = 2.0  # frames by which the first image of a segment may come late where the video's clock runs on
_PRIMING_S = 0.1  # by which the sound may begin before 0:00: what its codec needs to get going
_ROUNDING_S = 1e-3  # by which the first frame of a segment may be shown early: time stamps are whole ticks


@dataclass(frozen=True)
class _Part:
    """A segment of the timeline."""

    start_s: float
    """Start on the re-based timeline."""
    begin_s: float
    """Start in the source's own time."""
    end_s: float
    """End in the source's own time."""
    offset_s: float
    """Source's own time less re-based time."""


class SourceClock:
    """The clock of one source."""

    def __init__(self, timeline: Timeline | None, shown_start_s: float = 0.0) -> None:
        """Take the source's timeline.

        Args:
            timeline: The timeline; None, or a plain one: both times are the same.
            shown_start_s: Time in the file that players show as 0:00, as its header says it; not believed where it is
                far from the first image and sound.
        """
        self._parts: list[_Part] = []
        if timeline is None or timeline.is_plain or "video" not in timeline.spans:
            return
        # What is subtracted from times in the file to get re-based ones, for each segment.
        first = timeline.segments[0]
        offset = first_offset = first.raw_start_s - timeline.spans["video"][0]
        origin = shown_start_s if abs(shown_start_s - offset) <= _PRIMING_S else offset
        for segment in timeline.segments:
            # Where only the sound's clock jumps, a segment begins between two images of a video that runs on.
            found = first_offset if segment is first else segment.raw_start_s - segment.start_s
            if abs(found - offset) > _SAME_CLOCK * timeline.frame_s:
                offset = found
            begin, end = segment.raw_start_s - origin, segment.raw_end_s - origin
            self._parts.append(_Part(segment.start_s, begin, end, offset - origin))

    def interval(self, start_s: float | None, end_s: float | None) -> tuple[float | None, float | None]:
        """An interval of the source's own time on the re-based timeline; None: from the beginning, to the end.

        Of times that come twice, the first ones are meant. A time in a gap is where the source goes on after it.
        """
        if not self._parts:
            return start_s, end_s
        begins, start = 0, start_s
        if start_s is not None:
            begins = next((n for n, part in enumerate(self._parts) if start_s < part.end_s), len(self._parts) - 1)
            part = self._parts[begins]
            start = max(start_s, part.begin_s) - part.offset_s if begins else start_s - part.offset_s
        end = end_s
        if end_s is not None:
            # The last part that the interval reaches, before the clock goes back.
            reached = self._parts[begins]
            for before, part in zip(self._parts[begins:], self._parts[begins + 1 :], strict=False):
                if part.begin_s < before.end_s or part.begin_s >= end_s:
                    break
                reached = part
            # What lies beyond the reached part is not shown: at its end, the next one begins.
            later = [part for part in self._parts if part.start_s > reached.start_s]
            end = min(end_s - reached.offset_s, later[0].start_s if later else math.inf)
        return start, end

    def time(self, time_s: float) -> float:
        """A time of the re-based timeline in the source's own time."""
        reached = [part for part in self._parts if part.start_s <= time_s + _ROUNDING_S]
        return time_s + (reached[-1].offset_s if reached else 0.0)
