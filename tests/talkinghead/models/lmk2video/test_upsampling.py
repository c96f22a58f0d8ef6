"""Upsampling: equal to the stock layer, in results and gradients, for fewer multiplications."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from talkinghead.models.lmk2video.upsampling import Upsampler
from tests.support.lmk2video_networks import draw


def _pair(channels: int) -> tuple[Upsampler, Upsample2D]:
    torch.manual_seed(channels)
    ours, stock = Upsampler(channels), Upsample2D(channels, use_conv=True)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), cut=st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_equals_the_stock_layer_at_any_size(height: int, width: int, cut: tuple[int, int]) -> None:
    ours, stock = _pair(3)
    size = (2 * height - cut[0], 2 * width - cut[1])
    pictures = draw(2, 3, height, width, seed=height * 10 + width)
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures, size), stock(pictures, size), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours(pictures), stock(pictures), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_stock_layer() -> None:
    ours, stock = (layer.double() for layer in _pair(4))
    found, want = (draw(2, 4, 5, 3).double().requires_grad_() for _ in range(2))
    weights = draw(2, 4, 10, 6).double()
    (ours(found) * weights).sum().backward()
    (stock(want) * weights).sum().backward()
    torch.testing.assert_close(found.grad, want.grad, rtol=1e-6, atol=1e-6)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value.grad, stock.get_parameter(name).grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_stock_layer(dtype: torch.dtype) -> None:
    ours, stock = _pair(64)
    pictures = draw(4, 64, 8, 8)
    with torch.no_grad():
        exact = stock(pictures)
        errors = [(layer.to(dtype)(pictures.to(dtype)).float() - exact).norm() for layer in (ours, stock)]
        with torch.autocast("cpu", dtype):
            assert Upsampler(64)(pictures).dtype == dtype
    assert errors[0] < 1.3 * errors[1]


def test_four_ninths_of_the_multiplications() -> None:
    counts = []
    for layer in _pair(8):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(draw(1, 8, 6, 4))
        counts.append(counter.get_total_flops())
    assert counts[0] * 9 == counts[1] * 4
