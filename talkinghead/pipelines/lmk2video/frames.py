"""Frames of a video in the forms that users get: decoding, bytes, arrays and images.

Letters of shapes: F frames of the video, n and m frames of a part, C channels, h and w height and width of latents, H
and W height and width of frames in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from talkinghead.models.image.networks import ImageNetworks


def check_finite(values: Tensor, network: str, dtype: torch.dtype) -> None:
    """Refuse results of a network that are not finite.

    Half precision ends at 65504, which the activations of some weights exceed; no later step repairs that.

    Args:
        values: Result of the network, of any shape.
        network: Name of the network, for the message.
        dtype: Precision in which it computed.

    Raises:
        ValueError: There are NaN or infinite values; says what to try.
    """
    if torch.isfinite(values).all():
        return
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        raise ValueError(
            f"with these weights the numbers of the {network} exceed the range of {name}: take another precision"
            " (--dtype bf16 or fp32; dtype=torch.bfloat16 or torch.float32)"
        )
    raise ValueError(
        f"the {network} gives numbers that are not finite, in {name}: its weights are damaged, or diverged in training"
    )


OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class TalkingHeadOutput(BaseOutput):
    """Result of a call of `TalkingHeadPipeline`: the frames of one video."""

    frames: Any
    """Frames in the form of `output_type`. `pil`: a list of images. `np`: float32 `[F, H, W, 3]` in [0, 1]. `pt`:
    float32 `[F, 3, H, W]` in [0, 1]. `latent`: float32 `[F, C, h, w]`, in the scale of the networks. Tensors are on the
    CPU."""


def check_output_type(asked: str) -> None:
    """Refuse names that are not one of `OutputType`.

    Raises:
        ValueError: Another name; says which there are.
    """
    if asked not in get_args(OutputType):
        raise ValueError(f"output_type must be one of {', '.join(get_args(OutputType))}, not {asked!r}")


def decode(images: ImageNetworks, latents: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """Frames of latents, decoded a few at once.

    Args:
        images: Image networks with the VAE.
        latents: Latents in the scale of the networks, `[n, C, h, w]`.
        chunk_size: Number of frames decoded at once; the VAE's activations set the peak of memory.

    Yields:
        Frames, float32 `[m, 3, H, W]` in [0, 1], on the CPU; m is `chunk_size` or less.

    Raises:
        ValueError: Decoded frames are not finite, see `check_finite`.
    """
    for chunk in latents.split(chunk_size):
        decoded = images.decode(chunk)
        # Infinite values were clipped by `decode`, NaN are still there.
        check_finite(decoded, "VAE", images.vae.dtype)
        yield (decoded / 2 + 0.5).clamp(0, 1).float().cpu()


def as_bytes(frames: Tensor) -> np.ndarray:
    """RGB frames uint8 `[n, H, W, 3]`, from `[n, 3, H, W]` in [0, 1]."""
    return (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def collect(parts: Iterable[Tensor], output_type: OutputType, shape: tuple[int, int, int]) -> Any:
    """Frames of a whole video in the requested form, see `TalkingHeadOutput.frames`.

    Args:
        parts: Parts of the video in order, on the CPU: latents for `latent`, otherwise decoded frames. After an early
            interruption there may be none.
        output_type: Form of the result.
        shape: Shape (C, h, w) of one frame of the parts.
    """
    # Images part by part, so that the floats of the whole video are never in memory.
    if output_type == "pil":
        return [PIL.Image.fromarray(frame) for part in parts for frame in as_bytes(part)]
    # Without parts the result is empty, but of the right shape.
    tensors = list(parts)
    whole = torch.cat(tensors) if tensors else torch.zeros(0, *shape)
    return whole.permute(0, 2, 3, 1).numpy() if output_type == "np" else whole
