"""AdamW with moments of 8 bits a number, by bitsandbytes (arXiv 2110.02861), for GPUs whose memory the moments fill.

Of a parameter with 4096 numbers or more it keeps `state1` and `state2`, the two moments as codes of 8 bits, a factor
for each block of 256 of them (`absmax1`, `absmax2`), the tables of the codes (`qmap1`, `qmap2`), and the count of
updates. Smaller parameters keep their moments in float32. All of it goes into checkpoints, so a resume is exact. Unlike
PyTorch's fused AdamW, it makes the host wait for the device once in a step: to know whether the step is skipped.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

BLOCK_8BIT = 256
"""Numbers of a moment that share a factor."""
LEAST_8BIT = 4096
"""Parameters with fewer numbers keep their moments in 32 bits."""


def adamw8bit(groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    """Optimizer with its state in place, and a rate of 0.

    Args:
        groups: Groups of parameters with their settings, as for `torch.optim.AdamW`.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        base: Any = importlib.import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(
            "optimizer.name adamw8bit needs bitsandbytes: pip install -c constraints.txt '.[adam8bit]', or take adamw"
        ) from error

    class ExactAdamW8bit(base):
        """Counts updates in tensors, which a checkpoint fills in place as it does all else."""

        def fill_qmap(self) -> None:
            # The tables are computed with numbers, which tensors without content do not have (`train.doctor`).
            with unset_fake_temporarily():
                super().fill_qmap()

        def init_state(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["step"] = torch.zeros(())

        def step(self, closure: None = None) -> None:
            # Set by `Learner.update`; bitsandbytes cannot look at it on the device, so the host waits for it.
            skipped: torch.Tensor | None = getattr(self, "found_inf", None)
            if skipped is None or not bool(skipped):
                super().step()

        def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
            state, count = self.state[p], self.state[p]["step"]
            state["step"] = int(count)  # it lies on the CPU
            super().update_step(group, p, gindex, pindex)
            state["step"] = count.fill_(state["step"])

    optimizer = ExactAdamW8bit([dict(group) for group in groups], lr=0.0)
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, number, index)
    return optimizer


def moments_of(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """First and second moment of a parameter out of an optimizer's state, whichever of ours it is of.

    Those of 8 bits come out as they are kept: the newest update had them before they were rounded.
    """
    if "exp_avg" in state:
        return state["exp_avg"], state["exp_avg_sq"]
    first, second = (_read(state, number) for number in (1, 2))
    return first, second


def _read(state: Mapping[str, Tensor], number: int) -> Tensor:
    codes = state[f"state{number}"]
    if codes.dtype != torch.uint8:
        return codes
    values = state[f"qmap{number}"][codes.flatten().int()]
    factors = state[f"absmax{number}"].repeat_interleave(BLOCK_8BIT)[: values.numel()]
    return (values * factors).view_as(codes)
