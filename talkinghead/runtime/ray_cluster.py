"""Starting a private Ray on this machine, or joining a cluster; and finding out first whether one answers."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_OBJECT_STORE_BYTES = 128 << 20  # only settings cross it
CONNECT_SECONDS = 10
"""Patience with a cluster that does not answer; Ray itself tries for minutes."""


@contextlib.contextmanager
def ray_cluster(address: str | None, cpus: int) -> Iterator[None]:
    """Ray within the block.

    Args:
        address: Of the cluster to join; None: start a private one.
        cpus: Of a private one.

    Raises:
        ValueError: There is no cluster at the address, or it does not let this process in.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        _start_private(cpus)
    else:
        _join(address)
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _start_private(cpus: int) -> None:
    # A token of its own keeps other users of the machine out. Read when ray is imported.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(places)}},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _join(address: str) -> None:
    check_answers(address)
    use_token_that_is_there()
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(CONNECT_SECONDS))
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(address=address, runtime_env=our_packages(ROOT), logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())
        hint = " (it asks for a token: set RAY_AUTH_TOKEN)" if "uthenticat" in reason else ""
        raise ValueError(f"cannot join the Ray cluster at {address}: {reason}{hint}") from error


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
