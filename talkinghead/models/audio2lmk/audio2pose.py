"""Audio2Pose: speech to head pose, frame after frame, by a Transformer decoder over past poses and a memory of speech.

The decoder's layers have the arithmetic and the parameter names of `torch.nn.TransformerDecoderLayer` (norm after each
part, ReLU), so weights in its layout load; written out because decoding frame by frame needs the keys and values.

Letters:
    B recordings, N audio samples, T predicted frames, S frames of keys and values, D width of the decoder, H heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from talkinghead.models.device_constant import DeviceConstant
from talkinghead.models.speech.encoder import SpeechModel, build_encoder, encode_speech, frame_rate
from talkinghead.motion.smoothing import moving_average

POSE_NUMBERS = 6
"""Numbers of a pose: three angles in degrees, three of translation in centimetres."""


class PositionCode(nn.Module):
    """Sinusoidal code of a frame's position (Vaswani et al., arXiv 1706.03762), repeated after `period` frames."""

    def __init__(self, width: int, period: int) -> None:
        super().__init__()
        position = torch.arange(period, dtype=torch.float32)[:, None]
        frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        code = torch.zeros(1, period, width)
        code[0, :, 0::2] = torch.sin(position * frequency)
        code[0, :, 1::2] = torch.cos(position * frequency)
        self.pe: Tensor  # [1, period, D]; saved with the weights, as in the published file
        self.register_buffer("pe", code)

    def forward(self, first: int, count: int) -> Tensor:
        """Codes of the frames `first … first + count - 1`: `[count, D]`."""
        period = self.pe.shape[1]
        return self.pe[0, torch.arange(first, first + count, device=self.pe.device) % period]


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows of queries, keys, values
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def split(self, packed: Tensor) -> Tensor:
        """States taken apart into heads, `[B, T, D]` → `[B, H, T, D/H]`."""
        return packed.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def queries(self, states: Tensor) -> Tensor:
        """Queries of states, `[B, T, D]` → `[B, H, T, D/H]`."""
        width = states.shape[-1]
        return self.split(functional.linear(states, self.in_proj_weight[:width], self.in_proj_bias[:width]))

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of states, `[B, S, D]` → each `[B, H, S, D/H]`."""
        width = states.shape[-1]
        packed = functional.linear(states, self.in_proj_weight[width:], self.in_proj_bias[width:])
        keys, values = packed.chunk(2, dim=-1)
        return self.split(keys), self.split(values)

    def queries_keys_values(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the same states, in one product."""
        queries, keys, values = functional.linear(states, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.split(queries), self.split(keys), self.split(values)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention and output layer: `[B, H, T, D/H]`, keys and values `[B, H, S, D/H]` → `[B, T, D]`.

        `bias` broadcasts to `[B, H, T, S]`: bool (True where a frame may attend) or added to the scores.
        """
        if bias is not None and bias.is_floating_point():
            bias = bias.to(queries.dtype)  # scaled_dot_product_attention wants one dtype
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(mixed.transpose(-3, -2).flatten(-2))

    def attend_to_own(self, states: Tensor) -> Tensor:
        """Attention where each frame attends to the frame of its own time only: `[B, T, D]` → `[B, T, D]`.

        The softmax over one key is 1, so the value passes and the queries do not matter.
        """
        width = states.shape[-1]
        values = functional.linear(states, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        if self.training and self.dropout:
            # Dropout of the attention weights, of which there is one per frame and head. [B, T, H, 1]
            ones = values.new_ones(*values.shape[:-1], self.heads, 1)
            kept = functional.dropout(ones, self.dropout)
            values = (values.unflatten(-1, (self.heads, -1)) * kept).flatten(-2)
        return self.out_proj(values)


class PoseDecoderLayer(GradientCheckpointingLayer):
    """Self-attention over past poses, attention to the memory, feed-forward; dropout in and a norm after each."""

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
        """The layer's output for all frames in one pass.

        Args:
            states: Input `[B, T, D]`.
            memory: Memory of speech `[B, S, D]`; S = T without a mask.
            self_bias: Bias of self-attention `[H, T, T]` (`causal_bias`).
            memory_mask: Broadcasts to `[B, H, T, S]`, True where a frame may attend; None: to its own frame only.

        Returns:
            `[B, T, D]`.
        """
        return self.run(states, memory, self_bias, memory_mask)[0]

    def run(
        self, states: Tensor, memory: Tensor, self_bias: Tensor, memory_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward`, with the keys and values of self-attention, each `[B, H, T, D/H]`."""
        # Self-attention: the poses up to a frame.
        queries, keys, values = self.self_attn.queries_keys_values(states)
        mixed = self.self_attn.attend(queries, keys, values, self_bias)
        states = self.norm1(states + self.dropout(mixed))
        # Cross-attention: the speech around the frame.
        cross = self.multihead_attn
        if memory_mask is None:
            mixed = cross.attend_to_own(memory)
        else:
            mixed = cross.attend(cross.queries(states), *cross.keys_values(memory), memory_mask)
        states = self.norm2(states + self.dropout(mixed))
        # Feed-forward: each frame for itself.
        inner = self.dropout(functional.relu(self.linear1(states)))
        return self.norm3(states + self.dropout(self.linear2(inner))), keys, values


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of the heads' linear bias, `[H]` float32 (Press et al., "Train Short, Test Long", arXiv 2108.12409).

    2^(-8/n), 2^(-16/n), … for n heads; where n is no power of two, those of the next lower power, then every second one
    of the next higher.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (k + 1) / lower) for k in range(lower)]
    between = [2 ** (-8 * (k + 1) / (2 * lower)) for k in range(0, 2 * lower, 2)]
    return torch.tensor((slopes + between)[:heads], dtype=torch.float32)


