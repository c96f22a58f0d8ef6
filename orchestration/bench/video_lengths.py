"""`python -m orchestration.bench.video_lengths`: videos of growing length in one process, their speed and peak memory.

In a process of its own, and the shortest video first, because the peak memory of a process never falls again.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch

from talkinghead.models.image.networks import ImageNetworks, latent_channels
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import denoiser_config, pose_guider_config, reference_net_config
from talkinghead.models.noise_schedule import PAPER
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.runtime.peak_memory import peak_memory

LENGTHS_S = (2, 10, 60)
"""Lengths of the videos in seconds."""
FPS = 25
SIDE = 32
"""Width and height of the portrait in pixels."""
STEPS = 2
"""Sampling steps of each window."""
POINTS = 478
"""Landmarks of a face."""


def tiny_pipeline() -> TalkingHeadPipeline:
    """Pipeline of size `tiny` with random weights, whose values do not change the work."""
    torch.manual_seed(0)
    images = ImageNetworks.load("tiny", "tiny")
    # The tiny VAE has a number of channels of its own, which decides both ends of the networks.
    ends: dict[str, Any] = {"in_channels": latent_channels(images.vae), "out_channels": latent_channels(images.vae)}
    pipeline = TalkingHeadPipeline(
        vae=images.vae,
        image_encoder=images.image_encoder,
        reference_net=ReferenceNet(**reference_net_config("tiny") | {"in_channels": ends["in_channels"]}),
        denoiser=Denoiser(**denoiser_config("tiny", motion=True) | ends),
        pose_guider=PoseGuider(**pose_guider_config("tiny")),
        scheduler=PAPER.sampler("ddim"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure_lengths() -> list[dict[str, float]]:
    """Animate a video of each length.

    Returns:
        Length in seconds and in frames, wall time per frame in seconds, and peak memory of the process so far in MiB.
    """
    pipeline, noise = tiny_pipeline(), np.random.default_rng(0)
    portrait = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    face = noise.random((POINTS, 3), dtype=np.float32)
    _run(pipeline, portrait, face, FPS)  # libraries allocate what they keep
    found = []
    for seconds in LENGTHS_S:
        began = time.perf_counter()
        frames = _run(pipeline, portrait, face, seconds * FPS)
        spent = time.perf_counter() - began
        peak = peak_memory() / 2**20
        found.append({"seconds": seconds, "frames": frames, "frame_s": spent / frames, "peak_mib": peak})
    return found


def _run(pipeline: TalkingHeadPipeline, portrait: np.ndarray, face: np.ndarray, frames: int) -> int:
    """Animate so many frames of a still face as a stream; returns how many came out."""
    landmarks = np.broadcast_to(face, (frames, *face.shape))
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "reference_landmarks": face}
    return sum(1 for _ in pipeline.stream(portrait, landmarks, **options))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure_lengths()))
