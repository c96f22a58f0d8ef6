"""Limits of the download of one video: its size, its time, and what counts as one video at all.

A limit that is reached ends the video with a `LimitError`. The error is kept too, because yt-dlp turns some exceptions
into its own.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

PAGE_BYTES = 64 << 20
"""Most bytes of a web page or a manifest; YouTube's largest scripts have 3 MB."""


class LimitError(Exception):
    """A limit is reached; the message is for the log of the download."""

    def __init__(self, message: str, status: Literal["failed", "refused"], *, of_all: bool = False) -> None:
        super().__init__(message)
        self.status: Literal["failed", "refused"] = status
        """`refused`: this command will never take it. `failed`: it may pass."""
        self.of_all = of_all
        """Whether it is the limit for all videos together, so that the download stops."""


class VideoLimits:
    """Limits of one video."""

    def __init__(self, *, max_bytes: int, bytes_left: int, max_seconds: float) -> None:
        """Start the time.

        Args:
            max_bytes: Most bytes of this video.
            bytes_left: Most bytes that all videos together may still take.
            max_seconds: Longest time.
        """
        self._max_bytes = max_bytes
        self._bytes_left = bytes_left
        self._max_seconds = max_seconds
        self._end = time.monotonic() + max_seconds
        self._files: dict[str, int] = {}
        self.error: LimitError | None = None
        """The limit that was reached first."""

    @property
    def bytes(self) -> int:
        """Bytes that were fetched so far, over all files of the video."""
        return sum(self._files.values())

    def refuse(self, message: str) -> LimitError:
        """Error for what this command never takes."""
        return self._reached(LimitError(message, "refused"))

    def check_time(self) -> None:
        """Raise `LimitError` when the time is over."""
        if time.monotonic() >= self._end:
            raise self._reached(LimitError(f"not done after {self._max_seconds / 60:g} min (--max-minutes)", "failed"))

    def on_progress(self, state: dict[str, Any]) -> None:
        """Check size and time; called by yt-dlp for each block that it has written."""
        self.check_time()
        # What is announced counts before it has come; but a server may announce less than it sends, or nothing.
        written, announced = state.get("downloaded_bytes") or 0, state.get("total_bytes") or 0
        self._files[str(state.get("filename"))] = written
        size = self.bytes + max(0, announced - written)
        if size > self._max_bytes:
            raise self.refuse(f"larger than {self._max_bytes / 2**30:g} GiB (--max-gib)")
        if size > self._bytes_left:
            message = "more than --max-total-gib leaves"
            raise self._reached(LimitError(message, "failed", of_all=True))

    def check_video(self, info: dict[str, Any], *, incomplete: bool = False) -> None:
        """Raise `LimitError` for what is no finished video; called by yt-dlp before it fetches one."""
        status = info.get("live_status")
        if info.get("is_live") or status in ("is_live", "is_upcoming", "post_live"):
            raise self.refuse("a live stream, which has no end; a recording of it can be fetched later")
        # A list, and its entries, are not one video.
        if info.get("_type") in ("playlist", "multi_video", "compat_list") or info.get("playlist"):
            raise self.refuse("the address shows a page or a list, not one video")

    def read_page(self, read: Callable[[int], bytes]) -> bytes:
        """A whole answer of a site, which is read into memory.

        Args:
            read: Function from a number of bytes to the next bytes of the answer, at most so many.
        """
        parts: list[bytes] = []
        size = 0
        while part := read(1 << 20):
            parts.append(part)
            size += len(part)
            self.check_time()
            if size > PAGE_BYTES:
                raise self.refuse(f"a page of the site has more than {PAGE_BYTES >> 20} MiB")
        return b"".join(parts)

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Also end a wait for a server that sends a byte now and then, which no check is reached in.

        The signal works in the main thread only, where commands run; elsewhere the checks have to do.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ringing = True

        def ring(*_: object) -> None:
            if ringing:
                self.check_time()

        # Again and again, because a library may take the first exception for an error of the network and go on.
        handler = signal.signal(signal.SIGALRM, ring)
        started = time.monotonic()
        before = signal.setitimer(signal.ITIMER_REAL, max(self._end - started, 0.001), 1.0)
        try:
            yield
        finally:
            ringing = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if before[0]:  # somebody else's alarm
                left = max(before[0] - (time.monotonic() - started), 0.001)
                signal.setitimer(signal.ITIMER_REAL, left, before[1])

    def _reached(self, error: LimitError) -> LimitError:
        self.error = self.error or error
        return error
