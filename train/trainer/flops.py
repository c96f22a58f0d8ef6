"""Floating-point operations of a training: counted in one step, and what its devices could do in the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from train.config import ParallelConfig

_BF16, _TF32, _FP32 = "bf16", "tf32", "fp32"
PEAKS: Mapping[str, Mapping[str, float]] = {
    # Dense matrix products with sums in float32, in 10¹² operations a second, without sparsity. The vendors' data
    # sheets: NVIDIA B200 (DGX B200, 2024), H200 (2024), H100 (2023), A100 (2021), L40S (2023), L4 (2023), A40 (2021),
    # A10 (2021), whitepapers "Ada GPU architecture" and "GA102" for the RTX cards; AMD Instinct MI300X (2023).
    # The longest name that occurs in the device's own counts.
    "B200": {_BF16: 2250, _TF32: 1125, _FP32: 75},
    "H200": {_BF16: 989.4, _TF32: 494.7, _FP32: 66.9},
    "GH200": {_BF16: 989.4, _TF32: 494.7, _FP32: 66.9},
    "H100": {_BF16: 989.4, _TF32: 494.7, _FP32: 66.9},
    "H100 NVL": {_BF16: 835.5, _TF32: 417.7, _FP32: 60.0},
    "H100 PCIe": {_BF16: 756.5, _TF32: 378.2, _FP32: 51.2},
    "A100": {_BF16: 312, _TF32: 156, _FP32: 19.5},
    "A800": {_BF16: 312, _TF32: 156, _FP32: 19.5},
    "L40S": {_BF16: 362, _TF32: 183, _FP32: 91.6},
    "L4": {_BF16: 121, _TF32: 60, _FP32: 30.3},
    "A40": {_BF16: 149.7, _TF32: 74.8, _FP32: 37.4},
    "NVIDIA A10": {_BF16: 125, _TF32: 62.5, _FP32: 31.2},
    "RTX 4090": {_BF16: 165.2, _TF32: 82.6, _FP32: 82.6},
    "RTX 3090": {_BF16: 71.2, _TF32: 35.6, _FP32: 35.6},
    "MI300X": {_BF16: 1307.4, _TF32: 653.7, _FP32: 163.4},
}
"""Name of a GPU → its peak in each precision."""


def peak_of(name: str, config: ParallelConfig) -> float | None:
    """Peak of a GPU in the precision of a training, in operations a second; None for a GPU that is not listed.

    Args:
        name: Name of the GPU, as `torch.cuda.get_device_name` gives it.
        config: Precision; fp32 is TF32 where PyTorch may use that for matrix products.
    """
    known = max((known for known in PEAKS if _names(known, name)), key=len, default=None)
    if known is None or "Laptop" in name:  # those have the names of faster cards
        return None
    single = _TF32 if torch.get_float32_matmul_precision() != "highest" else _FP32
    return PEAKS[known][_BF16 if config.precision == "bf16" else single] * 1e12


def _names(known: str, name: str) -> bool:
    """Whether a name of the table stands in a device's name, as whole words: `L4` is no `L40S`."""
    words = name.replace("-", " ").split()
    wanted = known.split()
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the samples of a training cost."""

    flops: float
    """Operations of the forward and backward passes of a sample; a multiplication with an addition counts as two."""
    world: int
    """Number of ranks."""
    peak: float | None
    """Operations that the device of a rank can do in a second; None where that is not known."""

    def figures(self, samples_per_s: float) -> dict[str, float]:
        """`tflops`, 10¹² operations a second of each rank, and `mfu`, their share of the peak (model FLOPs utilisation,
        Chowdhery et al., arXiv 2204.02311: operations that are done again do not count)."""
        rate = self.flops * samples_per_s / self.world
        return {"tflops": rate / 1e12} | ({} if self.peak is None else {"mfu": rate / self.peak})


class FlopCount(TorchDispatchMode):
    """Context in which the operations of forward and backward passes are counted, by the formulas of
    `torch.utils.flop_counter`: products of matrices, convolutions and attention, and nothing else.

    Forward passes that activation checkpointing repeats in a backward pass do not count.

    Attributes:
        flops: Number of operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it takes."""
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "_overloadpacket", None)
        formula = flop_registry.get(packet) or _FORMULAS.get(packet)
        if formula is not None and not _repeated():
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _repeated() -> bool:
    """Whether a forward pass runs inside a backward pass, which by itself needs no graph."""
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_FORMULAS: Mapping[Any, Any] = {
    # PyTorch has no formulas for the attention that it runs on a CPU.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
