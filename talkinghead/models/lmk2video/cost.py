"""What a video costs: operations and memory of every part, counted on networks without weights.

Two programs are counted from the same networks: ours (`video_cost`), and AniPortrait's published one
(`published_cost`): its loop doubles every batch for guidance, computes pose features and the reference's keys and
values in each window at each step, and the unconditional half's self-attention twice. Both compute the same.
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
    """A request, as far as it matters for its cost."""

    width: int
    """Pixels."""
    height: int
    frames: int
    windows: tuple[int, ...]
    """Frames of each window."""
    steps: int = 25
    guided: bool = True
    """Whether there is an unconditional half."""
    decode_chunk: int = 4
    """Frames decoded at once."""
    share: bool = True
    """Whether overlapping windows share what was begun with their frames (`Denoiser.begin`)."""
    keep_pose: bool = True
    """Whether pose features wait for the next step; otherwise they are computed again."""


@dataclass(frozen=True, kw_only=True)
class VideoCost:
    """What a video costs."""

    flops: dict[str, int]
    """Operations of the whole video, by part."""
    peak_bytes: dict[str, int]
    """Most memory for intermediate results, by part; parts do not run at the same time. Weights are not in it."""
    frames: int

    @property
    def flops_per_frame(self) -> float:
        """Operations of all parts, shared out among the frames."""
        return sum(self.flops.values()) / self.frames


def video_cost(networks: HollowNetworks, shape: VideoShape) -> VideoCost:
    """Cost of a video as `TalkingHeadPipeline` makes it.

    Args:
        networks: In the precision that is asked for; it matters for memory only.
        shape: The request, as far as it matters.
    """
    calls = _Calls(networks, shape)
    rest = {length: calls.rest(length) for length in set(shape.windows)}
    once = [calls.encode, calls.embed, calls.look, calls.project]
    # A PoseGuider whose frames depend on each other sees windows, and so does all that depends on it.
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
        networks: Where their PoseGuider attends to the reference, one that does not is counted: so is the published.
        shape: With the windows of that program.
    """
    calls = _Calls(networks, shape)
    halves, covered = (2 if shape.guided else 1), sum(shape.windows)
    whole = {length: calls.whole(length) for length in set(shape.windows)}
    # For each frame: keys and values of the reference, and looking at them.
    beside = sum(4 * length * width * (length + width) for length, width in calls.tokens)
    # Self-attention without the reference, after it was done with it.
    again = sum(4 * length * width * (length + 2 * width) for length, width in calls.tokens) if shape.guided else 0
    windows = halves * sum(whole[length] for length in shape.windows) + covered * (halves * beside + again)
    return VideoCost(
        flops={
            "reference": calls.encode.flops + calls.embed.flops + halves * calls.look.flops,
            "pose": shape.steps * halves * covered * calls.published_pose.flops,
            "denoiser": shape.steps * windows,
            "decoding": shape.frames * calls.decode(1).flops,
        },
        peak_bytes={},
        frames=shape.frames,
    )


class _Calls:
    """The calls of which a video is made, each counted when it is asked for."""

    def __init__(self, networks: HollowNetworks, shape: VideoShape) -> None:
        self._networks = networks
        self._shape = shape
        scale = latent_scale(networks.vae)
        self._size = (shape.height // scale, shape.width // scale)
        self._channels = latent_channels(networks.vae)
        self._token = self._empty(1, 1, networks.denoiser.config["cross_attention_dim"])
        with torch.no_grad():
            self._features = networks.reference_net(self._latents(1)[0], self._token)
            self._projected = networks.denoiser.project_reference(self._features)

    @property
    def tokens(self) -> list[tuple[int, int]]:
        """Length and width of the reference's feature for each transformer."""
        return [(feature.shape[1], feature.shape[2]) for feature in self._features.values()]

    @cached_property
    def encode(self) -> Cost:
        """The portrait's latents."""
        image = self._empty(1, 3, self._shape.height, self._shape.width)
        vae: Any = self._networks.vae
        return measure_cost(lambda: vae.encode(image).latent_dist.mode())

    @cached_property
    def embed(self) -> Cost:
        """Its token."""
        encoder: Any = self._networks.image_encoder
        side = encoder.config.image_size
        return measure_cost(lambda: encoder(self._empty(1, 3, side, side)))

    @cached_property
    def look(self) -> Cost:
        """Its features."""
        return measure_cost(lambda: self._networks.reference_net(self._latents(1)[0], self._token, fold=True))

    @cached_property
    def project(self) -> Cost:
        """Their keys and values."""
        return measure_cost(lambda: self._networks.denoiser.project_reference(self._features))

    @cached_property
    def pose_reference(self) -> Cost:
        """What driving landmarks attend to."""
        guider = self._networks.pose_guider
        if not guider.config["reference_attention"]:
            return Cost(0, 0)
        return measure_cost(lambda: guider.encode_reference(self._images(1)[:, 0]))

    def pose(self, frames: int) -> Cost:
        """Pose features of some frames."""
        guider = self._networks.pose_guider
        reference = None
        if guider.config["reference_attention"]:
            with torch.no_grad():
                reference = guider.encode_reference(self._images(1)[:, 0])
        return measure_cost(lambda: guider(self._images(frames), reference))

    @cached_property
    def published_pose(self) -> Cost:
        """Pose features of a frame without attention to the reference."""
        config = {**self._networks.pose_guider.config, "reference_attention": False, "zero_outputs": False}
        with torch.device("meta"):
            guider: Any = PoseGuider.from_config(config)
        guider.to(self._dtype).eval()
        return measure_cost(lambda: guider(self._images(1)))

    def begin(self, frames: int) -> Cost:
        """The part of a step in which frames are alone, of all halves."""
        pose = self._pose(frames)
        return measure_cost(
            lambda: self._networks.denoiser.begin(self._latents(frames), 5, self._conditions, pose=pose, fold=True)
        )

    def rest(self, frames: int) -> Cost:
        """The rest of a step of a window, of all halves."""
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
        return Cost(sum(cost.flops for cost in costs), max(cost.peak_bytes for cost in costs))

    def whole(self, frames: int) -> int:
        """A step of a window without a reference, nothing folded, upsampled before it is convolved: operations."""
        denoiser, pose = self._networks.denoiser, self._pose(frames)
        cost = measure_cost(lambda: denoiser(self._latents(frames), 5, self._token, pose=pose))
        return cost.flops + frames * self._upsampling_saves

    @property
    def _upsampling_saves(self) -> int:
        """Operations that `EnlargingConv2d` leaves out in each frame: 20 of 36 multiplications for each small pixel."""
        sizes = [self._size]
        for _ in self._networks.denoiser.down_blocks[1:]:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        saved = 0
        for index, level in enumerate(reversed(self._networks.denoiser.up_blocks)):
            for upsampler in level.upsamplers:
                (height, width), channels = sizes[index], cast(Upsampler, upsampler).conv.in_channels
                if sizes[index - 1] == (2 * height, 2 * width):
                    saved += 2 * 20 * channels**2 * height * width
        return saved

    def decode(self, frames: int) -> Cost:
        """Images of some frames."""
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
        sizes = [(height, width)]
        for _ in widths[1:]:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        levels = [(widths[0], sizes[0]), *zip(widths, [*sizes[1:], sizes[-1]], strict=True)]
        return [self._empty(1, frames, channels, *size) for channels, size in levels]
