"""Weights that are kept from one video to the next, where many are made in one process.

    with weights_kept():
        for request in requests:
            make_audio_video(request)

Within it, a function that is decorated with `kept` returns what it returned last, if it is called with the same
arguments again. It holds one result at a time, as two pipelines seldom fit onto a device: rows of one set of weights
are best done one after another. Without `weights_kept` nothing is held.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_KEPT: ContextVar[dict[str, tuple[Any, Any]] | None] = ContextVar("kept weights", default=None)
"""Name of a function → its last arguments and result; None: nothing is kept."""


@contextlib.contextmanager
def weights_kept() -> Iterator[None]:
    """Context in which functions decorated with `kept` keep their last result."""
    before = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(before)


def kept(load: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorator of a function that loads weights; its arguments must be hashable, and its result not be changed."""

    @functools.wraps(load)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        held = _KEPT.get()
        if held is None:
            return load(*args, **kwargs)
        name, asked = f"{load.__module__}.{load.__qualname__}", (args, tuple(sorted(kwargs.items())))
        hash(asked)
        if name in held and held[name][0] == asked:
            return held[name][1]
        held.pop(name, None)  # freed first: there may be no room for both
        result = load(*args, **kwargs)
        held[name] = (asked, result)
        return result

    return call
