"""Task: everything that a model adds to the trainer.

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
from train.clip_choice import ReadVersions

Batch = dict[str, Any]
"""Batch of `shards.loader`: tensors `[B, …]`, `keys` (list of B sample keys) and `slot` (`[B]`, unique in a run)."""

Losses = dict[str, torch.Tensor]
"""Name → one number for each sample, `[B]`. `loss` is minimised; the others are logged."""

Provenance = dict[str, str]
"""Origin of weights: `kind` (folder, file or the name of built-in ones), `name` and `sha256`."""


class Task(Protocol):
    """A model in training, made from its config, the data set and the folder for what `prepare` derives.

    A config whose module draws from PyTorch's global generator in training has a setting `dropout` above 0. Settings
    that may change when a run goes on are named by its class attribute `free_settings`.
    """

    def check(self) -> dict[str, Provenance]:
        """Check settings, data and weights for whatever can be wrong, within seconds and without writing.

        Called before a run is created or continued, and so before `prepare`.

        Returns:
            Weights that `build` takes from elsewhere: setting that says where → what lies there. A run goes on only
            with weights of the same sha256, wherever they lie by then.

        Raises:
            ValueError: The data set is missing or lacks something, weights cannot be read, or the settings make no
                model; says what to do.
        """
        ...

    def prepare(self) -> None:
        """Derive what training needs from the data (speakers, neutral meshes, …) and write it into the task's folder.

        Called in one process before any other call of any rank, once for each run: the folder is complete or missing.

        Raises:
            ValueError: The data lacks something; says which command makes it.
        """
        ...

    def reads(self) -> ReadVersions:
        """Annotations, derived columns and global fits that the run reads, by what `prepare` wrote.

        Called in one process at every start, after `prepare`; the answer is noted in DATA, so that nobody removes them.
        """
        ...

    def build(self) -> nn.Module:
        """Module in float32 on the CPU, with its first weights and with frozen parts at `requires_grad` False.

        Equal on every rank and for every call: first weights come from a file or from the seed. Its attribute `blocks`
        lists the layers that it repeats: the units of sharding, compiling and activation checkpointing.
        """
        ...

    def loader(self, *, global_batch: int, seed: int, rank: int, world: int, num_workers: int) -> ClipLoader:
        """Batches of one rank, endless; see `ClipLoader`."""
        ...

    def loss(self, module: nn.Module, batch: Batch, *, seed: int) -> Losses:
        """Losses of a microbatch, computed for each sample on its own: no sample's loss depends on its neighbours.

        Args:
            module: Module that `build` returned, possibly wrapped for the ranks; only its forward may be called.
            batch: Microbatch on the module's device.
            seed: Seed of the run. Random numbers come from `talkinghead.rng` by (seed, purpose, slot of the sample).
        """
        ...

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the weights and everything else that inference needs (`save_pretrained`) into an empty folder."""
        ...

    def validate(self, weights: Path, folder: Path, device: torch.device) -> dict[str, float]:
        """Run the inference pipeline of exported weights on fixed held-out clips, on a device, in a process of its own.

        Writes `validation.json`, plots and videos into `folder`; returns the numbers to log.
        """
        ...
