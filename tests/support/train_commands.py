"""`python -m train toy …` in processes that start in milliseconds: forked from one that has PyTorch loaded."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

SITE = str(ROOT / "tests" / "support" / "toy_site")
"""Folder that, on PYTHONPATH, makes the toy known to processes that are started rather than forked."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


@dataclass
class Command:
    """Command that is running or has ended."""

    process: ForkServerProcess
    folder: Path

    def wait(self, timeout: float = 240.0) -> int:
        """Exit status; negative for a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it hangs: {self.stderr}")
        return self.process.exitcode

    def send(self, number: int) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def stdout(self) -> str:
        """Text that the command wrote to stdout."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """Text that the command wrote to stderr."""
        return (self.folder / "stderr").read_text()

    @property
    def errors(self) -> list[str]:
        """Lines of stderr that begin with `error:`."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def start_train(folder: Path, *arguments: object, **environment: str) -> Command:
    """Start `python -m train <arguments>`; its output goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    places = os.pathsep.join([SITE, str(ROOT)])
    # Ranks, validations and Ray's workers are started, not forked.
    environment = {"PYTHONPATH": places, "RAY_ADDRESS": "", **environment}
    process = _context.Process(target=_main, args=([str(a) for a in arguments], str(folder), environment))
    process.start()
    return Command(process, folder)


def run_train(folder: Path, *arguments: object, **environment: str) -> Command:
    """Run `python -m train <arguments>` to its end; see `start`."""
    command = start_train(folder, *arguments, **environment)
    command.wait()
    return command


def toy(run: Path, *options: object, task: str = "toy") -> list[Any]:
    """Arguments of a toy training in one thread (more only cost time here)."""
    return [task, "tiny", "--data", "none", "--run", run, "--train.parallel.threads", 1, *options]


def weights_of(run: Path) -> str:
    """Hash of what a run has exported."""
    return hashlib.sha256((run / "pretrained_model" / "weights.safetensors").read_bytes()).hexdigest()


def wait_for(condition: Any, timeout: float = 240.0) -> None:
    """Wait until a condition holds; the limit is for what hangs, not for what is slow."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def _main(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.chdir(ROOT)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from train.__main__ import main
    from train.run import overview

    if "OVERVIEW" not in environment:  # drawing its curves takes longer than these trainings
        overview.write_overview = lambda run: run / "index.html"

    sys.exit(main(arguments))
