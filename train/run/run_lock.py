"""Lock of a RUN: one training at a time, and none that would write through a stranger's links or wait for pipes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from talkinghead.files.foreign import entries_below, link_error, open_regular
from talkinghead.files.lock import LockedError, folder_lock

LOCK = ".lock"
_WANDB = "wandb"


def refuse_strange(run: Path) -> None:
    """Refuse a RUN that holds what no training makes: links, which lead writes elsewhere, pipes and devices.

    Only W&B makes links, in a folder of its own, and into a new subfolder at each start; that is not looked into.

    Raises:
        ValueError: There is one; the message names it.
        OSError: A folder cannot be read.
    """
    own = f"{run / _WANDB}{os.sep}"
    for entry in entries_below(run) if run.is_dir() else ():
        if entry.path.startswith(own):
            continue
        if entry.is_symlink():
            raise link_error(Path(entry.path))
        if not entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):  # a training that runs has just removed it
                open_regular(Path(entry.path)).close()  # says what it is


@contextlib.contextmanager
def locked(run: Path, patience_s: float) -> Iterator[None]:
    """Context in which this process is the only training in a RUN.

    Args:
        run: Folder; must exist.
        patience_s: Seconds to wait for another training that is just ending.

    Raises:
        ValueError: Another training runs in it, or the lock's name belongs to a file that is no lock.
        OSError: The folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(run / LOCK, patience_s))
        except LockedError as error:
            raise ValueError(f"a training runs in {run} ({error.holder}): wait for it or stop it") from None
        except OSError as error:
            raise OSError(error.errno, f"cannot write to RUN {run}: {error.strerror}") from error
        yield
