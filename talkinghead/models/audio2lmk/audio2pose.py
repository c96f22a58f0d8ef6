"""Speech to head pose, frame after frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from talkinghead.models.audio2lmk.pose_decoder import (
    PoseDecoderLayer,
    PositionCode,
    alibi_slopes,
    causal_bias,
    window_mask,
)
from talkinghead.models.speech.encoder import SpeechModel, build_encoder, encode_speech, frame_rate
from talkinghead.motion.smoothing import moving_average

POSE_NUMBERS = 6
"""Three angles in degrees, three of translation in centimetres."""


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
        width: D of the decoder.
        layers: Of the decoder.
        heads: H of the decoder.
        feed_forward: Width inside the decoder's feed-forward parts.
        dropout: Of the decoder.
        num_identities: Rows of the identity code.
        fps: Frame rate that the model was trained at.
        position_period: Frames after which the position code repeats.
        memory_attention: `window`: a frame hears the frames around it; `diagonal`: its own frame only (as published).
        memory_window: Frames on each side that `window` hears.
        context: Frames of the past, its own included, that a frame sees; None: all since the start or the last joint.
        pose_scale: What a pose is divided by on the way in, and multiplied by on the way out, per number.
        angle_gain: What inference multiplies the angles by.
        smoothing: Frames of the centred moving average that inference puts over the pose; 1: none.
        max_step: Largest usual |pose[t] - pose[t-1]| per number; a larger step at a joint is spread. None: the largest
            step seen since the last joint.
        pose_origin: What pose 0 means: the speaker's `rest` pose, or the pose in the `first` frame.
        chunking: How speech that is longer than the past a frame may see is decoded, where `context` is None:
            `continue`: each chunk begins with the last frames of the one before it; `restart`: from pose 0 (as
            published).
        restart_frames: Frames of a chunk that restarts; and frames that a continued chunk begins with.
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
        self.audio_encoder = build_encoder(wav2vec)
        self.in_fn = nn.Linear(int(self.audio_encoder.config.hidden_size), width)
        self.pose_map = nn.Linear(POSE_NUMBERS, width)
        self.PPE = PositionCode(width, position_period)
        self.id_embed = nn.Embedding(num_identities, width)
        self.transformer_decoder = PoseLayers(
            [PoseDecoderLayer(width, heads, feed_forward, dropout) for _ in range(layers)]
        )
        self.pose_map_r = nn.Linear(width, POSE_NUMBERS)
        # The first prediction is pose 0.
        nn.init.zeros_(self.pose_map_r.weight)
        nn.init.zeros_(self.pose_map_r.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers: units of sharding, compiling and activation checkpointing."""
        return [*super().blocks, *self.decoder_layers]

    @property
    def decoder_layers(self) -> list[PoseDecoderLayer]:
        """Those of the decoder."""
        return cast(list[PoseDecoderLayer], list(self.transformer_decoder.layers))

    def encode(self, samples: Tensor, num_frames: int, mask: Tensor | None = None) -> Tensor:
        """The memory of speech that the decoder attends to.

        Args:
            samples: `[B, N]`, 16 kHz, normalised over the recording (`speech_features.normalise`).
            num_frames: T, the frames that the samples span.
            mask: `[B, T]` bool, False after a recording's end.

        Returns:
            `[B, T, D]`.
        """
        return self.in_fn(encode_speech(self.audio_encoder, samples, num_frames, mask))

    def forward(self, samples: Tensor, previous: Tensor, identity: Tensor, mask: Tensor | None = None) -> Tensor:
        """The pose of each frame from the true poses before it, all in one pass.

        Args:
            samples: `[B, N]`, 16 kHz, normalised over the recording.
            previous: `[B, T, 6]`: the pose one frame earlier, degrees and centimetres; 0 in frame 0.
            identity: `[B]` int64, below `num_identities`.
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
        self_bias = causal_bias(alibi_slopes(self.heads).to(states.device), count, count, self.context)
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

    def embed(self, previous: Tensor, identity: Tensor, first: int) -> Tensor:
        """The decoder's input `[B, T, D]`.

        Args:
            previous: `[B, T, 6]`, the poses one frame earlier.
            identity: `[B]`.
            first: Position of the first of them.
        """
        scaled = previous / previous.new_tensor(self.pose_scale)
        return self.pose_map(scaled) + self.PPE(first, previous.shape[1]) + self.id_embed(identity)[:, None]

    def unmap(self, states: Tensor) -> Tensor:
        """The decoder's output `[B, T, D]` → poses `[B, T, 6]`, degrees and centimetres."""
        mapped = self.pose_map_r(states)
        return mapped * mapped.new_tensor(self.pose_scale)

    def finish(self, poses: Tensor) -> Tensor:
        """What is shown of decoded poses `[T, 6]`: angles times `angle_gain`, then the moving average."""
        gain = poses.new_tensor([self.angle_gain] * 3 + [1.0] * 3)
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
