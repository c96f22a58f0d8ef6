"""Processes that read batches ahead, so that a training does not wait for disks, stores and decoders.

A fork of a process full of threads (CUDA, NCCL, clients of S3) hangs when one of them holds a lock at that moment. So
the readers are forked from a program of its own, the reading server, which is started afresh: it imports what reading
needs, takes the data set out of a pickle once, and forks before there is a thread. The readers share its memory, see no
GPU, and need nothing of what the training was started by (`__main__`).

PyTorch's DataLoader is not used for it: of workers that a fork server has started it notices a death only when its
timeout has passed, it then waits without a limit for what such a worker had begun to send, and its timeout cannot tell
a reader that hangs from one that waits for a store.

    training ── requests, batches ──► reader 0, 1, … (forks of the server)
           └─── what became of them ─ reading server

Tensors travel in anonymous memory (`memfd_create`), which has no name that a killed process could leave, and no limit
like that of /dev/shm in a container. Signals that ask a training to end are blocked in server and readers: schedulers
send them to every process, and the step under way needs its batches. They end with the process that started them,
however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Protocol

import torch

from shards.block_cache import COUNTS
from shards.reading_messages import (
    Batch,
    Signs,
    loaded,
    packed,
    portable,
    receive,
    received_descriptor,
    restored,
    send,
    unpacked,
)
from talkinghead.files.patience import RETRIES
from talkinghead.runtime.child_process import end_with

log = logging.getLogger(__name__)

AHEAD = 2
"""Batches that each reader reads ahead."""
START_S = 300.0
"""Seconds within which the reading server must have imported what it needs and opened the data set."""
_POLL_S = 0.5
_KILLED_WITHIN_S = 10.0
_PRELOADED = ("talkinghead.media.clip", "pyarrow.fs", "concurrent.futures.thread")
"""Modules that reading imports only when it needs them: imported once, in the server. They start no thread."""
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from shards.reading_processes import serve; serve(int(sys.argv[1]))"
_ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of the server: no thread before it forks, and no GPU. A machine's cores are shared by the readers."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a training to end, or announce that it will be ended."""


class ReaderLost(Exception):
    """A reading process died, or gave no sign for too long.

    Attributes:
        at: What it was reading, as it was asked for; empty where that is not known.
    """

    def __init__(self, what: str, at: Sequence[Any] = ()) -> None:
        super().__init__(what)
        self.at = list(at)


@dataclass(frozen=True)
class _Plan:
    """What a reading server is started with. Numbers are those of file descriptors."""

    parent: int
    control: int
    readers: tuple[int, ...]
    signs: int
    at_once: int
    content: bytes
    """Pickle of the data set, and of the function that makes a batch of its items."""


