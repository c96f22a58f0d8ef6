"""Constant tensors that are kept on every device that asked for them: a step copies none from the host."""

from __future__ import annotations

import torch
from torch import Tensor


class DeviceConstant:
    """Tensor that never changes, made on the CPU, copied once to each device and precision that it is wanted in.

    For tables of a noise schedule, scales and weights that are no part of a module's state. To copy them in every step
    would let the step wait, since memory of the host that is not pinned is copied while Python waits.

    Args:
        value: The tensor, on the CPU.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on a device, the same one at each call.

        Args:
            device: The device.
            dtype: Precision; None: that of the value.
        """
        place = (device, dtype or self._value.dtype)
        if place not in self._copies:
            # A tensor that is made in inference mode could not be used by a backward pass later.
            with torch.inference_mode(False):
                self._copies[place] = self._value.to(place[1]).to(device)
        return self._copies[place]

    def like(self, other: Tensor) -> Tensor:
        """The tensor on the device and in the precision of another one."""
        return self.on(other.device, other.dtype)
