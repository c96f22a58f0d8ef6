"""Cost of a video: operations and memory of every part, counted on networks without weights.

Two programs are counted from the same networks: ours (`video_cost`), and AniPortrait's published one
(`published_cost`). The latter doubles every batch for guidance, computes pose features and the reference's keys and
values in each window at each step, and computes the unconditional half's self-attention twice. Both give the same
video.

Operations are floating-point operations: a multiplication and an addition count as two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from talkinghead.models.image.networks import latent_channels, latent_scale
from talkinghead.models.lmk2video.denoiser import Condition
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.pose_guider import GUIDANCE_SCALE, PoseGuider
from talkinghead.models.lmk2video.unet_blocks import Upsampler
from talkinghead.models.meter import Cost, measure_cost


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """Properties of a request on which its cost depends."""

    width: int
    """Width of the frames in pixels."""
    height: int
    """Height of the frames in pixels."""
    frames: int
    """Number of frames of the video."""
    windows: tuple[int, ...]
    """Number of frames of each window."""
    steps: int = 25
    """Number of the sampler's steps."""
    guided: bool = True
    """Whether there is an unconditional half."""
    decode_chunk: int = 4
    """Number of frames decoded at once."""
    share: bool = True
    """Whether overlapping windows share the results of `Denoiser.begin` for their frames."""
    keep_pose: bool = True
    """Whether pose features are kept for the next step; otherwise they are computed again."""


@dataclass(frozen=True, kw_only=True)
class VideoCost:
    """Operations and memory of a video."""

    flops: dict[str, int]
    """Operations of the whole video, by part."""
    peak_bytes: dict[str, int]
    """Peak memory of intermediate results in bytes, by part, without weights. Parts are computed one after another."""
    frames: int
    """Number of frames of the video."""

    @property
    def flops_per_frame(self) -> float:
        """Operations of all parts, divided by the number of frames."""
        return sum(self.flops.values()) / self.frames


def video_cost(networks: HollowNetworks, shape: VideoShape) -> VideoCost:
    """Cost of a video as `TalkingHeadPipeline` makes it.

    Args:
        networks: Networks in the precision to count for, which affects memory only.
        shape: Properties of the request.
    """
    calls = _Calls(networks, shape)
    rest = {length: calls.rest(length) for length in set(shape.windows)}
    once = [calls.encode, calls.embed, calls.reference_features, calls.project]
    # How many frames pose features and first parts are computed for: each frame once if frames are independent and
    # results are kept, otherwise each window's frames, and at each step again.
    alone, covered = networks.pose_guider.frames_are_independent, sum(shape.windows)
    posed = (shape.frames if alone else covered) * (1 if shape.keep_pose else shape.steps)
    begun = shape.frames if alone and shape.share else covered
    return VideoCost(
        flops={
            "reference": sum(cost.flops for cost in once),
            "pose": calls.pose_reference.flops + posed * calls.pose(1).flops,
            "denoiser": shape.steps
            * (begun * calls.begin(1).flops + sum(rest[length].flops for length in shape.windows)),
            "decoding": shape.frames * calls.decode(1).flops,
        },
        peak_bytes={
            "reference": max(cost.peak_bytes for cost in once),
            "pose": calls.pose(max(shape.windows)).peak_bytes,
            "denoiser": max(cost.peak_bytes for cost in (*rest.values(), calls.begin(max(shape.windows)))),
            "decoding": calls.decode(min(shape.decode_chunk, shape.frames)).peak_bytes,
        },
        frames=shape.frames,
    )


