"""Program that streams a video with a given number of frames, and prints how much memory that took (MB)."""

from __future__ import annotations

import sys

import torch

from talkinghead.runtime.peak_memory import peak_memory
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request


def main() -> None:
    """Options with few steps, no guidance and small images: only the number of frames matters here."""
    torch.set_num_threads(1)
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    request = tiny_request(int(sys.argv[1]), 32, 32)
    before = peak_memory()
    frames = sum(1 for _ in pipeline.stream(**request, num_inference_steps=2, guidance_scale=1.0))
    print(frames, round(before / 2**20), round(peak_memory() / 2**20))


if __name__ == "__main__":
    main()
