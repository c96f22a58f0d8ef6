"""Who starts the ranks: this process alone, torchrun, or Ray Train. What each runs is `train.launch.worker`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talkinghead.runtime.ray_cluster import cluster_address
from train.launch.ray_train import run_ray
from train.launch.torchrun import join_torchrun, run_torchrun, started_by_torchrun
from train.launch.worker import run_worker
from train.recipe import Recipe
from train.run.run_folder import RunConfig, RunFolder, begin
from train.trainer.port import LocalPort

Launcher = Literal["local", "torchrun", "ray"]


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Where the training runs."""

    launch: Literal["auto", "local", "torchrun", "ray"] = "auto"
    """local: in this process. torchrun: several processes on this machine. ray: workers of Ray Train, on the cluster at
    RAY_ADDRESS or on a private one here. auto: torchrun under a torchrun, ray when there is a RAY_ADDRESS, torchrun for
    several workers, else local."""
    workers: int = 1
    """Ranks. Under a torchrun of your own (torchrun … -m -- train …) it says how many, not this."""
    min_workers: int | None = None
    """Ray: go on with so many when not all can be had, and with more again as they come."""
    max_failures: int = 3
    """Ray: start over from the newest checkpoint so many times after a worker failed (nodes that are taken away do not
    count)."""
    ray_address: str | None = None
    """Address of a Ray cluster (default: $RAY_ADDRESS; without one, a private Ray on this machine)."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_failures < 0:
            raise ValueError("--workers must be at least 1 and --max-failures at least 0")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"--min-workers is {self.min_workers}, must be in 1 … {self.workers} (--workers)")

    @property
    def address(self) -> str | None:
        """The Ray cluster to join, None for a private one."""
        return cluster_address(self.ray_address)

    def launcher(self, recipe: Recipe) -> Launcher:
        """Who starts the ranks.

        Raises:
            ValueError: Settings that do not go together, or ranks that cannot share a batch.
        """
        under = started_by_torchrun()
        if self.launch == "auto":
            several: Launcher = "torchrun" if self.workers > 1 else "local"
            chosen: Launcher = "torchrun" if under else "ray" if self.address else several
        else:
            chosen = self.launch
        if under and chosen != "torchrun":
            raise ValueError(f"--launch {chosen} does not go with torchrun: leave out one of them")
        if chosen == "local" and self.workers > 1:
            raise ValueError(f"--launch local is one process: leave out --workers {self.workers}, or --launch torchrun")
        if chosen != "ray" and self.min_workers is not None:
            raise ValueError("--min-workers is for --launch ray: only Ray starts again with fewer ranks")
        if not under:
            for number in range(self.min_workers or self.workers, self.workers + 1):
                recipe.train.accumulation(number)
        return chosen


def start(path: str | Path, config: RunConfig, settings: LaunchSettings, data: str | None = None) -> RunFolder:
    """Start a run, or go on with it, until its last step.

    Args:
        path: RUN.
        config: What to train on what.
        settings: Where.
        data: The data set, when the run's config.json must not name it in full.

    Raises:
        RunFailed: It ended early.
        ValueError: It cannot be started so.
    """
    launcher = settings.launcher(config.recipe)
    if started_by_torchrun():
        join_torchrun(path, config, data)
        return RunFolder.open(path)
    run = begin(path, config, data)
    if launcher == "local":
        run_worker(run.path, LocalPort(), data)
    elif launcher == "torchrun":
        run_torchrun(run, settings.workers, data)
    else:
        run_ray(
            run,
            settings.address,
            workers=settings.workers,
            min_workers=settings.min_workers,
            max_failures=settings.max_failures,
            data=data,
        )
    return run
