"""`python -m infer <command>`: trained or published models at work on a portrait and speech.

The result is the last line on stdout; everything else goes to stderr. Exit status: 0 done, 1 it could not be finished
(the disk is full, not enough memory, interrupted: nothing is left half-written), 2 what was asked for is not possible
(wrong option, file, weights or place).
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from tyro.extras import SubcommandApp

from infer import commands
from talkinghead.runtime.command_line import MACHINE_ERRORS, result_on_stdout


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    app = SubcommandApp()
    for command in (
        commands.audio,
        commands.video,
        commands.landmarks,
        commands.convert,
        commands.evaluate,
        commands.doctor,
    ):
        app.command(result_on_stdout(command))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # What libraries say of their own accord is not for the user.
    for library in ("transformers", "diffusers", "httpx", "libav", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # which set their levels anew when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        app.cli(prog="python -m infer", description=__doc__, args=arguments)
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr, flush=True)
        return 1
    except MemoryError:
        print("error: not enough memory", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1 if error.errno in MACHINE_ERRORS else 2
    except ValueError as error:
        summary, *details = str(error).splitlines() or [type(error).__name__]
        print(*details, f"error: {summary}", sep="\n", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
