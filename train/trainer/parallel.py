"""Sharing a model among ranks: devices, preparing and wrapping a module, and the few sums that the ranks exchange."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import checkpoint

from train.config import ParallelConfig, TrainConfig
from train.trainer.precision import draws_masks, use_channels_last
from train.trainer.sharding import Layout, layout_of, mesh_of, set_sync, shard

T = TypeVar("T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_COMPILED_FORMS = 4
"""Forms of a block that are compiled: training, evaluation, and one of each for a smaller last part."""


def choose_device(config: ParallelConfig, local_rank: int) -> torch.device:
    """Device of a rank, made the current one if it is a GPU.

    Raises:
        ValueError: cuda was asked for, and there is none (or none for this rank).
    """
    if config.device == "cpu" or (config.device == "auto" and not _gpus()):
        return torch.device("cpu")
    check_devices(config, local_rank + 1)
    device = torch.device("cuda", local_rank)
    # NCCL and memory figures go by the current device.
    torch.cuda.set_device(device)
    return device


def check_devices(config: ParallelConfig, ranks: int) -> None:
    """Check that this machine has a device for each of so many ranks, without taking one.

    Raises:
        ValueError: There are too few GPUs. auto takes the CPU only where there is none at all, cuda never.
    """
    gpus = _gpus()
    if config.device == "cpu" or (config.device == "auto" and not gpus) or ranks <= gpus:
        return
    count, wanted = ("1 GPU" if gpus == 1 else f"{gpus or 'no'} GPUs"), ("1 rank" if ranks == 1 else f"{ranks} ranks")
    raise ValueError(
        f"parallel.device is {config.device}, and this machine has {count} for {wanted}:"
        f" {'start fewer ranks on it, or ' if gpus else ''}set --train.parallel.device cpu"
    )


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_covered(config: TrainConfig, what: str) -> None:
    """Raise `ValueError` where a training is to be shared or compiled in a way that no test covers.

    Args:
        config: Settings of the trainer.
        what: What the training has that not all have.
    """
    if config.parallel.strategy == "fsdp2":
        raise ValueError(f"a training with {what} cannot be sharded by FSDP2: take --train.parallel.strategy ddp")
    if config.parallel.compile:
        raise ValueError(f"a training with {what} cannot be compiled: take --train.parallel.no-compile")


def parallelise(
    module: nn.Module, config: ParallelConfig, device: torch.device, world: int, local_world: int | None = None
) -> nn.Module:
    """Move a module to its device, prepare its blocks, and wrap it for the ranks. Collective.

    Blocks (`module.blocks`, see `Task.build`) are changed in place by replacing their `forward`, so no name in a state
    dict changes. Under FSDP2 each block is sharded on its own, and gathered when its turn comes. Buffers are not
    exchanged: training must not change them.

    Args:
        module: Module that a task has built.
        config: Settings of how the ranks share the work.
        device: Device of this rank.
        world: Number of ranks.
        local_world: Number of ranks on this machine; None: all.

    Raises:
        ValueError: The ranks cannot be divided as the settings ask.
    """
    module = module.to(device)
    blocks = list(cast(Iterable[nn.Module], module.blocks))
    if config.compile:
        # Blocks of one class share their code, which is compiled for the shapes and the frozen parts of each. By
        # default PyTorch goes on without compiling after eight of them.
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, _COMPILED_FORMS * len(blocks))
    for block in blocks:
        # Compiled inside, checkpointed outside: the second forward pass then runs the compiled code, too. With static
        # shapes: a training has one, and for symbolic ones inductor fails on some of the networks.
        if config.compile:
            block.forward = torch.compile(block.forward, dynamic=False)
        if config.activation_checkpointing:
            # Keeping the state of the generators costs a copy from the device for each block.
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=draws_masks(block)
            )
    if config.strategy == "fsdp2":
        shard(module, blocks, config, mesh_of(_layout(config, device, world, local_world or world), device))
        return module
    use_channels_last(module, device)
    return wrap(module, device, world, config)


def _layout(config: ParallelConfig, device: torch.device, world: int, local_world: int) -> Layout:
    """Layout that every rank has found alike."""
    if config.shard_within == "node":
        most, least = over_ranks(
            torch.tensor([local_world, -local_world], dtype=torch.float64, device=device), dist.ReduceOp.MAX
        )
        if most != -least:
            raise ValueError(
                f"parallel.shard_within is node, and the machines have {-least:.0f} to {most:.0f} ranks: start equally"
                " many on each, or give a number"
            )
    return layout_of(config, world, local_world)


def wrap(module: nn.Module, device: torch.device, world: int, config: ParallelConfig) -> nn.Module:
    """Wrap a module for the ranks of DDP; a single rank needs no wrapper."""
    if world == 1:
        return module
    # Gradients are views of the buckets, which saves a copy of them all.
    wrapped = DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
    if config.gradients == "bf16":
        # PyTorch refuses its own hook, by its name, where there is no NCCL; gloo can sum bf16 as well.
        wrapped.register_comm_hook(None, lambda state, bucket: bf16_compress_hook(state, bucket))
    return wrapped


def bare(module: nn.Module) -> nn.Module:
    """Module without DDP's wrapper, which prefixes its names."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def reshard(module: nn.Module) -> None:
    """Give back what a forward pass without a backward pass has gathered of a sharded module's weights."""
    if isinstance(module, FSDPModule):
        module.reshard()


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Batch with its tensors on a device; from pinned memory they are copied while Python goes on."""
    return {name: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for name, v in batch.items()}


def autocast(config: ParallelConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Context of arithmetic in the asked precision, the same for all strategies."""
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


