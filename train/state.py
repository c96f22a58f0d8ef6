"""The state of a training as one nested dict of its own tensors, for a checkpoint to copy out or to fill in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from train.ema import Ema

_OPTIONS = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)


def training_state(module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> dict[str, Any]:
    """Weights, moments and averages by the names of the bare module, so that any wrapping and world size can load them.

    Frozen parameters are left out: they come from where `Task.build` has them. So are the optimizer's settings: they
    come from the recipe. The tensors are those of the training, not copies: filling them restores it.

    Args:
        module: As wrapped for the ranks.
        optimizer: Over its trainable parameters, with its state in place.
        ema: Of the same.
    """
    weights, flat = get_state_dict(module, optimizer, options=_OPTIONS)
    moments = {name: value for name, value in flat.items() if name.startswith("state.")}
    return {"module": weights, "optimizer": moments, "ema": ema.average}
