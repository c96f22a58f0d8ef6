"""Work that is killed at its n-th write, in a process of its own for each n."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT

_PROGRAM = """
import os, signal, sys
from pathlib import Path
from talkinghead.files.storage import Storage
{setup}
commits = Storage._commit, Storage._commit_new
for number, folder in enumerate(map(Path, sys.argv[1:]), 1):
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print(number, os.waitstatus_to_exitcode(status), flush=True)
        continue
    left = number
    def dying(commit):
        def committed(self, temporary, path):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            commit(self, temporary, path)
        return committed
    Storage._commit, Storage._commit_new = map(dying, commits)
    {work}
    os._exit(0)
"""

_AT_TIMES = """
import os, random, signal, sys, time
from pathlib import Path
from talkinghead.files.storage import Storage
{setup}
chance = random.Random({seed})
for folder in map(Path, sys.argv[1:]):
    child = os.fork()
    if not child:
        {work}
        os._exit(0)
    time.sleep(chance.uniform(0.0, {most_s}))
    os.kill(child, signal.SIGKILL)
    print(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def die_at_writes(folders: Sequence[Path], *, setup: str, work: str) -> list[int]:
    """Do the same work in each folder; in the n-th one it is killed at its n-th write.

    Args:
        folders: DATA folders.
        setup: Imports of the program, which come before the forks: they take long.
        work: Statement that does the work in `folder`.

    Returns:
        How the work in each folder ended: `-signal.SIGKILL`, 0 where it came to its end before, 1 where it failed.
    """
    return _ends(_PROGRAM.format(setup=setup, work=work), folders)


def die_at_times(folders: Sequence[Path], *, setup: str, work: str, most_s: float, seed: int) -> list[int]:
    """Do the same work in each folder, and kill it after a random time of at most `most_s` seconds; see
    `die_at_writes`."""
    return _ends(_AT_TIMES.format(setup=setup, work=work, most_s=most_s, seed=seed), folders)


def _ends(program: str, folders: Sequence[Path]) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, folders)],
        cwd=ROOT,
        timeout=600,
        check=False,
        capture_output=True,
        text=True,
    )
    ends = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(ends) == len(folders), done.stderr[-2000:]
    return ends
