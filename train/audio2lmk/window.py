"""The speech of a batch of clip windows, as the audio encoder takes it."""

from __future__ import annotations

import torch

from talkinghead import rng
from talkinghead.models.speech.encoder import standardise
from talkinghead.timebase import SAMPLES_PER_FRAME
from train.task import Batch


def speech_window(
    batch: Batch, levels: torch.Tensor, *, min_frames: int | None, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised speech and which frames count.

    Args:
        batch: `audio` `[B, F * 640]`, `mask` `[B, F]` (False where a short clip was padded), `slot` `[B]`.
        levels: `[B, 2]`, mean and variance of the whole clips' audio: a window is as loud as inference, which
            normalises whole recordings, would make it.
        min_frames: Shorten each window to a random number of frames from here on up to F, so that the model meets
            speech of many lengths; None: no window is shortened.
        seed: The lengths are a function of (seed, slot).

    Returns:
        Samples `[B, F * 640]` with zeros behind the frames that count, and the mask `[B, F]` bool.
    """
    mask: torch.Tensor = batch["mask"]
    if min_frames is not None:
        lengths = [_length(int(slot), mask.shape[1], min_frames, seed) for slot in batch["slot"]]
        positions = torch.arange(mask.shape[1], device=mask.device)
        mask = mask & (positions < torch.tensor(lengths, device=mask.device)[:, None])
    mean, variance = levels.to(mask.device).split(1, dim=1)
    samples = standardise(batch["audio"], mean, variance)
    return torch.where(mask.repeat_interleave(SAMPLES_PER_FRAME, dim=1), samples, 0.0), mask


def _length(slot: int, most: int, least: int, seed: int) -> int:
    return min(least, most) + int(rng.uniform(seed, "window length", slot) * (most - min(least, most) + 1))


def frame_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the frames that count, `[B, F]` → `[B]`; 0 for a sample without any.

    Args:
        values: `[B, F]`.
        mask: `[B, F]` bool.
    """
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def frame_steps(error: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of the error from frame to frame, which is the error of the velocity: `[B, F - 1, …]`, and which count."""
    return error[:, 1:] - error[:, :-1], mask[:, 1:] & mask[:, :-1]
