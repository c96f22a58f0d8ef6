"""Program that confines itself and then tries everything that it gave up. Prints what succeeded, as JSON."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from infer.metrics.confinement import confine

LIBC = ctypes.CDLL(None, use_errno=True)
LIMITS = (ctypes.c_ulong * 2)(9, 9)


def call(function: str, *arguments: int) -> None:
    """A function of the C library; raises OSError where it fails."""
    if getattr(LIBC, function)(*(ctypes.c_long(argument) for argument in arguments)) == -1:
        raise OSError(ctypes.get_errno(), function)


def attempts(folder: Path, parent: int, opened: int) -> dict[str, Callable[[], object]]:
    """What a confined process cannot do, by name; each raises OSError."""
    there = folder / "there"
    return {
        "read": lambda: os.open(there, os.O_RDONLY),
        "write": lambda: os.open(there, os.O_WRONLY | os.O_TRUNC),
        "make": lambda: os.open(folder / "made", os.O_WRONLY | os.O_CREAT),
        "remove": there.unlink,
        "rename": lambda: there.rename(folder / "made"),
        "link": lambda: os.link(there, folder / "made"),
        "symlink": lambda: (folder / "made").symlink_to(there),
        "mkdir": lambda: (folder / "made").mkdir(),
        "chmod": lambda: there.chmod(0o777),
        "stat": there.stat,
        "list": lambda: list(folder.iterdir()),
        "truncate an open file": lambda: os.ftruncate(opened, 0),
        "map an open file": lambda: mmap.mmap(opened, 5),
        "copy a descriptor": lambda: os.dup(0),
        "connect": lambda: socket.socket(socket.AF_INET),
        "connect here": lambda: socket.socket(socket.AF_UNIX),
        "fork": lambda: os.fork() or os._exit(0),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "replace itself": lambda: os.execv("/bin/true", ["true"]),
        "signal another": lambda: os.kill(parent, 0),
        "trace another": lambda: call("ptrace", 16, parent, 0, 0),
        "read another's memory": lambda: call("process_vm_readv", parent, 0, 0, 0, 0, 0),
        "another's limits": lambda: call("prlimit", parent, resource.RLIMIT_CORE, ctypes.addressof(LIMITS), 0),
        "raise its limits": lambda: call("prlimit", 0, resource.RLIMIT_NOFILE, ctypes.addressof(LIMITS), 0),
        "outlive its parent": lambda: call("prctl", 1, 0, 0, 0, 0),
        "a file in memory": lambda: os.memfd_create("made"),
        "shared memory": lambda: mmap.mmap(-1, 4096, mmap.MAP_SHARED),
        "be signalled through a pipe": lambda: call("fcntl", 0, 8, parent),
        "another's priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, 5),
        "leave its session": os.setsid,
        "mount": lambda: call("unshare", 0x00020000),
    }


def main() -> None:
    """Confine this process, with a thread that runs already; then let the main thread, that one and a new one try."""
    folder, results = Path(sys.argv[1]), {}
    with (folder / "there").open("r+b") as opened:
        tried = attempts(folder, os.getppid(), opened.fileno())

        def run(thread: str) -> None:
            for name, attempt in tried.items():
                try:
                    attempt()
                    results[f"{name} ({thread})"] = "done"
                except OSError as error:
                    results[f"{name} ({thread})"] = error.errno

        waiting: queue.Queue[str] = queue.Queue()
        older = threading.Thread(target=lambda: run(waiting.get()))
        older.start()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        confine(2**30)
        waiting.put("older thread")
        older.join()
        run("main thread")
        newer = threading.Thread(target=run, args=["newer thread"])
        newer.start()
        newer.join()
        # What is left to it.
        try:
            bytearray(2**31)
            results["memory"] = "done"
        except MemoryError:
            results["memory"] = 12
        os.write(1, json.dumps(results).encode())
        os._exit(0)


if __name__ == "__main__":
    main()
