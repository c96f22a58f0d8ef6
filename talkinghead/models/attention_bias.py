"""Who attends to whom: biases and masks over frames, made for any length when they are needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alibi_slopes(heads: int) -> Tensor:
    """The slope of each head's linear bias (Press et al., "Train Short, Test Long", arXiv 2108.12409).

    2^(-8/n), 2^(-16/n), … for n heads; where n is no power of two, those of the next lower power, then every second
    one of the next higher.

    Returns:
        `[heads]` float32, falling in each of the two runs.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (k + 1) / lower) for k in range(lower)]
    between = [2 ** (-8 * (k + 1) / (2 * lower)) for k in range(0, 2 * lower, 2)]
    return torch.tensor((slopes + between)[:heads], dtype=torch.float32)


def causal_bias(slopes: Tensor, num_queries: int, num_keys: int, context: int | None = None) -> Tensor:
    """Bias of self-attention: a frame sees itself and earlier ones, the less the farther back they lie.

    The queries are the last frames of the keys: query i stands at frame num_keys - num_queries + i.

    Args:
        slopes: `[H]` (`alibi_slopes`).
        num_queries: T.
        num_keys: S, at least T.
        context: A frame sees the newest so many frames, itself included; None: all earlier ones.

    Returns:
        `[H, T, S]`: -slope · distance, -inf where a frame must not look.
    """
    first = num_keys - num_queries
    assert first >= 0, "the queries are among the keys"
    at = torch.arange(first, num_keys, device=slopes.device)
    distance = at[:, None] - torch.arange(num_keys, device=slopes.device)[None, :]
    hidden = distance < 0 if context is None else (distance < 0) | (distance >= context)
    return (-slopes[:, None, None] * distance).masked_fill(hidden, -math.inf)


def window_mask(
    num_queries: int, num_keys: int, window: int, first: int = 0, device: torch.device | None = None
) -> Tensor:
    """Mask of attention to a sequence of the same time base: frames at most `window` before or after.

    Args:
        num_queries: T.
        num_keys: S.
        window: Frames on each side; 0: the frame itself only.
        first: The key that stands at query 0's frame.
        device: Where the mask is made.

    Returns:
        `[T, S]` bool, True where a query may look.
    """
    at = torch.arange(num_queries, device=device) + first
    return (at[:, None] - torch.arange(num_keys, device=device)[None, :]).abs() <= window
