"""The speech of a batch of clip windows, as the audio encoder takes it."""

from __future__ import annotations

import torch

from talkinghead import rng
from talkinghead.models.speech_features import normalise
from talkinghead.timebase import SAMPLES_PER_FRAME
from train.task import Batch


def speech_window(batch: Batch, *, min_frames: int | None, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised speech and which frames count.

    Args:
        batch: `audio` `[B, F * 640]`, `mask` `[B, F]` (False where a short clip was padded), `slot` `[B]`.
        min_frames: Shorten each window to a random number of frames from here on up to F, so that the model meets
            speech of many lengths; None: no window is shortened.
        seed: The lengths are a function of (seed, slot).

    Returns:
        Samples `[B, F * 640]` with zero mean and unit variance over the frames that count and zeros behind them, and
        the mask `[B, F]` bool.
    """
    mask: torch.Tensor = batch["mask"]
    if min_frames is not None:
        lengths = [_length(int(slot), mask.shape[1], min_frames, seed) for slot in batch["slot"]]
        positions = torch.arange(mask.shape[1], device=mask.device)
        mask = mask & (positions < torch.tensor(lengths, device=mask.device)[:, None])
    samples = torch.zeros_like(batch["audio"])
    for row, count in enumerate(mask.sum(dim=1).tolist()):
        heard = int(count) * SAMPLES_PER_FRAME
        samples[row, :heard] = normalise(batch["audio"][row, :heard])
    return samples, mask


def _length(slot: int, most: int, least: int, seed: int) -> int:
    return min(least, most) + int(rng.uniform(seed, "window length", slot) * (most - min(least, most) + 1))
