"""What a model adds to the trainer.

A task knows the model, the annotations it needs and how well a prediction fits; the trainer (`train.trainer.loop`)
knows steps, accumulation, checkpoints and ranks. A task keeps no state that training changes: everything that a resumed
run needs is in the module, the optimizer and the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from shards.loader import ClipLoader

Batch = dict[str, Any]
"""A batch of `shards.loader`: tensors `[B, …]`, `keys` (list of B sample keys) and `slot` (`[B]`, unique in a run)."""

Losses = dict[str, torch.Tensor]
"""Per sample `[B]`. `loss` is minimised; the others are logged."""

Provenance = dict[str, str]
"""Where weights come from: `kind` (folder, file or the name of built-in ones), `name` and `sha256`."""


class Task(Protocol):
    """A model in training. Made from (its config, the data set, the folder for what `prepare` derives).

    A config whose module draws from PyTorch's global generator in training has a setting `dropout` above 0. Settings
    that may change when a run goes on are named by its class attribute `free_settings`.
    """

    def check(self) -> dict[str, Provenance]:
        """Look, within seconds and without writing, at whatever can be wrong with the settings, the data and weights.

        Runs before a run is created or gone on with, and so before `prepare`.

        Returns:
            The weights that `build` takes from elsewhere: setting that says where → what lies there. A run goes on only
            with weights of the same sha256, wherever they lie by then.

        Raises:
            ValueError: The data set is missing or lacks something, weights cannot be read, or the settings make no
                model; says what to do.
        """
        ...

    def prepare(self) -> None:
        """Derive what training needs from the data (speakers, neutral meshes, …) and write it into the task's folder.

        Runs in one process before any other call of any rank, once for each run: the folder is complete or missing.

        Raises:
            ValueError: The data lacks something; says which command makes it.
        """
        ...

    def build(self) -> nn.Module:
        """The module in float32 on the CPU, with its first weights and with frozen parts at `requires_grad` False.

        Equal on every rank and for every call: first weights come from a file or from the seed. Its attribute `blocks`
        lists the layers that it repeats: the units of sharding, compiling and activation checkpointing.
        """
        ...

    def loader(self, *, global_batch: int, seed: int, rank: int, world: int, num_workers: int) -> ClipLoader:
        """The batches of one rank."""
        ...

    def loss(self, module: nn.Module, batch: Batch, *, seed: int) -> Losses:
        """The losses of a microbatch, each sample's for itself, so that no sample's loss depends on its neighbours.

        Args:
            module: What `build` returned, possibly wrapped for parallel training; only its forward may be called.
            batch: On the module's device.
            seed: Draw what is random from `talkinghead.rng` with (seed, purpose, slot of the sample).
        """
        ...

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights and all that inference needs (`save_pretrained`) into an empty folder."""
        ...

    def validate(self, weights: Path, folder: Path, device: torch.device) -> dict[str, float]:
        """Run the inference pipeline of exported weights on fixed held-out clips, on a device, in a process of its own.

        Writes `validation.json`, plots and videos into `folder`; returns the numbers to log.
        """
        ...
