"""Ray Train as a launcher: the ranks are its workers, started again when one fails, fewer or more as nodes come and go.

Their numbers are those that can share a step (`train.launch.ray_scaling`). A lost worker or node ends all of them, and
they go on from the newest checkpoint: what is lost is at most the steps since then (`checkpoint.every`). Only these two
files of the job import Ray. Ray keeps no checkpoints: a worker group that starts again resumes from the
newest one in RUN, which must be a folder that all nodes share.

On a private Ray of this machine the ranks meet as those of `train.launch.ranks` do: at a file, on loopback. On a
cluster Ray Train makes their process group with a TCPStore of rank 0, which listens on all interfaces without a
password, and gloo and NCCL listen on the address of the node. The ranks sign the objects that they exchange, so whoever
reaches those ports runs no code, but may break or falsify a training: a cluster belongs into a closed network.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talkinghead.runtime.ray_cluster import ray_cluster
from train.config import ParallelConfig
from train.data_sets import DataSets
from train.launch.failure import Failure, FailureLog, RunFailed
from train.launch.flight_recorder import recorder_settings
from train.launch.meeting import Meeting, loopback_settings
from train.launch.watch import Watch
from train.launch.worker import run_worker
from train.run.run_folder import RunFolder
from train.trainer.checkpoint_files import whole_steps
from train.trainer.parallel import check_devices
from train.trainer.port import RayPort

log = logging.getLogger(__name__)


def run_ray(
    run: RunFolder,
    address: str | None,
    *,
    workers: Sequence[int],
    max_failures: int = 0,
    data: DataSets | None = None,
    until: float | None = None,
) -> None:
    """Train with workers of Ray and wait for the end. Ctrl-C writes a checkpoint first; a second one does not.

    Args:
        run: Folder of the run.
        address: Address of the cluster; None: a private one on this machine.
        workers: Numbers of ranks, ascending: the last one, or a smaller one of them when not so many can be had.
        max_failures: Number of times to start again after a worker failed.
        data: The data sets, where config.json must not name them in full.
        until: Time at which the training must have ended; see `Deadline`.

    Raises:
        RunFailed: The training ended early; with the message of the worker that failed first.
        ValueError: There is no such cluster.
    """
    # Forget an earlier start: its failure, and a request to stop that it did not get to.
    failures = FailureLog(run.logs)
    failures.clear()
    run.stop_file.unlink(missing_ok=True)
    watch = Watch(run, until)
    cpus = max(workers[-1], len(os.sched_getaffinity(0)))
    # The watch looks after the workers in a thread, since `fit` blocks this one until the end.
    if address is None:
        # All ranks are on this machine: they meet in a folder that is closed to other users, and listen on loopback.
        with (
            tempfile.TemporaryDirectory(prefix="talkinghead-ranks-") as folder,
            ray_cluster(None, cpus=cpus, variables=loopback_settings()),
            watch,
        ):
            error = _fit(run, workers, max_failures, data, watch, folder)
    else:
        with ray_cluster(address, cpus=cpus), watch:
            error = _fit(run, workers, max_failures, data, watch)
    shutil.rmtree(run.logs / "ray", ignore_errors=True)
    if error is None:
        return
    # Someone asked to end, and no failure that followed from that counts. Else the rank that failed first is to be
    # believed.
    if watch.asked:
        raise RunFailed(_interrupted(run, watch.requeue)) from error
    found = failures.first()
    # A worker that was killed writes no failure, and the others only that they lost it; then Ray knows more.
    raise RunFailed(found if found is not None and found.kind != "peer" else _failure(error)) from error


def check_cluster(address: str | None, parallel: ParallelConfig, workers: int) -> None:
    """Check that there are the GPUs that are asked for; nothing is started on the cluster.

    Args:
        address: Address of the cluster; None: a private one on this machine.
        parallel: Settings of the ranks.
        workers: Smallest number of ranks.

    Raises:
        ValueError: There is no such cluster, or ranks are to be on GPUs and it has none.
    """
    if address is None:
        check_devices(parallel, workers)
    elif parallel.device == "cuda":
        with ray_cluster(address, cpus=1):
            if _gpus_of_cluster() < 1:
                raise ValueError(
                    f"parallel.device is cuda, and the Ray cluster at {address} has no GPU: add a node with GPUs, or"
                    " set --train.parallel.device cpu"
                )


def _gpus_of_cluster() -> float:
    import ray

    return ray.cluster_resources().get("GPU", 0)


def _fit(
    run: RunFolder,
    workers: Sequence[int],
    max_failures: int,
    data: DataSets | None,
    watch: Watch,
    meeting: str | None = None,
) -> Exception | None:
    """Run Ray Train to its end; returns the error that ended it early, if any.

    Args:
        run: Folder of the run.
        workers: Numbers of ranks, ascending.
        max_failures: Number of times to start again after a worker failed.
        data: The data sets, where config.json must not name them in full.
        watch: Watch over the workers.
        meeting: Folder in which the ranks meet, all on this machine. None: Ray makes their process group.
    """
    # Workers stay in the folder of the code rather than in one that Ray makes for each trial.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    import ray
    from ray import train
    from ray.exceptions import RayError
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    from train.launch.ray_scaling import FittingWorkers

    class GroupOfOurOwn(Backend):
        """Preparation of workers that make their process group themselves: each sees all GPUs of its node."""

        share_cuda_visible_devices = True

    class MeetingConfig(TorchConfig):
        """Settings that keep Ray from opening a TCPStore."""

        @property
        def backend_cls(self) -> type[Backend]:
            return GroupOfOurOwn

    class Trainer(TorchTrainer):
        """Trainer that takes no number of workers but the fitting ones, and leaves Ctrl-C to the watch: Ray's own
        handler would end the workers at once."""

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            if len(workers) > 1:
                settings["scaling_policy"] = FittingWorkers(self.scaling_config, workers)
            return super()._initialize_and_run_controller(**settings)

        def _register_sigint_handler(self, controller: Any) -> None:
            watch.over(lambda: ray.kill(controller))

    # GPUs if the cluster has any and they are not refused; one for each rank.
    parallel = run.recipe.train.parallel
    gpus = parallel.device != "cpu" and _gpus_of_cluster() >= 1
    trainer = Trainer(
        _worker,
        train_loop_config={"run": run.location, "data": data and data.to_text(), "meeting": meeting},
        torch_config=(TorchConfig if meeting is None else MeetingConfig)(
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=max(1, int(parallel.timeout_s))
        ),
        scaling_config=train.ScalingConfig(
            num_workers=workers[-1] if len(workers) == 1 else (workers[0], workers[-1]), use_gpu=gpus
        ),
        run_config=train.RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(run.logs / "ray"),
            failure_config=train.FailureConfig(max_failures=max_failures),
            # PyTorch reads them when Ray makes the process group.
            worker_runtime_env={"env_vars": recorder_settings(run.logs)},
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except (RayError, train.TrainingFailedError) as error:
        return error
    return None


def _worker(config: dict[str, Any]) -> None:
    """Be one rank, in a thread of one of Ray's workers."""
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    path = config["run"]
    if train.get_context().get_world_rank() == 0:
        FailureLog(RunFolder.open(path).logs).clear()  # of the workers before, which have ended
    # Rank 0 draws a secret and a name for each start of the workers; Ray's own channels, which ask for its token, carry
    # them. They are no part of `config`, which Ray shows to whoever may see its state.
    drawn = broadcast_from_rank_zero({"key": secrets.token_hex(32), "store": secrets.token_hex(8)})
    store = None if config["meeting"] is None else Path(config["meeting"]) / drawn["store"]
    meeting = Meeting(key=bytes.fromhex(drawn["key"]), store=store)
    data = DataSets.from_text(config["data"]) if config["data"] else None
    run_worker(path, RayPort(train, RunFolder.open(path).stop_file), data, meeting)


def _interrupted(run: RunFolder, requeue: bool) -> Failure:
    step = max(whole_steps(run.checkpoints), default=None)
    where = "before the first checkpoint" if step is None else f"the newest checkpoint is of step {step}"
    kind = "preempted" if requeue else "interrupted"
    return Failure(kind=kind, message=f"interrupted; {where}; the same command continues")


def _failure(error: Exception) -> Failure:
    """Failure of the lowest failing worker, from what it raised or how it died."""
    ranks: dict[int, Exception] = getattr(error, "worker_failures", {})
    rank = min(ranks, default=0)
    cause: BaseException = ranks.get(rank, error)
    # Ray wraps what a worker raised; `RunFailed` inside it has the rank's own message.
    cause = getattr(cause, "_base_exc", cause)
    if isinstance(cause, RunFailed):
        return cause.failure
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if isinstance(cause, ValueError):
        return Failure(kind="user", message=text, rank=rank)
    return Failure(kind="fault", message=f"rank {rank} failed: {type(cause).__name__}: {text}", rank=rank)
