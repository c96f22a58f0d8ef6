"""`python -m orchestration <command>`: the data side on Ray, from raw video to verified shards and a report.

The result is the last line on stdout; everything else goes to stderr. Exit status: 0 done, 1 it could not be finished
(the disk is full, the object store does not answer, a worker is not set up: mend it and run the same command again),
2 what was asked for is not possible (wrong option, file, setting or place).
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from tyro.extras import SubcommandApp

from orchestration import commands
from orchestration.units.unit import RunError
from talkinghead.files.storage import UnreachableError
from talkinghead.runtime.command_line import MACHINE_ERRORS, result_on_stdout


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    app = SubcommandApp()
    for command in (
        commands.ingest,
        commands.annotate,
        commands.shards,
        commands.reannotate,
        commands.latents,
        commands.report,
        commands.quarantine,
        commands.retry,
        commands.demo,
    ):
        app.command(result_on_stdout(command))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app.cli(prog="python -m orchestration", description=__doc__, args=arguments)
    except (RunError, UnreachableError) as error:
        print(f"error: {error}; run the same command again when it is mended, it goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        # Not the interpreter's own end: Ray's threads may be starting just now, and crash in it. Ray's processes and
        # the lock on DATA go with this one.
        os._exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1 if error.errno in MACHINE_ERRORS else 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
