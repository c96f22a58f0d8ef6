"""Checks that the system has the shared libraries that MediaPipe and OpenCV load, which wheels cannot bring.

Run by `make setup` as `python -m talkinghead.runtime.native`.
"""

from __future__ import annotations

import ctypes
import sys

NEEDED = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
    "libglib-2.0.so.0": "libglib2.0-0",
}
"""Shared library → the Debian or Ubuntu package that brings it."""


def missing_libraries(needed: dict[str, str] = NEEDED) -> dict[str, str]:
    """The needed libraries that cannot be loaded, with the Debian package of each."""
    missing = {}
    for library, package in needed.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = package
    return missing


def main() -> int:
    """Check the libraries; when one is missing, print a line that says what to install and return status 1."""
    if missing := missing_libraries():
        names, packages = ", ".join(missing), " ".join(missing.values())
        print(
            f"error: the system lacks {names}, which MediaPipe and OpenCV load. "
            f"On Debian or Ubuntu: apt-get install {packages}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
