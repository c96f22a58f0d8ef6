"""Tasks of Lmk2Video on drawn faces of 32 pixels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead.files.storage import Storage
from tests.support.training import batches_of, losses_of
from train.lmk2video.module import Conditions, Lmk2Video
from train.lmk2video.task import Lmk2VideoTask
from train.recipe import make_task, recipes_of
from train.task import Batch

SMALL: dict[str, dict[str, Any]] = {
    "stage1": {"width": 32, "height": 32},
    "stage2": {"width": 32, "height": 32, "num_frames": 4, "long_stride": 2, "max_frames": 8},
}


def prepared(name: str, data: Storage, folder: Path, *, config: Any = None, **changes: Any) -> Lmk2VideoTask[Any]:
    """A task of the `tiny` recipe on small images, checked and prepared."""
    base = config or dataclasses.replace(recipes_of(name)["tiny"]().config, **SMALL[name.removeprefix("lmk2video-")])
    folder.mkdir(exist_ok=True)
    task = make_task(name, dataclasses.replace(base, **changes), data.uri, folder)
    assert isinstance(task, Lmk2VideoTask)
    task.check()
    task.prepare()
    return task


def batch_of(task: Lmk2VideoTask[Any], size: int) -> Batch:
    """First batch of a task."""
    return next(batches_of(task, size))


def shake(module: nn.Module, *, only_trained: bool = False) -> None:
    """Move every parameter, so that layers which start at zero count too."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            if value.requires_grad or not only_trained:
                value.add_(0.05 * torch.randn(value.shape, generator=draws))


class Double(nn.Module):
    """Module that computes in double precision on single-precision inputs, so that the order of sums hardly matters."""

    def __init__(self, module: Lmk2Video) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).double()

    def forward(self, noisy: Tensor, timesteps: Tensor, given: Conditions) -> Tensor:
        """Predict the velocity, as `Lmk2Video.forward` does."""
        precise = Conditions(*(part.double() if part.is_floating_point() else part for part in given))
        return self.module(noisy.double(), timesteps, precise)


def gradients(task: Lmk2VideoTask[Any], module: Lmk2Video, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Gradient by name of the sum of the batches' losses; the module stays as it is."""
    precise = Double(module)
    for batch in batches:
        losses_of(task, precise, batch)["loss"].sum().backward()
    return {name: value.grad for name, value in precise.module.named_parameters() if value.grad is not None}
