"""Rows about Lmk2Video: operations per frame, steps of training and sampling against plain ones, and long videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orchestration.bench.row import Row
from orchestration.bench.timing import in_turns, measured_apart
from orchestration.bench.video_lengths import SIDE, STEPS
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.lmk2video.cost import VideoShape, published_cost, video_cost
from talkinghead.models.lmk2video.denoiser import Condition, Denoiser
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import denoiser_config, pose_guider_config, reference_net_config
from talkinghead.pipelines.lmk2video.context_windows import open_windows, published_windows
from train.lmk2video.module import Conditions, Lmk2Video

GOAL_TFLOP, PUBLISHED_TFLOP = 75.0, 99.7
"""Operations per frame, ours at most and the published program's."""
LONG_FRAMES = 1500
"""Length of the video whose operations are counted: 60 s."""
WINDOW = 16
"""Frames of a window, and of a step of stage 2."""
IMAGES = 8
"""Samples of a step of stage 1."""
TRAINING_SIDE, WINDOW_SIDE = 64, 128
"""Width and height in pixels of the images in the timed steps."""
_SIZE = "networks of size tiny with a VAE of factor 8, {side} px, 1 thread"


def video_rows(repeats: int) -> list[Row]:
    """Measure all rows.

    Args:
        repeats: Number of rounds of each comparison.
    """
    # One thread on either side: the comparison is about work, not about how well it is shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_flops(), _training(1, repeats), _training(2, repeats), _window_step(repeats), *_lengths()]
    finally:
        torch.set_num_threads(threads)


def _flops() -> Row:
    """Operations per frame of a long video, counted on networks without weights."""
    shape = VideoShape(width=512, height=512, frames=LONG_FRAMES, windows=_sizes(open_windows(LONG_FRAMES, WINDOW, 4)))
    networks = HollowNetworks.published()
    # The same networks and video in the published program, which cuts the video into windows of its own.
    theirs = published_cost(networks, replace(shape, windows=_sizes(published_windows(LONG_FRAMES))))
    return Row(
        name="video_flops",
        ours=video_cost(networks, shape).flops_per_frame / 1e12,
        baseline=theirs.flops_per_frame / 1e12,
        unit="TFLOP per frame",
        better="lower",
        goal=round(GOAL_TFLOP / PUBLISHED_TFLOP, 3),
        note="counted, not timed: 512x512, published sizes, 25 steps, guidance 3.5, windows of 16 that overlap by 4,"
        f" {LONG_FRAMES} frames; the baseline is AniPortrait's program on the same networks",
    )


