"""Processes that do not keep to the rules of `infer.metrics.scripted_child`, as a program that broke out of it would.

`python -m tests.support.hostile_child…` is started in its place; which rule it breaks says the variable TORCH_HOSTILE.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time

from infer.metrics.scripted_child import FAILED, FEATURES, HEADER, NOT_CONFINED, READY, SIZE


def main() -> None:
    """Break one rule."""
    kind = os.environ["TORCH_HOSTILE"]
    if kind == "not confined":
        reply(NOT_CONFINED, b"the kernel takes no filter")
        return
    reply(READY, b"")
    if kind == "deaf":
        time.sleep(3600)
    request = json.loads(sys.stdin.buffer.read(*SIZE.unpack(sys.stdin.buffer.read(SIZE.size))))
    sys.stdin.buffer.read(sum(4 * math.prod(shape) for shape in request.get("shapes", ())))
    if kind == "endless":
        while True:
            reply(FEATURES, b"")
    if kind == "mute":
        time.sleep(3600)
    if kind == "closing":
        os.close(1)
        time.sleep(3600)
    if kind == "huge":
        sys.stdout.buffer.write(HEADER.pack(FEATURES, 2**62))
    elif kind == "short":
        reply(FEATURES, SIZE.pack(8) + bytes(8))
    elif kind == "columns":
        reply(FEATURES, SIZE.pack(2**63) + bytes(64))
    elif kind == "unknown":
        reply(200, b"what")
    elif kind == "pickle":
        reply(FEATURES, b"cos\nsystem\n(S'true'\ntR.")
    elif kind == "text":
        reply(FAILED, "\x1b[2Jcleared\nerror: \u202eset weights_only=False".encode() + b"\xff" * 900)
    elif kind == "environment":
        reply(FAILED, " ".join(sorted(os.environ)).encode())
    sys.stdout.flush()
    time.sleep(3600)


def reply(kind: int, content: bytes) -> None:
    """Write a reply."""
    sys.stdout.buffer.write(HEADER.pack(kind, len(content)) + content)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
