"""Counted operations, against what layers are known to take."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.training import Ranks, lines, recipe, train
from train.config import ParallelConfig
from train.trainer.flops import PEAKS, FlopCount, Work, peak_of

SAMPLES, INPUT, WIDTH = 10, 6, 16


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUT, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def counted(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCount() as count:
        module(x).sum().backward()
    return count.flops


def test_linear_layers() -> None:
    weights = INPUT * WIDTH + WIDTH * WIDTH + WIDTH
    # Forward, gradients of the weights, and of all inputs but the first.
    assert counted(layers(), torch.randn(SAMPLES, INPUT)) == 2 * SAMPLES * (3 * weights - INPUT * WIDTH)


def test_a_frozen_layer_needs_less() -> None:
    module = layers()
    module[0].requires_grad_(False)
    weights = INPUT * WIDTH + WIDTH * WIDTH + WIDTH
    later = WIDTH * WIDTH + WIDTH
    expected = 2 * SAMPLES * (weights + later + WIDTH)  # the gradient of an input is needed of the last one only
    assert counted(module, torch.randn(SAMPLES, INPUT)) == expected


def test_what_is_computed_again_does_not_count() -> None:
    module, x = layers(), torch.randn(SAMPLES, INPUT)
    plain = counted(module, x)
    block = nn.Sequential(*module)
    block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    runs: list[int] = []
    module[0].register_forward_hook(lambda *_: runs.append(1))
    assert counted(block, x) == plain
    assert len(runs) == 2, "it was computed again"


def test_attention_on_a_cpu() -> None:
    query, key, value = (torch.randn(2, 4, length, 8, requires_grad=True) for length in (5, 7, 7))
    with FlopCount() as count:
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        forward = count.flops
        out.sum().backward()
    assert forward == 2 * (2 * 2 * 4 * 5 * 7 * 8)
    assert count.flops > 2.9 * forward


def test_convolutions_and_compiled_code_count() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    with FlopCount() as count, torch.no_grad():
        conv(torch.randn(2, 3, 8, 8))
    assert count.flops == 2 * 2 * 8 * 8 * 3 * 5 * 9


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
        ("", None),
    ],
)
def test_peaks_by_name(name: str, bf16: float | None) -> None:
    assert peak_of(name, ParallelConfig(precision="bf16")) == bf16
    single = peak_of(name, ParallelConfig(precision="fp32"))
    assert (single is None) == (bf16 is None) and (single is None or bf16 is None or single < bf16)


def test_peaks_are_in_order() -> None:
    for peaks in PEAKS.values():
        assert peaks["bf16"] > peaks["tf32"] >= peaks["fp32"]


def test_figures() -> None:
    known = Work(flops=2e12, world=4, peak=1e14)
    assert known.figures(100.0) == {"tflops": 50.0, "mfu": 0.5}
    assert Work(flops=2e12, world=4, peak=None).figures(100.0) == {"tflops": 50.0}


def flops_of(line: dict[str, Any], world: int) -> float:
    return line["tflops"] * 1e12 * world / line["samples_per_s"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_sample_costs_the_same_on_any_ranks(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    train(tmp_path / "one", recipe())
    ranks.run(train, tmp_path / "two", recipe(parallel={"strategy": strategy, "activation_checkpointing": True}))
    one, two = lines(tmp_path / "one")[0], lines(tmp_path / "two")[0]
    # Two blocks of 8 x 8, features of 6 x 8 that are frozen, a head of 8.
    expected = 2 * (6 * 8 + 2 * 64 + 8) + 2 * 2 * (2 * 64 + 8)
    assert flops_of(one, 1) == pytest.approx(expected, rel=0.01)
    assert flops_of(two, 2) == pytest.approx(flops_of(one, 1), rel=1e-6)
    assert "mfu" not in one, "nobody knows the peak of a CPU"