def _sizes(windows: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(len(window) for window in windows)


class StepMaterial:
    """Networks of size tiny, and random inputs of a step.

    Shapes: B samples, F frames, images of `side` pixels, latents of a side of `side / 8`.
    """

    def __init__(self, samples: int, frames: int, side: int, *, motion: bool) -> None:
        torch.manual_seed(0)
        self.images = ImageNetworks.load("tiny-kl", "tiny")
        self.module = Lmk2Video(
            Denoiser(**denoiser_config("tiny", motion=motion)),
            ReferenceNet(**reference_net_config("tiny")),
            PoseGuider(**pose_guider_config("tiny")),
        )
        # Images [B, F, 3, side, side], of which the first of each sample is its portrait.
        self.target = torch.randint(0, 256, (samples, frames, 3, side, side), dtype=torch.uint8)
        self.reference = self.target[:, 0]
        self.noise = torch.randn(samples, frames, 4, side // 8, side // 8)
        self.timesteps = torch.arange(samples) * 100 + 50
        self.guidance = torch.rand(samples, frames, 3, side, side) * 2 - 1

    def encode(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of target `[B, F, 4, h, w]` and reference `[B, 4, h, w]`, and the reference's token `[B, 1, D]`."""
        target = self.images.mean(self.images.moments(self.target.flatten(0, 1)))
        reference = self.images.mean(self.images.moments(self.reference))
        token = self.images.embedding(self.reference).float()[:, None]
        return target.unflatten(0, self.target.shape[:2]), reference, token

    def step(self, encoded: tuple[Tensor, Tensor, Tensor]) -> None:
        """Compute forward and backward, on what `encode` returned."""
        # Noise is added as it is: the schedule's factors do not change the work.
        target, reference, token = encoded
        given = Conditions(
            token=token,
            reference=reference,
            dropped=torch.zeros(len(target), dtype=torch.bool),
            guidance=self.guidance,
            reference_guidance=self.guidance[:, 0],
        )
        self.module(target + self.noise, self.timesteps, given).square().mean().backward()
        self.module.zero_grad()


def _training(stage: int, repeats: int) -> Row:
    """Compare a training step with a plain one, on the same module.

    Args:
        stage: Stage of the training, 1 (images) or 2 (motion).
        repeats: Number of rounds.
    """
    material = StepMaterial(*((IMAGES, 1) if stage == 1 else (1, WINDOW)), TRAINING_SIDE, motion=stage == 2)
    module = material.module
    cached = material.encode()

    def ours(_: int) -> None:
        module.train_images(fold=True) if stage == 1 else module.train_motion()
        material.step(cached)

    # The plain step encodes its images, and attends to the single token instead of folding it into a constant.
    def plain(_: int) -> None:
        module.train_images(fold=False)
        module.only_motion = False
        if stage == 2:
            module.requires_grad_(False)
            for __, parameter in module.denoiser.motion_parameters():
                parameter.requires_grad_(True)
        material.step(material.encode())

    return _compared(
        f"stage{stage}_step",
        {"ours": ours, "plain": plain},
        repeats,
        unit="ms per step",
        goal=0.9,
        note=f"{_SIZE.format(side=TRAINING_SIDE)}; {f'{IMAGES} images' if stage == 1 else f'{WINDOW} frames'}",
        difference="; ours reads latents and folds the single token, the baseline encodes its images in each step and"
        " attends to the token; same weights, forward and backward",
    )


def _window_step(repeats: int) -> Row:
    """Compare a guided prediction of one window with a plain one."""
    material = StepMaterial(1, WINDOW, WINDOW_SIDE, motion=True)
    denoiser, guider = material.module.denoiser.eval(), material.module.pose_guider.eval()
    # Kept over all steps and windows: reference features, pose features, and the reference's keys and values.
    with torch.no_grad():
        _, latents, token = material.encode()
        features = material.module.reference_net.eval()(latents, token)
        pose = guider(material.guidance, material.guidance[:, 0])
        conditions = [Condition(torch.zeros_like(token), None), Condition(token, denoiser.project_reference(features))]

    @torch.no_grad()
    def ours(_: int) -> None:
        parts = denoiser.begin(material.noise, 500, conditions, pose=pose, fold=True)
        for begun, given in zip(parts, conditions, strict=True):
            denoiser(begun, 500, given.token, reference=given.reference, pose=pose, fold=True)

    # Both halves of the guidance, unconditional and conditional, as one doubled batch from scratch.
    @torch.no_grad()
    def plain(_: int) -> None:
        images = material.guidance.repeat(2, 1, 1, 1, 1)
        denoiser(
            material.noise.repeat(2, 1, 1, 1, 1),
            500,
            torch.cat([torch.zeros_like(token), token]),
            reference={name: feature.repeat(2, 1, 1) for name, feature in features.items()},
            dropped=torch.tensor([True, False]),
            pose=guider(images, images[:, 0]),
        )

    return _compared(
        "window_step",
        {"ours": ours, "plain": plain},
        repeats,
        unit="ms per step",
        goal=0.8,
        note=f"{_SIZE.format(side=WINDOW_SIDE)}; a guided prediction of {WINDOW} frames",
        difference="; ours has pose features and the reference's keys and values at hand, begins both halves together"
        " and folds the token; the baseline computes them again, on a doubled batch; same weights",
    )


def _compared(name: str, competitors: dict[str, Callable[[int], Any]], repeats: int, **about: Any) -> Row:
    """Row of the competitors `ours` and `plain`, in milliseconds."""
    for compute in competitors.values():
        compute(0)  # the first turn takes memory and chooses kernels
    costs = in_turns(competitors, repeats)
    note = about.pop("note") + about.pop("difference")
    ours, plain = (1000 * costs[side].wall for side in ("ours", "plain"))
    return Row(name=name, ours=ours, baseline=plain, better="lower", note=note, **about)


def _lengths() -> list[Row]:
    """Speed and memory of long videos, against those of the shortest: neither may grow with the length."""
    short, *others = measured_apart("orchestration.bench.video_lengths")
    rows = []
    for long in others:
        settings = f"whole pipeline of size tiny, {SIDE} px, {STEPS} steps, no guidance, 1 thread"
        note = f"{settings}; the baseline is a video of {short['seconds']} s"
        rows += [
            Row(
                name=f"video_{quantity}_{long['seconds']}s",
                ours=long[field],
                baseline=short[field],
                unit=unit,
                better="lower",
                goal=goal,
                note=note,
            )
            for quantity, field, unit, goal in (
                ("time", "frame_s", "s per frame", 1.15),
                ("memory", "peak_mib", "MiB, peak of the process", 1.05),
            )
        ]
    return rows
