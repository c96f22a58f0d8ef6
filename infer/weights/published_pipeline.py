"""A pipeline of AniPortrait's published files, computing what its program computes (`compat`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from infer.weights.published_files import PUBLISHED_SIZE, PublishedFiles
from talkinghead.models.image.weights import load_image_encoder, load_vae
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import (
    PoseGuiderMode,
    load_denoising_unet,
    load_pose_guider,
    load_reference_unet,
)
from talkinghead.models.noise_schedule import COMPAT_INFER
from talkinghead.models.weights import KeyReport
from talkinghead.pipelines.talking_head import TalkingHeadPipeline

PUBLISHED_FPS = 30.0
SETTINGS: dict[str, Any] = {
    "compat": True,
    "fps": PUBLISHED_FPS,
    "width": PUBLISHED_SIZE[0],
    "height": PUBLISHED_SIZE[1],
}
"""Settings of the pipeline."""


def published_networks(
    files: PublishedFiles, mode: PoseGuiderMode, report: Callable[[KeyReport], object]
) -> Iterator[tuple[str, Any]]:
    """The networks one after the other, in single precision and evaluation mode: all at once need 10 GB.

    Args:
        files: Where they lie.
        mode: How the PoseGuider normalises; see `load_pose_guider`.
        report: Told how the keys of each file compare.

    Raises:
        ValueError: A file is damaged, or holds other tensors; the report is in the text.
    """

    def denoiser() -> Any:
        model, reports = load_denoising_unet(files.denoising_unet, files.motion_module)
        for one in reports:
            report(one)
        return model

    def reference_net() -> Any:
        model, one = load_reference_unet(files.reference_unet)
        report(one)
        return model

    def pose_guider() -> Any:
        model, one = load_pose_guider(files.pose_guider, mode)
        report(one)
        return model

    yield "denoiser", denoiser()
    yield "reference_net", reference_net()
    yield "pose_guider", pose_guider()
    yield "vae", load_vae(str(files.vae))
    yield "image_encoder", load_image_encoder(str(files.image_encoder))


def load_published_pipeline(
    files: PublishedFiles, *, mode: PoseGuiderMode = "published", dtype: torch.dtype | None = None
) -> TalkingHeadPipeline:
    """All of it; prints the key reports on stderr.

    Raises:
        ValueError: A file is damaged, or holds other tensors; the report is in the text.
    """
    networks: dict[str, Any] = {}
    for name, network in published_networks(files, mode, print_report):
        networks[name] = network if dtype is None else network.to(dtype)
    return TalkingHeadPipeline(**networks, scheduler=COMPAT_INFER.sampler("ddim"), **SETTINGS)


def print_report(report: KeyReport) -> None:
    """Print how a file's keys compare, on stderr."""
    print(report, file=sys.stderr)


def with_mode(guider: PoseGuider, mode: PoseGuiderMode) -> PoseGuider:
    """The same published weights, normalised in another way.

    Raises:
        ValueError: This PoseGuider normalises each frame for itself: it is not of the published kind.
    """
    current = guider.config["normalisation"]
    if current == mode:
        return guider
    if current == "frame":
        raise ValueError("the modes of a PoseGuider are for AniPortrait's published weights, not for these")
    with torch.device("meta"):
        other: Any = PoseGuider.from_config({**guider.config, "normalisation": mode})
    other.load_state_dict(guider.state_dict(), assign=True)
    return other.eval()
