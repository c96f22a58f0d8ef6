"""`python -m train <task> <recipe>` trains; `list` and `doctor` tell beforehand what that needs and takes; the other
commands work on a run.

A training ends with status 75 when a scheduler is to start the same command again: SIGUSR1 came (SLURM's --signal), or
the hours of --max-hours are over; a checkpoint is written. After SIGTERM and Ctrl-C, which write one, too, it is 1."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from talkinghead.runtime.command_line import GOES_ON, Ending, call_command, end_by_policy, result_on_stdout
from train import commands
from train.launch.failure import REQUEUE, PeerError, RunFailed
from train.launch.slurm import slurm_task
from train.recipe import TASKS, full_name
from train.trainer.port import Preempted, raise_preempted


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    call = functools.partial(_call, arguments)
    signal.signal(signal.SIGUSR1, raise_preempted)
    # Ranks other than 0 log to their files only.
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return end_by_policy(call, arguments, advice=GOES_ON, explain=_ending, quiet=rank != "0")


def _call(arguments: list[str]) -> int:
    """Run the command that the arguments name."""
    # A task of SLURM's is a rank from here on, as one of a torchrun is.
    if task := slurm_task(os.environ):
        os.environ.update(task.variables())
    # A training. Its options depend on the recipe, so `commands.parse` reads them rather than the parser below.
    if arguments and full_name(arguments[0]) in TASKS:
        request = commands.parse(arguments[0], arguments[1:])
        return result_on_stdout(_said_by_rank_zero(commands.train))(request)
    # So are those of a training that is to be examined.
    if arguments[:1] == ["doctor"]:
        return _examine(arguments[1:])
    # Any other command is a plain function whose arguments are its options.
    others = (commands.list_recipes, commands.validate, commands.overview, commands.seen, commands.worker)
    return call_command(
        [_said_by_rank_zero(command) for command in others],
        arguments,
        prog="python -m train",
        about=__doc__,
        described=[*((task, commands.describe_task(task)) for task in TASKS), ("doctor", commands.DOCTOR)],
    )


def _examine(arguments: list[str]) -> int:
    """Print the report about a training; raises `ValueError` with what does not fit, after it."""
    prog = "python -m train doctor"
    if not arguments or full_name(arguments[0]) not in TASKS:
        if {"-h", "--help"} & set(arguments):
            print(f"usage: {prog} TASK RECIPE --data DATA --run RUN [OPTIONS]\n\n{commands.DOCTOR}")
            return 0
        raise ValueError(f"name a task and a recipe: {prog} TASK RECIPE …; there are {', '.join(TASKS)}")
    request = commands.parse(arguments[0], arguments[1:], prog, commands.Examined)
    problem: str | None = None

    def examine() -> str:
        nonlocal problem
        report, problem = commands.doctor(request)
        return report

    status = result_on_stdout(examine)()
    if problem is not None:
        raise ValueError(problem)
    return status


def _said_by_rank_zero(command: Callable[..., str | None]) -> Callable[..., str | None]:
    """Wrap a command so that only rank 0 of several returns its result, and it is printed once."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> str | None:
        result = command(*arguments, **options)
        return result if os.environ.get("RANK", "0") == "0" else None

    return run


def _ending(error: BaseException) -> Ending | None:
    """Exit status and last line of a training that ended early; None for errors that the common policy handles."""
    if isinstance(error, PeerError):
        return Ending(1, at_once=True)  # rank 0 says why
    if isinstance(error, Preempted):
        return Ending(REQUEUE, str(error))
    if not isinstance(error, RunFailed):
        return None
    failure = error.failure
    # Every rank of a torchrun or of SLURM gets here: only the one that failed first prints, so that there is one line.
    # They end without the interpreter's cleanup: a process group's may wait for ranks that have ended.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    text = failure.line if error.first or not several else ""
    return Ending(failure.status, text, at_once=several)


if __name__ == "__main__":
    sys.exit(main())
