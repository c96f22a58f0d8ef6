"""`python -m ingest.sample -o build/sample`: writes the embedded sample's video files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ingest.sample import SEED, make_sample


def main(out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("build/sample"), seed: int = SEED) -> int:
    """Write the embedded sample: a few seconds of talking-head video made by our own code.

    Args:
        out: Folder for the video files.
        seed: Of the speech and the motion.
    """
    try:
        print(make_sample(out, seed=seed))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
