"""Command lines of all `python -m …` of the project: one way to read them, and one policy for how they end.

Commands are functions. Their arguments are the options, their docstrings the help, their return values the results.
"""

from __future__ import annotations

import contextlib
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

from talkinghead.files.uri import hide_known_secrets
from talkinghead.runtime.errors import error_text, is_machine_error, printable
from talkinghead.runtime.own_arguments import without_own_credentials
from talkinghead.runtime.printable_stream import PrintableStream

EXIT_STATUS = """\
The result is the last line on stdout; everything else goes to stderr. Exit status: 0 done, 1 it ran and failed (a full
disk, not enough memory, a store or another process that does not answer, an interruption, or a check that found
problems), 2 the request cannot be met (wrong option, setting, file or place). One error line says what to do."""
"""The policy in a few sentences, for the help of every main."""

_QUIET_LIBRARIES = ("transformers", "diffusers", "httpx", "libav", "matplotlib", "botocore", "boto3", "s3transfer")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Hints in the error line of a command that did not come to its end."""

    interrupted: str
    """Hint after Ctrl-C or SIGTERM."""
    mended: str
    """Hint after a failure of the machine."""


AGAIN = Advice(interrupted="run the same command again", mended="run the same command again when it is mended")
"""Hints for a command that begins anew."""
GOES_ON = Advice(
    interrupted="run the same command again to go on from here",
    mended="run the same command again when it is mended, it goes on from here",
)
"""Hints for a command that keeps what it has done."""


@dataclass(frozen=True)
class Incomplete:
    """Return value of a command that has a result but found problems, or could not do all: its exit status is 1."""

    result: str
    """The result, for stdout."""
    error: str
    """One line for stderr: what is wrong, and what to do."""


Command = Callable[..., str | Incomplete | None]
"""A command; it returns None if it has no result."""


@dataclass(frozen=True)
class Ending:
    """End of a command that failed: exit status and text."""

    status: int
    """Exit status: 1 or 2, or one of a main's own."""
    text: str = ""
    """Text for stderr; its last line is the error line. Empty where another process prints it."""
    at_once: bool = False
    """Whether to end without the interpreter's own cleanup, which may wait for other processes."""