@contextmanager
def gradient_sync(module: nn.Module, active: bool, config: ParallelConfig) -> Iterator[None]:
    """Context in which a backward pass exchanges gradients, or (`active` False) leaves that to a later one as far as
    the settings say so."""
    if isinstance(module, FSDPModule):
        set_sync(module, config, active)
        yield
    elif isinstance(module, DistributedDataParallel) and not active:
        with module.no_sync():
            yield
    else:
        yield


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """L2 norm of the whole gradient, a scalar tensor equal on every rank. Collective where the gradient is sharded."""
    return full(get_total_norm([p.grad for p in parameters if p.grad is not None]))


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Whole tensor of a sharded one (collective); any other tensor comes back as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Part of a sharded tensor that this rank has; any other tensor comes back as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def alone() -> Iterator[None]:
    """Context in which this rank exchanges nothing: sums and lists over the ranks are its own.

    For what is left to record when a training fails: the other ranks may be anywhere by then.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_alone() -> bool:
    """Whether this rank exchanges nothing at present; see `alone`."""
    return _ALONE.get()


def reduced(values: torch.Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
    """Sum (or maximum) of each of `[N]` values over the ranks, without waiting for a GPU. Collective; `values` is
    overwritten."""
    if _many():
        dist.all_reduce(values, operation)
    return values


def over_ranks(values: torch.Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> list[float]:
    """Sum (or maximum) of each of `[N]` values over the ranks, on the host. Collective; `values` is overwritten."""
    return reduced(values, operation).tolist()


def gather_lists(values: list[T]) -> list[T]:
    """Lists of all ranks, one after the other. Collective and slow (pickles): for rare events."""
    if not _many():
        return values
    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


def gather_rows(values: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Rows of all ranks, `[n, …]` → `[N, …]`, in the order of the ranks. Collective.

    Args:
        values: Rows of this rank.
        sizes: Number of rows of each rank.
    """
    if not _many():
        return values
    # All ranks must send equally much.
    padded = torch.cat([values, values.new_zeros((max(sizes) - len(values), *values.shape[1:]))])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _many() -> bool:
    """Whether there are other ranks to exchange something with."""
    return not is_alone() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
