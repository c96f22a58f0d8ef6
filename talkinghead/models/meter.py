"""What a computation costs, counted while it runs on tensors that may be without content (the meta device)."""

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
    """What one computation takes."""

    flops: int
    """Floating point operations of matrix products, convolutions and attention: two for each multiplication."""
    peak_bytes: int
    """Most memory of tensors that were made inside and alive at the same time."""


@torch.no_grad()
def measure_cost(run: Callable[[], object]) -> Cost:
    """Run once and count.

    Attention counts as one fused kernel, which needs no memory for its scores; workspaces of kernels are not seen.

    Args:
        run: What to count, on the meta device: there attention has a result of the right shape and no content.
    """
    meter = _Meter()
    with _FusedAttention(meter), meter:
        run()
    return Cost(meter.flops, meter.peak)


class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.peak = 0
        self._now = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._outside: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Weights and inputs were there before, also where a result is a view of them.
        given = (value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self._outside.update(key for key in given if key not in self._alive)
        out = func(*args, **kwargs)
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

        self._alive[key] = weakref.ref(storage, gone)


class _FusedAttention(TorchFunctionMode):
    """On the meta device attention would be taken apart, into a table of scores that no real device makes."""

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
        *rows, length, width = query.shape
        self._meter.flops += 2 * math.prod(rows) * length * key.shape[-2] * (width + value.shape[-1])
        return query.new_empty(*rows, length, value.shape[-1])


_INPUTS = ("query", "key", "value")
