"""Reading ahead: a thread makes the next items of an iterator while the caller works with the last one."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 0.1  # from one look of a waiting reader at whether its caller has gone to the next


@contextlib.contextmanager
def read_ahead(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """Context in which a thread takes items from an iterator and holds them ready, in order.

    The thread ends with the context, however that ends: once the caller leaves it, the thread takes no further item,
    and the iterator is closed in it, so that a generator lets go of its files. Leaving waits for the item that is being
    made.

    Args:
        items: Iterator, which only the thread touches.
        most: Number of items, at least 1, that are held ready; the thread makes one more at a time.

    Yields:
        The items. An error of `items` is raised where its item would have come.
    """
    reader = _Reader(items, most)
    reader.thread.start()
    try:
        yield reader.read()
    finally:
        reader.stop()


class _Reader(Generic[T]):
    def __init__(self, items: Iterator[T], most: int) -> None:
        assert most >= 1
        self._items = items
        self._ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(most)
        self._left = threading.Event()
        self.thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def read(self) -> Iterator[T]:
        """The items, in the caller's thread."""
        while (found := self._ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found[0]

    def stop(self) -> None:
        """End the thread."""
        self._left.set()
        self.thread.join()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            try:
                for item in self._items:
                    if not self._put((item,)):
                        break
            finally:
                # Here, since a generator belongs to the thread that runs it.
                if (close := getattr(self._items, "close", None)) is not None:
                    close()
        except BaseException as error:  # noqa: BLE001  every error is the caller's, who raises it
            last = error
        self._put(last)

    def _put(self, found: tuple[T] | BaseException | None) -> bool:
        """Hand something to the caller; False where the caller has gone."""
        while not self._left.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(found, timeout=_LOOK_S)
                return True
        return False
