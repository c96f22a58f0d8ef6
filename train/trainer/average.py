"""Moving average of the weights, and the module with the averages that is validated and exported."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from talkinghead.models.adapters.lora import A, B, Lora, merged_weight
from talkinghead.models.running_statistics import RUNNING, BatchNorm
from train.config import EmaConfig
from train.trainer.learner import Learner
from train.trainer.parallel import bare, full, local


class Ema:
    """Moving average of the weights: average ← decay · average + (1 - decay) · weights, after every update.

    The running statistics of BatchNorm are averaged with the weights that they belong to. With decay 0 the average is
    the weights themselves, and no copy is kept.

    Args:
        learner: Network in training, on any device; shards stay shards.
        config: Settings with the decay.
    """

    def __init__(self, learner: Learner, config: EmaConfig) -> None:
        self.config = config
        self._parameters: dict[str, nn.Parameter] = learner.parameters
        self._statistics = _running_statistics(bare(learner.module))
        # Without a decay a copy would only take memory; `average` then reads the weights.
        self._copies: dict[str, Tensor] | None = None
        if config.decay:
            self._copies = {name: value.detach().clone() for name, value in self._now().items()}

    def _now(self) -> dict[str, Tensor]:
        # Made anew at each call: sharding may move a parameter to other memory.
        return {**self._parameters, **self._statistics}

    @property
    def average(self) -> dict[str, Tensor]:
        """Averages by name: float32, with the shape, device and sharding of the parameter or buffer."""
        if self._copies is not None:
            return self._copies
        return {name: value.detach() for name, value in self._now().items()}

    def state(self) -> dict[str, Tensor]:
        """Averages that a checkpoint must hold next to the weights: none with decay 0."""
        return self._copies or {}

    def decay(self, step: int) -> float:
        """Decay at update `step`, counted from 0; the warm-up is TensorFlow's (1 + step) / (10 + step)."""
        return min(self.config.decay, (1 + step) / (10 + step)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, step: int, active: dict[str, nn.Parameter], passed: Tensor) -> None:
        """Move the averages towards the weights that update `step` made; of those that it did not move they stay.

        Args:
            step: Number of the step, from 0.
            active: Parameters that it moves.
            passed: Whether it is not skipped, a bool scalar on the device; else no average moves.
        """
        if self._copies is None:
            return
        now: dict[str, Tensor] = {**active, **self._statistics}
        averages = [local(self._copies[name]) for name in now]
        weights = [local(value) for value in now.values()]
        share = passed.float() * (1 - self.decay(step))
        torch._foreach_lerp_(averages, weights, [share] * len(weights))  # pyright: ignore


def _running_statistics(module: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{buffer}" if name else buffer: layer.get_buffer(buffer)
        for name, layer in module.named_modules()
        if isinstance(layer, BatchNorm)
        for buffer in RUNNING
    }


class Exporter:
    """Source of the module that is exported and validated.

    Make it before the module gets a LoRA, is moved and wrapped. It keeps a copy in memory, since the files of the first
    weights may be gone by the time of an export.

    Args:
        built: Module that `Task.build` returned.
        rank: Number of this process; rank 0 keeps the copy.
    """

    def __init__(self, built: nn.Module, rank: int) -> None:
        self._copy = copy.deepcopy(built).eval() if rank == 0 else None
        self.additions: dict[str, Tensor] = {}
        """Averages of what a LoRA has added or trained, on the CPU, as of the newest `gather`; rank 0 alone."""

    @torch.no_grad()
    def gather(self, module: nn.Module, ema: Ema, lora: Lora | None = None) -> nn.Module | None:
        """Module on the CPU with frozen parameters as built, buffers as trained, and the averages; None but on rank 0.

        Additions of a LoRA are merged into the weights. Collective. Each call returns the same module with newer
        values.

        Args:
            module: Module in training, as wrapped for the ranks.
            ema: Averages of its parameters.
            lora: Its additions.
        """
        target = {} if self._copy is None else self._copy.state_dict(keep_vars=True)
        averages = ema.average
        for name, buffer in bare(module).named_buffers():
            if name in target and name not in averages:  # else it is one that is not saved, or is averaged
                target[name].copy_(buffer)
        for name, average in averages.items():
            # Every rank takes part in gathering a sharded tensor, one at a time so that no rank holds the whole model.
            whole = full(average)
            if self._copy is None:
                continue
            if lora is not None:
                self.additions[name] = whole.detach().cpu().clone()
            if name.rpartition(".")[2] not in (A, B):
                target[name].copy_(whole)
        if lora is not None:
            for name in lora.layers:
                # The weight that the addition belongs to is frozen, and lies in the module in training.
                frozen = bare(module).get_submodule(name).get_parameter("weight").detach()
                base = full(frozen).cpu()
                if self._copy is not None:
                    a, b = (self.additions[f"{name}.{kind}"] for kind in (A, B))
                    layer = self._copy.get_submodule(name)
                    target[f"{name}.weight"].copy_(merged_weight(layer, base, a, b, lora.scale))
        return self._copy
