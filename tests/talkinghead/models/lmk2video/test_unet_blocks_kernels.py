"""What the UNet's blocks ask of a GPU's kernels: attention in parts that they take, and one memory format from end to
end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from talkinghead.models.lmk2video import unet_blocks
from talkinghead.models.lmk2video.unet_blocks import MotionModule, SpatialTransformer, Upsampler, attend, most_rows
from tests.support.lmk2video_networks import draw, shake, small_denoiser

# --- attention in parts -----------------------------------------------------------------------------------------------


def test_rows_that_a_gpu_takes() -> None:
    """65,535 blocks along a dimension of the grid, and 2^31 numbers of the gradient, padded to 128 tokens of 32."""
    assert most_rows(8, 1, 4) == 65_535 // 1 == min(65_535, (2**31 - 1) // (8 * 128 * 32))
    # Stage 2 at 512 x 512: eight heads of 40 numbers, 16 frames, 4096 positions of each window.
    assert most_rows(8, 16, 40) == 32_767 == 8 * 4096 - 1
    # Attention over the positions of an image, and an image so large that a row has too many numbers by itself.
    assert most_rows(8, 4096, 40) == 1023 and most_rows(8, 10**9, 40) == 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of attention."""
    made: list[int] = []
    whole = functional.scaled_dot_product_attention

    def counted(query: Tensor, *args: Any, **settings: Any) -> Tensor:
        made.append(len(query))
        return whole(query, *args, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    return made


def test_attention_in_parts_is_the_same(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (draw(7, 2, tokens, 4, seed=tokens) for tokens in (3, 5, 5))
    want = attend(query, key, value)
    monkeypatch.setattr(unet_blocks, "_MOST_ROWS", 3)
    assert torch.equal(attend(query, key, value), want)
    assert calls == [7, 3, 3, 1]


def test_a_motion_module_has_as_many_positions_as_there_are(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for both of its attentions, and neither result nor gradients show it."""
    module, frames = MotionModule(channels=16, heads=2, max_frames=8, norm_groups=4), draw(6, 16, 5, 4)
    shake(module)
    found = []
    for most in (65_535, 8):
        monkeypatch.setattr(unet_blocks, "_MOST_ROWS", most)
        module.zero_grad()
        out = module(frames, 3)
        out.square().sum().backward()
        found.append([out, *(value.grad for value in module.parameters())])
    assert calls == [40, 40, *[8] * 10]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


# --- one memory format ------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts copies of whole images or series: tensors of four and more dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous") and args[0].ndim > 3:
            self.count += 1
        return func(*args, **(kwargs or {}))


def is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


@contextmanager
def formats_of(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[dict[str, bool]]:
    """Whether each layer of these kinds gives images with channels last, by its name."""
    found: dict[str, bool] = {}

    def note(name: str, result: Any) -> None:
        image = result[0] if isinstance(result, tuple) else result
        found[name] = is_channels_last(image)

    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: note(name, out)) for name, layer in layers.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("kind", "copies"), [("residual", 0), ("spatial", 1), ("upsampling", 0), ("motion", 1)], ids=str
)
@torch.no_grad()
def test_a_block_copies_its_images_no_more_than_it_must(kind: str, copies: int, channels_last: bool) -> None:
    """Attention to the image token joins its heads once, and images become series over time once. With channels last
    the norm there takes them in the other format, a copy more: kernels for GPUs do so by themselves
    (`native_group_norm` in PyTorch's group_norm.cpp)."""
    frames, time = draw(6, 16, 4, 6), draw(6, 12, seed=1)
    block: nn.Module
    if kind == "residual":
        block, args = ResnetBlock2D(in_channels=16, temb_channels=12, groups=4), (time,)
    elif kind == "spatial":
        block, args = SpatialTransformer(16, 2, 12, 4), (time[:2, None],)
    elif kind == "upsampling":
        block, args = Upsampler(16), ()
    else:
        block, args = MotionModule(16, 2, 8, 4), (3,)
    shake(block)
    want = block(frames, *args)
    if channels_last:
        block = block.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        frames = frames.contiguous(memory_format=torch.channels_last)
    with Copies() as made:
        found = block(frames, *args)
    want, image = (out[0] if isinstance(out, tuple) else out for out in (want, found))
    torch.testing.assert_close(image, want, rtol=1e-4, atol=1e-4)
    assert is_channels_last(image) == channels_last
    assert made.count == copies + (kind == "motion" and channels_last)


@torch.no_grad()
def test_a_denoiser_keeps_the_channels_last_from_end_to_end() -> None:
    plain = small_denoiser(motion=True).eval()
    inputs = draw(1, 3, 4, 16, 12), 7, draw(1, 1, 12, seed=2)
    want = plain(*inputs)
    turned = small_denoiser(motion=True).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    kinds = ResnetBlock2D, SpatialTransformer, MotionModule, Upsampler
    with formats_of(turned, kinds) as found:
        torch.testing.assert_close(turned(*inputs), want, rtol=1e-3, atol=1e-3)
    assert len(found) > 12 and all(found.values()), [name for name, kept in found.items() if not kept]
    with formats_of(plain, kinds) as found:
        plain(*inputs)
    assert not any(found.values())
