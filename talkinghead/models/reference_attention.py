"""Self-attention that also looks at a reference picture: its keys and values stand beside the own ones."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class KeyValue(NamedTuple):
    """Keys and values of a reference in one attention layer, `[B, L, C]` each."""

    key: Tensor
    value: Tensor


def project(attn: Attention, feature: Tensor) -> KeyValue:
    """The keys and values of a reference's feature `[B, L, C]`, by the layer's own weights."""
    return KeyValue(cast(nn.Linear, attn.to_k)(feature), cast(nn.Linear, attn.to_v)(feature))


def mix_heads(attn: Attention, states: Tensor) -> Tensor:
    """The layer's last part: `[…, C]` → `[…, C]`."""
    for layer in cast(nn.ModuleList, attn.to_out):
        states = layer(states)
    return states


class ReferenceAttention:
    """Processor of a stock `Attention` layer: queries from the own tokens, keys and values from own and reference.

    The reference is projected once for each sample and not once for each frame. A processor holds nothing, so it can be
    called, recomputed and compiled in any order.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reference: Tensor | KeyValue | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            attn: The layer.
            hidden_states: Own tokens `[B * F, L, C]`, the frames of a sample one after the other.
            encoder_hidden_states: None: this is self-attention.
            attention_mask: None: every token counts.
            reference: Feature `[B, R, C]`, or its keys and values; None: plain self-attention.
            dropped: `[B]` bool, samples that do without the reference (needs R = L). They see their own tokens twice,
                which leaves every softmax average as it is and needs no mask, so fast kernels apply.

        Returns:
            `[B * F, L, C]`.
        """
        assert encoder_hidden_states is None and attention_mask is None, "self-attention over whole pictures only"
        count, length, width = hidden_states.shape
        query = attn.to_q(hidden_states)
        key, value = project(attn, hidden_states)
        if reference is not None:
            beside = reference if isinstance(reference, KeyValue) else project(attn, reference)
            key = _beside(key, beside.key, dropped)
            value = _beside(value, beside.value, dropped)
        query, key, value = (part.view(count, -1, attn.heads, width // attn.heads) for part in (query, key, value))
        states = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return mix_heads(attn, states.transpose(1, 2).reshape(count, length, width))


def _beside(own: Tensor, reference: Tensor, dropped: Tensor | None) -> Tensor:
    """Own `[B * F, L, C]` and reference `[B, R, C]` → `[B * F, L + R, C]`."""
    batch, extra, _ = reference.shape
    own = own.unflatten(0, (batch, -1))
    reference = reference.to(own.dtype)[:, None].expand(-1, own.shape[1], -1, -1)
    if dropped is not None:
        assert extra == own.shape[2], "a dropped reference must have as many tokens as the picture"
        reference = torch.where(dropped[:, None, None, None], own, reference)
    return torch.cat([own, reference], dim=2).flatten(0, 1)
