"""The averaged weights of a training, in a module as `Task.build` made it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from train.ema import Ema
from train.parallel import bare, full


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
