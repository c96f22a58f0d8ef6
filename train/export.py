"""The averaged weights of a training, in a module as `Task.build` makes it."""

from __future__ import annotations

import torch
from torch import nn

from train.ema import Ema
from train.parallel import bare, full
from train.task import Task


class Exporter:
    """Gathers what is exported and validated.

    Args:
        task: Makes the module.
        module: In training, as wrapped for the ranks.
        ema: Its averages.
        rank: Rank 0 gets the module.
    """

    def __init__(self, task: Task, module: nn.Module, ema: Ema, rank: int) -> None:
        self.task, self.module, self.ema, self.rank = task, module, ema, rank
        self._copy: nn.Module | None = None

    @torch.no_grad()
    def gather(self) -> nn.Module | None:
        """A module on the CPU with frozen parameters as built, buffers as trained, and the averages; rank 0 only.

        Collective. It is the same module at every call, with newer values.
        """
        if self.rank == 0 and self._copy is None:
            self._copy = self.task.build().eval()
        target = {} if self._copy is None else self._copy.state_dict(keep_vars=True)
        for name, average in self.ema.average.items():
            whole = full(average)
            if self._copy is not None:
                target[name].copy_(whole)
        for name, buffer in bare(self.module).named_buffers():
            if name in target:  # else it is one that is not saved
                target[name].copy_(buffer)
        return self._copy
