"""States of a training that are easy to tell apart, for tests of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from train.config import CheckpointConfig
from train.trainer.checkpoint import Checkpoints


def blank(state: dict[str, Any]) -> dict[str, Any]:
    """State with the same shapes and other values."""
    return {
        name: blank(value)
        if isinstance(value, dict)
        else torch.zeros_like(value)
        if isinstance(value, torch.Tensor)
        else type(value)(0)
        for name, value in state.items()
    }


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, two[name])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == two[name].dtype and torch.equal(value, two[name]), name
        else:
            assert value == two[name] and type(value) is type(two[name]), name


def state_of(step: int, size: int = 1000) -> dict[str, Any]:
    """State in which every value is the step."""
    return {"weights": {"a": torch.full((size,), float(step)), "b": torch.full((3,), step)}, "step": step}


def make(folder: Path, run: str | None = None, **options: Any) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**options), run=run)
