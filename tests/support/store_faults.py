"""Faults of a local S3 server, for real requests of real clients: answers that differ, and writes that are ordered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.object_store import Application, LocalS3

Request = dict[str, Any]
"""A request as WSGI has it."""


@contextmanager
def answering(
    server: LocalS3, answer: Callable[[Request, Application], Iterable[bytes] | str | None]
) -> Iterator[None]:
    """Context in which requests are answered otherwise.

    Args:
        server: The server.
        answer: Function of a request and of the application that would answer it; returns None for its answer, a status
            such as `503 Slow Down`, or raises `ConnectionError`, by which the client gets no answer.
    """
    running = server._server._server
    assert running is not None
    before: Application = running.app

    def application(environment: Request, start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = answer(environment, before)
        if found is None:
            return before(environment, start_response)
        if isinstance(found, str):
            start_response(found, [("Content-Type", "application/xml")])
            code = found.partition(" ")[2].replace(" ", "")
            return [f"<Error><Code>{code}</Code><Message>made by the test</Message></Error>".encode()]
        start_response("200 OK", [])
        return found

    running.app = application
    try:
        yield
    finally:
        running.app = before


@contextmanager
def one_write_at_a_time(server: LocalS3) -> Iterator[None]:
    """Context in which a write and its condition are one thing, as on S3; moto's own looks and writes are two."""
    running = server._server._server
    assert running is not None
    before: Application = running.app
    guard = threading.Lock()

    def application(environment: Request, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "PUT":
            return before(environment, start_response)
        with guard:
            return list(before(environment, start_response))

    running.app = application
    try:
        yield
    finally:
        running.app = before


def without_conditions(environment: Request, application: Application) -> None:
    """For `answering`: a store that takes conditional writes and ignores their conditions."""
    for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
        environment.pop(name, None)


def refusing_conditions(environment: Request, application: Application) -> str | None:
    """For `answering`: a store that does not know conditional writes."""
    put = environment["REQUEST_METHOD"] == "PUT"
    return "501 Not Implemented" if put and {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"} & environment.keys() else None
