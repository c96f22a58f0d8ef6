"""TODO docstring."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from talkinghead.derived import EMBEDDING, LATENTS

if TYPE_CHECKING:
    from talkinghead.models.image.codec import PictureEncoder


_PIXELS_AT_ONCE = 1 << 20
"""Pixels of the pictures that are encoded in one call: 4 of 512 x 512. More costs memory and saves no time."""


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Which networks encode which pictures."""

    vae: str
    """Codec: `tiny`, or a folder in the layout of diffusers (such as sd-vae-ft-mse)."""
    image_encoder: str
    """CLIP image encoder: `tiny`, `small`, or a folder in the layout of transformers."""
    width: int = 512
    """Of the pictures, pixels; clips of another shape are cut to it around their middle."""
    height: int = 512
    gpu_share: float = 0.5
    """Share of a GPU that a worker takes, where the cluster has GPUs: two workers keep one busy, one reading while the
    other encodes. 0: encode on CPUs."""

    def __post_init__(self) -> None:
        if not 0 <= self.gpu_share <= 1:
            raise ValueError(f"gpu_share must lie in 0 … 1, not {self.gpu_share}")


def encode_frames(
    encoder: PictureEncoder, frames: Iterable[np.ndarray], width: int, height: int
) -> dict[str, np.ndarray]:
    """The columns of a clip.

    Args:
        encoder: The networks.
        frames: RGB uint8 `[H, W, 3]` each.
        width: Of the pictures that are encoded.
        height: The same.

    Returns:
        `latents` float16 `[F, 2·C, h, w]` and `embedding` float16 `[F, D]`.
    """
    import torch

    from talkinghead.media.picture_size import fit_pictures

    parts: dict[str, list[np.ndarray]] = {LATENTS: [], EMBEDDING: []}
    at_once = max(1, _PIXELS_AT_ONCE // (width * height))
    for batch in _batches(iter(frames), at_once):
        pictures = torch.from_numpy(fit_pictures(np.stack(batch).transpose(0, 3, 1, 2), width, height))
        try:
            parts[LATENTS].append(encoder.moments(pictures).cpu().numpy())
            parts[EMBEDDING].append(encoder.embedding(pictures).cpu().numpy())
        except RuntimeError as error:
            if "allocate" not in str(error):  # PyTorch has no class of its own for memory of the CPU
                raise
            raise MemoryError(f"encoding {len(batch)} pictures of {width}x{height} needs more memory") from error
    if not parts[LATENTS]:
        raise ValueError("the clip has no frames")
    return {name: np.concatenate(values) for name, values in parts.items()}


def device(settings: LatentSettings) -> str:
    """Where this process encodes: on the GPU that Ray gave it, else on the CPU."""
    import torch

    return "cuda" if settings.gpu_share and torch.cuda.is_available() else "cpu"


def _batches(frames: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(itertools.islice(frames, size)):
        yield batch


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    stored: Any = np.ascontiguousarray(values, "<f2")
    np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
