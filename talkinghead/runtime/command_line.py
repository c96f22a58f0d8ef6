"""What the commands of all job folders share: the result alone on stdout, and which errors are the machine's."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

MACHINE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOMEM, errno.EIO})
"""Error numbers of the machine, not of what was asked for: the command could be run again when they are mended."""


def result_on_stdout(command: Callable[..., str | None]) -> Callable[..., None]:
    """Let only the command's result reach stdout: what libraries and other processes print goes to stderr.

    A command that returns None prints nothing.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        sys.stdout.flush()
        with os.fdopen(os.dup(1), "w") as result_stream:
            os.dup2(2, 1)
            try:
                result = command(*arguments, **options)
                if result is not None:
                    print(result, file=result_stream, flush=True)
            finally:
                sys.stdout.flush()
                os.dup2(result_stream.fileno(), 1)

    return run
