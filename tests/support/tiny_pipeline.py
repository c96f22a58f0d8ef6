"""A whole pipeline of the size `tiny`, with weights that all matter and mean nothing, and a request for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.models.image.networks import ImageNetworks, latent_channels
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import PoseGuiderMode, published_pose_guider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import denoiser_config, pose_guider_config, reference_net_config
from talkinghead.models.noise_schedule import PAPER, Sampler
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.rng import key_bits
from tests.support.motions import motion_about

POSE = np.array([2.0, -4.0, 1.0, 0.0, 0.0, -32.0])
"""Pose of the head in the reference, degrees and cm."""


def tiny_pipeline(
    motion: bool = True, *, sampler: Sampler = "ddim", vae: str = "tiny", seed: int = 0, **settings: Any
) -> TalkingHeadPipeline:
    """A pipeline in evaluation mode, the same for the same arguments.

    Args:
        motion: Whether the denoiser has motion modules (a pipeline of stage 2).
        sampler: Its scheduler.
        vae: `tiny` (factor 4, 16 channels) or `tiny-kl` (factor 8, 4 channels).
        seed: Seed of all weights but those of the VAE and the image encoder.
        settings: Of the pipeline, or modules to put in.
    """
    images = ImageNetworks.load(vae, "tiny")
    channels = latent_channels(images.vae)
    ends = {"in_channels": channels, "out_channels": channels}
    modules: dict[str, Any] = {
        "vae": images.vae,
        "image_encoder": images.image_encoder,
        "reference_net": keyed(ReferenceNet, seed, **reference_net_config("tiny"), in_channels=channels),
        "denoiser": keyed(Denoiser, seed, **denoiser_config("tiny", motion=motion), **ends),
        "pose_guider": keyed(PoseGuider, seed, **pose_guider_config("tiny")),
        "scheduler": PAPER.sampler(sampler),
    }
    return TalkingHeadPipeline(**(modules | settings))


def published_guider(mode: PoseGuiderMode = "published", seed: int = 0) -> PoseGuider:
    """PoseGuider as published for AniPortrait: it normalises over windows and takes no landmarks of the portrait."""
    settings = published_pose_guider(mode)
    return keyed(PoseGuider, seed, **pose_guider_config("tiny"), **settings)


def keyed(network: type[nn.Module], seed: int, **settings: Any) -> Any:
    """A network whose weights depend on its class, the seed and nothing else; layers that start at zero do not."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(key_bits(seed, "tiny pipeline", network.__name__) % 2**63)
        model = network(**settings)
        for value in model.parameters():
            if value.ndim > 1 and not value.any():
                value.normal_(std=1 / math.sqrt(math.prod(value.shape[1:])))
    return model.eval()


def tiny_request(frames: int, width: int = 64, height: int = 64) -> dict[str, Any]:
    """Arguments of a call: an image, and a face that turns and opens its mouth."""
    time = np.arange(frames) / 25
    pose = np.zeros((frames, 6))
    pose[:, 1] = 10 * np.sin(2 * np.pi * time)
    mesh = np.repeat(mean_face().vertices[None].astype(np.float32), frames, axis=0)
    jaw = mesh[0, :, 1] < np.quantile(mesh[0, :, 1], 0.25)
    mesh[:, jaw, 1] -= (1 + np.sin(2 * np.pi * 3 * time))[:, None].astype(np.float32) / 2
    options: dict[str, Any] = {"reference_pose_matrix": matrix_from_pose(POSE), "width": width, "height": height}
    still = motion_about(mean_face().vertices[None], np.zeros((1, 6)), **options)
    ramp = np.linspace(40, 220, width)[None, :, None] * np.linspace(0.3, 1.0, height)[:, None, None]
    return {
        "reference": (ramp * np.array([1.0, 0.8, 0.6])).astype(np.uint8),
        "landmarks": motion_about(mesh, pose, **options).landmarks(),
        "reference_landmarks": still.landmarks()[0],
    }
