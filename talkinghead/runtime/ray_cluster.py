"""Ray: a private one on this machine, or a cluster that is joined after a check that one answers at its address.

Ray reads many of its settings from the environment when it is imported. So `ray` is imported here only when everything
is set, and all code that needs Ray starts it through this module.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from talkinghead.runtime.threads import wait_settings

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages, which workers import."""
CONNECT_SECONDS = 10
"""Time to wait for a cluster that does not answer, in seconds; Ray itself tries for minutes."""
OBJECT_STORE_BYTES = 128 << 20
"""Size of a private Ray's object store: enough where only paths, settings and small records cross the object store."""


def cluster_address(given: str | None) -> str | None:
    """Address of the cluster to join, None for a private Ray.

    Args:
        given: Address that the user named; None: that of RAY_ADDRESS.
    """
    address = given or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextlib.contextmanager
def ray_cluster(
    address: str | None,
    cpus: int,
    *,
    variables: Mapping[str, str] | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> Iterator[None]:
    """Join a cluster, or start a private one, and leave it when the block ends.

    Args:
        address: Address of the cluster to join; None: start a private one.
        cpus: Number of CPUs of a private one.
        variables: Environment variables of the workers, on top of their own.
        object_store_bytes: Memory of a private one for the objects that its workers exchange.

    Raises:
        ValueError: There is no cluster at the address, or it does not let this process in.
    """
    # 0: Ray leaves CUDA_VISIBLE_DEVICES alone in tasks without a GPU. Releases whose default differs print a notice.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        _start_private(cpus, dict(variables or {}), object_store_bytes)
    else:
        _join(address, dict(variables or {}))
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _start_private(cpus: int, variables: dict[str, str], object_store_bytes: int) -> None:
    """Start a Ray that only this process uses."""
    # A token of its own keeps other users of the machine out, and spares Ray writing one into a home folder that may
    # not be there; naming the mode spares its notice that there is one.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    # Workers import our packages from this checkout, whatever the working folder is. Everything that talks or serves
    # is off: no dashboard, no log lines of workers on the terminal.
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=False,
        runtime_env={"env_vars": variables | {"PYTHONPATH": os.pathsep.join(places)}},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _join(address: str, variables: dict[str, str]) -> None:
    """Join the cluster at an address, and send it our packages."""
    # Ray's own errors come late and long: check first what can be checked.
    _check_answers(address)
    _use_token_that_is_there()
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(CONNECT_SECONDS))
    import ray
    from ray.exceptions import RayError

    environment = worker_environment(variables)
    with _captured_stderr() as said:
        try:
            ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            # A missing or wrong token shows in the exception or only in what Ray's C++ code printed.
            refused = "uthenticat" in said() + str(error)
            hint = " (it asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)" if refused else ""
            reason = " ".join(str(error).split())
            raise ValueError(f"cannot join the Ray cluster at {address}: {reason}{hint}") from error


def worker_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's `runtime_env` for the workers of a cluster: our packages, and environment variables on top of their own."""
    # How threads wait has to be there before a worker imports PyTorch, which Ray may do before it imports our parts.
    return our_packages(ROOT) | {"env_vars": wait_settings() | dict(variables)}


def our_packages(root: Path) -> dict[str, Any]:
    """Ray's runtime environment that sends our packages to the workers, and nothing else that lies in `root`."""
    names = sorted(path.parent.name for path in root.glob("*/__init__.py"))
    # Patterns as in .gitignore; "/." is the folder itself, which "/*" would exclude with all that is in it.
    return {"working_dir": str(root), "excludes": ["/*", "!/.", *(f"!/{name}" for name in names)]}


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Collect what Ray's C++ code prints on stderr before it has a log file; yields a function that returns it."""
    # That code writes to the file descriptor, not to sys.stderr, so the descriptor is redirected.
    with tempfile.TemporaryFile() as sink, os.fdopen(os.dup(2), "w") as stderr:
        os.dup2(sink.fileno(), 2)

        def said() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(stderr.fileno(), 2)


def _check_answers(address: str) -> None:
    """Find out within seconds that no Ray is at an address.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, or `auto`, which is not checked.

    Raises:
        ValueError: The text is no address, nothing answers there, or something other than Ray does.
    """
    place = address.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if place == "auto":
        return
    if not colon or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS is {address!r}, must be HOST:PORT, ray://HOST:PORT or auto")
    # Does anything listen there, and does it speak Ray's protocol? With TLS the second question needs certificates.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error
    if "RAY_USE_TLS" not in os.environ and not _speaks_grpc(place):
        raise ValueError(f"no Ray cluster answers at {address}: something else does")


def _speaks_grpc(place: str) -> bool:
    """Whether a gRPC server answers at `HOST:PORT`, as Ray does on the ports of both kinds of address."""
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def _use_token_that_is_there() -> None:
    """Let Ray use a token of the environment or the home folder, which it does only when it is told to.

    Call it before `ray` is imported.
    """
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if named or Path(os.path.expanduser("~/.ray/auth_token")).is_file():  # noqa: PTH111 (never raises)
        os.environ.setdefault("RAY_AUTH_MODE", "token")
