"""Shares of a checkpoint: which rank copies and writes which tensor, so that all ranks together stage one copy.

Under DDP every rank has the whole state, and under HSDP each group of ranks. PyTorch removes such duplicates only from
the files: each rank would first copy all it has into the computer's memory, eight times 30 GB on a machine with eight
GPUs. Here each tensor has one owner, by a rule that all ranks apply alike, and nobody else copies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def own_share(tensors: Mapping[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Part of a state that a rank stages and writes; the parts of all ranks make up the whole, each tensor once.

    A tensor that all ranks have goes to one of them. Of a sharded tensor each rank has its shard; where there are
    copies of the shards, one group of ranks owns all of them. Owners are chosen so that all have about equally much.

    Args:
        tensors: Nested dicts of tensors, with the same names and sizes on every rank.
        rank: Number of this process.
        world: Number of processes.
    """
    return _Owners(rank, world).share(tensors)


class _Owners:
    """Bytes that each owner has until now: ranks, and copies of sharded tensors."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self._ranks = [0] * world
        self._copies: list[int] = []

    def share(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tensors.items():
            if isinstance(value, Mapping):
                if inner := self.share(value):
                    found[name] = inner
            elif self._is_own(value):
                found[name] = value
        return found

    def _is_own(self, tensor: torch.Tensor) -> bool:
        size = tensor.numel() * tensor.element_size()
        if not isinstance(tensor, DTensor):
            return _next(self._ranks, size) == self.rank
        mesh = tensor.device_mesh
        if mesh.ndim == 1:  # one copy, which all ranks share out
            return True
        self._copies = self._copies or [0] * mesh.size(0)
        coordinate = mesh.get_coordinate()
        assert coordinate is not None, "every rank is in the mesh"
        return _next(self._copies, size) == coordinate[0]


def _next(loads: list[int], size: int) -> int:
    """Owner with the least, who gets so many bytes more."""
    owner = loads.index(min(loads))
    loads[owner] += size
    return owner
