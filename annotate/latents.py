"""Latents of a clip: training would encode its frames in every step, so they are encoded once and stored as columns.

`latents` are the mean and the log-variance that a VAE gives for each frame, `embedding` is its embedding by a CLIP
image encoder. Both are stored in half precision.

Shapes: `F` frames; `C` channels of the VAE's latents; `h`, `w` height and width of the latents; `D` size of the
embedding.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from talkinghead.latents import EMBEDDING, LATENTS
from talkinghead.provenance import pretty_json

if TYPE_CHECKING:  # PyTorch takes seconds to import, and the command line needs only the settings
    from talkinghead.models.image.networks import ImageNetworks

STORED = np.dtype("<f2")
"""Type of the columns' numbers."""
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


def bytes_per_frame(encoder: ImageNetworks, settings: LatentSettings) -> int:
    """Bytes that one frame's latents and embedding take in a shard."""
    positions = (settings.width // encoder.scale) * (settings.height // encoder.scale)
    return STORED.itemsize * (2 * encoder.channels * positions + encoder.embedding_size)


def encode_frames(
    encoder: ImageNetworks, frames: Iterable[np.ndarray], width: int, height: int
) -> dict[str, np.ndarray]:
    """Latents and embeddings of a clip, as columns.

    Args:
        encoder: VAE and CLIP image encoder.
        frames: RGB uint8 `[H, W, 3]` each.
        width: Width of the images that are encoded, pixels.
        height: Height of the images that are encoded, pixels.

    Returns:
        `latents` float16 `[F, 2·C, h, w]` and `embedding` float16 `[F, D]`.

    Raises:
        ValueError: No frames.
        MemoryError: The networks need more memory than there is.
    """
    import torch

    from talkinghead.media.image_size import fit_images

    parts: dict[str, list[np.ndarray]] = {LATENTS: [], EMBEDDING: []}
    at_once = max(1, _PIXELS_AT_ONCE // (width * height))
    for batch in _batches(iter(frames), at_once):
        # [n, 3, height, width] uint8, cut and resized by training's own rule
        images = torch.from_numpy(fit_images(np.stack(batch).transpose(0, 3, 1, 2), width, height))
        try:
            parts[LATENTS].append(encoder.moments(images).cpu().numpy())
            parts[EMBEDDING].append(encoder.embedding(images).cpu().numpy())
        except RuntimeError as error:
            if "allocate" not in str(error):  # PyTorch has no class of its own for memory of the CPU
                raise
            raise MemoryError(f"encoding {len(batch)} images of {width}x{height} needs more memory") from error
    if not parts[LATENTS]:
        raise ValueError("the clip has no frames")
    return {name: np.concatenate(values) for name, values in parts.items()}


def _batches(frames: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of up to `size` frames, in order."""
    while batch := list(itertools.islice(frames, size)):
        yield batch


def encode_latents(key: str, columns: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, bytes]:
    """A clip's latents as tar members.

    Args:
        key: The clip's key, for messages.
        columns: Columns of `encode_frames`.
        about: Provenance of the columns, the content of `latents.json`.

    Returns:
        Suffix → content, in tar order.

    Raises:
        ValueError: Values that half precision cannot hold.
    """
    # Half precision overflows to inf, which would spoil a training much later.
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} of {key} are not finite in half precision: these weights do not fit")
    members = {f"{name}.npy": _npy(values) for name, values in columns.items()} | {"latents.json": pretty_json(about)}
    return dict(sorted(members.items()))


def _npy(values: np.ndarray) -> bytes:
    """A column as a NumPy file in half precision; the format's version is fixed, so the bytes are reproducible."""
    buffer = io.BytesIO()
    stored: Any = np.ascontiguousarray(values, STORED)
    np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
