"""Memory of this process at its peak."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Bytes of memory that the process itself held at its peak (resident set).

    Source: the kernel's high-water mark (`VmHWM`) where there is one. `getrusage` also counts the memory that the
    parent held when it started this process.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Elsewhere: bytes on macOS, KiB on other systems.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
