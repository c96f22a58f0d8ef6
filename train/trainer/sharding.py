"""Layouts of a training's state over its ranks: whole on each (DDP), shared out among all (FSDP2), or among groups of
neighbours that each hold a copy (HSDP).

Two choices are stated in `ParallelConfig`: in which numbers weights are gathered and gradients summed, and what becomes
of the gradients of a step's microbatches until its last one. What a rank then holds, `train.doctor.footprint` counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from train.config import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Copies of the state of a training, and the ranks that share out each."""

    replicas: int
    """Number of copies."""
    shards: int
    """Number of ranks that share out a copy; 1: each has a whole one."""

    @property
    def name(self) -> str:
        """Short name for people: ddp, fsdp2 or hsdp."""
        return "ddp" if self.shards == 1 else "fsdp2" if self.replicas == 1 else "hsdp"


def layout_of(config: ParallelConfig, world: int, local_world: int) -> Layout:
    """Layout of a training.

    Args:
        config: Settings of how the ranks share the work.
        world: Number of ranks.
        local_world: Number of ranks on a machine.

    Raises:
        ValueError: The ranks cannot be divided so.
    """
    if config.strategy == "ddp":
        return Layout(replicas=world, shards=1)
    shards = {None: world, "node": local_world}.get(config.shard_within, config.shard_within)
    assert isinstance(shards, int)
    if world % shards:
        raise ValueError(
            f"{world} ranks cannot be divided into groups of {shards} that share out the state: choose"
            " --train.parallel.shard-within so that it divides their number, or leave it out"
        )
    return Layout(replicas=world // shards, shards=shards)


# --- sharding ---------------------------------------------------------------------------------------------------------


def shard(module: nn.Module, blocks: Iterable[nn.Module], config: ParallelConfig, mesh: DeviceMesh) -> None:
    """Share a module out by FSDP2, in place: each block on its own, then what is left.

    With bf16, weights are gathered in bf16, and gradients are summed in float32. Inputs of blocks are cast along with
    their weights; those of the whole are not, since timesteps and positions must stay as exact as they are.

    Args:
        module: Module on its device.
        blocks: Its repeated parts.
        config: Precision of the arithmetic.
        mesh: Ranks that share it out, and, in a first dimension, its copies.
    """
    low = torch.bfloat16 if config.precision == "bf16" else None
    inner = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    outer = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=inner.reduce_dtype, cast_forward_inputs=False)
    # Each call takes the parameters that no earlier one has taken.
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=inner)
    fully_shard(module, mesh=mesh, mp_policy=outer)


def mesh_of(layout: Layout, device: torch.device) -> DeviceMesh:
    """Mesh of a layout: its copies, where there are several, by its shards. Ranks of a shard are neighbours in number.
    Collective."""
    if layout.replicas == 1:
        return init_device_mesh(device.type, (layout.shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (layout.replicas, layout.shards), mesh_dim_names=("replicate", "shard"))


def set_sync(module: FSDPModule, config: ParallelConfig, last: bool) -> None:
    """Set up the next backward pass of a sharded module: whether it exchanges the gradients.

    Args:
        module: Module that `shard` has shared out.
        config: What becomes of gradients before the last microbatch.
        last: Whether this is the last microbatch of the step.
    """
    module.set_requires_gradient_sync(last or config.accumulation == "sharded")
    # Copies exchange only once what their shards have added up.
    module.set_requires_all_reduce(last)
