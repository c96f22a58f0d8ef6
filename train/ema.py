"""Moving average of the trained weights: what is validated and exported."""

from __future__ import annotations

import torch
from torch import nn

from train.config import EmaConfig


class Ema:
    """average ← decay · average + (1 - decay) · weights, after every update. With decay 0 it is the weights themselves.

    Args:
        parameters: Name → parameter, on any device; shards stay shards.
        config: The decay.

    Attributes:
        average: Name → float32 tensor; shaped, placed and sharded like the parameter.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: EmaConfig) -> None:
        self.config = config
        self._parameters = list(parameters.values())
        self._follows = config.decay > 0  # else a copy would only take memory
        self.average = {name: p.detach().clone() if self._follows else p.detach() for name, p in parameters.items()}

    def decay(self, step: int) -> float:
        """Decay at update `step`, counted from 0; the warm-up is (1 + step) / (10 + step), as with TensorFlow's."""
        return min(self.config.decay, (1 + step) / (10 + step)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that update `step` made."""
        if not self._follows:
            return
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, self._parameters, 1 - self.decay(step))  # pyright: ignore
