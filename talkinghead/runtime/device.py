"""Device on which the models compute, and their precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MISSING = {
    "cuda": "PyTorch finds no CUDA device here",
    "mps": "PyTorch finds no Metal device here",
}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def choose_device(asked: str) -> str:
    """Name of the device that was asked for; for `auto` the best one: CUDA, then Metal, then the CPU.

    Raises:
        ValueError: PyTorch finds no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next((name for name, there in available.items() if there), "cpu")
    if not available.get(asked, True):
        raise ValueError(f"--device {asked}: {_MISSING[asked]}; take --device cpu")
    return asked


def named_dtype(name: str | None) -> torch.dtype | None:
    """PyTorch's type for `fp32`, `bf16` or `fp16`; None for None."""
    import torch

    return None if name is None else getattr(torch, _DTYPES[name])
