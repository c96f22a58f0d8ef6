"""VAE that needs no training: its latents are cosine coefficients of small blocks.

Letters of shapes: N images, H and W height and width of images in pixels, C channels, h and w height and width of
latents, P pixels along the side of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from torch.nn import functional

from talkinghead.models.weights import StrictModel

LOG_VARIANCE = -12.0
"""Logarithm of the variance of the latents, a standard deviation of 1/400."""

_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Colour axes over RGB: brightness, red against blue, magenta against green. They are orthogonal and close to the
principal axes of natural colours."""
_FLAT = (3.0, 1.27, 0.6)
"""Root mean square of the constant coefficient per colour axis, for blocks of 4 pixels."""
_RIPPLE = (0.6, 0.12, 0.067)
"""Root mean square of the lowest non-constant coefficient per colour axis, for blocks of 4 pixels."""
_DECAY = 0.9
"""Exponent of the decay: non-constant coefficients fall with their squared frequency to this power. The values of
`_FLAT`, `_RIPPLE` and `_DECAY` are fits to faces of 64 to 128 pixels (talking-head video of eight sources); the
measured sizes lie within a factor of 1.6 of them."""
_LARGEST_PATCH = 32
"""Largest side of a block, pixels: the table of all coefficients grows with its fourth power."""

CLASS_NAMES = ("CosineVae", "CosineCodec")
"""Names of the class in saved configurations: the present one, and the former one of older exports."""


class CosineVae(StrictModel, AutoencoderMixin):
    """Linear VAE whose latents are the lowest orthonormal cosine coefficients of small blocks.

    The interface is that of `diffusers.AutoencoderKL`, but for slices and tiles, which would save nothing. It replaces
    one where there are no trained weights: an autoencoder with random weights would give no recognisable images. It has
    no parameters, only fixed tables.

    A block of `patch` x `patch` pixels has 3·patch² coefficients (DCT-II over rows and columns, on three colour axes);
    those with the most energy in natural images are kept. Each is divided by its usual size to the power of
    `whitening`, and all by one number, so that the mean square over the channels is about 1. With little whitening
    channels count by how much they contribute to the image. Unit variance in each would spend most of a network's loss
    on fine detail, and noise that a hardly trained network leaves would be as strong in the brightness of whole blocks
    as in fine detail. Measured after 500 steps on one clip (PSNR): 24.2 dB with 0.25, 23.3 dB with 0.5, 15.6 dB with 1.

    Args:
        patch: Pixels along the side of a block, the factor between image and latents.
        latent_channels: Number of coefficients that are kept.
        whitening: Amount of whitening. 0: all coefficients in one scale, 1: each with about unit variance.
        scaling_factor: Factor by which users of the VAE multiply latents, as with `AutoencoderKL`.

    Raises:
        ValueError: Too large a block, more coefficients than it has, or a whitening outside of 0 … 1.
    """

    analysis: Tensor
    synthesis: Tensor

    @register_to_config
    def __init__(
        self, patch: int = 4, latent_channels: int = 16, whitening: float = 0.25, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        if patch > _LARGEST_PATCH:
            raise ValueError(f"blocks of {patch} pixels are too large: {_LARGEST_PATCH} are the most")
        if patch < 1 or not 1 <= latent_channels <= 3 * patch**2:
            raise ValueError(f"blocks of {patch} pixels have {3 * patch**2} coefficients, not {latent_channels}")
        if not 0.0 <= whitening <= 1.0:
            raise ValueError(f"whitening must be from 0 to 1, not {whitening}")

        # Keep the strongest coefficients. Stable, so that equal sizes keep their order on every machine: saved latents
        # depend on it.
        basis, sizes = _cosines(patch)
        kept = torch.argsort(sizes, descending=True, stable=True)[:latent_channels]

        # Scale each channel by its usual size, then all together to a mean square of 1.
        scales = sizes[kept] ** whitening
        scales = scales * ((sizes[kept] / scales) ** 2).mean().sqrt()
        basis, scales = basis[kept], scales[:, None, None, None]

        # The basis is orthonormal, so the inverse of the transform is its transpose with inverse scales.
        self.register_buffer("analysis", (basis / scales).float())
        self.register_buffer("synthesis", (basis * scales).float())

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Distribution of the latents of images.

        Args:
            x: Images `[N, 3, H, W]` in [-1, 1]; H and W are multiples of `patch`.
            return_dict: Whether to return an object rather than a tuple.

        Returns:
            Object whose `latent_dist` has the mean `[N, C, H / patch, W / patch]` and a small constant variance; or a
            tuple of that distribution.

        Raises:
            ValueError: The images are of another shape.
        """
        patch = self.config["patch"]
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % patch or x.shape[3] % patch:
            raise ValueError(f"images must be [N, 3, H, W] in multiples of {patch} pixels, not {list(x.shape)}")
        # In single precision also for half-precision tables: the cost is negligible next to the networks'.
        mean = functional.conv2d(x.float(), self.analysis.float(), stride=patch).to(self.dtype)
        moments = torch.cat([mean, torch.full_like(mean, LOG_VARIANCE)], dim=1)
        latents: Any = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Images of latents.

        Args:
            z: Latents `[N, C, h, w]`.
            return_dict: Whether to return an object rather than a tuple.
            generator: Not used; `AutoencoderKL` takes one too.

        Returns:
            Object whose `sample` is the images `[N, 3, h · patch, w · patch]`, not clipped; or a tuple of them.
        """
        del generator
        image = functional.conv_transpose2d(z.float(), self.synthesis.float(), stride=self.config["patch"])
        image = image.to(self.dtype)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Reconstruction of images, with the shapes of `encode` and `decode`."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)


def _cosines(patch: int) -> tuple[Tensor, Tensor]:
    """Orthonormal patterns of all coefficients of a block `[3·P², 3, P, P]`, and the usual size of each `[3·P²]`."""
    # DCT-II with orthonormal rows: waves[frequency, pixel].
    pixel = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * pixel[None] + 1) * pixel[:, None] / (2 * patch)) * math.sqrt(2 / patch)
    waves[0] /= math.sqrt(2)

    # Every pattern is a colour axis times a wave down the rows times a wave along the columns.
    colours = torch.tensor(_COLOURS, dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    patterns = torch.einsum("cr,uy,vx->cuvryx", colours, waves, waves)

    # Usual sizes, in the same order [colour, vertical, horizontal frequency]. Coefficients of an orthonormal transform
    # grow with the side of the block; the table is for 4 pixels.
    squared = pixel[:, None] ** 2 + pixel[None] ** 2
    ripples = squared.clamp(min=1.0) ** -_DECAY
    sizes = torch.stack([ripples * low for low in _RIPPLE])
    sizes[:, 0, 0] = torch.tensor(_FLAT, dtype=torch.float64)
    return patterns.reshape(-1, 3, patch, patch), sizes.reshape(-1) * patch / 4