def causal_bias(slopes: Tensor, num_queries: int, num_keys: int, context: int | None = None) -> Tensor:
    """Bias of self-attention: a frame attends to itself and to earlier ones, the less the farther back they lie.

    Args:
        slopes: Slope of each head `[H]` (`alibi_slopes`).
        num_queries: T; the queries are the last of the keys: query i is frame num_keys - num_queries + i.
        num_keys: S, at least T.
        context: Number of newest frames that a frame attends to, itself included; None: all earlier ones.

    Returns:
        `[H, T, S]`: -slope · distance, -inf where a frame must not attend.
    """
    first = num_keys - num_queries
    assert first >= 0, "the queries are among the keys"
    at = torch.arange(first, num_keys, device=slopes.device)
    distance = at[:, None] - torch.arange(num_keys, device=slopes.device)[None, :]  # [T, S], negative: in the future
    hidden = distance < 0 if context is None else (distance < 0) | (distance >= context)
    return (-slopes[:, None, None] * distance).masked_fill(hidden, -math.inf)


def window_mask(
    num_queries: int, num_keys: int, window: int, first: int = 0, device: torch.device | None = None
) -> Tensor:
    """Mask of attention to a sequence of the same time base: frames at most `window` before or after.

    Args:
        num_queries: T.
        num_keys: S.
        window: Number of frames on each side; 0: the frame itself only.
        first: Index of the key at query 0's frame.
        device: Device of the mask.

    Returns:
        `[T, S]` bool, True where a query may attend.
    """
    at = torch.arange(num_queries, device=device) + first
    return (at[:, None] - torch.arange(num_keys, device=device)[None, :]).abs() <= window


