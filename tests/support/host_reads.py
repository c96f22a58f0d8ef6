"""Places at which Python asks for numbers of a tensor: on a GPU each of them waits until the device has got there.

`with HostReads() as reads: …; assert not reads.found` counts them on a CPU as well, where they cost nothing: reads
(`item`, `tolist`, `cpu`, `numpy`, `float(…)`, `if tensor`), operations whose result has a length that only the numbers
know (`nonzero`, a bool mask as an index), and copies of Python's own numbers to the device (`torch.tensor`, a list as
an index), which wait as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.paths import ROOT

_THIS = str(Path(__file__).resolve())
_READS = {
    getattr(torch.Tensor, name): name
    for name in (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "__array__",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__complex__",
        "__contains__",
        "is_nonzero",
    )
}
_COPIES = {torch.tensor: "tensor", torch.as_tensor: "as_tensor", torch.Tensor.new_tensor: "new_tensor"}
_INDEXED = {torch.Tensor.__getitem__: "[]", torch.Tensor.__setitem__: "[] ="}
_OPERATIONS = (
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
)


@dataclass(frozen=True, kw_only=True)
class HostRead:
    """A place at which Python waits for the device."""

    operation: str
    """Name of what was called: `item`, `tolist`, `aten::nonzero`, …"""
    file: str
    """File of the innermost line of this project, relative to its root."""
    line: int
    """Number of that line."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.operation}"


class HostReads:
    """Context that lists the host reads of this thread, in order, with those of backward passes on a CPU.

    What a Python function of PyTorch does inside is seen as far as it reaches an operation.
    """

    def __init__(self) -> None:
        self.found: list[HostRead] = []
        """One entry for each time, not for each place."""
        self._modes = (_Calls(self), _Operations(self))
        self._counted = False
        """Whether a call is under way that is counted already, with the operations that it consists of."""

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def __str__(self) -> str:
        """Each place once, with how often it was met."""
        counts: dict[str, int] = {}
        for read in map(str, self.found):
            counts[read] = counts.get(read, 0) + 1
        return "\n".join(f"{place} ({count} x)" for place, count in counts.items())

    def note(self, operation: str) -> None:
        """Add a read at the line of this project that runs now."""
        frame: Any = sys._getframe(1)
        inside = f"{ROOT}/"
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(inside) and "/.venv/" not in name and name != _THIS:
                self.found.append(HostRead(operation=operation, file=name.removeprefix(inside), line=frame.f_lineno))
                return
            frame = frame.f_back
        self.found.append(HostRead(operation=operation, file="?", line=0))


class _Calls(TorchFunctionMode):
    """Python's calls, which on a CPU do not all reach an operation."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = self._reads
        name = _waits(func, args, kwargs or {})
        if name is None or reads._counted:
            return func(*args, **(kwargs or {}))
        reads.note(name)
        reads._counted = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            reads._counted = False


class _Operations(TorchDispatchMode):
    """Operations, also those of PyTorch's own Python and of backward passes."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._reads._counted and (name := _waiting_operation(func, args, kwargs or {})):
            self._reads.note(name)
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any, kwargs: Any) -> str | None:
    """Name of a call that waits; None: it does not."""
    if func in _READS:
        return _READS[func]
    if func in _COPIES:
        # A tensor that is there already is not copied by `as_tensor`.
        data = kwargs.get("data", args[-1] if func is torch.Tensor.new_tensor else args[0] if args else None)
        return None if func is torch.as_tensor and torch.is_tensor(data) else _COPIES[func]
    if func in _INDEXED:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        # A list of numbers becomes a tensor of the host first; `[...]` of one bool is no mask.
        return _INDEXED[func] if any(isinstance(one, list | np.ndarray) for one in index) else None
    to = [*args[1:], *kwargs.values()]
    if func is torch.Tensor.to and any(isinstance(one, str) and one == "cpu" for one in to):
        return "to"
    return None


def _waiting_operation(func: Any, args: Any, kwargs: Any) -> str | None:
    """Name of an operation that waits; None: it does not."""
    name = func._schema.name
    if name in _OPERATIONS:
        return name
    if name == "aten::repeat_interleave" and func._overloadname.endswith("Tensor") and not kwargs.get("output_size"):
        return name
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
        # One number in all places of a mask is written without counting them.
        filled = name != "aten::index" and args[2].numel() == 1 and len(masks) == _given(args[1])
        return name if masks and not filled else None
    if name == "aten::_to_copy":
        device = kwargs.get("device")
        return name if device is not None and device.type == "cpu" and args[0].device.type != "cpu" else None
    return None


def _given(indices: Iterable[Any]) -> int:
    return sum(one is not None for one in indices)
