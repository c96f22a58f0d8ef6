"""The layers of Audio2Pose: a Transformer decoder over past poses and a memory of speech of the same time base.

Same arithmetic and same parameter names as `torch.nn.TransformerDecoderLayer` (norm after each part, ReLU), so weights
in its layout load; written out because decoding frame by frame needs the keys and values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer


class PositionCode(nn.Module):
    """Sinusoidal code of a frame's position (Vaswani et al., arXiv 1706.03762), repeated after `period` frames."""

    def __init__(self, width: int, period: int) -> None:
        super().__init__()
        position = torch.arange(period, dtype=torch.float32)[:, None]
        frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        code = torch.zeros(1, period, width)
        code[0, :, 0::2] = torch.sin(position * frequency)
        code[0, :, 1::2] = torch.cos(position * frequency)
        self.pe: Tensor
        self.register_buffer("pe", code)

    def forward(self, first: int, count: int) -> Tensor:
        """Codes of frames `first … first + count - 1`: `[count, width]`."""
        period = self.pe.shape[1]
        return self.pe[0, torch.arange(first, first + count, device=self.pe.device) % period]


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def split(self, packed: Tensor) -> Tensor:
        """`[B, T, D]` → `[B, H, T, D/H]`."""
        return packed.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def queries(self, states: Tensor) -> Tensor:
        """`[B, T, D]` → `[B, H, T, D/H]`."""
        width = states.shape[-1]
        return self.split(functional.linear(states, self.in_proj_weight[:width], self.in_proj_bias[:width]))

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, S, D]` → keys and values, each `[B, H, S, D/H]`."""
        width = states.shape[-1]
        packed = functional.linear(states, self.in_proj_weight[width:], self.in_proj_bias[width:])
        keys, values = packed.chunk(2, dim=-1)
        return self.split(keys), self.split(values)

    def queries_keys_values(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All three of the same states, in one product."""
        queries, keys, values = functional.linear(states, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.split(queries), self.split(keys), self.split(values)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention and output layer.

        Args:
            queries: `[B, H, T, D/H]`.
            keys: `[B, H, S, D/H]`.
            values: `[B, H, S, D/H]`.
            bias: Broadcasts to `[B, H, T, S]`: bool (True may look) or added to the scores.

        Returns:
            `[B, T, D]`.
        """
        if bias is not None and bias.is_floating_point():
            bias = bias.to(queries.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(mixed.transpose(-3, -2).flatten(-2))

    def attend_to_own(self, states: Tensor) -> Tensor:
        """What attention yields where a frame may look at the frame of its own time only.

        The softmax over one key is 1, so the value passes and the queries do not matter.

        Args:
            states: `[B, T, D]`, of the same frames as the queries.
        """
        width = states.shape[-1]
        values = functional.linear(states, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        if self.training and self.dropout:
            ones = values.new_ones(*values.shape[:-1], self.heads, 1)
            kept = functional.dropout(ones, self.dropout)
            values = (values.unflatten(-1, (self.heads, -1)) * kept).flatten(-2)
        return self.out_proj(values)


class PoseDecoderLayer(GradientCheckpointingLayer):
    """Self-attention over past poses, attention to the memory, feed-forward; a norm after each.

    Args:
        width: D.
        heads: H.
        feed_forward: Width inside the feed-forward part.
        dropout: Of attention weights and of each part's output.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.multihead_attn = Attention(width, heads, dropout)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, memory: Tensor, self_bias: Tensor, memory_mask: Tensor | None) -> Tensor:
        """All frames in one pass.

        Args:
            states: `[B, T, D]`.
            memory: `[B, S, D]`; S = T without a mask.
            self_bias: `[H, T, T]` (`causal_bias`).
            memory_mask: Broadcasts to `[B, H, T, S]`, True where a frame may look; None: its own frame only.

        Returns:
            `[B, T, D]`.
        """
        return self.run(states, memory, self_bias, memory_mask)[0]

    def run(
        self, states: Tensor, memory: Tensor, self_bias: Tensor, memory_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward`, with the keys and values of self-attention, each `[B, H, T, D/H]`."""
        queries, keys, values = self.self_attn.queries_keys_values(states)
        mixed = self.self_attn.attend(queries, keys, values, self_bias)
        states = self.norm1(states + self.dropout(mixed))
        if memory_mask is None:
            heard = self.multihead_attn.attend_to_own(memory)
        else:
            cross = self.multihead_attn
            heard = cross.attend(cross.queries(states), *cross.keys_values(memory), memory_mask)
        states = self.norm2(states + self.dropout(heard))
        inner = self.dropout(functional.relu(self.linear1(states)))
        return self.norm3(states + self.dropout(self.linear2(inner))), keys, values


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
