"""Twice the resolution, then a convolution, at 4/9 of the multiplications."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class EnlargingConv2d(nn.Conv2d):
    """A 3x3 convolution of a picture that is first enlarged to twice its size, each pixel repeated.

    Of the nine pixels under the kernel at most four differ, so weights that meet the same pixel are added first: each
    of the four positions within an enlarged pixel becomes a 2x2 convolution of the small picture (sub-pixel
    convolution, after arXiv 1609.05158). The enlarged picture is never made. Equal to enlarging and convolving but for
    rounding; sums of weights are taken in float32 and rounded once.

    Args:
        channels: In and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def forward(self, input: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`[N, C, h, w]` → `[N, C, 2 h, 2 w]`, or of `size` (height, width), which may lack the last row or column."""
        count, channels, height, width = input.shape
        if size is not None and size != (2 * height, 2 * width):
            # Beyond the last row lies the border there, not the other half of a pixel.
            enlarged = functional.interpolate(input, size=size, mode="nearest")
            return super().forward(enlarged)
        padded = functional.pad(input, (1, 1, 1, 1))
        rows = []
        for y, part in enumerate(_halves(self.weight.float(), dim=2)):
            kernels = [kernel.to(self.weight.dtype) for kernel in _halves(part, dim=3)]
            columns = [
                functional.conv2d(padded[..., y : y + height + 1, x : x + width + 1], kernel, self.bias)
                for x, kernel in enumerate(kernels)
            ]
            rows.append(torch.stack(columns, dim=-1))
        # [N, C, h, 2, w, 2]: which half of a pixel stands behind its position.
        return torch.stack(rows, dim=3).view(count, channels, 2 * height, 2 * width)


class Upsampler(nn.Module):
    """Stable Diffusion's upsampling layer; parameters are named as those of `diffusers.models.upsampling.Upsample2D`.

    Args:
        channels: In and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = EnlargingConv2d(channels)

    def forward(self, hidden: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """See `EnlargingConv2d.forward`."""
        return self.conv(hidden, size)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What three taps along a dimension are to the first and to the second half of an enlarged pixel: two taps each."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)
