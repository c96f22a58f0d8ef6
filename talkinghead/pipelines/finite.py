"""Numbers that left the range of their precision: refused where they come up, before they become black frames."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(values: Tensor, network: str, dtype: torch.dtype) -> None:
    """Refuse what a network made when it is not finite.

    Half precision ends at 65504, which the activations of some weights exceed; no later step repairs that.

    Args:
        values: What the network made, of any shape.
        network: Its name, for the message.
        dtype: In which it computed.

    Raises:
        ValueError: There are NaN or infinite values; says what to try.
    """
    if torch.isfinite(values).all():
        return
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        raise ValueError(
            f"with these weights the numbers of the {network} exceed the range of {name}: take another precision"
            " (--dtype bf16 or fp32; dtype=torch.bfloat16 or torch.float32)"
        )
    raise ValueError(
        f"the {network} gives numbers that are not finite, in {name}: its weights are damaged, or diverged in training"
    )
