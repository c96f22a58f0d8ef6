"""`python -m infer <command>`: animate a portrait by speech or a video, convert weights, and evaluate them."""

from __future__ import annotations

import sys

from infer import commands
from talkinghead.runtime.command_line import AGAIN, Advice, run_command_line

COMMANDS = (
    commands.animate,
    commands.audio,
    commands.video,
    commands.landmarks,
    commands.pairs,
    commands.dub,
    commands.batch,
    commands.convert,
    commands.evaluate,
    commands.doctor,
)
# Results are staged next to their place and renamed when they are whole, so an interruption leaves no partial file.
_ADVICE = Advice(interrupted="nothing was left half-written", mended=AGAIN.mended)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command_line(COMMANDS, arguments, prog="python -m infer", about=__doc__, advice=_ADVICE)


if __name__ == "__main__":
    sys.exit(main())
