"""Program with a pipeline that is really refused memory. Prints its error."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request


def main() -> None:
    """Leave 64 MB for frames that want more."""
    torch.set_num_threads(1)
    pipeline: TalkingHeadPipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    if sys.argv[1] != "none":
        pipeline.apply_preset(int(sys.argv[1]))
    stream = pipeline.stream(**tiny_request(16, 384, 384), num_inference_steps=1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, resource.RLIM_INFINITY))
    try:
        next(stream)
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main()
