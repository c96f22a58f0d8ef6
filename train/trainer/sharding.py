"""Layouts of a training's state over its ranks: whole on each (DDP), shared out among all (FSDP2), or among groups of
neighbours that each hold a copy (HSDP).

What a rank holds is counted here (`rank_bytes`), and the sharding itself is done here (`shard`). Two choices are stated
in `ParallelConfig`: in which numbers weights are gathered and gradients summed, and what becomes of the gradients of a
step's microbatches until its last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from train.config import OptimizerConfig, ParallelConfig
from train.trainer.eight_bit_adam import BLOCK_8BIT, LEAST_8BIT


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


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes that a rank's device holds of a training's state."""

    weights: int
    """Weights in float32, trained and frozen, of which a rank has its share."""
    gradients: int
    """Gradients in float32 at the end of a step, and in full size until then where they are kept whole."""
    moments: int
    averages: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.moments + self.averages


def rank_bytes(
    trained: Iterable[Sequence[int]],
    frozen: Iterable[Sequence[int]],
    layout: Layout,
    *,
    parallel: ParallelConfig,
    optimizer: OptimizerConfig,
    averages: bool,
    accumulation: int,
) -> RankBytes:
    """Bytes of a rank, counted from the shapes of the parameters alone.

    Each parameter is cut along its first dimension; the rank with the largest shares counts. What a block takes while
    its turn is there (gathered weights, activations) comes on top, as do buffers.

    Args:
        trained: Shapes of the trained parameters.
        frozen: Shapes of the frozen ones.
        layout: How the ranks hold them.
        parallel: Settings of how the ranks share the work.
        optimizer: Settings of the optimizer.
        averages: Whether averages are kept.
        accumulation: Number of microbatches of a rank in a step.
    """
    trained = [tuple(shape) for shape in trained]
    shares = [_share(shape, layout.shards) for shape in trained]
    own = sum(shares)
    gradients = 4 * own
    if layout.shards > 1 and accumulation > 1 and parallel.accumulation == "whole":
        # Full size until the last microbatch, whose exchange leaves the shares; block by block, so not both at once.
        gradients = 4 * sum(map(math.prod, trained))
    moments = sum(_moments(count, optimizer) for count in shares)
    return RankBytes(
        weights=4 * (own + sum(_share(tuple(shape), layout.shards) for shape in frozen)),
        gradients=gradients,
        moments=moments,
        averages=4 * own if averages else 0,
    )


def _share(shape: tuple[int, ...], shards: int) -> int:
    """Most numbers of a parameter that one of its shards has."""
    return math.prod(shape) if not shape else -(-shape[0] // shards) * math.prod(shape[1:])


def _moments(count: int, optimizer: OptimizerConfig) -> int:
    """Bytes of both moments of so many numbers, and of the count of updates."""
    if optimizer.name != "adamw8bit" or count < LEAST_8BIT:
        return 8 * count + 4
    return 2 * (count + 4 * -(-count // BLOCK_8BIT)) + 4


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
