"""Long speech in bounded memory: overlapping windows, cross-faded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from talkinghead.models.speech.encoder import frame_rate, num_frames
from talkinghead.timebase import SAMPLE_RATE

Encode = Callable[[Tensor, int], Tensor]
"""(samples `[1, N]`, T) → `[1, T, …]`."""


@torch.no_grad()
def encode_long(
    encode: Encode, samples: Tensor, fps: float, *, window_s: float = 20.0, overlap_s: float = 2.0
) -> Tensor:
    """Encode speech of any length; attention is quadratic in the length, so long speech goes in windows.

    Windows begin where a frame begins on a whole sample (every frame at 25 fps, every third at 30; at rates where that
    is rarer than once a second, on the nearest sample), overlap, and are blended linearly over the overlap. Speech that
    fits one window is encoded in one pass.

    Args:
        encode: Such as `Audio2Mesh.forward` or `Audio2Pose.encode`.
        samples: `[N]`, 16 kHz, normalised over the whole recording.
        fps: Of the frames.
        window_s: Longest window in seconds.
        overlap_s: Overlap of neighbours in seconds, at most a third of the window.

    Returns:
        `[T, …]`, T = `num_frames(N, fps)`.

    Raises:
        ValueError: No samples, or an overlap that does not fit.
    """
    if samples.numel() == 0:
        raise ValueError("the recording has no samples")
    if not 0 < overlap_s * 3 <= window_s:
        raise ValueError(f"overlap_s {overlap_s} must be above 0 and at most a third of window_s {window_s}")
    total = num_frames(len(samples), fps)
    spans = window_spans(total, fps, window_s, overlap_s)
    per_frame = SAMPLE_RATE / frame_rate(fps)
    result: Tensor | None = None
    done = 0
    for first, end in spans:
        last_sample = len(samples) if end == total else round(end * per_frame)
        part = encode(samples[None, round(first * per_frame) : last_sample], end - first)[0]
        if result is None:
            result = part.new_empty(total, *part.shape[1:])
        shared = done - first
        if shared > 0:
            ramp = torch.arange(1, shared + 1, device=part.device, dtype=part.dtype) / (shared + 1)
            part[:shared] = torch.lerp(result[first:done], part[:shared], ramp.view(-1, *[1] * (part.ndim - 1)))
        result[first:end] = part
        done = end
    assert result is not None and done == total
    return result


def window_spans(total: int, fps: float, window_s: float, overlap_s: float) -> list[tuple[int, int]]:
    """Windows (first frame, end) over `total` frames: about equally long, each overlapping the next alike."""
    grid = (SAMPLE_RATE / frame_rate(fps)).denominator  # frames from one that begins on a whole sample to the next
    grid = grid if grid <= fps else 1
    longest = int(window_s * fps) // grid * grid
    overlap = max(1, round(overlap_s * fps / grid)) * grid
    if total <= longest:
        return [(0, total)]
    count = -(-(total - overlap) // (longest - overlap - grid))
    starts = [(total - overlap) * number // (count * grid) * grid for number in range(count)]
    return [
        (first, total if following is None else following + overlap)
        for first, following in zip(starts, [*starts[1:], None], strict=True)
    ]
