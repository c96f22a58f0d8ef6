"""Recipes for many GPUs: as much training as published, in larger batches, for three machines.

What they have in common, and where it comes from:

- **Samples.** A recipe counts samples, and its steps follow from its batch (`steps_for`). On the smallest machine they
  are the published ones. A larger machine is there for more data: batch and samples grow together (`Machine.factor`),
  so that the number of steps stays. The rate is constant after the warm-up: any run may be made longer later.
- **Learning rate.** The published one, times the square root of the ratio of the batches (`scaled_rate`): Adam divides
  the gradient by its own size, whose noise falls with that root (the square root rule, arXiv 2205.10287).
- **New parts.** The published 1e-5 is a rate at which pretrained weights are not lost. What has no pretrained weights
  begins with outputs of zero, and has all of its way to go in the same steps: it gets `NEW_RATE` times the rate. The
  factor is ours. It leads to 0.8e-4 … 2.3e-4, about what our recipes without any pretrained weights train with.
- **Averages** with decay 0.9999, over about the last 10,000 steps; until step 90,000 the warm-up of the average keeps
  it at the last ninth of what was trained. Ours: nothing is published.
- **Time** is counted: operations forward and backward, at `UTILISATION` of the peak. That share is an assumption; what
  a run reaches is in its figures.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from train.config import (
    CheckpointConfig,
    EmaConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)
from train.trainer.flops import PEAKS

UTILISATION = 0.3
"""Share of the peak that computing is assumed to reach."""
NEW_RATE = 4.0
"""Factor on the learning rate of what begins without pretrained weights."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs that a recipe is made for."""

    gpus: int
    """Number of GPUs, a rank on each."""
    gpu: str
    """Name of the GPU in `train.trainer.flops.PEAKS`."""
    memory_gb: int
    """Memory of a GPU; where there are several kinds, of the smallest."""
    factor: int
    """Batch and samples, as multiples of those of the smallest machine."""

    @property
    def peak_flops(self) -> float:
        """Peak of a GPU in bf16, operations a second."""
        return PEAKS[self.gpu]["bf16"] * 1e12


MACHINES = {
    "a100x4": Machine(gpus=4, gpu="A100", memory_gb=40, factor=1),
    "h100x8": Machine(gpus=8, gpu="H100", memory_gb=80, factor=2),
    "h100x64": Machine(gpus=64, gpu="H100", memory_gb=80, factor=4),
}
"""Name of a recipe → machine. h100: the SXM version."""


def steps_for(samples: int, batch: int) -> int:
    """Number of steps of so many samples in which at least `samples` are read."""
    return -(-samples // batch)


def scaled_rate(rate: float, batch: int, larger: int) -> float:
    """Learning rate of Adam for another batch by the square root rule, to two digits.

    Args:
        rate: Learning rate that is known to be good.
        batch: Batch that it belongs to.
        larger: The other batch.
    """
    return float(f"{rate * math.sqrt(larger / batch):.1e}")


def compute_hours(machine: Machine, samples: int, flops: float) -> float:
    """Hours of computing, without waiting for data or for other ranks.

    Args:
        machine: The GPUs.
        samples: Samples of the whole training.
        flops: Operations of a sample, forward and backward.
    """
    return samples * flops / (machine.gpus * machine.peak_flops * UTILISATION) / 3600


def many_gpus_training(
    machine: Machine,
    *,
    samples: int,
    batch: int,
    published: OptimizerConfig,
    published_batch: int,
    warmup_steps: int,
    most_at_once: int,
    strategy: Literal["ddp", "fsdp2"] = "ddp",
    activation_checkpointing: bool = False,
) -> TrainConfig:
    """Trainer settings for a machine.

    Args:
        machine: The GPUs.
        samples: Samples of the training on the smallest machine.
        batch: Samples of a step there.
        published: Optimiser with the published learning rate.
        published_batch: Samples of a step that the rate belongs to.
        warmup_steps: Steps in which the rate rises.
        most_at_once: Most samples whose activations fit into the memory of a GPU.
        strategy: How the ranks share the weights.
        activation_checkpointing: Whether activations are computed again in the backward pass.
    """
    batch, samples = batch * machine.factor, samples * machine.factor
    return TrainConfig(
        steps=steps_for(samples, batch),
        global_batch=batch,
        num_workers=8,
        optimizer=dataclasses.replace(
            published, learning_rate=scaled_rate(published.learning_rate, published_batch, batch)
        ),
        schedule=ScheduleConfig(warmup_steps=warmup_steps),
        ema=EmaConfig(decay=0.9999),
        parallel=ParallelConfig(
            strategy=strategy,
            precision="bf16",
            activation_checkpointing=activation_checkpointing,
            device="cuda",
            most_at_once=most_at_once,
        ),
        checkpoint=CheckpointConfig(every=1000),
        validation=ValidationConfig(every=5000, device="auto"),
    )
