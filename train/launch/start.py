"""Launchers: this process alone, several of this machine, a torchrun, or Ray Train. Each rank runs
`train.launch.worker`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talkinghead.runtime.ray_cluster import cluster_address
from train.data_sets import DataSets
from train.launch.ranks import run_processes
from train.launch.ray_train import run_ray
from train.launch.torchrun import join_torchrun, started_by_torchrun
from train.launch.worker import run_worker
from train.recipe import Recipe
from train.run.run_folder import RunConfig, RunFolder, begin
from train.trainer.port import LocalPort

Launcher = Literal["local", "processes", "torchrun", "ray"]


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Launcher of a training, and number of ranks."""

    launch: Literal["auto", "local", "processes", "torchrun", "ray"] = "auto"
    """Launcher. local: this process. processes: several processes of this machine. torchrun: a torchrun of your own,
    which has started this process (torchrun … -m -- train …; in a closed network only). ray: workers of Ray Train, on
    the cluster at RAY_ADDRESS or on a private one here. auto: torchrun under a torchrun, ray when there is a
    RAY_ADDRESS, processes for several workers, else local."""
    workers: int = 1
    """Number of ranks. Under a torchrun of your own that one decides."""
    min_workers: int | None = None
    """Ray: number of ranks to go on with when not all can be had; more join as they come."""
    max_failures: int = 3
    """Ray: number of times to start again from the newest checkpoint after a worker failed (nodes that are taken away
    do not count)."""
    ray_address: str | None = None
    """Address of a Ray cluster (default: $RAY_ADDRESS; without one, a private Ray on this machine)."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_failures < 0:
            raise ValueError("--workers must be at least 1 and --max-failures at least 0")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"--min-workers is {self.min_workers}, must be in 1 … {self.workers} (--workers)")

    @property
    def address(self) -> str | None:
        """Address of the Ray cluster to join; None: a private one."""
        return cluster_address(self.ray_address)

    def launcher(self, recipe: Recipe) -> Launcher:
        """Launcher of the ranks.

        Raises:
            ValueError: Settings that do not go together, or ranks that cannot share a batch.
        """
        # Without a wish: torchrun if it is there already, then a Ray cluster, then what the number of ranks asks for.
        under = started_by_torchrun()
        if self.launch == "auto":
            several: Launcher = "processes" if self.workers > 1 else "local"
            chosen: Launcher = "torchrun" if under else "ray" if self.address else several
        else:
            chosen = self.launch
        # Refuse what does not go together, before anything is started.
        if under and chosen != "torchrun":
            raise ValueError(f"--launch {chosen} does not go with torchrun: leave out one of them")
        if chosen == "torchrun" and not under:
            raise ValueError(
                "--launch torchrun is for a torchrun of your own (torchrun --nproc-per-node 2 -m -- train …), and none"
                " has started this process: for several processes of this machine take --launch processes"
            )
        if chosen == "local" and self.workers > 1:
            raise ValueError(f"--launch local is one process: leave out --workers {self.workers}, or take processes")
        if chosen != "ray" and self.min_workers is not None:
            raise ValueError("--min-workers is for --launch ray: only Ray starts again with fewer ranks")
        # Ray may go on with any number of ranks in between, so each must be able to share the batch.
        if not under:
            for number in range(self.min_workers or self.workers, self.workers + 1):
                recipe.train.accumulation(number)
        return chosen


def start(path: str | Path, config: RunConfig, settings: LaunchSettings, data: DataSets | None = None) -> RunFolder:
    """Start a run, or go on with it, until its last step.

    Args:
        path: RUN.
        config: Task, recipe and data.
        settings: Launcher, and number of ranks.
        data: The data sets, where config.json must not name them in full.

    Returns:
        Folder of the run, with its exported weights.

    Raises:
        RunFailed: The training ended early.
        ValueError: The settings, the data or the folder do not allow to start it.
    """
    launcher = settings.launcher(config.recipe)
    # All ranks of a torchrun come here: rank 0 alone begins the run, in `join_torchrun`.
    if started_by_torchrun():
        join_torchrun(path, config, data)
        return RunFolder.open(path)
    # Check, then create or resume RUN; from here on the ranks need only its path.
    run = begin(path, config, data)
    if launcher == "local":
        run_worker(run.path, LocalPort(), data)
    elif launcher == "processes":
        run_processes(run, settings.workers, data)
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
