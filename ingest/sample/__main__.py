"""`python -m ingest.sample -o build/sample`: writes the embedded sample's video files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ingest.sample import SEED, make_sample
from talkinghead.runtime.command_line import run_command_line


def sample(out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("build/sample"), seed: int = SEED) -> str:
    """Write the embedded sample: a few seconds of talking-head video made by our own code.

    Args:
        out: Folder for the video files.
        seed: Seed of the speech and the motion.
    """
    return str(make_sample(out, seed=seed))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command_line(sample, arguments, prog="python -m ingest.sample")


if __name__ == "__main__":
    sys.exit(main())
