"""Reading ahead: the same items in order, the errors where they belong, and no thread that outlives its caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from talkinghead.runtime.read_ahead import read_ahead


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read ahead"]


@pytest.mark.parametrize("most", [1, 3, 100])
def test_items_come_in_order(most: int) -> None:
    with read_ahead(iter(range(20)), most) as items:
        assert list(items) == list(range(20))
    with read_ahead(iter(()), most) as items:
        assert list(items) == []
    assert readers() == []


def test_the_next_item_is_made_while_the_caller_works_and_no_more_than_fit() -> None:
    made = [threading.Event() for _ in range(6)]

    def numbers() -> Iterator[int]:
        for number, event in enumerate(made):
            yield number
            event.set()  # asked for the next one

    with read_ahead(numbers(), 2) as items:
        assert next(items) == 0
        assert made[2].wait(60), "two are ready and one more is made, though nobody asked for them"
        assert not made[4].is_set(), "the fifth waits until there is room"
        assert list(items) == [1, 2, 3, 4, 5]


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("the third")

    seen = []
    with pytest.raises(KeyError, match="the third"), read_ahead(broken(), 4) as items:
        seen.extend(iter(lambda: next(items), None))
    assert seen == [1] and readers() == []


def test_a_caller_that_fails_leaves_no_thread_and_nothing_open() -> None:
    closed = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    with pytest.raises(MemoryError), read_ahead(endless(), 2) as items:
        next(items)
        raise MemoryError
    assert closed == ["read ahead"] and readers() == [], "closed in the thread that ran it"


def test_an_error_in_closing_is_raised() -> None:
    def failing() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"), read_ahead(failing(), 1) as items:
        list(items)
