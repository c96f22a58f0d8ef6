"""How far long units are: their frames, from the job function through the worker to the driver.

    job function     report_frames(41_200)              as often as it likes
    worker           with reporting(tell): …            passes one on every few seconds
    alone            a few bytes in memory, which the child of `alone.py` writes and its parent reads
    cluster          FrameBoard, an actor               the driver looks at it now and then

Nothing here waits for anybody: a report that gets lost, with the board or its node, costs a unit nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

EVERY_S = 3.0
"""Least time from one report of a worker to the next, and from one look of the driver to the next, in seconds."""

Tell = Callable[[int], None]
"""Function that takes the number of frames that a unit has gone through."""

_tell: Tell | None = None
_next = 0.0

T = TypeVar("T")


@contextlib.contextmanager
def reporting(tell: Tell | None) -> Iterator[None]:
    """Pass the reports of the unit that runs in this process on to `tell`; with None they go nowhere."""
    global _tell, _next
    _tell, _next = tell, time.monotonic() + EVERY_S  # what the very first frames take says nothing about the others
    try:
        yield
    finally:
        _tell = None


def report_frames(frames: int) -> None:
    """Report how many frames of the unit this process has gone through."""
    global _next
    if _tell is not None and (now := time.monotonic()) >= _next:
        _next = now + EVERY_S
        _tell(frames)


def counted(frames: Iterable[T]) -> Iterator[T]:
    """The frames, each reported when the next one is asked for."""
    for number, frame in enumerate(frames):
        report_frames(number)
        yield frame


class FrameBoard:
    """Actor on which workers note how far their units are. It keeps one number for each unit that runs."""

    def __init__(self) -> None:
        self._frames: dict[str, int] = {}

    def note(self, key: str, frames: int | None) -> None:
        """Note the frames of a unit; None: it has ended."""
        if frames is None:
            self._frames.pop(key, None)
        else:
            self._frames[key] = frames

    def frames(self) -> dict[str, int]:
        """Key of each unit that runs → its frames."""
        return dict(self._frames)


class FrameWatch:
    """The driver's side of the board. It never waits for an answer, and does without one.

    Attributes:
        board: Handle of the actor, for the workers.
        frames: Key of a unit → frames that it has gone through, as last heard.
    """

    def __init__(self, ray: Any) -> None:
        # No CPU of its own; begun anew on another node when its own is lost.
        self.board = ray.remote(num_cpus=0, max_restarts=-1)(FrameBoard).remote()
        self.frames: Mapping[str, int] = {}
        self._ray = ray
        self._asked: Any = None

    def look(self) -> None:
        """Take the answer to the last question if there is one, and ask again."""
        from ray.exceptions import RayError

        asked, self._asked = self._asked, None
        with contextlib.suppress(RayError):  # the board is lost for now: the next look asks anew
            if asked is not None:
                if not self._ray.wait([asked], timeout=0)[0]:
                    self._asked = asked
                    return
                self.frames = self._ray.get(asked)
        with contextlib.suppress(RayError):
            self._asked = self.board.frames.remote()


@contextlib.contextmanager
def noting(board: Any, key: str) -> Iterator[Tell | None]:
    """Function of a worker that notes the frames of a unit on the board, without waiting; None without a board."""
    if board is None:
        yield None
        return
    from ray.exceptions import RayError

    def note(frames: int | None) -> None:
        with contextlib.suppress(RayError):
            board.note.remote(key, frames)

    note(0)  # an earlier try may have left more
    try:
        yield note
    finally:
        note(None)
