"""Limit of the memory that reading one file of the user's may take, in this process.

Headers are checked first (`talkinghead.media.limits`), but not everything that a file makes FFmpeg or Pillow ask for
stands in a header: an MP4 of 900 bytes can announce an index of gigabytes. Ingest reads each file in a worker with a
limit of its own; a command reads two or three, and would pay a process, its imports and a copy of all pixels for each.
So the limit is set in this process, for as long as a file is read, and taken off before networks are loaded, which need
as much as they need.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import cv2

_STATUS = Path("/proc/self/status")
_CV2_NO_MEMORY = -4  # cv::Error::StsNoMem
GIGABYTE = 1 << 30


@contextlib.contextmanager
def memory_limit(what: str, limit: int) -> Iterator[None]:
    """Context in which a file is read: an error names it when this process asks for too much more memory.

    It holds for all threads of the process. Without effect where the system does not tell the process's memory (macOS).

    Args:
        what: File that is read, for the message: `the portrait a.png`.
        limit: Bytes that may be added to what the process has now.

    Raises:
        ValueError: Reading it takes more.
    """
    # Private memory that can be written (RLIMIT_DATA), rather than address space: mapped files and libraries, and what
    # CUDA reserves, are gigabytes that nothing was spent on.
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = _private_memory()
    if used is not None:
        wanted = used + limit
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard)
        )
    try:
        yield
    except MemoryError as error:
        raise ValueError(_too_much(what, limit)) from error
    except cv2.error as error:
        if getattr(error, "code", 0) != _CV2_NO_MEMORY:
            raise
        raise ValueError(_too_much(what, limit)) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_memory() -> int | None:
    """Bytes that count for the limit so far; None where the system does not tell."""
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return None


def _too_much(what: str, limit: int) -> str:
    return (
        f"{what} takes more than {limit / GIGABYTE:.1f} GB of memory to read: it is damaged, or made to fill the"
        " memory; convert it first, or take another"
    )
