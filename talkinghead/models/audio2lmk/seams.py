"""Where long speech is cut for a decoder that sees a bounded past, and how the cuts are kept from being seen."""

from __future__ import annotations

import torch
from torch import Tensor


def restart_lengths(total: int, length: int) -> list[int]:
    """Lengths of chunks that are decoded apart, as AniPortrait's: `length` each, the rest goes with the last one.

    They add up to `total`: speech shorter than `length` is one chunk, an exact multiple has no rest.
    """
    whole, rest = divmod(total, length)
    if whole == 0:
        return [total]
    return [length] * (whole - 1) + [length + rest]


class JointSpreader:
    """Takes the jump out of a sequence of poses at its joints.

    Where a step at a joint is larger than a step may be, the excess is taken back at once and given again over the
    following frames: pose[k] - excess · (1 - (k - joint) / frames).

    Args:
        max_step: `[6]`, what a step may be, per number; None: the largest step since the last joint.
        frames: Over how many frames an excess is spread.
    """

    def __init__(self, max_step: Tensor | None, frames: int) -> None:
        self._max_step = max_step
        self._frames = frames
        self._last: Tensor | None = None
        self._largest: Tensor | None = None
        self._excess: Tensor | None = None
        self._age = 0

    def emit(self, pose: Tensor, joint: bool) -> Tensor:
        """The pose to show.

        Args:
            pose: `[B, 6]`, as decoded.
            joint: This pose was decoded from another past than the one before it.

        Returns:
            `[B, 6]`.
        """
        if self._last is not None:
            step = pose - self._last
            if joint:
                self._begin(step)
            elif self._max_step is None:
                self._largest = step.abs() if self._largest is None else torch.maximum(self._largest, step.abs())
        self._last = pose
        return pose if self._excess is None else self._corrected(pose)

    def _begin(self, step: Tensor) -> None:
        limit = self._largest if self._max_step is None else self._max_step
        if limit is None:
            return
        rest = 0.0 if self._excess is None else self._excess * self._weight()
        self._excess = step - torch.minimum(torch.maximum(step, -limit), limit) + rest
        self._age = 0
        self._largest = None

    def _weight(self) -> float:
        return 1.0 - self._age / self._frames

    def _corrected(self, pose: Tensor) -> Tensor:
        assert self._excess is not None
        shown = pose - self._excess * self._weight()
        self._age += 1
        if self._age >= self._frames:
            self._excess = None
        return shown
