"""The Ray cluster: a private one on this machine, or the one at RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talkinghead.runtime.ray_cluster import CONNECT_SECONDS, check_answers, our_packages, use_token_that_is_there

ROOT = Path(__file__).resolve().parents[1]

# One thread per worker: the units are the parallelism. FFmpeg and OpenCV are pinned where they are opened.
THREADS_OF = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
WORKER_VARIABLES = dict.fromkeys(THREADS_OF, "1") | {"GLOG_minloglevel": "2", "TF_CPP_MIN_LOG_LEVEL": "2"}
MODEL_VARIABLES = ("TALKINGHEAD_MODELS", "TALKINGHEAD_FACE_MODEL")
"""Settings of this process that hold on every node of a cluster."""
OBJECT_STORE_BYTES = 128 << 20  # only paths and small records cross it


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where the units run."""

    ray_address: str | None = None
    """Address of a Ray cluster (default: $RAY_ADDRESS; without one, a private Ray on this machine)."""
    workers: int | None = None
    """Units at a time (default: every CPU of the cluster)."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}, must be at least 1")

    @property
    def address(self) -> str | None:
        """The cluster to join, None for a private one."""
        address = self.ray_address or os.environ.get("RAY_ADDRESS")
        return None if address in (None, "", "local") else address


class Cluster:
    """Ray, started or joined when the first unit needs it, and left when the block ends.

    A rerun with nothing to do never starts it.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self._slots: int | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._slots is not None:
            import ray

            ray.shutdown()
            self._slots = None

    @property
    def slots(self) -> int:
        """How many units to run at a time.

        Raises:
            ValueError: There is no cluster at the address, or it does not let this process in.
        """
        if self._slots is None:
            self._slots = _start(self.settings)
        return self._slots

    def gpu_slots(self, share: float) -> tuple[int, float]:
        """How many units to run at a time that take a share of a GPU each, and the share: 0 on a cluster without."""
        slots = self.slots
        import ray

        gpus = ray.cluster_resources().get("GPU", 0.0)
        if gpus < share or share <= 0:
            return slots, 0.0
        # Ray spreads no task over two GPUs, so only whole shares of each count.
        return min(slots, int(gpus) * int(1 / share + 1e-9)), share


def _start(settings: ClusterSettings) -> int:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if settings.address:
        _join(settings.address)
    else:
        _start_private(settings.workers or len(os.sched_getaffinity(0)))
    import ray

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler ends with a C++ stack trace
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return min(settings.workers or cpus, cpus)


def _start_private(cpus: int) -> None:
    # A token of its own keeps other users of the machine out, and spares Ray writing one into a home folder that may
    # not be there; naming the mode spares its notice that there is one. Read when ray is imported.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        runtime_env={"env_vars": WORKER_VARIABLES | {"PYTHONPATH": str(ROOT)}},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _join(address: str) -> None:
    check_answers(address)
    use_token_that_is_there()
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(CONNECT_SECONDS))
    import ray
    from ray.exceptions import RayError

    with _captured_stderr() as said:
        try:
            ray.init(address=address, runtime_env=package(), logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            refused = "uthenticat" in said() + str(error)
            hint = " (it asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)" if refused else ""
            reason = " ".join(str(error).split())
            raise ValueError(f"cannot join the Ray cluster at {address}: {reason}{hint}") from error


def package(root: Path = ROOT) -> dict[str, Any]:
    """What Ray sends to the workers of a cluster: our packages only, and settings."""
    forwarded = {name: os.environ[name] for name in MODEL_VARIABLES if name in os.environ}
    return our_packages(root) | {"env_vars": WORKER_VARIABLES | forwarded}


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Collect what Ray's C++ code prints on stderr before it has a log file; yields a function that returns it."""
    with tempfile.TemporaryFile() as sink, os.fdopen(os.dup(2), "w") as stderr:
        os.dup2(sink.fileno(), 2)

        def said() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(stderr.fileno(), 2)