def published_cost(networks: HollowNetworks, shape: VideoShape) -> VideoCost:
    """Cost of the same video as AniPortrait's program makes it; operations only.

    Args:
        networks: Networks of the same sizes. Their PoseGuider is counted without attention to the reference, which the
            published one lacks.
        shape: Properties of the request, with the windows of that program.
    """
    calls = _Calls(networks, shape)
    halves, covered = (2 if shape.guided else 1), sum(shape.windows)
    whole = {length: calls.whole(length) for length in set(shape.windows)}
    # `whole` was counted without a reference, so its part is added here, in closed form for L tokens of width C. In
    # each frame: keys and values of the reference, 2 * 2 L C², and attention to them, 2 * 2 L² C.
    reference = sum(4 * length * width * (length + width) for length, width in calls.tokens)
    # The unconditional half's self-attention once more, without the reference: the published program computes it with
    # the reference first. Queries, keys, values and output projection, 4 * 2 L C², and attention, 2 * 2 L² C.
    again = sum(4 * length * width * (length + 2 * width) for length, width in calls.tokens) if shape.guided else 0
    windows = halves * sum(whole[length] for length in shape.windows) + covered * (halves * reference + again)
    return VideoCost(
        flops={
            "reference": calls.encode.flops + calls.embed.flops + halves * calls.reference_features.flops,
            "pose": shape.steps * halves * covered * calls.published_pose.flops,
            "denoiser": shape.steps * windows,
            "decoding": shape.frames * calls.decode(1).flops,
        },
        peak_bytes={},
        frames=shape.frames,
    )