def run_command_line(
    commands: Command | Sequence[Command],
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    about: str | None = None,
    advice: Advice = AGAIN,
    end_at_once: bool = False,
) -> int:
    """Do the work of a main: read the command line, run the command, end by the policy.

    Args:
        commands: The subcommands, in the order of the help, or one function for a main without subcommands.
        arguments: The command line; None: the process's own.
        prog: Name of the main in the help, such as `python -m infer`.
        about: Beginning of the help (default: the docstring of the one function).
        advice: Hints after an interruption or a failure of the machine.
        end_at_once: Whether an interrupted command ends without the interpreter's own cleanup.

    Returns:
        The exit status.

    Raises:
        SystemExit: Help was asked for (status 0), or an option is wrong (2); the text is printed already.
    """
    call = functools.partial(call_command, commands, arguments, prog=prog, about=about)
    return end_by_policy(call, arguments, advice=advice, end_at_once=end_at_once)


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
        commands: The subcommands, or one function, as in `run_command_line`.
        arguments: The command line; None: the process's own.
        prog: Name of the main in the help.
        about: Beginning of the help.
        described: Name and help of further subcommands, listed first, whose command line the main reads by itself.

    Returns:
        The exit status.
    """
    # One command: its docstring describes the main, and its options come without a subcommand's name.
    if callable(commands):
        description = about or inspect.cleandoc(commands.__doc__ or "").split("\n\nArgs:")[0]
        return tyro.cli(
            result_on_stdout(commands), prog=prog, description=f"{description}\n\n{EXIT_STATUS}", args=arguments
        )
    # Subcommands, in the order of the help.
    app = SubcommandApp()
    for name, text in described:
        app.command(name=name, help=text)(_read_elsewhere)
    for command in commands:
        app.command(result_on_stdout(command))
    return app.cli(prog=prog, description=f"{about}\n\n{EXIT_STATUS}", args=arguments)


def _read_elsewhere() -> int:
    """Placeholder in the help for a subcommand whose command line the main reads by itself."""
    raise AssertionError("the main reads this command line by itself")


def end_by_policy(
    call: Callable[[], int],
    arguments: Sequence[str] | None = None,
    *,
    advice: Advice,
    explain: Callable[[BaseException], Ending | None] = lambda _: None,
    quiet: bool = False,
    end_at_once: bool = False,
) -> int:
    """Call a function and turn what it raises into an exit status and an error line on stderr.

    Defects of the code are raised further, as tracebacks (status 1).

    Args:
        call: Function that does the work and returns the exit status.
        arguments: The command line, which is refused if it holds credentials; None: the process's own.
        advice: Hints after an interruption or a failure of the machine.
        explain: Function that gives the end of a main's own kinds of errors; None for all others.
        quiet: Whether to log errors only.
        end_at_once: Whether an interrupted command ends without the interpreter's own cleanup.

    Returns:
        The exit status.
    """
    # A scheduler's SIGTERM ends a command in the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _log_to_stderr(logging.ERROR if quiet else logging.INFO)
    try:
        without_own_credentials(sys.argv if arguments is None else arguments)
        return call()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            # Where the signal met an exec() (dataclasses and named tuples are made by it while modules are imported),
            # CPython would end the process by SIGINT, whatever its exit status. Another exec() takes that back.
            exec("")
        ending = explain(error) or ending_of(error, advice)
        if ending is None:
            raise
        if ending.text:
            print(printable(hide_known_secrets(ending.text)), file=sys.stderr, flush=True)
        # Threads that a library is just starting (Ray's) would crash in the interpreter's cleanup.
        if ending.at_once or (end_at_once and isinstance(error, KeyboardInterrupt)):
            os._exit(ending.status)
        return ending.status


def ending_of(error: BaseException, advice: Advice) -> Ending | None:
    """The policy: the end of a command that raised this error, or None for a defect of the code."""
    if isinstance(error, KeyboardInterrupt):
        return Ending(1, f"interrupted; {advice.interrupted}")
    if isinstance(error, MemoryError):
        return Ending(1, f"error: not enough memory; {advice.mended}")
    # Before the next question: a full disk is an OSError too, but no fault of the request.
    if is_machine_error(error):
        return Ending(1, _with_details(error, f"; {advice.mended}"))
    if isinstance(error, (OSError, ValueError)):
        return Ending(2, _with_details(error))
    return None


def _with_details(error: BaseException, hint: str = "") -> str:
    """Text of an error: the message's first line last, as the error line, after the message's other lines."""
    summary, *details = error_text(error).splitlines() or [type(error).__name__]
    return "\n".join([*details, f"error: {summary}{hint}"])


def _log_to_stderr(level: int) -> None:
    """Log to stderr from a level on; of the chatty libraries, errors only."""
    stream = logging.StreamHandler(PrintableStream(sys.stderr))
    stream.setLevel(level)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[stream])
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # both set their levels again when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def result_on_stdout(command: Command) -> Callable[..., int]:
    """Wrap a command so that only its result reaches stdout; output of libraries and child processes goes to stderr.

    Args:
        command: The command; the wrapper keeps its signature and docstring.

    Returns:
        A function that runs the command, writes its result and returns the exit status.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> int:
        # On the level of file descriptors, so that libraries in C and child processes are caught too.
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(2, 1)
        try:
            # What the command itself prints holds names of files, and those may hold what a terminal obeys.
            with contextlib.redirect_stderr(PrintableStream(sys.stderr)):
                result = command(*arguments, **options)
        finally:
            sys.stdout.flush()
            os.dup2(stdout, 1)
            os.close(stdout)
        # The result first, then what is wrong with it.
        text, error = (result.result, result.error) if isinstance(result, Incomplete) else (result, None)
        delivered = text is None or _write_line(text)
        if error is not None:
            print(f"error: {printable(error)}", file=sys.stderr, flush=True)
        return 0 if delivered and error is None else 1

    return run


def _write_line(text: str) -> bool:
    """Write a line to stdout; False when its reader (a closed pipe) is gone.

    File names of any bytes are written as they are, for programs that read them; on a terminal they are made printable.
    """
    rest = os.fsencode((printable(text) if os.isatty(1) else text) + "\n")
    try:
        while rest:  # a pipe may take a part at a time
            rest = rest[os.write(1, rest) :]
    except BrokenPipeError:
        return False
    except OSError as error:
        raise OSError(error.errno, f"cannot write the result to stdout: {error.strerror}") from error
    return True
