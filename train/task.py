"""Task: everything that a model adds to the trainer.

A task knows the model, the annotations it needs and how well a prediction fits; the trainer (`train.trainer.loop`)
knows steps, accumulation, checkpoints and ranks. A task keeps no state that training changes: everything that a resumed
run needs is in the module, the optimizer and the step.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shards.loader import SlotDataset
from train.clip_choice import ReadVersions
from train.config import OptimizerConfig, ParameterGroup, ScheduleConfig
from train.run.crew import ONE, Crew
from train.sources import Source

Batch = dict[str, Any]
"""Batch of `shards.loader`: tensors `[B, …]`, `keys` (list of B sample keys) and `slot` (`[B]`, unique in a run)."""

Losses = dict[str, Tensor]
"""Name → one number for each sample, `[B]`. `loss` is minimised; the others are logged."""

PartialFigures = dict[str, tuple[Tensor, Tensor]]
"""Name → values `[B]`, and bool `[B]`: the samples that they are of."""

Totals = Mapping[str, float]
"""Sums over all samples of a step, on all ranks: what `Task.counts` counts, and `samples`, their number."""

Provenance = dict[str, str]
"""Origin of weights: `kind` (folder, file or the name of built-in ones), `name` and `sha256`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a forward pass over a microbatch of B samples gives."""

    losses: Losses
    """The same names at every step; 0 where a term is off."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Rows `[B, …]` float32, with their graph, of which `Task.batch_terms` makes terms over the whole global batch."""
    made: dict[str, Tensor] = field(default_factory=dict)
    """What the critic judges, `[B, …]`; the trainer detaches it."""
    figures: PartialFigures = field(default_factory=dict)
    """Figures of some of the samples, such as the loss in a range of timesteps, to be logged as means over those. The
    same names at every step, none of them that of a loss."""


class Adversary(abc.ABC):
    """Critic that is trained against a task's module, in its own turn of every step."""

    start: int = 0
    """First step, from 0, of its updates."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """Critic in float32 on the CPU with its first weights, equal on every rank and for every call."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of each sample, `[B]`, whose sums over the step `loss` divides by; see `Task.counts`."""
        return {}

    @abc.abstractmethod
    def loss(
        self, critic: nn.Module, batch: Batch, made: Mapping[str, Tensor], *, seed: int, step: int, total: Totals
    ) -> Losses:
        """Losses of the critic, each sample's own; see `Task.loss`.

        Args:
            critic: Critic, possibly wrapped for the ranks; called once.
            batch: Microbatch on its device.
            made: What the module made of it before its update, detached.
            seed: Seed of the run.
            step: Number of the step, from 0.
            total: Sums over the step.
        """


