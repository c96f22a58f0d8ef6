"""`python -m train <task> <recipe>` trains; the other commands look at a run.

The result is the last line on stdout; everything else goes to stderr. Exit status: 0 done, 1 it could not be finished
(interrupted, the disk is full, a rank died: mend it and run the same command again, it goes on from the newest
checkpoint), 2 what was asked for is not possible (wrong option, setting, data or place).
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tyro.extras import SubcommandApp

from talkinghead.files.storage import UnreachableError
from talkinghead.runtime.command_line import MACHINE_ERRORS, result_on_stdout
from train import commands
from train.launch.failure import Failure, PeerError, RunFailed
from train.recipe import TASKS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Ranks other than 0 log to their files only.
    quiet = os.environ.get("RANK", "0") != "0"
    level = logging.ERROR if quiet else logging.INFO
    stream = logging.StreamHandler(sys.stderr)
    stream.setLevel(level)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[stream])
    try:
        _run(arguments)
    except RunFailed as error:
        return _say(error.failure, aloud=error.first or "TORCHELASTIC_RUN_ID" not in os.environ)
    except PeerError:
        return 1  # rank 0 says why
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1 if error.errno in MACHINE_ERRORS or isinstance(error, UnreachableError) else 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: list[str]) -> None:
    if arguments and arguments[0] in TASKS:
        from train.commands import parse, train

        request = parse(arguments[0], arguments[1:])
        result_on_stdout(_of_rank_zero(train))(request)
        return
    from train.commands import describe_task

    app = SubcommandApp()
    for task in TASKS:
        app.command(name=task, help=describe_task(task))(_stand_in)
    for command in (commands.validate, commands.overview, commands.worker):
        app.command(result_on_stdout(_of_rank_zero(command)))
    app.cli(prog="python -m train", description=__doc__, args=arguments)


def _stand_in() -> None:
    raise AssertionError("tasks parse their own arguments")


def _say(failure: Failure, *, aloud: bool) -> int:
    if not aloud:
        pass
    elif failure.kind == "interrupted":
        print(failure.message, file=sys.stderr)
    else:
        hint = "" if failure.kind == "user" else "; run the same command again when it is mended, it goes on from here"
        print(f"error: {failure.message}{hint}", file=sys.stderr)
    return 2 if failure.kind == "user" else 1


def _of_rank_zero(command: Callable[..., str | None]) -> Callable[..., str | None]:
    """Of several ranks that torchrun started, one says the result."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> str | None:
        result = command(*arguments, **options)
        return result if os.environ.get("RANK", "0") == "0" else None

    return run


if __name__ == "__main__":
    sys.exit(main())
