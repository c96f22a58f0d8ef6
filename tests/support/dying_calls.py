"""A process that is killed at a given change of files, to try all moments of a kill one after the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def die_at(number: int, *names: str) -> None:
    """Kill this process with SIGKILL at the `number`-th call, from 1, of these functions of `os` together."""
    left = number

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def die(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return die

    for name in names:
        setattr(os, name, dying(getattr(os, name)))
