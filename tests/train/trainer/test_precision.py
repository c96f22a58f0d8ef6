"""Arithmetic of a training: what is set in PyTorch, frozen networks, layouts of kernels, and states of generators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.toy_task import Block
from tests.support.training import recipe, train
from train.config import ParallelConfig
from train.trainer.parallel import autocast, parallelise
from train.trainer.precision import (
    WORKSPACE,
    computed_in,
    draws_masks,
    prepare_frozen,
    set_arithmetic,
    use_channels_last,
)

CPU, GPU = torch.device("cpu"), torch.device("meta")  # which stands for any device that is no CPU


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rest of the tests compute as they would without these."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    os.environ.pop(WORKSPACE, None)
    set_arithmetic(ParallelConfig())


def arithmetic() -> tuple[str, bool, bool]:
    """Precision of products of matrices, and whether those and convolutions may round to TF32."""
    backends = torch.backends
    return torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", ("highest", False, False)), ("tf32", ("high", True, True)), ("bf16", ("high", True, True))],
)
def test_a_training_sets_what_its_precision_says(tmp_path: Path, precision: str, expected: Any) -> None:
    """Convolutions, too, which PyTorch lets round to TF32 by itself."""
    torch.backends.cudnn.allow_tf32 = True
    train(tmp_path / "run", recipe(steps=1, parallel={"precision": precision}))
    assert arithmetic() == expected
    assert f'"precision": "{precision}"' in (tmp_path / "run/config.json").read_text()


def test_deterministic_operations_are_asked_for_and_taken_back() -> None:
    set_arithmetic(ParallelConfig(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark and os.environ[WORKSPACE] == ":4096:8"
    # An operation that has no such form ends it by name.
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2), accumulate=False)
    set_arithmetic(ParallelConfig())
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_an_environment_that_asks_for_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":4096:2")
    with pytest.raises(ValueError, match=f"{WORKSPACE}=:4096:8 .* has ':4096:2': unset it"):
        set_arithmetic(ParallelConfig(deterministic=True))


def convolutional() -> nn.Sequential:
    """Two convolutions of images and a matrix, of which the first part asks for channels_last."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    inner.channels_last = True  # type: ignore[assignment]
    return nn.Sequential(inner, nn.Conv2d(4, 5, 3))


def test_a_loss_knows_what_it_computes_in() -> None:
    for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(ParallelConfig(precision=precision), CPU):  # type: ignore[arg-type]
            assert computed_in(CPU) == dtype
    assert computed_in(CPU) == torch.float32


def test_frozen_networks_are_copied_in_bf16_on_a_gpu_alone() -> None:
    network = convolutional().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for dtype in (torch.bfloat16, torch.float32):
        assert prepare_frozen(network, dtype, CPU) is network
    prepared = prepare_frozen(network, torch.bfloat16, GPU)
    assert {p.dtype for p in prepared.parameters()} == {torch.bfloat16} and {
        p.device for p in prepared.parameters()
    } == {GPU}
    # What is exported and hashed is what was given.
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_kernels_lie_as_asked_on_a_gpu_alone() -> None:
    module = convolutional()
    use_channels_last(module, CPU)
    assert not any(_lies_channels_last(p) for p in module.parameters() if p.ndim == 4)
    images = torch.randn(2, 3, 9, 9)
    expected = module(images)
    use_channels_last(module, GPU)  # whose module would be there, too; a CPU can compute with it as well
    assert _lies_channels_last(module[0][0].weight) and not _lies_channels_last(module[1].weight)  # type: ignore[index]
    torch.testing.assert_close(module(images), expected)


def _lies_channels_last(kernel: torch.Tensor) -> bool:
    return kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()


# --- dropout and computing again --------------------------------------------------------------------------------------


class Functional(nn.Module):
    """A layer that passes its dropout on to a function."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention_dropout = dropout


@pytest.mark.parametrize(
    ("block", "draws"),
    [
        (Block(4, 0.1), True),
        (Block(4, 0.0), False),
        (Functional(0.1), True),
        (Functional(0.0), False),
        (nn.MultiheadAttention(4, 1, dropout=0.1), True),
        (nn.MultiheadAttention(4, 1), False),
    ],
)
def test_blocks_that_draw_are_found(block: nn.Module, draws: bool) -> None:
    assert draws_masks(block) == draws


class Watched(nn.Module):
    """A module of one block, which notes what is dropped in its first pass."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(64, dropout)])
        self.masks: list[torch.Tensor] = []
        self.blocks[0].dropout.register_forward_hook(lambda _, given, made: self.masks.append(made == 0))  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x)


@pytest.mark.parametrize(("dropout", "saves"), [(0.5, 1), (0.0, 0)])
def test_only_a_block_with_dropout_keeps_the_state_of_the_generator(
    monkeypatch: pytest.MonkeyPatch, dropout: float, saves: int
) -> None:
    module = Watched(dropout)
    parallelise(module, ParallelConfig(activation_checkpointing=True), CPU, 1)
    read: list[int] = []
    get = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: (read.append(1), get())[1])
    result = module(torch.randn(1, 64, requires_grad=True))
    assert len(read) == saves
    torch.rand(3)  # the generator goes on before the backward pass
    result.sum().backward()
    # What was dropped in the first pass has no gradient in the second, and nothing else.
    gradient = module.blocks[0].linear.bias.grad  # type: ignore[union-attr]
    assert torch.equal(gradient == 0, module.masks[0][0]) and bool(module.masks[0].any()) == bool(dropout)