class _Calls:
    """Costs of the network calls that make a video, each measured on first use."""

    def __init__(self, networks: HollowNetworks, shape: VideoShape) -> None:
        self._networks = networks
        self._shape = shape
        scale = latent_scale(networks.vae)
        self._size = (shape.height // scale, shape.width // scale)
        self._channels = latent_channels(networks.vae)
        self._token = self._empty(1, 1, networks.denoiser.config["cross_attention_dim"])
        with torch.no_grad():
            # On the meta device this computes shapes only; the conditions of later calls need them.
            self._features = networks.reference_net(self._latents(1)[0], self._token)
            self._projected = networks.denoiser.project_reference(self._features)

    @property
    def tokens(self) -> list[tuple[int, int]]:
        """Length L and width C of the reference's feature for each transformer."""
        return [(feature.shape[1], feature.shape[2]) for feature in self._features.values()]

    @cached_property
    def encode(self) -> Cost:
        """Cost of encoding the portrait with the VAE."""
        image = self._empty(1, 3, self._shape.height, self._shape.width)
        vae: Any = self._networks.vae
        return measure_cost(lambda: vae.encode(image).latent_dist.mode())

    @cached_property
    def embed(self) -> Cost:
        """Cost of the portrait's image token."""
        encoder: Any = self._networks.image_encoder
        side = encoder.config.image_size
        return measure_cost(lambda: encoder(self._empty(1, 3, side, side)))

    @cached_property
    def reference_features(self) -> Cost:
        """Cost of the reference network."""
        return measure_cost(lambda: self._networks.reference_net(self._latents(1)[0], self._token, fold=True))

    @cached_property
    def project(self) -> Cost:
        """Cost of the reference's keys and values in all transformers."""
        return measure_cost(lambda: self._networks.denoiser.project_reference(self._features))

    @cached_property
    def pose_reference(self) -> Cost:
        """Cost of encoding the reference's landmarks; zero for a PoseGuider that does not attend to them."""
        guider = self._networks.pose_guider
        if not guider.config["reference_attention"]:
            return Cost(0, 0)
        return measure_cost(lambda: guider.encode_reference(self._images(1)[:, 0]))

    def pose(self, frames: int) -> Cost:
        """Cost of the pose features of `frames` frames."""
        guider = self._networks.pose_guider
        reference = None
        if guider.config["reference_attention"]:
            # Encoded outside of the measurement: it is counted once for the video, as `pose_reference`.
            with torch.no_grad():
                reference = guider.encode_reference(self._images(1)[:, 0])
        return measure_cost(lambda: guider(self._images(frames), reference))

    @cached_property
    def published_pose(self) -> Cost:
        """Cost of the pose features of one frame, without attention to the reference."""
        config = {**self._networks.pose_guider.config, "reference_attention": False, "zero_outputs": False}
        with torch.device("meta"):
            guider: Any = PoseGuider.from_config(config)
        guider.to(self._dtype).eval()
        return measure_cost(lambda: guider(self._images(1)))

    def begin(self, frames: int) -> Cost:
        """Cost of the first part of a step, before frames interact, for all conditions."""
        pose = self._pose(frames)
        return measure_cost(
            lambda: self._networks.denoiser.begin(self._latents(frames), 5, self._conditions, pose=pose, fold=True)
        )

    def rest(self, frames: int) -> Cost:
        """Cost of the rest of a step of a window of `frames` frames, for all conditions."""
        denoiser, pose = self._networks.denoiser, self._pose(frames)
        with torch.no_grad():
            parts = denoiser.begin(self._latents(frames), 5, self._conditions, pose=pose, fold=True)
        costs = [
            measure_cost(
                lambda begun=begun, given=given: denoiser(
                    begun, 5, given.token, reference=given.reference, pose=pose, fold=True
                )
            )
            for begun, given in zip(parts, self._conditions, strict=True)
        ]
        # The conditions are computed one after another: operations add up, memory does not.
        return Cost(sum(cost.flops for cost in costs), max(cost.peak_bytes for cost in costs))

    def whole(self, frames: int) -> int:
        """Operations of a step of a window without a reference, nothing folded, and convolved after enlarging."""
        denoiser, pose = self._networks.denoiser, self._pose(frames)
        cost = measure_cost(lambda: denoiser(self._latents(frames), 5, self._token, pose=pose))
        return cost.flops + frames * self._upsampling_saves

    @property
    def _upsampling_saves(self) -> int:
        """Operations that `EnlargingConv2d` saves in each frame: 20 of 36 multiplications for each input pixel."""
        # Sizes of the levels, from the finest: strided convolutions round odd sizes up.
        sizes = [self._size]
        for _ in self._networks.denoiser.down_blocks[1:]:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        saved = 0
        for index, level in enumerate(reversed(self._networks.denoiser.up_blocks)):
            for upsampler in level.upsamplers:
                (height, width), channels = sizes[index], cast(Upsampler, upsampler).conv.in_channels
                # Sizes that were rounded up are enlarged by the layer itself, so nothing is saved there.
                if sizes[index - 1] == (2 * height, 2 * width):
                    saved += 2 * 20 * channels**2 * height * width
        return saved

    def decode(self, frames: int) -> Cost:
        """Cost of decoding `frames` frames."""
        latents = self._latents(frames)[0]
        vae: Any = self._networks.vae
        return measure_cost(lambda: vae.decode(latents).sample)

    @property
    def _dtype(self) -> torch.dtype:
        return self._networks.denoiser.dtype

    @property
    def _conditions(self) -> list[Condition]:
        conditional = Condition(self._token, self._projected)
        return [Condition(self._token, None), conditional] if self._shape.guided else [conditional]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._networks.denoiser.dtype, device="meta")

    def _latents(self, frames: int) -> Tensor:
        return self._empty(1, frames, self._channels, *self._size)

    def _images(self, frames: int) -> Tensor:
        height, width = self._size
        return self._empty(1, frames, 3, GUIDANCE_SCALE * height, GUIDANCE_SCALE * width)

    def _pose(self, frames: int) -> list[Tensor]:
        height, width = self._size
        widths = self._networks.denoiser.config["block_out_channels"]
        # As `PoseGuider.forward` returns them: the first two in the finest level's channels, the last two of one size.
        sizes = [(height, width)]
        for _ in widths[1:]:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        levels = [(widths[0], sizes[0]), *zip(widths, [*sizes[1:], sizes[-1]], strict=True)]
        return [self._empty(1, frames, channels, *size) for channels, size in levels]
