"""Pipeline of AniPortrait's published files; computes what its program computes (`compat`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from infer.weights.published_files import PUBLISHED_FPS, PUBLISHED_SIZE, PublishedFiles
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

SETTINGS: dict[str, Any] = {
    "compat": True,
    "fps": PUBLISHED_FPS,
    "width": PUBLISHED_SIZE[0],
    "height": PUBLISHED_SIZE[1],
}
"""Settings of the pipeline, as `model_index.json` holds them."""


def published_networks(
    files: PublishedFiles, mode: PoseGuiderMode, report: Callable[[KeyReport], object]
) -> Iterator[tuple[str, Any]]:
    """Load the networks one after the other, in single precision and evaluation mode; all at once need 10 GB.

    Args:
        files: Paths of the published files.
        mode: Normalisation of the PoseGuider; `load_pose_guider` describes the modes.
        report: Callback with the comparison of each file's keys.

    Yields:
        Name of a network in the pipeline, and the network.

    Raises:
        ValueError: A file is damaged, or holds other tensors; the message contains the report.
    """

    # Loaded in functions, so that this generator keeps no reference to a network that the caller has dropped.
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
    """Load the whole pipeline; prints the key reports on stderr.

    Args:
        files: Paths of the published files.
        mode: Normalisation of the PoseGuider.
        dtype: Precision of the networks; None: single.

    Raises:
        ValueError: A file is damaged, or holds other tensors; the message contains the report.
    """
    # Each network is converted as soon as it is loaded, so that at most one is in memory in single precision.
    networks: dict[str, Any] = {}
    for name, network in published_networks(files, mode, print_report):
        networks[name] = network if dtype is None else network.to(dtype)
    return TalkingHeadPipeline(**networks, scheduler=COMPAT_INFER.sampler("ddim"), **SETTINGS)


def print_report(report: KeyReport) -> None:
    """Print the comparison of a file's keys on stderr."""
    print(report, file=sys.stderr)


def with_mode(guider: PoseGuider, mode: PoseGuiderMode) -> PoseGuider:
    """PoseGuider with these published weights and another normalisation.

    Raises:
        ValueError: This PoseGuider normalises each frame for itself, so it is not of the published kind.
    """
    current = guider.config["normalisation"]
    if current == mode:
        return guider
    if current == "frame":
        raise ValueError("the modes of a PoseGuider are for AniPortrait's published weights, not for these")
    # Built without memory; the tensors are shared with the guider that was given.
    with torch.device("meta"):
        other: Any = PoseGuider.from_config({**guider.config, "normalisation": mode})
    other.load_state_dict(guider.state_dict(), assign=True)
    return other.eval()
