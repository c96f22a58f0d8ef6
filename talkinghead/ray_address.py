"""Before Ray joins a cluster: whether one answers at the address, and what of this repository its workers get.

Ray itself is not needed here; whoever starts it (data jobs, training) asks first.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 10
"""Patience with a cluster that does not answer; Ray itself tries for minutes."""


def check_answers(address: str) -> None:
    """Find out within seconds that no Ray is at an address.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, or `auto`, which is not looked at.

    Raises:
        ValueError: It is no address, nothing answers there, or something else than Ray does.
    """
    place = address.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if place == "auto":
        return
    if not colon or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS is {address!r}, must be HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error
    if "RAY_USE_TLS" not in os.environ and not _speaks_grpc(place):
        raise ValueError(f"no Ray cluster answers at {address}: something else does")


def use_token_that_is_there() -> None:
    """Let Ray use a token of the environment or the home folder, which it does only when it is told to.

    Read when ray is imported, so to be called before.
    """
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if named or Path(os.path.expanduser("~/.ray/auth_token")).is_file():  # noqa: PTH111 (never raises)
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def our_packages(root: Path) -> dict[str, Any]:
    """What Ray sends to the workers of a cluster: our packages only, whatever else lies in `root`."""
    names = sorted(path.parent.name for path in root.glob("*/__init__.py"))
    # Patterns as in .gitignore; "/." is the folder itself, which "/*" would exclude with all that is in it.
    return {"working_dir": str(root), "excludes": ["/*", "!/.", *(f"!/{name}" for name in names)]}


def _speaks_grpc(place: str) -> bool:
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True