class ReadingProcesses:
    """Context with processes that read batches in a given order.

    Args:
        dataset: Mapping from what is asked for to an item; must be picklable.
        collate: Function of a module, makes a batch of items: a flat dict with tensors.
        count: Number of processes.
        timeout_s: Seconds without any sign of life of a process that is waited for, after which it counts as lost. A
            sign is an item that it begins, or a request to a store that it is about to make again.
        at_once: Items of a batch that each process reads at the same time, by threads.

    Attributes:
        pids: Numbers of the processes, once they have started.

    Raises:
        ValueError: The data set cannot be pickled.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Batch],
        count: int,
        timeout_s: float,
        at_once: int = 1,
    ) -> None:
        self.count, self.timeout_s = count, timeout_s
        self.pids: list[int] = []
        self._batches: dict[int, Batch | BaseException] = {}
        self._asked: dict[int, Sequence[Any]] = {}
        self._ended: dict[int, int] = {}
        self._open = contextlib.ExitStack()
        try:
            content = pickle.dumps((dataset, collate))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the data set cannot be given to reading processes ({error}): read in the training process, by"
                " --train.num-workers 0"
            ) from error
        # The signs of life: a memory that all share, into which the readers write without waiting for anybody.
        signs = os.memfd_create("signs")
        self._open.callback(os.close, signs)
        self._signs = Signs(signs, count, at_once)
        pairs = [self._pipe() for _ in range(count + 1)]
        (self._control, control), *readers = pairs
        self._readers = [ours for ours, _ in readers]
        plan = _Plan(
            parent=os.getpid(),
            control=control.fileno(),
            readers=tuple(theirs.fileno() for _, theirs in readers),
            signs=signs,
            at_once=at_once,
            content=content,
        )
        self._server = _start(plan)
        # Only with all copies of their ends closed does the death of a reader show.
        for _, theirs in pairs:
            theirs.close()

    def __enter__(self) -> ReadingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes at once; they hold nothing that could be lost."""
        # The server leads a group of its own. Readers without a server are killed by the kernel.
        if self._server.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_KILLED_WITHIN_S)
        self._open.close()

    def batches(self, requests: Iterator[Sequence[Any]]) -> Iterator[Batch]:
        """Batches in the order of what is asked for.

        Args:
            requests: What each batch is made of.

        Raises:
            ReaderLost: A process is lost; none of them can be used any more.
            Exception: What went wrong when an item of the batch was read; later batches can still be asked for.
        """
        self._wait_for_start()
        asked = 0
        for turn in itertools.count():
            while asked < turn + AHEAD * self.count and (request := next(requests, None)) is not None:
                self._ask(asked, request)
                asked += 1
            if turn == asked:
                return
            yield self._await(turn)

    # --- this side of the pipes ---------------------------------------------------------------------------------------

    def _pipe(self) -> tuple[Connection, Connection]:
        ours, theirs = Pipe()
        self._open.callback(ours.close)
        self._open.callback(theirs.close)
        return ours, theirs

    def _wait_for_start(self) -> None:
        """Wait until the server has forked; raises what went wrong there."""
        deadline = time.monotonic() + START_S
        while not self.pids:
            if self._control.poll(_POLL_S):
                self._listen()
            elif time.monotonic() > deadline:
                raise ReaderLost(f"the reading processes did not start within {START_S:.0f} s")

    def _listen(self) -> None:
        """Take a message of the server."""
        try:
            kind, value = receive(self._control)
        except (EOFError, OSError):
            raise ReaderLost(f"the process that starts the readers {_ending(self._server.wait())}") from None
        if kind == "failed":
            raise restored(value)
        if kind == "started":
            self.pids = value
        else:
            assert kind == "ended", kind
            self._ended.update([value])

    def _ask(self, turn: int, request: Sequence[Any]) -> None:
        reader = turn % self.count
        try:
            send(self._readers[reader], (turn, request))
        except OSError:
            raise self._lost(reader) from None
        self._asked[turn] = request

    def _await(self, turn: int) -> Batch:
        """Batch of a turn."""
        reader = turn % self.count
        sign, silence, before = self._signs.number(reader), 0.0, time.monotonic()
        while turn not in self._batches:
            for connection in wait(self._readers, _POLL_S):
                self._take(self._readers.index(connection))  # type: ignore[arg-type]
            now = time.monotonic()
            # By small pieces: when the whole job was stopped for an hour, a reader has not been silent for an hour.
            silence, before = silence + min(now - before, 2 * _POLL_S), now
            if (newer := self._signs.number(reader)) != sign:
                sign, silence = newer, 0.0
            elif silence > self.timeout_s and turn not in self._batches:
                raise ReaderLost(
                    f"reading process {self.pids[reader]} has given no sign for {self.timeout_s:g} s",
                    self._reads(reader),
                )
        del self._asked[turn]
        found = self._batches.pop(turn)
        if isinstance(found, BaseException):
            raise found
        return found

    def _take(self, reader: int) -> None:
        """Take a message of a reader."""
        connection = self._readers[reader]
        try:
            kind, turn, value = receive(connection)
            if kind == "log":
                logging.getLogger(value.name).handle(value)
                return
            if kind == "batch":
                layout, retries, counts = value
                RETRIES.add(*retries)
                COUNTS.add(*counts)
                self._batches[turn] = unpacked(received_descriptor(connection), layout)
                return
        except (EOFError, ConnectionError):
            raise self._lost(reader) from None
        assert kind == "failed", kind
        self._batches[turn] = restored(value)

    def _lost(self, reader: int) -> ReaderLost:
        """Error about a reader whose pipe is closed, with how it ended as far as the server says so in time."""
        with contextlib.suppress(ReaderLost):
            while reader not in self._ended and self._control.poll(2.0):
                self._listen()
        how = _ending(self._ended[reader]) if reader in self._ended else "is gone"
        return ReaderLost(f"reading process {self.pids[reader]} {how}", self._reads(reader))

    def _reads(self, reader: int) -> list[Any]:
        """What a reader was reading."""
        turn, places = self._signs.place(reader)
        request = self._asked.get(turn, ())
        return [request[place] for place in places if place < len(request)]


def _start(plan: _Plan) -> subprocess.Popen[bytes]:
    """Start a reading server."""
    setup = os.memfd_create("reading")
    try:
        with os.fdopen(os.dup(setup), "wb") as file:
            file.write(pickle.dumps(plan))
        os.lseek(setup, 0, os.SEEK_SET)
        # Child processes inherit the mask and keep it, from their first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(setup), *(path or str(Path.cwd()) for path in sys.path)],
                env=os.environ | _ALONE,
                pass_fds=(setup, plan.control, *plan.readers, plan.signs),
                stdin=subprocess.DEVNULL,
                stdout=2,  # the result of a command stands alone on its stdout
                start_new_session=True,  # Ctrl-C and launchers signal whole groups
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        os.close(setup)


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


