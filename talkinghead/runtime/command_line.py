"""How every `python -m …` of the project reads its command line and how it ends: one way, and one policy.

Commands are functions. Their arguments are the options, their docstrings the help, and what they return is the result.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tyro
from tyro.extras import SubcommandApp

from talkinghead.runtime.errors import error_text, is_machine_error

EXIT_STATUS = """\
The result is the last line on stdout; everything else goes to stderr. Exit status: 0 done, 1 it ran and failed (a full
disk, not enough memory, a store or another process that does not answer, an interruption, or a check that found
problems), 2 the request cannot be met (wrong option, setting, file or place). One error line says what to do."""
"""The policy in a sentence, for the help of every main."""

_QUIET_LIBRARIES = ("transformers", "diffusers", "httpx", "libav", "matplotlib")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What people are told to do when a command of this main did not come to its end."""

    interrupted: str
    """After Ctrl-C or SIGTERM."""
    mended: str
    """After a failure of the machine."""


AGAIN = Advice(interrupted="run the same command again", mended="run the same command again when it is mended")
"""The command begins anew."""
GOES_ON = Advice(
    interrupted="run the same command again to go on from here",
    mended="run the same command again when it is mended, it goes on from here",
)
"""The command keeps what it has done."""


@dataclass(frozen=True)
class Incomplete:
    """What a command returns when it has a result but found problems, or could not do all: its exit status is 1."""

    result: str
    error: str
    """One line: what is wrong, and what to do."""


Command = Callable[..., str | Incomplete | None]
"""A command; None for one without a result."""


@dataclass(frozen=True)
class Ending:
    """How a command that failed ends."""

    status: int
    text: str = ""
    """For stderr; its last line is the error line. Empty where somebody else says it."""


def run_command_line(
    commands: Command | Sequence[Command],
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    about: str | None = None,
    advice: Advice = AGAIN,
    end_at_once: bool = False,
) -> int:
    """Be a main: read the command line, run the command, end by the policy.

    Args:
        commands: The subcommands, in the order of the help, or one function for a main without subcommands.
        arguments: The command line; None: the process's own.
        prog: How the main is called, `python -m infer`.
        about: What the help begins with (default: the docstring of the one function).
        advice: What to do after an interruption or a failure of the machine.
        end_at_once: Interrupted, end without the interpreter's own clearing up.

    Returns:
        The exit status.

    Raises:
        SystemExit: Help was asked for (status 0), or an option is wrong (2); it is said.
    """
    call = functools.partial(call_command, commands, arguments, prog=prog, about=about)
    return end_by_policy(call, advice=advice, end_at_once=end_at_once)


def call_command(
    commands: Command | Sequence[Command],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    about: str | None = None,
    described: Sequence[tuple[str, str]] = (),
) -> int:
    """Read a command line, run what it asks for, and write the result to stdout.

    Args:
        commands: As for `run_command_line`, and so are the two after it.
        arguments: The command line.
        prog: How the main is called.
        about: What the help begins with.
        described: Name and help of further subcommands, listed first, whose command line the main reads by itself.

    Returns:
        The exit status.
    """
    if callable(commands):
        description = about or inspect.cleandoc(commands.__doc__ or "").split("\n\nArgs:")[0]
        return tyro.cli(
            result_on_stdout(commands), prog=prog, description=f"{description}\n\n{EXIT_STATUS}", args=arguments
        )
    app = SubcommandApp()
    for name, text in described:
        app.command(name=name, help=text)(_read_elsewhere)
    for command in commands:
        app.command(result_on_stdout(command))
    return app.cli(prog=prog, description=f"{about}\n\n{EXIT_STATUS}", args=arguments)


def _read_elsewhere() -> int:
    raise AssertionError("the main reads this command line by itself")


def end_by_policy(
    call: Callable[[], int],
    *,
    advice: Advice,
    explain: Callable[[BaseException], Ending | None] = lambda _: None,
    quiet: bool = False,
    end_at_once: bool = False,
) -> int:
    """Call a function and turn what it raises into an exit status and an error line on stderr.

    Defects of ours are raised on, as tracebacks (status 1).

    Args:
        call: Returns the exit status.
        advice: What to do after an interruption or a failure of the machine.
        explain: How a main's own kinds of errors end; None for all others.
        quiet: Log errors only.
        end_at_once: Interrupted, end without the interpreter's own clearing up.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _log_to_stderr(logging.ERROR if quiet else logging.INFO)
    try:
        return call()
    except (Exception, KeyboardInterrupt) as error:
        ending = explain(error) or ending_of(error, advice)
        if ending is None:
            raise
        if ending.text:
            print(ending.text, file=sys.stderr, flush=True)
        if end_at_once and isinstance(error, KeyboardInterrupt):
            os._exit(ending.status)
        return ending.status


def ending_of(error: BaseException, advice: Advice) -> Ending | None:
    """The policy: how a command ends that raised an error, None for a defect of ours."""
    if isinstance(error, KeyboardInterrupt):
        return Ending(1, f"interrupted; {advice.interrupted}")
    if isinstance(error, MemoryError):
        return Ending(1, f"error: not enough memory; {advice.mended}")
    if is_machine_error(error):
        return Ending(1, _with_details(error, f"; {advice.mended}"))
    if isinstance(error, (OSError, ValueError)):
        return Ending(2, _with_details(error))
    return None


def _with_details(error: BaseException, hint: str = "") -> str:
    """The error line, the first of the message, after the other lines of it."""
    summary, *details = error_text(error).splitlines() or [type(error).__name__]
    return "\n".join([*details, f"error: {summary}{hint}"])


def _log_to_stderr(level: int) -> None:
    """Log to stderr from a level on; what libraries say of their own accord is not for the user."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setLevel(level)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[stream])
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # which set their levels anew when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def result_on_stdout(command: Command) -> Callable[..., int]:
    """Let only the command's result reach stdout: what libraries and other processes print goes to stderr.

    Args:
        command: Its signature and docstring stay.

    Returns:
        The same, returning the exit status.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> int:
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(2, 1)
        try:
            result = command(*arguments, **options)
        finally:
            sys.stdout.flush()
            os.dup2(stdout, 1)
            os.close(stdout)
        text, error = (result.result, result.error) if isinstance(result, Incomplete) else (result, None)
        delivered = text is None or _write_line(text)
        if error is not None:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 0 if delivered and error is None else 1

    return run


def _write_line(text: str) -> bool:
    """Write to stdout, file names of any bytes as they are; False when its reader has gone, whom nobody can tell."""
    rest = os.fsencode(text + "\n")
    try:
        while rest:
            rest = rest[os.write(1, rest) :]
    except BrokenPipeError:
        return False
    except OSError as error:
        raise OSError(error.errno, f"cannot write the result to stdout: {error.strerror}") from error
    return True
