"""The parent's end of the process in which a TorchScript file runs: requests, replies, and time limits on both.

The process is a stranger's program: it may not read, not answer, answer anything, or close its pipes. So every wait
has an end, and no more is read than the caller expects.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infer.metrics.scripted_child import HEADER, MOST_TEXT, SIZE

_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "LC_", "LD_", "PYTHON", "VIRTUAL_ENV", "CONDA", "TMPDIR"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH", "PYTORCH_"),
)
"""Beginnings of the variables that the process gets: what Python and PyTorch read, but no keys of stores or hubs."""
_WAIT_S = 5.0  # for the end of a process that has closed its pipe


class ProcessEndedError(Exception):
    """The process is gone; the message says how it ended."""


class NoReplyError(Exception):
    """The process did not take a request, or reply to it, in time; it is ended."""


class ScriptedProcess:
    """A process that runs `infer.metrics.scripted_child`; the kernel ends it with the thread that made it.

    Args:
        memory: Bytes that it may take in addition to what PyTorch itself takes.
        module: Module that it runs.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, memory: int, module: str = "infer.metrics.scripted_child") -> None:
        # As many threads as here: the number of threads may change the last bits of a sum.
        arguments = (os.getpid(), torch.get_num_threads(), memory)
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=_ROOT,
            # The allocator reserves address space for every thread, which would count as the network's.
            env=environment | {"CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self._requests, self._replies = self.popen.stdin, self.popen.stdout
        for stream in (self._requests, self._replies):
            os.set_blocking(stream.fileno(), False)

    def ask(self, request: Mapping[str, Any], parts: Sequence[Any], *, most: int, seconds: float) -> tuple[int, bytes]:
        """Send a request and wait for the reply.

        Args:
            request: JSON object.
            parts: Raw bytes that follow it, as objects with a buffer.
            most: Bytes of the longest reply that is taken.
            seconds: Time limit for both.

        Returns:
            Kind and content of the reply.

        Raises:
            NoReplyError: It took longer; the process is ended.
            ProcessEndedError: The process is gone, or replies with more than that.
        """
        deadline = time.monotonic() + seconds
        text = json.dumps(request).encode()
        # A process that fails while it reads has told why before it ended.
        with contextlib.suppress(BrokenPipeError):
            for part in (SIZE.pack(len(text)) + text, *parts):
                self._write(memoryview(part).cast("B"), deadline)
        return self._reply(most, deadline)

    def wait_until_ready(self, seconds: float) -> tuple[int, bytes]:
        """The reply that comes without a request: the process is confined, or why it is not. Raises like `ask`."""
        return self._reply(MOST_TEXT, time.monotonic() + seconds)

    def end(self) -> None:
        """End the process at once."""
        self.popen.kill()
        self.popen.wait()
        self._requests.close()
        self._replies.close()

    def _reply(self, most: int, deadline: float) -> tuple[int, bytes]:
        kind, size = HEADER.unpack(self._read(HEADER.size, deadline))
        if size > max(most, MOST_TEXT):
            self.end()
            raise ProcessEndedError(f"its process replies with {size:,} bytes, where {most:,} are the most")
        return kind, self._read(size, deadline)

    def _write(self, rest: memoryview, deadline: float) -> None:
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline)
            rest = rest[os.write(self._requests.fileno(), rest) :]

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            self._wait(self._replies, select.POLLIN, deadline)
            read = os.readv(self._replies.fileno(), [rest])
            if not read:
                raise ProcessEndedError(self._how_it_ended())
            rest = rest[read:]
        return bytes(data)

    def _wait(self, stream: Any, event: int, deadline: float) -> None:
        """Wait until a pipe can be written or read, or is closed at its other end."""
        if stream.closed:
            raise ProcessEndedError("its process was ended before")
        waiting = select.poll()
        waiting.register(stream, event)
        # By the minute, because the system's own limits have few digits.
        while not waiting.poll(min(60.0, max(0.0, deadline - time.monotonic())) * 1000):
            if time.monotonic() >= deadline:
                self.end()
                raise NoReplyError

    def _how_it_ended(self) -> str:
        try:
            status = self.popen.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            status = None
        self.end()
        if status is None:
            return "its process closed its pipe"
        if status >= 0:
            return f"its process ended by itself, with status {status}"
        out_of_memory = ", as the system does where memory runs out" if status == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{out_of_memory}"
