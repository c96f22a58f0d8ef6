"""Runs a `python -m …` for the Makefile, with the further options that the user gave as `ARGS='--name value'`.

They are split as a shell would split them, and nothing in them is run or replaced: such a line may have been copied
from a page. With `--show` in front of the module, the command is printed as a list in JSON instead.
"""

from __future__ import annotations

import json
import os
import shlex
import sys


def command(module_and_options: list[str], further: str) -> list[str]:
    """The command to run.

    Args:
        module_and_options: What stands after `python -m`.
        further: Text of ARGS.

    Raises:
        ValueError: Its quotes are not balanced.
    """
    try:
        return [sys.executable, "-m", *module_and_options, *shlex.split(further)]
    except ValueError as error:
        raise ValueError(f"ARGS={further!r} cannot be split into options: {str(error).lower()}") from error


if __name__ == "__main__":
    shows = sys.argv[1:2] == ["--show"]
    try:
        # Taken out, so that a `make` that the command itself starts does not get them too.
        wanted = command(sys.argv[1 + shows :], os.environ.pop("ARGS", ""))
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    if shows:
        print(json.dumps(wanted))
    else:
        os.execv(wanted[0], wanted)
