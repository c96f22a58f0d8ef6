"""What passes between a training and the processes that read for it: messages, batches, errors, and signs of life."""

from __future__ import annotations

import errno
import io
import itertools
import math
import mmap
import os
import pickle
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

import torch

Batch = dict[str, Any]
_ALIGNED = 64  # bytes
_LONGEST_CHAIN = 10


class ReaderTraceback(Exception):
    """Traceback of an error in a reading process, as a text: the last cause of the error in the training."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Signs:
    """Signs of life of the readers, in memory that all processes share: a count, and what is read at the moment.

    Args:
        descriptor: Descriptor of the memory.
        count: Number of readers.
        at_once: Number of items that each reads at the same time.
    """

    def __init__(self, descriptor: int, count: int, at_once: int = 1) -> None:
        # Of each reader: signs, turn, and of each of its threads the number of an item, from 1.
        self._each, self._at_once = 2 + at_once, at_once
        size = count * self._each * 8
        os.ftruncate(descriptor, size)
        self._numbers = memoryview(mmap.mmap(descriptor, size)).cast("q")
        self._lock = threading.Lock()

    def give(self, reader: int) -> None:
        """Count one more sign."""
        with self._lock:  # else a thread might set the count back to what was seen already
            self._numbers[self._each * reader] += 1

    def begin(self, reader: int, turn: int) -> None:
        """Say which turn is begun."""
        for place in range(self._at_once):
            self._numbers[self._each * reader + 2 + place] = 0
        self._numbers[self._each * reader + 1] = turn

    def at(self, reader: int, thread: int, index: int) -> None:
        """Count a sign, and say which item of the turn a thread has begun."""
        self._numbers[self._each * reader + 2 + thread] = index + 1
        self.give(reader)

    def done(self, reader: int, thread: int) -> None:
        """Say that a thread reads no more of the turn."""
        self._numbers[self._each * reader + 2 + thread] = 0

    def number(self, reader: int) -> int:
        """Number of signs so far."""
        return self._numbers[self._each * reader]

    def place(self, reader: int) -> tuple[int, list[int]]:
        """Turn that was begun last, and the items in it that are being read, ascending."""
        first = self._each * reader
        numbers = self._numbers[first + 2 :][: self._at_once]
        return self._numbers[first + 1], sorted(number - 1 for number in numbers if number)


def loaded(data: bytes) -> Any:
    """Object out of a pickle that another of our own processes has just made."""
    return pickle.Unpickler(io.BytesIO(data)).load()  # noqa: S301  nobody else can write to its pipes and memory


def send(connection: Connection, message: Any) -> None:
    """Send a message."""
    # Not `Connection.send`: PyTorch teaches that one to share tensors in ways of its own.
    connection.send_bytes(pickle.dumps(message))


def receive(connection: Connection) -> Any:
    """Next message.

    Raises:
        EOFError: The other end is closed.
    """
    return loaded(connection.recv_bytes())


def received_descriptor(connection: Connection) -> int:
    """Descriptor that follows a message.

    Raises:
        EOFError: The other end is closed.
        OSError: This process has too many open files.
    """
    try:
        return recv_handle(connection)
    except RuntimeError as error:
        # The kernel drops a descriptor for which the process has no room.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error


@dataclass(frozen=True)
class _Place:
    """Tensor in the memory of a batch."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def packed(batch: Batch) -> tuple[int, Batch]:
    """Descriptor of a memory with the tensors of a batch, and the batch with their places in it."""
    layout: Batch = {}
    size = 0
    for name, value in batch.items():
        layout[name] = value
        if isinstance(value, torch.Tensor):
            layout[name] = _Place(value.dtype, tuple(value.shape), size)
            size += -(-value.nbytes // _ALIGNED) * _ALIGNED
    descriptor = os.memfd_create("batch")
    try:
        os.ftruncate(descriptor, max(1, size))
        memory = mmap.mmap(descriptor, max(1, size))
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and value.numel():
                _tensor(memory, layout[name]).copy_(value)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, layout


def unpacked(descriptor: int, layout: Batch) -> Batch:
    """Batch whose tensors lie in a memory, which they keep."""
    try:
        size = os.fstat(descriptor).st_size
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(descriptor)
    return {name: _tensor(memory, value) if isinstance(value, _Place) else value for name, value in layout.items()}


def _tensor(memory: mmap.mmap, place: _Place) -> torch.Tensor:
    count = math.prod(place.shape)
    if not count:  # PyTorch takes no empty memory
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset).reshape(place.shape)


def portable(error: BaseException) -> tuple[list[BaseException], str]:
    """An error with what explains it, for another process: a pickle alone would lose the explanations."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < _LONGEST_CHAIN:
        chain.append(_picklable(cause))
        cause = cause.__cause__
    return chain, "".join(traceback.format_exception(error))


def _picklable(error: BaseException) -> BaseException:
    """The error, or where it cannot be pickled, one that says the same."""
    try:
        copied = loaded(pickle.dumps(error))
    except Exception:  # noqa: BLE001  errors of libraries fail in whatever way their constructors do
        copied = None
    return error if type(copied) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


def restored(sent: tuple[list[BaseException], str]) -> BaseException:
    """Inverse of `portable`; the last cause is the traceback."""
    chain, text = sent
    for error, cause in itertools.pairwise([*chain, ReaderTraceback(text)]):
        error.__cause__ = cause
    return chain[0]
