"""Motion modules: the stock module, but for frames that are normalised for themselves."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

from talkinghead.models.lmk2video.motion_module import MotionModule
from tests.support.lmk2video_networks import draw, shake


@pytest.fixture
def module() -> MotionModule:
    made = MotionModule(channels=16, heads=2, max_frames=8, norm_groups=4)
    shake(made)
    return made.eval()


def test_equals_the_stock_module_where_all_frames_have_the_same_statistics(module: MotionModule) -> None:
    stock = AnimateDiffTransformer3D(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        norm_num_groups=4,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=8,
    ).eval()
    stock.load_state_dict(module.state_dict())
    # Each frame shows the same values elsewhere, so norms over one frame and over all are equal.
    first = draw(2, 16, 5 * 3)
    frames = torch.stack([first[:, :, torch.randperm(15)] for _ in range(6)], dim=1).view(12, 16, 5, 3)
    with torch.no_grad():
        found = module(frames, 6)
        torch.testing.assert_close(found, stock(frames, num_frames=6))
    assert not torch.allclose(found, frames, atol=0.1)


def test_each_frame_is_normalised_for_itself(module: MotionModule) -> None:
    frames = draw(4, 16, 5, 3)
    louder = torch.cat([frames[:1] * 9, frames[1:]])
    with torch.no_grad():
        torch.testing.assert_close(module(louder, 4)[1:], module(frames, 4)[1:], rtol=1e-3, atol=1e-4)


def test_frames_have_an_order_and_positions_do_not_meet(module: MotionModule) -> None:
    frames = draw(4, 16, 5, 3)
    with torch.no_grad():
        plain = module(frames, 4)
        assert not torch.allclose(module(frames.flip(0), 4).flip(0), plain, atol=1e-2)
        mirrored = module(frames.flip(-1), 4).flip(-1)
        torch.testing.assert_close(mirrored, plain, rtol=1e-4, atol=1e-5)


def test_a_new_module_changes_nothing() -> None:
    frames = draw(4, 16, 5, 3)
    assert torch.equal(MotionModule(16, 2, 8, 4)(frames, 2), frames)


def test_a_frozen_network_in_front_may_hand_over_channels_last(module: MotionModule) -> None:
    """As in stage 2. (Without care PyTorch 2.13 does not fail here: the whole process dies.)"""
    pictures, gradients = draw(6, 16, 4, 4), []
    for given in (pictures, pictures.contiguous(memory_format=torch.channels_last)):
        module.zero_grad()
        module(given, 3).square().sum().backward()
        gradients.append([value.grad for value in module.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
