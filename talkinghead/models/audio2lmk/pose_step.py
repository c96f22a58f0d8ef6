"""The pose decoder for one frame: the same arithmetic as in training, arranged for speed.

A frame alone is bound by reading the weights and by the number of calls. So weights lie as a product with one vector
reads them fastest, attention is written as batched products of matrices with vectors, and what does not depend on the
poses (keys and values of the speech) is made for many frames at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from talkinghead.models.audio2lmk.pose_decoder import Attention, PoseDecoderLayer

FIRST_CAPACITY = 256
"""Frames that an unbounded cache begins with."""


class KeyValueCache:
    """Keys and values of past frames, of all layers, in one block of memory.

    A frame's entries are written once and stay where they are until the block is full; then the frames that can still
    be seen move to its beginning (bounded context), or the block doubles. So a frame's cost does not depend on how many
    were before it, and what attention reads is one slice in order of time.

    G stands for B · H, width for D / H.

    Args:
        shape: (layers, G, width).
        context: Frames that can be seen, the newest included; None: all.
        like: Gives precision and device.
    """

    def __init__(self, shape: tuple[int, int, int], context: int | None, like: Tensor) -> None:
        layers, groups, width = shape
        self._context = context
        capacity = FIRST_CAPACITY if context is None else 2 * context
        self._block = like.new_zeros(layers, 2, groups, capacity, width)
        self._end = 0

    def open_frame(self) -> int:
        """Make room for one more frame; returns how many frames it will see, itself included."""
        if self._end == self._block.shape[3]:
            self._make_room()
        self._end += 1
        return self._end - self._first()

    def write(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest frame's keys and values `[2, G, width]`; returns those in sight, `[G, n, width]` each."""
        self._block[layer, :, :, self._end - 1] = keys_values
        keys, values = self._block[layer, :, :, self._first() : self._end]
        return keys, values

    def fill(self, entries: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Begin anew with several frames: keys and values of each layer, `[G, n, width]` each."""
        self._end = entries[0][0].shape[1]
        while self._block.shape[3] < self._end:
            self._make_room()
        for layer, (keys, values) in enumerate(entries):
            self._block[layer, 0, :, : self._end] = keys
            self._block[layer, 1, :, : self._end] = values

    def _first(self) -> int:
        return 0 if self._context is None else max(0, self._end - self._context)

    def _make_room(self) -> None:
        if self._context is None:
            self._block = torch.cat([self._block, torch.zeros_like(self._block)], dim=3)
            return
        kept = self._context - 1
        self._block[..., :kept, :] = self._block[..., self._end - kept : self._end, :]  # capacity 2·context: disjoint
        self._end = kept


class Hearing:
    """What one layer hears of the speech, for a run of frames.

    Args:
        attention: To the memory.
        memory: `[B, S, D]`.
        window: Frames that are heard before and after a frame's own; None: its own only.
        first: Index in the memory of the run's first frame.
        count: Frames of the run.
    """

    def __init__(self, attention: Attention, memory: Tensor, window: int | None, first: int, count: int) -> None:
        self._attention = attention
        self._window = window
        if window is None:
            self._own = attention.attend_to_own(memory[:, first : first + count])
            return
        begin = max(0, first - window)
        keys, values = attention.keys_values(memory[:, begin : first + count + window])
        self._keys, self._values = keys.flatten(0, 1), values.flatten(0, 1)
        self._offset = first - begin

    def at(self, frame: int, states: Tensor) -> Tensor:
        """Output of the attention for one frame of the run, from the layer's states `[B, D]` → `[B, D]`."""
        if self._window is None:
            return self._own[:, frame]
        at = self._offset + frame
        near = slice(max(0, at - self._window), at + self._window + 1)
        width = states.shape[-1]
        weight, bias = self._attention.in_proj_weight[:width], self._attention.in_proj_bias[:width]
        queries = functional.linear(states, weight, bias).view(len(self._keys), -1, 1)
        mixed = _attend(queries, self._keys[:, near], self._values[:, near], None)
        return self._attention.out_proj(mixed.view_as(states))


class LayerStep:
    """One layer, one frame; dropout is off.

    Args:
        layer: Its weights are copied where another layout reads faster, so a step belongs to one state of the weights.
    """

    def __init__(self, layer: PoseDecoderLayer) -> None:
        self._layer = layer
        # Wide outputs: the product with one vector reads a transposed matrix about 1.5 times as fast.
        self._packed = layer.self_attn.in_proj_weight.detach().t().contiguous().t()
        self._widen = layer.linear1.weight.detach().t().contiguous().t()

    def run(
        self, states: Tensor, cache: KeyValueCache, number: int, bias: Tensor, hearing: Hearing, frame: int
    ) -> Tensor:
        """`[B, D]` → `[B, D]`.

        Args:
            states: `[B, D]`.
            cache: With the frame opened.
            number: Of this layer in the cache.
            bias: `[G, n, 1]`, by distance, the frame itself last.
            hearing: Of this layer.
            frame: Number of the frame in `hearing`.
        """
        layer, attention = self._layer, self._layer.self_attn
        batch, width = states.shape
        packed = functional.linear(states, self._packed, attention.in_proj_bias)
        parts = packed.view(batch, 3, attention.heads, -1).transpose(0, 1).flatten(1, 2)  # [3, G, width]
        mixed = _attend(parts[0, :, :, None], *cache.write(number, parts[1:]), bias)
        states = layer.norm1(states + attention.out_proj(mixed.view(batch, width)))
        states = layer.norm2(states + hearing.at(frame, states))
        inner = functional.relu(functional.linear(states, self._widen, layer.linear1.bias))
        return layer.norm3(states + layer.linear2(inner))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of one frame.

    Args:
        queries: `[G, width, 1]`.
        keys: `[G, n, width]`.
        values: `[G, n, width]`.
        bias: `[G, n, 1]`, added to the scores.

    Returns:
        `[G, 1, width]`.
    """
    scale = queries.shape[1] ** -0.5
    scores = torch.bmm(keys, queries) * scale if bias is None else torch.baddbmm(bias, keys, queries, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=1).transpose(1, 2), values)
