"""An VAE that needs no training: cosine coefficients of small blocks as latents.

Letters of shapes: N images, H and W height and width of images in pixels, C channels, h and w height and width of
latents, P pixels along the side of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from torch.nn import functional

from talkinghead.models.weights import StrictModel

LOG_VARIANCE = -12.0
"""Logarithm of the variance of the latents: noise of a four-hundredth of a standard deviation."""

_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Brightness, red against blue, magenta against green: orthogonal, close to the principal axes of natural colours."""
_FLAT = (3.0, 1.27, 0.6)
"""Root mean square of a block's flat coefficient per colour axis, for blocks of 4."""
_RIPPLE = (0.6, 0.12, 0.067)
"""The same of its lowest ripple."""
_DECAY = 0.9
"""Ripples fall with their squared frequency to this power. These three numbers were measured on faces of 64 to 128
pixels (talking-head video of eight sources); the measured values lie within a factor of 1.6 of them."""


CLASS_NAMES = ("CosineVae", "CosineCodec")
"""Names of the class in saved configurations: its own, and the one that exports had before it was renamed."""


class CosineVae(StrictModel):
    """Latents that a linear transform makes: block-wise orthonormal cosines, the lowest of them.

    Used like `diffusers.AutoencoderKL`. It stands in for one where there are no trained weights: a variational
    autoencoder with first weights would show nothing. It holds no parameters, only its fixed tables.

    A block of `patch` x `patch` pixels has 3·patch² coefficients (DCT-II over rows and columns, of three colour axes);
    those with the most energy in natural images are kept. Each is divided by its usual size to the power of
    `whitening`, and all by one number, so that the mean square over the channels is about 1. With little whitening
    channels count by what they mean for the image: unit variance in each would spend most of a network's loss on fine
    detail, and what a hardly trained one leaves of the noise would be as strong in the brightness of whole blocks.
    Measured after 500 steps on one clip (PSNR): 24.2 dB with 0.25, 23.3 with 0.5, 15.6 with 1.

    Args:
        patch: Pixels along the side of a block: the factor between image and latents.
        latent_channels: Coefficients that are kept.
        whitening: 0: all coefficients in one scale, 1: each with about unit variance.
        scaling_factor: What users of the VAE multiply latents with, as `AutoencoderKL` says it.
    """

    analysis: Tensor
    synthesis: Tensor

    @register_to_config
    def __init__(
        self, patch: int = 4, latent_channels: int = 16, whitening: float = 0.25, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        if patch < 1 or not 1 <= latent_channels <= 3 * patch**2:
            raise ValueError(f"blocks of {patch} pixels have {3 * patch**2} coefficients, not {latent_channels}")
        if not 0.0 <= whitening <= 1.0:
            raise ValueError(f"whitening must be from 0 to 1, not {whitening}")
        basis, sizes = _cosines(patch)
        kept = torch.argsort(sizes, descending=True, stable=True)[:latent_channels]
        scales = sizes[kept] ** whitening
        scales = scales * ((sizes[kept] / scales) ** 2).mean().sqrt()
        basis, scales = basis[kept], scales[:, None, None, None]
        self.register_buffer("analysis", (basis / scales).float())
        self.register_buffer("synthesis", (basis * scales).float())

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images as latents.

        Args:
            x: `[N, 3, H, W]` in [-1, 1]; H and W multiples of `patch`.
            return_dict: Return an object rather than a tuple.

        Returns:
            `latent_dist`: mean `[N, C, H / patch, W / patch]` and a small variance that is the same everywhere.

        Raises:
            ValueError: The images are of another shape.
        """
        patch = self.config["patch"]
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % patch or x.shape[3] % patch:
            raise ValueError(f"images must be [N, 3, H, W] in multiples of {patch} pixels, not {list(x.shape)}")
        # In single precision also for half-precision tables: it costs nothing next to the networks.
        mean = functional.conv2d(x.float(), self.analysis.float(), stride=patch).to(self.dtype)
        moments = torch.cat([mean, torch.full_like(mean, LOG_VARIANCE)], dim=1)
        latents: Any = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Latents as images.

        Args:
            z: `[N, C, h, w]`.
            return_dict: Return an object rather than a tuple.
            generator: Not used; `AutoencoderKL` takes one too.

        Returns:
            `sample`: `[N, 3, h · patch, w · patch]`, not clipped.
        """
        del generator
        image = functional.conv_transpose2d(z.float(), self.synthesis.float(), stride=self.config["patch"])
        image = image.to(self.dtype)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Images that went through the VAE: see `encode` and `decode`."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)


def _cosines(patch: int) -> tuple[Tensor, Tensor]:
    """All coefficients of a block: patterns `[3·P², 3, P, P]`, orthonormal, and the usual size of each `[3·P²]`."""
    pixel = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * pixel[None] + 1) * pixel[:, None] / (2 * patch)) * math.sqrt(2 / patch)
    waves[0] /= math.sqrt(2)
    colours = torch.tensor(_COLOURS, dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    patterns = torch.einsum("cr,uy,vx->cuvryx", colours, waves, waves)
    squared = pixel[:, None] ** 2 + pixel[None] ** 2
    ripples = squared.clamp(min=1.0) ** -_DECAY
    sizes = torch.stack([ripples * low for low in _RIPPLE])
    sizes[:, 0, 0] = torch.tensor(_FLAT, dtype=torch.float64)
    return patterns.reshape(-1, 3, patch, patch), sizes.reshape(-1) * patch / 4
