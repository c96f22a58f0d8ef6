"""Blocks of the UNet: equal to the stock ones, except that each frame has its own norm, and with fewer operations."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from talkinghead.models.lmk2video.unet_blocks import MotionModule, Upsampler
from tests.support.lmk2video_networks import draw, shake


@pytest.fixture
def module() -> MotionModule:
    made = MotionModule(channels=16, heads=2, max_frames=8, norm_groups=4)
    shake(made)
    return made.eval()


def test_a_motion_module_equals_the_stock_one_where_all_frames_have_the_same_statistics(
    module: MotionModule,
) -> None:
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


def test_a_new_motion_module_changes_nothing() -> None:
    frames = draw(4, 16, 5, 3)
    assert torch.equal(MotionModule(16, 2, 8, 4)(frames, 2), frames)


def test_a_frozen_network_in_front_may_hand_over_channels_last(module: MotionModule) -> None:
    """Stage 2 does this. Without a contiguous input PyTorch 2.13 does not raise an error here: the process dies."""
    images, gradients = draw(6, 16, 4, 4), []
    for frames in (images, images.contiguous(memory_format=torch.channels_last)):
        module.zero_grad()
        module(frames, 3).square().sum().backward()
        gradients.append([value.grad for value in module.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def _pair(channels: int) -> tuple[Upsampler, Upsample2D]:
    torch.manual_seed(channels)
    ours, stock = Upsampler(channels), Upsample2D(channels, use_conv=True)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), cut=st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_upsampling_equals_the_stock_layer_at_any_size(height: int, width: int, cut: tuple[int, int]) -> None:
    ours, stock = _pair(3)
    size = (2 * height - cut[0], 2 * width - cut[1])
    images = draw(2, 3, height, width, seed=height * 10 + width)
    with torch.no_grad():
        torch.testing.assert_close(ours(images, size), stock(images, size), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours(images), stock(images), rtol=1e-5, atol=1e-6)


def test_gradients_of_upsampling_are_those_of_the_stock_layer() -> None:
    ours, stock = (layer.double() for layer in _pair(4))
    found, want = (draw(2, 4, 5, 3).double().requires_grad_() for _ in range(2))
    weights = draw(2, 4, 10, 6).double()
    (ours(found) * weights).sum().backward()
    (stock(want) * weights).sum().backward()
    torch.testing.assert_close(found.grad, want.grad, rtol=1e-6, atol=1e-6)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value.grad, stock.get_parameter(name).grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_upsampling_in_half_precision_is_no_worse_than_the_stock_layer(dtype: torch.dtype) -> None:
    ours, stock = _pair(64)
    images = draw(4, 64, 8, 8)
    with torch.no_grad():
        exact = stock(images)
        errors = [(layer.to(dtype)(images.to(dtype)).float() - exact).norm() for layer in (ours, stock)]
        with torch.autocast("cpu", dtype):
            assert Upsampler(64)(images).dtype == dtype
    assert errors[0] < 1.3 * errors[1]


def test_upsampling_takes_four_ninths_of_the_multiplications() -> None:
    counts = []
    for layer in _pair(8):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(draw(1, 8, 6, 4))
        counts.append(counter.get_total_flops())
    assert counts[0] * 9 == counts[1] * 4
