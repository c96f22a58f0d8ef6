"""Memory limit of a unit's process, so that one unit ends instead of starving the machine.

A process that computes on the CPU gets a limit from the system (RLIMIT_DATA): what goes beyond fails with
`MemoryError`. That counts memory that could be written, used or not. CUDA maps many gigabytes of it that it never
touches, and a process with such a limit has no GPU. There a thread looks at what the process really holds, and ends the
process, since nothing can make an allocation fail after the fact. What the thread misses, because native code keeps the
interpreter, meets Ray's own memory monitor.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path

ENDED = 71
"""Exit status of a process that held more than its limit."""

_STATUS = Path("/proc/self/status")
_HELD = ("RssAnon:", "VmSwap:")
"""Lines of `_STATUS` with memory that only this process has: no files, libraries or memory that it shares."""
_LOOK_S = 0.25


def limit_memory(gigabytes: float, *, on_gpu: bool = False) -> None:
    """Give this process a memory limit, or another one than before.

    Args:
        gigabytes: Private memory that it may take, GiB.
        on_gpu: Whether it computes on a GPU: it then ends with the status `ENDED` beyond the limit.
    """
    limit = int(gigabytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # RLIMIT_DATA rather than RLIMIT_AS: mapped files and libraries, gigabytes of address space, do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (hard if on_gpu else limit, hard))
    _watch.limit = limit if on_gpu else None
    if on_gpu and not _watch.is_alive() and _STATUS.is_file():
        _watch.start()


class _Watch(threading.Thread):
    """Thread that ends the process when it holds more than the limit, in bytes; None: it only waits."""

    def __init__(self) -> None:
        super().__init__(name="memory limit", daemon=True)
        self.limit: int | None = None

    def run(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            if (limit := self.limit) is not None and (held := _held()) > limit:
                print(f"the process holds {held / 2**30:.2f} GiB, may hold {limit / 2**30:g}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(ENDED)


_watch = _Watch()


def _held() -> int:
    """Private memory that this process really holds, bytes."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return sum(1024 * int(words[1]) for words in lines if words and words[0] in _HELD)
