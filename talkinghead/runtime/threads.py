"""Threads: how those of a computation wait for each other.

PyTorch computes on a team of OpenMP threads, as many as there are cores, that meet after every layer. By default a
thread that is early spins there for milliseconds before it sleeps (300,000 rounds of GNU's libgomp, which PyTorch's
wheels for Linux bring along, and on which their MKL and oneDNN run, too). That is the fastest while every thread has a
core. With one other busy process it is ruinous: the early thread burns the share of the core that the late one waits
for, layer after layer, and a step takes ten times as long. A thread that waits passively sleeps at once, the scheduler
prefers a woken thread to one that computed all along, and the neighbour costs its share and no more. Results are the
same, bit by bit.

Fewer rounds are no way out, because the pauses between layers are about as long as the spinning: with 10,000 a busy
neighbour costs nearly as much, and 1,000 are slower than none, with a neighbour and without. On a quiet machine passive
waits cost the waking of a thread in each layer, tens of microseconds on a virtual machine: nothing in networks of the
published sizes, a lot in those of the size `tiny`, whose recipes therefore train on one thread.
"""

from __future__ import annotations

import os

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that set how OpenMP's threads wait: the standard's, GNU's and LLVM's (PyTorch for macOS)."""


def wait_passively() -> None:
    """Let waiting threads sleep in this process and its children, unless the user has set how they wait.

    OpenMP reads the setting when PyTorch is imported, so this has to be called before: `import talkinghead` does.
    """
    # A user who sets any of these has decided; ours could contradict it.
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def wait_settings() -> dict[str, str]:
    """Variables that set how threads wait here, for processes that do not inherit them (a cluster's workers)."""
    return {name: os.environ[name] for name in WAIT_VARIABLES if name in os.environ}