# --- several items at once --------------------------------------------------------------------------------------------


class Listener(Protocol):
    """Whoever wants to know what is being read."""

    def begun(self, thread: int, index: int) -> None:
        """A thread, numbered from 0, begins an item of the batch."""
        ...

    def done(self, thread: int) -> None:
        """It has ended, well or with an error."""
        ...


class ReadsAtOnce:
    """Reading of the items of a batch, some of them at the same time, which makes no difference to them.

    While a thread waits for a store, others decode. The threads are made at the first use, in the process that reads.

    Args:
        at_once: Number of items; with 1 there is no thread.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._threads: ThreadPoolExecutor | None = None

    def items(self, dataset: Any, request: Sequence[Any], listener: Listener | None = None) -> list[Any]:
        """Items in the order of what is asked for; of several errors, the first one in this order is raised."""
        free = queue.SimpleQueue[int]()
        for thread in range(self.at_once):
            free.put(thread)

        def read(index: int) -> Any:
            thread = free.get()
            try:
                if listener is not None:
                    listener.begun(thread, index)
                return dataset[request[index]]
            finally:
                if listener is not None:
                    listener.done(thread)
                free.put(thread)

        if self.at_once == 1:
            return [read(index) for index in range(len(request))]
        self._threads = self._threads or ThreadPoolExecutor(self.at_once, "reads")
        reads = [self._threads.submit(read, index) for index in range(len(request))]
        futures.wait(reads)  # none of them goes on into the next batch
        return [done.result() for done in reads]


# --- server and readers -----------------------------------------------------------------------------------------------


def serve(setup: int) -> None:
    """Be a reading server: open the data set, fork the readers, and tell how each of them ends.

    Args:
        setup: Descriptor of the file with the plan.
    """
    with os.fdopen(setup, "rb") as file:
        plan: _Plan = loaded(file.read())
    end_with(plan.parent)
    control = Connection(plan.control)
    signs = Signs(plan.signs, len(plan.readers), plan.at_once)
    try:
        for name in _PRELOADED:
            importlib.import_module(name)
        torch.set_num_threads(1)
        dataset, collate = loaded(plan.content)
    except Exception as error:  # noqa: BLE001  whatever it is, it is raised in the training
        send(control, ("failed", portable(error)))
        return
    # What is there now stays: a collection of garbage would write to these pages, and so copy them.
    plan = replace(plan, content=b"")
    gc.collect()
    gc.freeze()
    server, pids = os.getpid(), []
    for number, descriptor in enumerate(plan.readers):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                end_with(server)
                for other in (plan.control, *plan.readers):
                    if other != descriptor:
                        os.close(other)
                _Reader(number, Connection(descriptor), signs, plan.at_once).run(dataset, collate)
                code = 0
            except OSError:  # the training is gone
                pass
            except BaseException:  # noqa: BLE001  nothing may run on in a fork
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    for descriptor in plan.readers:
        os.close(descriptor)
    send(control, ("started", pids))
    for _ in pids:
        pid, status = os.wait()
        send(control, ("ended", (pids.index(pid), os.waitstatus_to_exitcode(status))))


class _Reader(logging.Handler):
    """One reading process. It answers each request in its turn, and sends its log, which is the training's."""

    def __init__(self, number: int, connection: Connection, signs: Signs, at_once: int) -> None:
        super().__init__()
        self.number, self.connection, self.signs = number, connection, signs
        self.reads = ReadsAtOnce(at_once)
        self._sending = threading.Lock()

    def run(self, dataset: Any, collate: Callable[[list[Any]], Batch]) -> None:
        """Answer requests until the other end is closed."""
        logging.getLogger().addHandler(self)
        RETRIES.listener = lambda: self.signs.give(self.number)
        while True:
            try:
                turn, request = receive(self.connection)
            except EOFError:
                return
            try:
                self.signs.begin(self.number, turn)
                items = self.reads.items(dataset, request, self)
                descriptor, layout = packed(collate(items))
            except Exception as error:  # noqa: BLE001  whatever it is, it is raised in the training
                with self._sending:
                    send(self.connection, ("failed", turn, portable(error)))
                continue
            finally:
                items = []
            with self._sending:
                send(self.connection, ("batch", turn, (layout, RETRIES.take(), COUNTS.take())))
                send_handle(self.connection, descriptor, None)
            os.close(descriptor)

    def begun(self, thread: int, index: int) -> None:
        """Tell that a thread begins an item."""
        self.signs.at(self.number, thread, index)

    def done(self, thread: int) -> None:
        """Tell that it has ended."""
        self.signs.done(self.number, thread)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record of the log."""
        # Its arguments may be anything: only the finished text travels.
        text = self.format(record)
        plain = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)
        with self._sending:
            send(self.connection, ("log", 0, plain))
