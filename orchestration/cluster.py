"""The Ray cluster: a private one on this machine, or the one at RAY_ADDRESS."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# One thread per worker: the units are the parallelism. FFmpeg and OpenCV are pinned where they are opened.
THREADS_OF = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
THREAD_VARIABLES = dict.fromkeys(THREADS_OF, "1")
QUIET_VARIABLES = {"GLOG_minloglevel": "2", "TF_CPP_MIN_LOG_LEVEL": "2"}
FORWARDED_VARIABLES = ("TALKINGHEAD_MODELS", "TALKINGHEAD_FACE_MODEL", "XDG_CACHE_HOME", "HOME")
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
        return self.ray_address or os.environ.get("RAY_ADDRESS") or None


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
        """How many units to run at a time."""
        if self._slots is None:
            self._slots = _start(self.settings)
        return self._slots


def _start(settings: ClusterSettings) -> int:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    variables = THREAD_VARIABLES | QUIET_VARIABLES
    if settings.address:
        runtime_env = {"working_dir": str(ROOT), "excludes": [".git", ".venv", "build"], "env_vars": variables}
        try:
            ray.init(
                address=settings.address, runtime_env=runtime_env, logging_level=logging.ERROR, log_to_driver=False
            )
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster at {settings.address}: {error}") from error
    else:
        forwarded = {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
        ray.init(
            num_cpus=settings.workers or len(os.sched_getaffinity(0)),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            runtime_env={"env_vars": variables | forwarded | {"PYTHONPATH": str(ROOT)}},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return min(settings.workers or cpus, cpus)
