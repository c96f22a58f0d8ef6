"""Arithmetic of a training: in which numbers matrices are multiplied, which networks run in bf16, how images lie in
memory, and whether every operation repeats its bits.

All of it follows from `ParallelConfig`, so that config.json of a run says it. PyTorch by itself lets convolutions on a
GPU round to TF32, and products of matrices not: here both go by `parallel.precision`.
"""

from __future__ import annotations

import copy
import os
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from train.config import ParallelConfig

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE = (":4096:8", ":16:8")  # docs.nvidia.com/cuda/cublas, "Results reproducibility"

N = TypeVar("N", bound=nn.Module)


def set_arithmetic(config: ParallelConfig) -> None:
    """Set how this process computes on any device: products in float32, and whether operations must be deterministic.

    Call it before the first operation on a GPU: cuBLAS reads its variable once.

    Raises:
        ValueError: It must be deterministic, and the environment asks cuBLAS for something else.
    """
    rounded = config.precision != "fp32"
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded
    if config.deterministic and os.environ.setdefault(WORKSPACE, _REPEATABLE[0]) not in _REPEATABLE:
        raise ValueError(
            f"parallel.deterministic needs {WORKSPACE}={_REPEATABLE[0]} (or {_REPEATABLE[1]}), and the environment has"
            f" {os.environ[WORKSPACE]!r:.50}: unset it"
        )
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    if config.deterministic:
        torch.backends.cudnn.benchmark = False  # it chooses among algorithms by their time


def computed_in(device: torch.device) -> torch.dtype:
    """Numbers in which networks compute where it is called: those of autocast, under which the trainer calls a loss."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def prepare_frozen(network: N, dtype: torch.dtype, device: torch.device) -> N:
    """Frozen network that a loss runs next to its module (VAE, image encoder, judge), ready on a device.

    On a GPU with bf16 it is a copy in bf16, with convolutions in channels_last: half the memory, and no casts at each
    call. The given network stays as it is then, for exports and hashes. Else it is the given one, moved.

    Args:
        network: Network without trained parameters.
        dtype: What the training computes in; see `computed_in`.
        device: Device of the rank.
    """
    assert not any(parameter.requires_grad for parameter in network.parameters())
    if dtype != torch.bfloat16 or device.type == "cpu":
        return network.to(device)
    prepared = copy.deepcopy(network).to(device, dtype)
    _lay_out(prepared)
    return prepared


def use_channels_last(module: nn.Module, device: torch.device) -> None:
    """Lay out the kernels of convolutions as tensor cores take them, in parts that ask for it, on a GPU.

    A part asks by an attribute `channels_last` that is True. The layout of the images follows that of the kernels. It
    changes no number but by rounding. FSDP2 cannot shard such kernels: this is for DDP and for one rank.

    Args:
        module: Module on its device.
        device: Its device; on a CPU nothing changes.
    """
    if device.type == "cpu":
        return
    for part in module.modules():
        if getattr(part, "channels_last", False):
            _lay_out(part)


def _lay_out(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def draws_masks(block: nn.Module) -> bool:
    """Whether a block draws dropout masks in training, so that computing it again needs the state of the generators.

    True for a layer of PyTorch with p > 0, and for any part with a number above 0 whose name has `dropout` in it, which
    it passes on to a function.
    """
    return any(
        part.p > 0 if isinstance(part, _DropoutNd) else any(map(_is_probability, vars(part).items()))
        for part in block.modules()
    )


def _is_probability(item: tuple[str, object]) -> bool:
    name, value = item
    return "dropout" in name and isinstance(value, int | float) and value > 0
