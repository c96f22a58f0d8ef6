"""`python -m orchestration <command>`: the data side on Ray, from raw video to verified shards and a report."""

from __future__ import annotations

import sys

from orchestration import commands, removal_commands
from talkinghead.runtime.command_line import GOES_ON, run_command_line

# In the order of the work, which is also the order in --help.
COMMANDS = (
    commands.ingest,
    commands.annotate,
    commands.shards,
    commands.reannotate,
    commands.derive,
    commands.latents,
    commands.basis,
    commands.status,
    commands.report,
    commands.quarantine,
    commands.retry,
    removal_commands.remove,
    removal_commands.gc,
    commands.demo,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command_line(
        COMMANDS,
        arguments,
        prog="python -m orchestration",
        about=__doc__,
        advice=GOES_ON,
        # Without the interpreter's own shutdown: Ray's threads may just be starting, and would crash in it. Ray's
        # processes go with this process; the lease of DATA has been given back.
        end_at_once=True,
    )


if __name__ == "__main__":
    sys.exit(main())
