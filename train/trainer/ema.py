"""Moving average of the trained weights: what is validated and exported."""

from __future__ import annotations

import copy

import torch
from torch import nn

from train.config import EmaConfig
from train.trainer.parallel import bare, full


class Ema:
    """average ← decay · average + (1 - decay) · weights, after every update. With decay 0 it is the weights themselves.

    Args:
        parameters: Name → parameter, on any device; shards stay shards.
        config: The decay.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: EmaConfig) -> None:
        self.config = config
        self._parameters = parameters
        # Without a decay a copy would only take memory.
        self._copies = {name: p.detach().clone() for name, p in parameters.items()} if config.decay else None

    @property
    def average(self) -> dict[str, torch.Tensor]:
        """Name → float32 tensor; shaped, placed and sharded like the parameter."""
        if self._copies is not None:
            return self._copies
        # Anew at each call: sharding may move a parameter to other memory.
        return {name: p.detach() for name, p in self._parameters.items()}

    def decay(self, step: int) -> float:
        """Decay at update `step`, counted from 0; the warm-up is (1 + step) / (10 + step), as with TensorFlow's."""
        return min(self.config.decay, (1 + step) / (10 + step)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that update `step` made."""
        if self._copies is None:
            return
        averages, weights = list(self._copies.values()), list(self._parameters.values())
        torch._foreach_lerp_(averages, weights, 1 - self.decay(step))  # pyright: ignore


class Exporter:
    """Gathers what is exported and validated.

    Make it before the module is moved and wrapped: it keeps a copy, since where the first weights came from may be gone
    when the next are exported.

    Args:
        built: As `Task.build` returns it.
        rank: Rank 0 has the copy.
    """

    def __init__(self, built: nn.Module, rank: int) -> None:
        self._copy = copy.deepcopy(built).eval() if rank == 0 else None

    @torch.no_grad()
    def gather(self, module: nn.Module, ema: Ema) -> nn.Module | None:
        """A module on the CPU with frozen parameters as built, buffers as trained, and the averages; rank 0 only.

        Collective. It is the same module at every call, with newer values.

        Args:
            module: In training, as wrapped for the ranks.
            ema: Its averages.
        """
        target = {} if self._copy is None else self._copy.state_dict(keep_vars=True)
        for name, average in ema.average.items():
            whole = full(average)
            if self._copy is not None:
                target[name].copy_(whole)
        for name, buffer in bare(module).named_buffers():
            if name in target:  # else it is one that is not saved
                target[name].copy_(buffer)
        return self._copy
