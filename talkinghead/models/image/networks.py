"""Images as inputs of networks: latents by a VAE, and one token by CLIP, equal in training, caching and inference.

Letters of shapes: N images, C channels of the latents, H and W height and width of images in pixels, h and w height and
width of latents, D width of the image token.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from talkinghead.models.device_constant import DeviceConstant
from talkinghead.models.image.cosine_vae import CosineVae
from talkinghead.models.image.weights import described, fingerprint, load_image_encoder, load_vae

Vae = AutoencoderKL | CosineVae

_MEAN, _DEVIATION = (
    DeviceConstant(torch.tensor(value)[:, None, None]) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
)


def latent_scale(vae: Vae) -> int:
    """Pixels per latent position along each axis, 8 for Stable Diffusion's VAE."""
    if isinstance(vae, CosineVae):
        return vae.config["patch"]
    # An AutoencoderKL halves the size between each two of its levels.
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def latent_channels(vae: Vae) -> int:
    """Channels of the latents, 4 for Stable Diffusion's VAE."""
    return vae.config["latent_channels"]


def check_image_size(width: int, height: int, vae: Vae) -> None:
    """Refuse sizes of images that the networks cannot take, in training and in inference.

    Args:
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        vae: VAE of the latents.

    Raises:
        ValueError: Width or height is not a positive multiple of `latent_scale`; names the nearest that are.
    """
    step = latent_scale(vae)
    if width > 0 and height > 0 and width % step == 0 and height % step == 0:
        return
    # The nearest multiples below and above, at least one step; one number where the side fits already.
    near = [sorted({max(step, side // step * step), max(step, -(-side // step) * step)}) for side in (width, height)]
    fitting = [" or ".join(map(str, sides)) for sides in near]
    raise ValueError(
        f"images of {width}x{height} do not fit the networks: width and height must be multiples of {step}; the"
        f" nearest width is {fitting[0]}, the nearest height {fitting[1]}"
    )


class ImageNetworks:
    """Frozen VAE and CLIP image encoder. Not a module, so that no checkpoint or optimizer contains them.

    Args:
        vae: VAE of the latents.
        image_encoder: Encoder of the image token.
    """

    def __init__(self, vae: Vae, image_encoder: CLIPVisionModelWithProjection) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        self.image_encoder: Any = image_encoder.eval().requires_grad_(False)
        self._provenance: dict[str, dict[str, str]] | None = None

    @classmethod
    def load(cls, vae: str, image_encoder: str) -> Self:
        """Networks of two sources, in single precision.

        Args:
            vae: Source of the VAE, see `weights.load_vae`.
            image_encoder: Source of the image encoder, see `weights.load_image_encoder`.

        Raises:
            ValueError: A folder is missing, damaged, or of another network; says what is needed.
        """
        encoder = cls(load_vae(vae), load_image_encoder(image_encoder))
        encoder._provenance = {
            "vae": described(vae, encoder.vae),
            "image_encoder": described(image_encoder, encoder.image_encoder),
        }
        return encoder

    @property
    def scale(self) -> int:
        """Pixels per latent position along each axis."""
        return latent_scale(self.vae)

    @property
    def channels(self) -> int:
        """Channels C of the latents."""
        return latent_channels(self.vae)

    @property
    def embedding_size(self) -> int:
        """Width D of the image token."""
        return self.image_encoder.config.projection_dim

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.vae.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or cast the networks, in place; their provenance stays that of the original weights."""
        # Hashed before a cast rounds the weights.
        if dtype not in (None, self.vae.dtype):
            self.provenance()
        options = {"device": device, "dtype": dtype}
        for network in (self.vae, self.image_encoder):
            network.to(**{name: value for name, value in options.items() if value is not None})
        return self

    def provenance(self) -> dict[str, dict[str, str]]:
        """Kind, name and SHA-256 of each network, to be written next to results."""
        if self._provenance is None:
            self._provenance = {
                name: {"kind": "network", "name": type(network).__name__, "sha256": fingerprint(network)}
                for name, network in (("vae", self.vae), ("image_encoder", self.image_encoder))
            }
        return {name: dict(about) for name, about in self._provenance.items()}

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and logarithm of the variance of each image's latents, unscaled.

        Args:
            images: RGB images, uint8 `[N, 3, H, W]`.

        Returns:
            Means, then logarithms, float16 `[N, 2·C, H / scale, W / scale]`, on the networks' device. They are always
            rounded to half precision, so that computed moments equal stored ones.

        Raises:
            ValueError: Images of another type or shape.
        """
        with self._plain():
            pixels = self._moved(images).to(self.vae.dtype) / 127.5 - 1.0
            posterior = self.vae.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1).to(torch.float16)

    def sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Latents drawn from moments.

        Args:
            moments: Result of `moments`, `[N, 2·C, h, w]`.
            noise: Standard normal noise, `[N, C, h, w]`.

        Returns:
            Latents in the scale of the networks, float32 `[N, C, h, w]`.
        """
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self._scaled(mean + torch.exp(0.5 * log_variance) * noise.float())

    def mean(self, moments: Tensor) -> Tensor:
        """Most probable latents of moments `[N, 2·C, h, w]`, in the scale of the networks: float32 `[N, C, h, w]`."""
        return self._scaled(moments.float().chunk(2, dim=1)[0])

    @torch.no_grad()
    def embedding(self, images: Tensor) -> Tensor:
        """CLIP's embedding of each whole image, resized to the encoder's square without keeping its aspect.

        Args:
            images: RGB images, uint8 `[N, 3, H, W]`.

        Returns:
            Embeddings, float16 `[N, D]`, on the networks' device.

        Raises:
            ValueError: Images of another type or shape.
        """
        side = self.image_encoder.config.image_size
        with self._plain():
            # CLIP's own preprocessing, on the device and for a batch: bicubic with antialiasing.
            pixels = self._moved(images).float()
            if pixels.shape[2:] != (side, side):
                pixels = functional.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
                pixels = pixels.round().clamp(0.0, 255.0)  # bytes, as in the image files that CLIP was trained on
            mean, deviation = (constant.like(pixels) for constant in (_MEAN, _DEVIATION))
            pixels = (pixels / 255.0 - mean) / deviation
            return self.image_encoder(pixel_values=pixels.to(self.image_encoder.dtype)).image_embeds.to(torch.float16)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents.

        Args:
            latents: Latents in the scale of the networks, `[N, C, h, w]`.

        Returns:
            Images, float32 `[N, 3, H, W]` in [-1, 1].
        """
        with self._plain():
            unscaled = latents.float() / self.vae.config["scaling_factor"] + self._shift
            return self.vae.decode(unscaled.to(self.vae.dtype)).sample.float().clamp(-1.0, 1.0)

    @property
    def _shift(self) -> float:
        # Present but None in Stable Diffusion's configuration, and absent from the CosineVae's.
        return self.vae.config.get("shift_factor") or 0.0

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self._shift) * self.vae.config["scaling_factor"]

    def _moved(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [N, 3, H, W], not {images.dtype} {list(images.shape)}")
        return images.to(self.device)

    def _plain(self) -> torch.autocast:
        """Context without autocast: stored moments were computed without, so a trainer's autocast must not apply."""
        return torch.autocast(self.device.type, enabled=False)
