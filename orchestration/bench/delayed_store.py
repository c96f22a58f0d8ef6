"""`python -m orchestration.bench.delayed_store SECONDS`: an S3 server of this machine that answers late and counts.

It is a process of its own, so that its work does not count as reading. moto answers, as far as it is installed (extra
`dev`); each request for a shard waits first, as if the store were far away. The server prints its address as JSON, and
ends when its stdin is closed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestration import ROOT

BUCKET = "bench"
_KEY = "bench"  # moto takes any key and secret
_COUNTS = "/counts-of-the-bench"
_SHARD = ".tar"


def lacking() -> str | None:
    """Why there can be no such server here; None: there can."""
    if importlib.util.find_spec("moto") is None:
        return "skipped: moto is not installed (pip install -c constraints.txt '.[dev]')"
    return None


@dataclass(frozen=True)
class Counts:
    """Requests for shards."""

    requests: int
    size: int
    """Bytes that were sent."""


@dataclass(frozen=True)
class DelayedStore:
    """A running server."""

    port: int

    def uri(self, folder: str) -> str:
        """A folder in its bucket, with credentials."""
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://{_KEY}:{_KEY}@{BUCKET}/{folder}?{options}"

    def counts(self) -> Counts:
        """Requests for shards since this was asked last."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{_COUNTS}", timeout=60) as answer:
            return Counts(**json.load(answer))


@contextlib.contextmanager
def delayed_store(seconds: float) -> Iterator[DelayedStore]:
    """Context with a server that waits for so many seconds before it answers a request for a shard.

    Raises:
        ValueError: It does not start.
    """
    command = [sys.executable, "-m", "orchestration.bench.delayed_store", str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                raise ValueError("the S3 server of the bench does not start: see the log next to the output")
            yield DelayedStore(**json.loads(line))
        finally:
            server.stdin.close()


class _Delayed:
    """WSGI application in front of another one."""

    def __init__(self, application: Callable[..., Iterable[bytes]], seconds: float) -> None:
        self.application, self.seconds = application, seconds
        self._lock = threading.Lock()
        self._requests, self._size = 0, 0

    def __call__(self, request: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if request["PATH_INFO"] == _COUNTS:
            return self._tell(start_response)
        if request["REQUEST_METHOD"] not in ("GET", "HEAD") or not request["PATH_INFO"].endswith(_SHARD):
            return self.application(request, start_response)
        time.sleep(self.seconds)
        sent = request["REQUEST_METHOD"] == "GET"

        def counting(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            size = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            with self._lock:
                self._requests, self._size = self._requests + 1, self._size + (size if sent else 0)
            return start_response(status, headers, *rest)

        return self.application(request, counting)

    def _tell(self, start_response: Callable[..., Any]) -> list[bytes]:
        with self._lock:
            counts = {"requests": self._requests, "size": self._size}
            self._requests, self._size = 0, 0
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(counts).encode()]


def _serve(seconds: float) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=_KEY,
        aws_secret_access_key=_KEY,
    ).create_bucket(Bucket=BUCKET)
    # The server keeps its application under this name (tests/orchestration/bench/test_delayed_store.py).
    running: Any = server._server
    running.app = _Delayed(running.app, seconds)
    print(json.dumps({"port": port}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
