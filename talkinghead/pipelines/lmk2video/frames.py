"""Latents to the frames that users get."""

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
    """Refuse what a network made when it is not finite.

    Half precision ends at 65504, which the activations of some weights exceed; no later step repairs that.

    Args:
        values: What the network made, of any shape.
        network: Its name, for the message.
        dtype: In which it computed.

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
    """Frames of one video."""

    frames: Any
    """`pil`: a list of images. `np`: float32 `[F, H, W, 3]` in [0, 1]. `pt`: float32 `[F, 3, H, W]` in [0, 1].
    `latent`: float32 `[F, C, h, w]`, scaled as the networks see them. Tensors are on the CPU."""


def check_output_type(asked: str) -> None:
    """Raise `ValueError` for another form than `OutputType` has."""
    if asked not in get_args(OutputType):
        raise ValueError(f"output_type must be one of {', '.join(get_args(OutputType))}, not {asked!r}")


def decode(images: ImageNetworks, latents: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """Decode a few frames at once.

    Args:
        images: With the VAE.
        latents: `[n, C, h, w]`, scaled.
        chunk_size: Frames at once.

    Yields:
        float32 `[m, 3, H, W]` in [0, 1], on the CPU.

    Raises:
        ValueError: What is decoded is not finite, see `check_finite`.
    """
    for chunk in latents.split(chunk_size):
        decoded = images.decode(chunk)
        check_finite(decoded, "VAE", images.vae.dtype)
        yield (decoded / 2 + 0.5).clamp(0, 1).float().cpu()


def as_bytes(frames: Tensor) -> np.ndarray:
    """`[n, 3, H, W]` in [0, 1] → RGB uint8 `[n, H, W, 3]`."""
    return (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def collect(parts: Iterable[Tensor], output_type: OutputType, shape: tuple[int, int, int]) -> Any:
    """Frames of a whole video in the form asked for, see `TalkingHeadOutput.frames`.

    Args:
        parts: In order: latents for `latent`, else decoded frames. None of them after an early interruption.
        output_type: The form.
        shape: (C, h, w) of a part's frames.
    """
    if output_type == "pil":
        return [PIL.Image.fromarray(frame) for part in parts for frame in as_bytes(part)]
    tensors = list(parts)
    whole = torch.cat(tensors) if tensors else torch.zeros(0, *shape)
    return whole.permute(0, 2, 3, 1).numpy() if output_type == "np" else whole
