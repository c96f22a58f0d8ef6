"""Latents of a clip: training would encode its frames in every step, so they are encoded once and stored as columns.

`latents` are the mean and the log-variance that a VAE gives for each frame, `embedding` is its embedding by a CLIP
image encoder. Both are stored in half precision, as the networks give them.

Shapes: `F` frames; `C` channels of the VAE's latents; `h`, `w` height and width of the latents; `D` size of the
embedding.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from talkinghead import latents as stored
from talkinghead.derived import ColumnError, ColumnSample, Derived, DerivedColumn, Fit, Provenance, StoredNames

if TYPE_CHECKING:  # PyTorch takes seconds to import, and the command line needs only the settings
    from talkinghead.models.image.networks import ImageNetworks

LIBRARIES = ("av", "opencv-contrib-python", "numpy", "torch", "diffusers", "transformers")
"""Distributions in the provenance keys: they decode the videos, resize the frames and compute the networks."""

BUILT_IN = ("tiny", "tiny-kl", "small")
"""Networks that need no folder (`VAES` and `IMAGE_ENCODERS` of `talkinghead/models/image/weights.py`)."""

_PIXELS_AT_ONCE = 1 << 20
"""Pixels of the images that are encoded in one call: 4 of 512 x 512. More costs memory and saves no time."""


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Networks that encode, and the size of the images that they get."""

    vae: str
    """VAE: `tiny`, or a folder in the layout of diffusers (such as sd-vae-ft-mse)."""
    image_encoder: str
    """CLIP image encoder: `tiny`, `small`, or a folder in the layout of transformers."""
    width: int = 512
    """Width of the images, pixels; clips of another shape are cut to it around their middle."""
    height: int = 512
    """Height of the images, pixels."""
    gpu_share: float = 0.5
    """Share of a GPU that a worker takes, where the cluster has GPUs: two workers keep one GPU busy, one reading while
    the other encodes. 0: encode on CPUs."""

    def __post_init__(self) -> None:
        if not 0 <= self.gpu_share <= 1:
            raise ValueError(f"gpu_share must lie in 0 … 1, not {self.gpu_share}")


# --- the networks -----------------------------------------------------------------------------------------------------

_looked_at: dict[tuple[str, str], ImageNetworks] = {}
"""Networks whose provenance was asked for last, by their sources, so that a worker computes with what was hashed."""


def network_provenance(settings: LatentSettings) -> Provenance:
    """Kind, name and SHA-256 of both networks, which are read anew.

    Raises:
        ValueError: They cannot be read, or the size of the images does not fit them.
        MemoryError: They need more memory than there is.
    """
    from talkinghead.models.image.networks import check_image_size

    _looked_at.clear()
    networks = _networks(settings)
    check_image_size(settings.width, settings.height, networks.vae)
    return networks.provenance()


def bytes_per_frame(settings: LatentSettings) -> float:
    """Bytes that one frame's latents and embedding take in a shard."""
    networks = _networks(settings)
    positions = (settings.width // networks.scale) * (settings.height // networks.scale)
    half = stored.LATENT_FORMS[0].stored.itemsize
    return float(half * (2 * networks.channels * positions + networks.embedding_size))


def _networks(settings: LatentSettings) -> ImageNetworks:
    """Networks of the settings: those that were looked at last, else read now."""
    from talkinghead.models.image.networks import ImageNetworks

    sources = (settings.vae, settings.image_encoder)
    if sources not in _looked_at:
        _looked_at.clear()
        with _enough_memory("the image networks need more memory than there is"):
            _looked_at[sources] = ImageNetworks.load(*sources)
    return _looked_at[sources]


@contextlib.contextmanager
def _enough_memory(message: str) -> Iterator[None]:
    """Raise `MemoryError` where PyTorch, which has no class of its own for memory of the CPU, says so in a text."""
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise MemoryError(message) from error


# --- a clip -----------------------------------------------------------------------------------------------------------


def open_latents(settings: LatentSettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
    """Function that encodes the frames of a sample.

    Args:
        settings: Networks and size of the images.
        fits: None.
        device: Device of the networks, `cpu` or `cuda`.

    Raises:
        ValueError: The networks cannot be read.
        MemoryError: They need more memory than there is.
    """
    import torch

    del fits
    torch.set_num_threads(1)  # the samples are the parallelism
    networks = _networks(settings)
    _looked_at.clear()  # they are this function's now
    with _enough_memory(f"the image networks need more memory than there is on {device}"):
        networks.to(device)
    about = {
        "width": settings.width,
        "height": settings.height,
        **networks.provenance(),
        "scaling_factor": networks.vae.config["scaling_factor"],  # by which training multiplies the latents
    }

    def encode(sample: ColumnSample) -> Derived:
        arrays = encode_frames(networks, sample.video(), settings.width, settings.height)
        # Half precision overflows to inf, which would spoil a training much later.
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                cause = "nan" if np.isnan(values).any() else "range"
                raise ColumnError(cause, f"the {name} are not finite in half precision: these weights do not fit")
        return Derived(arrays=arrays, about=about)

    return encode


def encode_frames(
    networks: ImageNetworks, frames: Iterable[np.ndarray], width: int, height: int
) -> dict[str, np.ndarray]:
    """Latents and embeddings of a clip.

    Args:
        networks: VAE and CLIP image encoder.
        frames: RGB uint8 `[H, W, 3]` each.
        width: Width of the images that are encoded, pixels.
        height: Height of the images that are encoded, pixels.

    Returns:
        `latents` float16 `[F, 2·C, h, w]` and `embedding` float16 `[F, D]`.

    Raises:
        ColumnError: No frames.
        MemoryError: The networks need more memory than there is.
    """
    import torch

    from talkinghead.media.image_size import fit_images

    parts: dict[str, list[np.ndarray]] = {stored.LATENTS: [], stored.EMBEDDING: []}
    at_once = max(1, _PIXELS_AT_ONCE // (width * height))
    for batch in _batches(iter(frames), at_once):
        # [n, 3, height, width] uint8, cut and resized by training's own rule
        images = torch.from_numpy(fit_images(np.stack(batch).transpose(0, 3, 1, 2), width, height))
        with _enough_memory(f"encoding {len(batch)} images of {width}x{height} needs more memory"):
            parts[stored.LATENTS].append(networks.moments(images).cpu().numpy())
            parts[stored.EMBEDDING].append(networks.embedding(images).cpu().numpy())
    if not parts[stored.LATENTS]:
        raise ColumnError("shape", "the clip has no frames")
    return {name: np.concatenate(values) for name, values in parts.items()}


def _batches(frames: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of up to `size` frames, in order."""
    while batch := list(itertools.islice(frames, size)):
        yield batch


# --- the column -------------------------------------------------------------------------------------------------------

LATENTS = DerivedColumn(
    name=stored.LATENTS,
    version=1,
    arrays=stored.LATENT_FORMS,
    needs=("mp4",),
    settings=LatentSettings,
    provenance=network_provenance,
    open=open_latents,
    libraries=LIBRARIES,
    resources=("gpu_share",),
    built_in=BUILT_IN,
    frame_bytes=bytes_per_frame,
    # Stable Diffusion's VAE and CLIP take some 20 s per 512 x 512 image on one slow core.
    frame_seconds=lambda settings: 0.5 + 60.0 * settings.width * settings.height / 512**2,
    names=StoredNames(job="encode-", provenance="latents", key_field="encode_key", failed="encode_failed"),
)
