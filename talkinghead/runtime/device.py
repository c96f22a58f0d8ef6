"""Where the models run, and in which precision."""

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
    """The device asked for, or the best one for `auto`.

    Raises:
        ValueError: It is not there.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next((name for name, there in available.items() if there), "cpu")
    if not available.get(asked, True):
        raise ValueError(f"--device {asked}: {_MISSING[asked]}; take --device cpu")
    return asked


def named_dtype(name: str | None) -> torch.dtype | None:
    """`fp32`, `bf16` or `fp16` as PyTorch's; None stays None."""
    import torch

    return None if name is None else getattr(torch, _DTYPES[name])
