"""Ray: a private one on this machine, or a cluster that is joined after a check that one answers at its address.

Starting a private one fails now and then on a busy machine, when one of Ray's processes takes longer than another one
waits for it. So it is tried three times, each time from nothing, and what Ray prints meanwhile goes to its logs.

Ray reads many of its settings from the environment when it is imported. So `ray` is imported here only when everything
is set, and all code that needs Ray starts it through this module.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from talkinghead.files.uri import hide_known_secrets
from talkinghead.runtime.errors import MachineError
from talkinghead.runtime.own_arguments import blank_credentials
from talkinghead.runtime.own_cluster import own_token
from talkinghead.runtime.ray_folder import RayFolder, make_ray_folder
from talkinghead.runtime.threads import wait_settings

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages, which workers import."""
CONNECT_SECONDS = 10
"""Time to wait for a cluster that does not answer, in seconds; Ray itself tries for minutes."""
START_SECONDS = 60
"""Time that the head of a private Ray has to open its port, in seconds; Ray itself gives it 30."""
START_TRIES = 3
"""Number of times that starting a private Ray is tried."""
OBJECT_STORE_BYTES = 128 << 20
"""Size of a private Ray's object store: enough where only paths, settings and small records cross the object store."""
_LOOPBACK = "127.0.0.1"
_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_PATIENCE_VARIABLE = "RAY_gcs_server_port_wait_time_s"
_SUBMITTED_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable by which Ray Jobs tells a driver of the job that it is."""
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for nodes on addresses that others reach; off on Windows and macOS, where it makes firewalls ask."""


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
        MachineError: A private one does not start.
    """
    # 0: Ray leaves CUDA_VISIBLE_DEVICES alone in tasks without a GPU. Releases whose default differs print a notice.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with contextlib.ExitStack() as stack:
        ours = (*_TOKEN_VARIABLES, _LOOPBACK_VARIABLE, _PATIENCE_VARIABLE)
        stack.callback(_set_environment, {name: os.environ.get(name) for name in ours})
        if address is None:
            folder = _start_private(cpus, variables, object_store_bytes)
            stack.callback(folder.remove)
        else:
            _join(address, dict(variables or {}))
        import ray

        stack.callback(ray.shutdown)
        yield


def _start_private(
    cpus: int, variables: Mapping[str, str] | None = None, object_store_bytes: int = OBJECT_STORE_BYTES
) -> RayFolder:
    """Start a Ray that only this process uses.

    Returns:
        The folder of its files.

    Raises:
        MachineError: It does not start, at none of the tries.
        ValueError: There is no place for its files.
    """
    # A token of its own keeps other users of the machine out, whatever the environment says about tokens: one that is
    # set there may be that of a cluster, which all its users know. Nothing is sent to Ray's makers.
    _set_environment(
        {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_AUTH_TOKEN_PATH": None,
            "RAY_USAGE_STATS_ENABLED": "0",
            _LOOPBACK_VARIABLE: "0",
            _PATIENCE_VARIABLE: os.environ.get(_PATIENCE_VARIABLE, str(START_SECONDS)),
        }
    )
    blank_credentials()
    _read_environment_anew()
    number = 1
    while problem := _try_private(folder := make_ray_folder(), cpus, variables or {}, object_store_bytes):
        # What it quotes from its logs after that is long, and the logs have it.
        reason = " ".join(hide_known_secrets(str(problem)).split()).partition(" Last ")[0]
        if number == START_TRIES:
            # This folder stays for the logs, until the next private Ray sweeps it.
            load = os.getloadavg()[0]
            raise MachineError(
                f"cannot start Ray: {reason} ({START_TRIES} tries, logs below {folder.temporary}); wait until the"
                f" machine is less busy (its load is {load:.0f}), and see that memory and disk are not full"
            ) from problem
        log.warning("Ray did not start (try %d of %d): %s; trying again", number, START_TRIES, reason)
        folder.remove()
        number += 1
    return folder


def _try_private(
    folder: RayFolder, cpus: int, variables: Mapping[str, str], object_store_bytes: int
) -> Exception | None:
    """Start a private Ray with its files in a folder; returns why it does not start, after which none of it runs."""
    import ray

    # Workers import our packages from this checkout, whatever the working folder is. Everything that talks or serves
    # is off: no dashboard, no log lines of workers on the terminal. What has to listen does so on the loopback address.
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    _log_what_ray_prints()
    with _captured_stderr() as said:
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                runtime_env={"env_vars": dict(variables) | {"PYTHONPATH": os.pathsep.join(places)}},
                logging_level=logging.ERROR,
                log_to_driver=False,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(folder.temporary),
            )
        except Exception as error:  # noqa: BLE001 (of all kinds; a plain one when a process comes too late)
            ray.shutdown()
            _kill_processes_of(folder)
            with contextlib.suppress(OSError):  # the disk may be full
                (folder.temporary / "stderr.txt").write_text(said())
            return error
    return None


def _kill_processes_of(folder: RayFolder) -> None:
    """Kill the processes of a Ray that did not start; it would keep them until this process ends.

    They have its folder, whose name nobody else has, in their command lines.
    """
    place = os.fsencode(folder.temporary)
    for _ in range(100):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it is gone, or another user's
                if place in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    found.append(process)
        # One that was just being started shows in the next round, and one that is slow to die, too.
        if not found:
            return
        time.sleep(0.02)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    """Set environment variables of this process; None: take it away."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_environment_anew() -> None:
    """Let Ray take its token and its addresses from the environment as it is now, even if it was imported before."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

    # In this order: threads of an earlier Ray that still end would miss the token in the mode that asks for one.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(_LOOPBACK_VARIABLE) != "0"


def _log_what_ray_prints() -> None:
    """Log, for debugging, what Ray prints to stderr unasked when a worker dies: outcomes of the work tell it better."""
    from ray._private import worker

    assert callable(worker.print_to_stdstream), "Ray prints its errors in another way"

    def log_lines(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        log.debug("%s", "\n".join(data["lines"]))

    worker.print_to_stdstream = log_lines


def _join(address: str, variables: dict[str, str]) -> None:
    """Join the cluster at an address, and send it our packages."""
    # Ray's own errors come late and long: check first what can be checked.
    check_answers(address)
    use_token(address)
    # A job that was submitted has our packages by Ray Jobs; what is sent here takes the place of the same.
    if _SUBMITTED_VARIABLE in os.environ:
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    os.environ.setdefault(_PATIENCE_VARIABLE, str(CONNECT_SECONDS))
    blank_credentials()
    _read_environment_anew()
    import ray
    from ray.exceptions import RayError

    environment = worker_environment(variables)
    _log_what_ray_prints()
    with _captured_stderr() as said:
        try:
            ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            # A missing or wrong token shows in the exception or only in what Ray's C++ code printed.
            refused = "uthenticat" in said() + str(error)
            hint = " (it asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)" if refused else ""
            reason = " ".join(hide_known_secrets(str(error)).split())
            raise ValueError(f"cannot join the Ray cluster at {address}: {reason}{hint}") from error


def submitted_name() -> str | None:
    """Name of the submitted job that this process is the driver of; None: it is none."""
    about = json.loads(os.environ.get(_SUBMITTED_VARIABLE, "{}"))
    return about.get("metadata", {}).get("job_submission_id")


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


def check_answers(address: str) -> None:
    """Find out within seconds that no Ray is at an address.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, or `auto`, which is not checked.

    Raises:
        ValueError: The text is no address, nothing answers there, or something other than Ray does.
    """
    if "@" in address:
        raise ValueError("RAY_ADDRESS holds a user or password, must be HOST:PORT; a token belongs into RAY_AUTH_TOKEN")
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


def use_token(address: str) -> None:
    """Let Ray use a token of the environment or the home folder, which it does only when it is told to, or that of the
    user's own cluster on this machine.

    Call it before `ray` is imported.

    Args:
        address: Address of the cluster that is joined.
    """
    if (token := own_token(address)) is not None:
        _set_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": None})
        return
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if named or Path(os.path.expanduser("~/.ray/auth_token")).is_file():  # noqa: PTH111 (never raises)
        os.environ.setdefault("RAY_AUTH_MODE", "token")
