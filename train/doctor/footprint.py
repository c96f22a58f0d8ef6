"""Footprint of a training: what its networks take in memory and in a checkpoint, exactly, without taking it.

The trainer's own parts (`Learner`, `Ema`, `training_state`) work on tensors that have shapes and no content
(`FakeTensorMode`), so that nothing here repeats what they keep. What forward and backward passes add is not known then:
`train.doctor.measurement` measures it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from talkinghead.models.adapters.lora import Lora
from train.microbatch import settled
from train.recipe import Recipe
from train.task import Task
from train.trainer.average import Ema
from train.trainer.checkpoint import training_state
from train.trainer.guard import RunningMedian
from train.trainer.learner import Learner
from train.trainer.sharding import layout_of

_STORED_BYTES = 1970
"""What a checkpoint takes for each tensor of a rank next to its numbers: the frame of its archive (1576 bytes), and the
places that the metadata name (about 390)."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a training takes, but for activations and data; bytes in memory are those of one rank."""

    parameters: int
    """Numbers in all weights of the module, frozen ones and those of a critic, too."""
    trained: int
    """Those of them that are trained."""
    weights_bytes: int
    """Weights and buffers of a rank."""
    gradients_bytes: int
    """Gradients of a rank at the end of its last microbatch but one: in full size where they are kept whole."""
    moments_bytes: int
    """State of the optimizer."""
    averages_bytes: int
    """Averaged copy of what is trained; 0 with decay 0."""
    copy_bytes: int
    """Copy of the module that rank 0 keeps in the computer's memory, for exports."""
    checkpoint_bytes: int
    """Checkpoint of all ranks together."""

    @property
    def state_bytes(self) -> int:
        """Memory that a rank's device holds from the first step to the last."""
        return self.weights_bytes + self.gradients_bytes + self.moments_bytes + self.averages_bytes


def footprint(task: Task, recipe: Recipe, world: int = 1, local_world: int | None = None) -> Footprint:
    """Footprint of a training.

    Args:
        task: Task after `check` and, where its module depends on the data, `prepare`.
        recipe: Settings of the training.
        world: Number of ranks.
        local_world: Number of ranks on a machine; None: all of them.

    Raises:
        ValueError: The settings make no module, there is nothing to train, a LoRA matches nothing, or the ranks cannot
            share the batch or the state in that way.
        OSError: The module depends on what `prepare` derives.
    """
    config = recipe.train
    # Outside of the mode, since weights of another training are read from files.
    made = _made(task)
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = made.to_empty(device="cpu")
        copied = _bytes([*built.parameters(), *built.buffers()])
        if recipe.lora.match is not None:
            Lora(built, recipe.lora.match, recipe.lora.rank, recipe.lora.alpha, recipe.lora.also_train)
        groups = () if recipe.lora.match is not None else task.parameter_groups()
        learner = Learner(built, config.optimizer, config.schedule, config.steps, groups)
        ema = Ema(learner, config.ema)
        learners = [learner]
        if (adversary := task.adversary()) is not None:
            critic = adversary.build()
            learners.append(Learner(critic, adversary.optimizer, adversary.schedule, config.steps))
        state = training_state(learner, ema, *learners[1:])
        stored = _tensors(state | {"medians": RunningMedian(config.guard).state()})
        # FSDP2 gives each rank its share of every parameter, and of what belongs to it; buffers are whole, and so are
        # gradients that are exchanged only with a step's last microbatch.
        shards = layout_of(config.parallel, world, local_world or world).shards
        several = shards > 1 and settled(config, world).accumulation(world) > 1
        kept = 1 if several and config.parallel.accumulation == "whole" else shards
        weights = [tensor for one in learners for tensor in one.module.parameters()]
        buffers = [tensor for one in learners for tensor in one.module.buffers()]
        trained = [tensor for one in learners for tensor in one.parameters.values()]
        moments = [tensor for one in learners for values in one.optimizer.state.values() for tensor in values.values()]
        return Footprint(
            parameters=sum(tensor.numel() for tensor in weights),
            trained=sum(tensor.numel() for tensor in trained),
            weights_bytes=_bytes(weights, shards) + _bytes(buffers),
            gradients_bytes=_bytes(trained, kept),
            moments_bytes=_bytes(moments, shards),
            averages_bytes=_bytes(ema.state().values(), shards),
            copy_bytes=copied,
            checkpoint_bytes=_bytes(stored) + len(stored) * shards * _STORED_BYTES,
        )


def _made(task: Task) -> nn.Module:
    """Module of a task, without memory where that is possible."""
    try:
        with torch.device("meta"):
            return task.build()
    except NotImplementedError:
        # Networks that are drawn from a seed, and are read or hashed after that, need content.
        return task.build()


def _bytes(tensors: Iterable[Tensor], shards: int = 1) -> int:
    """Bytes of the largest of equal shares of tensors, each cut along its first dimension."""
    total = 0
    for tensor in tensors:
        rows = -(-tensor.shape[0] // shards) if tensor.ndim else 1
        row = tensor.numel() // tensor.shape[0] if tensor.ndim and tensor.shape[0] else 1
        total += rows * row * tensor.element_size()
    return total


def _tensors(state: Mapping[str, Any]) -> list[Tensor]:
    """All tensors of nested dicts."""
    found: list[Tensor] = []
    for value in state.values():
        if isinstance(value, Mapping):
            found += _tensors(value)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def size_text(count: float) -> str:
    """Bytes for people, in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def count_text(count: float) -> str:
    """A number for people: thousands, millions, billions."""
    for unit in ("", " thousand", " million"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} billion"