class Task(abc.ABC):
    """A model in training, made from its config, the data set and the folder for what `prepare` derives.

    A config whose module draws from PyTorch's global generator in training has a setting `dropout` above 0. Settings
    that may change when a run goes on are named by its class attribute `free_settings`.
    """

    independent: ClassVar[bool] = True
    """Whether no sample's loss depends on its neighbours in the microbatch. False (BatchNorm, batch terms): a run keeps
    its microbatch, and samples that cannot be learnt from are looked for in whole microbatches."""

    @abc.abstractmethod
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

    @abc.abstractmethod
    def prepare(self) -> None:
        """Derive what training needs from the data (speakers, neutral meshes, …) and write it into the task's folder.

        Called in one process before any other call of any rank, once for each run: the folder is complete or missing.

        Raises:
            ValueError: The data lacks something; says which command makes it.
        """

    @abc.abstractmethod
    def reads(self) -> tuple[ReadVersions, ...]:
        """Annotations, derived columns and global fits that the run reads of each data set, by what `prepare` wrote.

        Called in one process at every start, after `prepare`; the answer is noted in DATA, so that nobody removes them.
        """

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """Module in float32 on the CPU, with its first weights and with frozen parts at `requires_grad` False.

        Equal on every rank and for every call: first weights come from a file or from the seed. Its attribute `blocks`
        lists the layers that it repeats: the units of sharding, compiling and activation checkpointing. No forward pass
        changes a buffer: BatchNorm and spectral normalisation are those of `talkinghead.models.running_statistics`.
        """

    @abc.abstractmethod
    def dataset(self, seed: int) -> SlotDataset:
        """Samples by slot, read as the run began (`prepare`), each a pure function of (seed, slot). One whose samples
        may be read at any length is a `shards.loader.ClipDataset`."""

    @abc.abstractmethod
    def loss(
        self,
        module: nn.Module,
        batch: Batch,
        *,
        seed: int,
        step: int,
        total: Totals,
        critic: nn.Module | None = None,
    ) -> Step:
        """Forward pass over a microbatch. The sum of `loss` over all samples of the step, divided by their number, is
        minimised.

        It calls the module exactly once, and every trained parameter gets a gradient, zeros where a term is off.

        Args:
            module: Module that `build` returned, possibly wrapped for the ranks; only its forward may be called.
            batch: Microbatch on the module's device.
            seed: Seed of the run. Random numbers come from `talkinghead.rng` by (seed, purpose, slot of the sample) or
                (seed, purpose, step). It has no effect where they are drawn as samples are read
                (`shards.drawn.DrawnDataset`), as they should: drawing here keeps a GPU waiting.
            step: Number of the step, from 0.
            total: Sums over the step, by which a loss divides that is a mean over more than samples.
            critic: Critic of the task's adversary, frozen; None without one.
        """

    @abc.abstractmethod
    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the weights and everything else that inference needs (`save_pretrained`) into an empty folder."""

    @abc.abstractmethod
    def validate(self, weights: Path, folder: Path, device: torch.device, crew: Crew = ONE) -> dict[str, float]:
        """Run the inference pipeline of exported weights on fixed held-out clips, on a device.

        Mostly in a process of its own. Where the ranks validate, each calls it, measures its share of the clips
        (`Crew.own`), and puts the measurements together (`Crew.exchange`): the numbers are those of one process.

        Args:
            weights: Folder of the exported weights.
            folder: Folder for `validation.json`, which the first process of the crew writes, and for plots and videos.
            device: Device of this process.
            crew: Processes that validate together.

        Returns:
            Numbers to log.
        """

    def sources(self) -> dict[str, Source]:
        """Places that weights come from by these settings: name of the setting → what they are for.

        `check` reads them all, and gives their provenance under the same names.
        """
        return {}

    # --- what is watched ----------------------------------------------------------------------------------------------

    networks: ClassVar[Mapping[str, str]] = {}
    """Networks inside the parts of the module whose gradients and updates are logged by themselves: name → regular
    expression that is searched for in the names of parameters. All others go by the part of the module they are in."""

    def held_out(self, seed: int, count: int) -> SlotDataset | None:
        """Held-out samples, like those of `dataset`, for which `loss` is defined as well; None where there are none.

        Their slots are 0 … count - 1; what a loss draws (timesteps) may be spread evenly over them. They are read as
        the run began, whole conditions given, with the same windows at every call.

        Args:
            seed: Seed of the windows.
            count: Number of samples that are asked for; a clip may be among them several times.
        """
        return None

    # --- what few tasks need ------------------------------------------------------------------------------------------

    def counts(self, batch: Batch, *, seed: int, step: int) -> dict[str, Tensor]:
        """Numbers of each sample, `[B]`, without the network: masked steps, valid frames. Their sums over all samples
        of the step reach `loss` as `total`.

        Args:
            batch: Microbatch on the CPU.
            seed: Seed of the run.
            step: Number of the step, from 0.
        """
        return {}

    def batch_terms(self, rows: Mapping[str, Tensor], *, seed: int, step: int) -> dict[str, Tensor]:
        """Terms over the whole global batch of N samples, scalars: `loss` is added to the mean of the samples' losses,
        the others are logged.

        With more than one microbatch for a rank, this costs one more forward pass.

        Args:
            rows: `Step.rows` of all samples of the step in the order of their slots, `[N, …]` float32.
            seed: Seed of the run.
            step: Number of the step, from 0.
        """
        return {}

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Parameters that are trained otherwise than by the recipe's settings; the first that matches counts."""
        return ()

    def adversary(self) -> Adversary | None:
        """Critic that the module is trained against; None: there is none."""
        return None

    def after_step(self, module: nn.Module, means: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """New values of buffers of the module, by name, from the means of the step's losses.

        Called after the update of every step, before anyone knows whether it is skipped: the trainer sets the buffers
        unless it is. Nothing may wait for the device here.

        Args:
            module: Module without the wrapper of its ranks.
            means: Means of the losses, scalars float64 on its device, equal on all ranks.
            step: Number of the step, from 0.
        """
        return {}