class PoseLayers(nn.Module):
    """The decoder's layers, under the name that `torch.nn.TransformerDecoder` gives them."""

    def __init__(self, layers: Sequence[PoseDecoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Audio2Pose(SpeechModel):
    """Speech to head pose: a speech encoder and an autoregressive Transformer decoder over poses.

    After FaceFormer (Fan et al., arXiv 2112.05329): causal self-attention with a linear bias, attention to the speech
    around the same frame, a code of the position and of the identity. Names and shapes of the parameters are those of
    AniPortrait's published `audio2pose.pt` (arXiv 2403.17694).

    Args:
        wav2vec: Configuration of the speech encoder (`Pretrained.wav2vec_config`).
        width: Width D of the decoder.
        layers: Number of layers of the decoder.
        heads: Number of heads H of the decoder.
        feed_forward: Width inside the decoder's feed-forward parts.
        dropout: Probability of dropout in the decoder.
        num_identities: Number of identities, the rows of their code.
        fps: Frame rate that the model was trained at.
        position_period: Number of frames after which the position code repeats.
        memory_attention: `window`: a frame attends to the frames around it; `diagonal`: to its own only (as published).
        memory_window: Number of frames on each side that `window` attends to.
        context: Number of frames up to its own that a frame attends to; None: all since the start or the last seam.
        pose_scale: Divisor of poses on the way in and factor on the way out, per number.
        angle_gain: Factor of the angles in inference.
        smoothing: Number of frames of the centred moving average that inference puts over the pose; 1: none.
        max_step: Largest usual |pose[t] - pose[t-1]| per number; a larger step at a seam is spread. None: the largest
            step since the last seam.
        pose_origin: Meaning of pose 0: the speaker's `rest` pose, or the pose in the `first` frame.
        chunking: Way of decoding long speech in chunks where `context` is None. `continue`: each begins with the last
            frames of the one before it; `restart`: each begins from pose 0 (as published).
        restart_frames: Number of frames of a chunk that restarts, and of those that a continued chunk begins with.
    """

    @register_to_config
    def __init__(
        self,
        wav2vec: dict[str, Any],
        width: int = 512,
        layers: int = 8,
        heads: int = 8,
        feed_forward: int = 1024,
        dropout: float = 0.1,
        num_identities: int = 100,
        fps: float = 25.0,
        position_period: int = 600,
        memory_attention: Literal["window", "diagonal"] = "window",
        memory_window: int = 5,
        context: int | None = None,
        pose_scale: Sequence[float] = (1.0,) * POSE_NUMBERS,
        angle_gain: float = 1.0,
        smoothing: int = 1,
        max_step: Sequence[float] | None = None,
        pose_origin: Literal["rest", "first"] = "rest",
        chunking: Literal["continue", "restart"] = "continue",
        restart_frames: int = 150,
    ) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width {width} must be even and a multiple of heads {heads}")
        if memory_attention not in ("window", "diagonal") or memory_window < 0:
            raise ValueError("memory_attention must be window or diagonal, memory_window at least 0")
        if context is not None and context < 1:
            raise ValueError(f"context must be at least 1 frame, or None, not {context}")
        if len(pose_scale) != POSE_NUMBERS or min(pose_scale) <= 0:
            raise ValueError(f"pose_scale must be {POSE_NUMBERS} numbers above 0")
        frame_rate(fps)
        if smoothing < 1 or smoothing % 2 == 0:
            raise ValueError(f"smoothing {smoothing} must be odd and positive, so that it has a middle frame")
        if chunking not in ("continue", "restart"):
            raise ValueError(f"chunking must be continue or restart, not {chunking!r}")
        if context is None and not 0 < restart_frames < position_period:
            raise ValueError(
                f"restart_frames {restart_frames} must lie between 0 and position_period {position_period}; or bound"
                " the past with context"
            )
        if max_step is not None and len(max_step) != POSE_NUMBERS:
            raise ValueError(f"max_step must be {POSE_NUMBERS} numbers, or None")
        # Settings of decoding and of inference, which hold no weights.
        self.fps = fps
        self.heads = heads
        self.context = context
        self.memory_window = memory_window if memory_attention == "window" else 0
        self.diagonal = memory_attention == "diagonal"
        self.pose_scale = tuple(pose_scale)
        self.max_step = None if max_step is None else tuple(max_step)
        self.angle_gain = angle_gain
        self.smoothing = smoothing
        self.chunking = chunking
        self.restart_frames = restart_frames
        self.longest_chunk = min(position_period, 2 * restart_frames)
        # Modules, under the names of the published file.
        self.audio_encoder = build_encoder(wav2vec)
        self.in_fn = nn.Linear(int(self.audio_encoder.config.hidden_size), width)
        self.pose_map = nn.Linear(POSE_NUMBERS, width)
        self.PPE = PositionCode(width, position_period)
        self.id_embed = nn.Embedding(num_identities, width)
        decoder = [PoseDecoderLayer(width, heads, feed_forward, dropout) for _ in range(layers)]
        self.transformer_decoder = PoseLayers(decoder)
        self.pose_map_r = nn.Linear(width, POSE_NUMBERS)
        # Zeros, so that an untrained model predicts pose 0.
        nn.init.zeros_(self.pose_map_r.weight)
        nn.init.zeros_(self.pose_map_r.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers: units of sharding, compiling and activation checkpointing."""
        return [*super().blocks, *self.decoder_layers]

    @property
    def decoder_layers(self) -> list[PoseDecoderLayer]:
        """The layers of the decoder."""
        return cast(list[PoseDecoderLayer], list(self.transformer_decoder.layers))

    def encode(self, samples: Tensor, num_frames: int, mask: Tensor | None = None) -> Tensor:
        """Memory of speech that the decoder attends to.

        Args:
            samples: Audio samples `[B, N]`, 16 kHz, normalised over the recording (`speech.encoder.normalise`).
            num_frames: T, the frames that the samples span.
            mask: `[B, T]` bool, False after a recording's end.

        Returns:
            `[B, T, D]`.
        """
        return self.in_fn(encode_speech(self.audio_encoder, samples, num_frames, mask))

    def forward(self, samples: Tensor, previous: Tensor, identity: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pose of each frame from the true poses before it (teacher forcing), all in one pass.

        Args:
            samples: Audio samples `[B, N]`, 16 kHz, normalised over the recording.
            previous: Poses one frame earlier `[B, T, 6]`, degrees and centimetres; 0 in frame 0.
            identity: Identity numbers `[B]` int64, below `num_identities`.
            mask: `[B, T]` bool, False after a recording's end.

        Returns:
            `[B, T, 6]`, degrees and centimetres.
        """
        memory = self.encode(samples, previous.shape[1], mask)
        return self.decode_known(memory, previous, identity, mask)

    def decode_known(self, memory: Tensor, previous: Tensor, identity: Tensor, mask: Tensor | None = None) -> Tensor:
        """`forward` from the memory `[B, T, D]` on."""
        count = previous.shape[1]
        states = self.embed(previous, identity, first=0)
        # Where a frame may attend: to earlier poses, and to the speech around it.
        self_bias = causal_bias(self._slopes.on(states.device), count, count, self.context)
        memory_mask = None
        if not self.diagonal:
            memory_mask = window_mask(count, count, self.memory_window, device=states.device)
            if mask is not None:
                # Frames after the end keep their own memory: a softmax over nothing has no value.
                own = torch.eye(count, dtype=torch.bool, device=states.device)
                memory_mask = (memory_mask & (mask[:, None, :] | own))[:, None]
        for layer in self.decoder_layers:
            states = layer(states, memory, self_bias, memory_mask)
        return self.unmap(states)

    @functools.cached_property
    def _scale(self) -> DeviceConstant:
        return DeviceConstant(torch.tensor(self.pose_scale, dtype=torch.float64, device="cpu"))

    @functools.cached_property
    def _slopes(self) -> DeviceConstant:
        return DeviceConstant(alibi_slopes(self.heads))

    def embed(self, previous: Tensor, identity: Tensor, first: int) -> Tensor:
        """The decoder's input `[B, T, D]` for the poses one frame earlier `[B, T, 6]`; `first`: position of frame 0."""
        scaled = previous / self._scale.like(previous)  # [B, T, 6]
        return self.pose_map(scaled) + self.PPE(first, previous.shape[1]) + self.id_embed(identity)[:, None]

    def unmap(self, states: Tensor) -> Tensor:
        """Poses `[B, T, 6]`, degrees and centimetres, from the decoder's output `[B, T, D]`."""
        mapped = self.pose_map_r(states)
        return mapped * self._scale.like(mapped)

    def finish(self, poses: Tensor) -> Tensor:
        """Poses `[T, 6]` that inference returns for decoded ones: angles times `angle_gain`, then a moving average."""
        gain = poses.new_tensor([self.angle_gain] * 3 + [1.0] * 3)  # the translation as it is
        smooth = moving_average((poses * gain).cpu().numpy(), self.smoothing)
        return torch.from_numpy(smooth).to(poses)

    def identities(self, identity: int | Tensor, batch: int) -> Tensor:
        """Identity numbers `[B]` int64 of a batch, from a number for all or one each.

        Raises:
            ValueError: There is no such identity.
        """
        known = self.id_embed.num_embeddings
        numbers = torch.as_tensor(identity, device=self.id_embed.weight.device).expand(batch)
        if not bool(((numbers >= 0) & (numbers < known)).all()):
            raise ValueError(f"identity {identity} is not known: the model has 0 … {known - 1}")
        return numbers
