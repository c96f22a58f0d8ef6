"""Pose features and guided velocities in pieces equal those of whole windows, and nothing is computed twice."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, open_windows
from talkinghead.pipelines.lmk2video.velocity import GuidedVelocity, PoseFeatures, ReferenceConditions, as_input, drawn
from talkinghead.pipelines.memory import KeepPose
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import published_guider, tiny_pipeline, tiny_request

CPU = torch.device("cpu")
LAYOUT = WindowLayout(windows=open_windows(7, 4, 2))
LANDMARKS = tiny_request(7)["landmarks"]


@pytest.fixture(scope="module")
def networks() -> TalkingHeadPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def window_guider() -> PoseGuider:
    return published_guider("trained")


def reference_image(guider: PoseGuider) -> Any:
    """Reference features to which driving landmarks attend; None for a PoseGuider that does not."""
    if not guider.config["reference_attention"]:
        return None
    return guider.encode_reference(as_input(drawn(LANDMARKS, 64, 64)([0]), guider, CPU))


def features(guider: PoseGuider, keep: KeepPose = "device", reference: Any = None) -> PoseFeatures:
    return PoseFeatures(guider, drawn(LANDMARKS, 64, 64), LAYOUT, reference=reference, keep=keep, device=CPU)


@torch.no_grad()
@pytest.mark.parametrize("keep", get_args(KeepPose))
def test_pose_features_of_windows(networks: TalkingHeadPipeline, keep: KeepPose) -> None:
    """Features equal those of each window computed for itself; where they are kept, each frame is computed once."""
    guider = networks.pose_guider
    reference = reference_image(guider)
    seen: list[int] = []
    handle = guider.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    try:
        pose = features(guider, keep, reference)
        for _ in range(2):
            for number, window in enumerate(LAYOUT.windows):
                images = as_input(drawn(LANDMARKS, 64, 64)(window), guider, CPU)[None]
                for found, want in zip(pose.window(number), guider.forward(images, reference), strict=True):
                    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    finally:
        handle.remove()
    assert sum(seen) == (2 * 12 if keep == "none" else 7)
    for block in range(len(LAYOUT.blocks)):
        pose.release(block)
    assert not pose._kept


@torch.no_grad()
def test_pose_features_that_depend_on_the_window(window_guider: PoseGuider) -> None:
    pose = features(window_guider)
    assert not pose.by_block
    whole = [pose.window(number)[0] for number in range(len(LAYOUT.windows))]
    images = as_input(drawn(LANDMARKS, 64, 64)(LAYOUT.windows[1]), window_guider, CPU)[None]
    assert torch.equal(whole[1], window_guider(images)[0])
    assert not torch.allclose(whole[0][:, 2:], whole[1][:, :2], atol=1e-4), "the same frames in two windows"
    pose.release(0)
    assert 0 in pose._kept, "block 1 still wants window 0"
    for block in range(1, len(LAYOUT.blocks)):
        pose.release(block)
    assert not pose._kept


class Counted:
    """Counter of the frames in a denoiser's calls and first parts."""

    def __init__(self, denoiser: Any) -> None:
        self.frames = 0
        self.begun = 0
        self._handles = [
            denoiser.register_forward_pre_hook(self._forward),
            denoiser.down_blocks[0].resnets[0].register_forward_pre_hook(self._begin),
        ]

    def _forward(self, _: Any, given: Any) -> None:
        self.frames += given[0][0].shape[1]

    def _begin(self, _: Any, given: Any) -> None:
        self.begun += len(given[0])

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("scale", [3.5, 1.0])
def test_guided_velocity(networks: TalkingHeadPipeline, window_guider: PoseGuider, share: bool, scale: float) -> None:
    """Velocities equal the formula on plain calls, with nothing begun, folded or projected beforehand."""
    denoiser, net = networks.denoiser, networks.reference_net
    assert isinstance(denoiser, Denoiser) and isinstance(net, ReferenceNet)
    draws = torch.Generator().manual_seed(0)
    latents, portrait = torch.randn(7, 16, 8, 8, generator=draws), torch.randn(1, 16, 8, 8, generator=draws)
    token, time = torch.randn(1, 1, 64, generator=draws), torch.tensor(499)
    for guider in (networks.pose_guider, window_guider):
        pose = features(guider, reference=reference_image(guider))
        conditions = ReferenceConditions.of(net, denoiser, portrait, token)
        velocity = GuidedVelocity(
            denoiser=denoiser, conditions=conditions, pose=pose, guidance_scale=scale, share=share
        )
        counted = Counted(denoiser)
        parts = [velocity.begin(at, _frames(latents, block.frames), time) for at, block in enumerate(LAYOUT.blocks)]
        found = [
            velocity.predict(at, [parts[block] for block in LAYOUT.window_blocks[at]], time)
            for at in range(len(LAYOUT.windows))
        ]
        counted.remove()
        assert counted.frames == (2 if scale > 1 else 1) * 12
        assert counted.begun == (7 if share and guider is networks.pose_guider else 12)
        for at, window in enumerate(LAYOUT.windows):
            given: dict[str, Any] = {"latents": latents[None, list(window)], "timestep": time, "pose": pose.window(at)}
            conditional = denoiser(**given, token=token, reference=net(portrait, token))
            if scale > 1:
                other = denoiser(**given, token=torch.zeros_like(token))
                conditional = other + scale * (conditional - other)
            error = (found[at] - conditional[0]).norm() / conditional.norm()
            assert error < 1e-5 and found[at].dtype == torch.float32


def _frames(latents: Tensor, frames: range) -> Tensor:
    return latents[frames.start : frames.stop]


def test_guidance_images_are_drawn_in_the_networks_range(networks: TalkingHeadPipeline) -> None:
    images = drawn(LANDMARKS, 48, 32)([0, 3])
    assert images.shape == (2, 32, 48, 3) and images.dtype == np.uint8 and images.any()
    values = as_input(images, networks.pose_guider, CPU)
    assert values.shape == (2, 3, 32, 48) and values.min() == -1 and values.max() <= 1
    np.testing.assert_allclose(values[1, :, 5, 7], images[1, 5, 7] / 127.5 - 1, atol=1e-6)
