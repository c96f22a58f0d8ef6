"""Launchers: this process alone, several of this machine, a torchrun, SLURM, or Ray Train. Each rank runs
`train.launch.worker`."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talkinghead.runtime.ray_cluster import cluster_address
from train.config import TrainConfig
from train.data_sets import DataSets
from train.launch.failure import FailureLog
from train.launch.ranks import run_processes
from train.launch.ray_train import check_cluster, run_ray
from train.launch.slurm import slurm_task
from train.launch.torchrun import join_ranks, started_by_torchrun
from train.launch.worker import run_worker
from train.microbatch import settled
from train.recipe import Recipe
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder, begin
from train.run.run_store import is_store
from train.trainer.parallel import check_devices
from train.trainer.port import Deadline, LocalPort

Launcher = Literal["local", "processes", "torchrun", "slurm", "ray"]


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Launcher of a training, and number of ranks."""

    launch: Literal["auto", "local", "processes", "torchrun", "slurm", "ray"] = "auto"
    """Launcher. local: this process. processes: several processes of this machine. torchrun: a torchrun of your own,
    which has started this process (torchrun … -m -- train …; in a closed network only). slurm: tasks of a job step, a
    rank each (srun … python -m train …; in a closed network only). ray: workers of Ray Train, on the cluster at
    RAY_ADDRESS or on a private one here. auto: torchrun under a torchrun, slurm in a step of several tasks, ray when
    there is a RAY_ADDRESS, processes for several workers, else local. See docs/clusters.md."""
    workers: int = 1
    """Number of ranks. Under a torchrun of your own and in SLURM's steps these decide."""
    min_workers: int | None = None
    """Ray: smallest number of ranks to go on with when not all can be had; more join as they come. Only numbers that
    divide the microbatches of a step are taken. A lost node costs the steps since the newest checkpoint, no more."""
    max_failures: int = 3
    """processes, ray: number of times to start all ranks again from the newest checkpoint after one failed: a killed or
    stopped rank, memory, the network or a mount. Not after a full disk, a wrong request or an error in the code, and
    only once where memory does not suffice before the next checkpoint. processes counts anew from each newer
    checkpoint; ray counts all, but for nodes that are taken away."""
    max_hours: float | None = None
    """Hours after which this start has ended: it writes a checkpoint in time, by how long steps and checkpoints take,
    and ends with exit status 75, by which a scheduler's script knows that the same command is to be given again."""
    ray_address: str | None = None
    """Address of a Ray cluster (default: $RAY_ADDRESS; without one, a private Ray on this machine)."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_failures < 0:
            raise ValueError("--workers must be at least 1 and --max-failures at least 0")
        if self.max_hours is not None and not 0 < self.max_hours < math.inf:
            raise ValueError(f"--max-hours is {self.max_hours}, must be above 0")
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
        # Without a wish: what has started this process, then a Ray cluster, then what the number of ranks asks for.
        under = started_outside()
        if self.launch == "auto":
            several: Launcher = "processes" if self.workers > 1 else "local"
            chosen: Launcher = under or ("ray" if self.address else several)
        else:
            chosen = self.launch
        # Refuse what does not go together, before anything is started.
        if under and chosen != under:
            tasks = "torchrun" if under == "torchrun" else "several tasks of SLURM"
            raise ValueError(f"--launch {chosen} does not go with {tasks}: leave out one of them")
        if chosen == "slurm" and not under:
            raise ValueError(
                "--launch slurm is for a job step of several tasks (srun --ntasks 8 python -m train …), and this"
                " process is in none: for several processes of this machine take --launch processes"
            )
        if chosen == "torchrun" and not under:
            raise ValueError(
                "--launch torchrun is for a torchrun of your own (torchrun --nproc-per-node 2 -m -- train …), and none"
                " has started this process: for several processes of this machine take --launch processes"
            )
        if chosen == "local" and self.workers > 1:
            raise ValueError(f"--launch local is one process: leave out --workers {self.workers}, or take processes")
        if chosen != "ray" and self.min_workers is not None:
            raise ValueError("--min-workers is for --launch ray: only Ray starts again with fewer ranks")
        # All ranks must be able to share the batch, and with fewer allowed, some smaller number of them, too.
        if not under:
            numbers = self.numbers(settled(recipe.train, self.workers))
            if self.min_workers is not None and len(numbers) == 1 and self.min_workers < self.workers:
                raise ValueError(
                    f"--min-workers is {self.min_workers}, and no number of ranks from there to"
                    f" {self.workers - 1} divides the microbatches of a step, as {self.workers} do: take a smaller"
                    " --min-workers, or leave it out"
                )
        return chosen

    def numbers(self, train: TrainConfig) -> list[int]:
        """Numbers of ranks that a training may go on with, ascending; the last one is `workers`.

        Args:
            train: Settings with the microbatch that is settled for that.
        """
        return [
            number for number in train.fitting_ranks if (self.min_workers or self.workers) <= number <= self.workers
        ]


def started_outside() -> Literal["torchrun", "slurm"] | None:
    """Launcher that has started this process as one of several ranks; None: there is none.

    Raises:
        ValueError: SLURM's variables contradict each other or those of a torchrun.
    """
    task = slurm_task(os.environ)
    return "torchrun" if started_by_torchrun() else "slurm" if task else None


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
    until = None if settings.max_hours is None else time.time() + 3600 * settings.max_hours
    # All ranks of a torchrun or of SLURM come here: rank 0 alone begins the run, in `join_ranks`.
    if started_outside():
        join_ranks(path, config, data, until)
        return RunFolder.open(path)
    # Check, then create or resume RUN; from here on the ranks need only its path.
    parallel = config.recipe.train.parallel
    if launcher == "ray":
        if is_store(path) and settings.address is not None:
            raise ValueError(
                f"RUN is {path}, and the workers of a Ray cluster need a folder that all nodes share: take one, or"
                " start the ranks by torchrun or SLURM"
            )
        check_cluster(settings.address, parallel, settings.min_workers or settings.workers)
    else:
        check_devices(parallel, settings.workers)
    run = begin(path, config, data, ranks=settings.workers)
    if launcher == "local":
        FailureLog(run.logs).clear()
        run_worker(run.location, LocalPort(deadline=Deadline(until)), data)
    elif launcher == "processes":
        run_processes(run, settings.workers, data, max_failures=settings.max_failures, until=until)
    else:
        run_ray(
            run,
            settings.address,
            workers=settings.numbers(run.recipe.train),
            max_failures=settings.max_failures,
            data=data,
            until=until,
        )
    return run
