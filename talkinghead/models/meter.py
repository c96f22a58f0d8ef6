"""Cost of a computation in operations and memory, counted on the meta device, whose tensors have no content."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """Cost of one computation."""

    flops: int
    """Number of floating point operations in matrix products, convolutions and attention: two per multiplication."""
    peak_bytes: int
    """Largest total size in bytes of tensors that were made inside and alive at the same time."""


@torch.no_grad()
def measure_cost(run: Callable[[], object]) -> Cost:
    """Cost of calling `run` once.

    Attention counts as one fused kernel, which needs no memory for its scores. Workspaces inside kernels do not count.

    Args:
        run: The computation, on the meta device: there attention has a result of the right shape and no content.
    """
    # The outer mode sees attention as one function, before PyTorch takes it apart into operations that the inner sees.
    meter = _Meter()
    with _FusedAttention(meter), meter:
        run()
    return Cost(meter.flops, meter.peak)


class _Meter(TorchDispatchMode):
    """Counts the operations of PyTorch's dispatcher and the storages that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.peak = 0
        self._now = 0
        # Storages by the address of their C++ object, which all views of one share.
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._outside: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Arguments that nothing here made are weights and inputs: they were there before, and so are views of them.
        given = (value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self._outside.update(key for key in given if key not in self._alive)
        out = func(*args, **kwargs)
        # PyTorch's own table of formulas; operations without one (norms, activations) count as free.
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._watch(value.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._outside:
            return
        size = storage.nbytes()
        self._now += size
        self.peak = max(self.peak, self._now)

        def gone(_: object) -> None:
            del self._alive[key]
            self._now -= size

        # Called when the last tensor on the storage is gone.
        self._alive[key] = weakref.ref(storage, gone)


class _FusedAttention(TorchFunctionMode):
    """Counts attention as one kernel: the meta device would take it apart, with scores that no real device stores."""

    def __init__(self, meter: _Meter) -> None:
        super().__init__()
        self._meter = meter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args[:3], **{name: value for name, value in (kwargs or {}).items() if name in _INPUTS})
        return func(*args, **(kwargs or {}))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert query.is_meta, "costs are counted on the meta device"
        # Scores and weighted values, two matrix products. [..., T, D], [..., S, D], [..., S, V] → [..., T, V]
        *rows, length, width = query.shape
        self._meter.flops += 2 * math.prod(rows) * length * key.shape[-2] * (width + value.shape[-1])
        return query.new_empty(*rows, length, value.shape[-1])


_INPUTS = ("query", "key", "value")
