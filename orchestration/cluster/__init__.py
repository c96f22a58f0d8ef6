"""The Ray cluster that runs the units: a private one on this machine, or the one at RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass

from talkinghead.runtime.ray_cluster import cluster_address, ray_cluster

# One thread per worker: the units are the parallelism. FFmpeg and OpenCV are pinned where they are opened.
THREADS_OF = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# The last two keep the logs of TensorFlow Lite and MediaPipe to errors.
WORKER_VARIABLES = dict.fromkeys(THREADS_OF, "1") | {"GLOG_minloglevel": "2", "TF_CPP_MIN_LOG_LEVEL": "2"}
MODEL_VARIABLES = ("TALKINGHEAD_MODELS", "TALKINGHEAD_FACE_MODEL")
"""Environment variables of this process that are passed on to the workers, on every node."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Cluster that runs the units, and their number at a time."""

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
        return cluster_address(self.ray_address)


class Cluster:
    """Context manager for Ray: started or joined when the first unit needs it, and left when the block ends.

    A rerun with nothing to do never starts it.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self._slots: int | None = None
        self._ray = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.close()
        self._slots = None

    @property
    def slots(self) -> int:
        """Number of units to run at a time; starts or joins Ray.

        Raises:
            ValueError: There is no cluster at the address, or it does not let this process in.
        """
        if self._slots is None:
            self._slots = self._start()
        return self._slots

    def _start(self) -> int:
        """Start or join Ray; returns how many units to run at a time."""
        # The CPUs that this process may use: in a container or under taskset fewer than the machine has.
        available = len(os.sched_getaffinity(0))
        forwarded = {name: os.environ[name] for name in MODEL_VARIABLES if name in os.environ}
        variables = WORKER_VARIABLES | forwarded
        cluster = ray_cluster(self.settings.address, self.settings.workers or available, variables=variables)
        self._ray.enter_context(cluster)
        import ray

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler ends with a C++ stack trace
        # A joined cluster may have more CPUs than this machine, or fewer than --workers asks for.
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        return min(self.settings.workers or cpus, cpus)

    def gpu_slots(self, share: float) -> tuple[int, float]:
        """Number of units to run at a time where each takes a share of a GPU, and that share; 0 without GPUs."""
        slots = self.slots
        import ray

        gpus = ray.cluster_resources().get("GPU", 0.0)
        if gpus < share or share <= 0:
            return slots, 0.0
        # Ray spreads no task over two GPUs, so only whole shares of each count.
        return min(slots, int(gpus) * int(1 / share + 1e-9)), share
