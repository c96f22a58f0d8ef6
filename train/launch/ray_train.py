"""Ray Train as a launcher: the ranks are its workers, started again when one fails, fewer or more as nodes come and go.

Only this file of the job imports Ray. Ray keeps no checkpoints: a worker group that starts again resumes from the
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
from pathlib import Path
from typing import Any

from talkinghead.runtime.ray_cluster import ray_cluster
from train.data_sets import DataSets
from train.launch.failure import Failure, FailureLog, RunFailed
from train.launch.meeting import Meeting, loopback_settings
from train.launch.watch import Watch
from train.launch.worker import run_worker
from train.run.run_folder import RunFolder
from train.trainer.checkpoint_files import whole_steps
from train.trainer.port import RayPort

log = logging.getLogger(__name__)


def run_ray(
    run: RunFolder,
    address: str | None,
    *,
    workers: int,
    min_workers: int | None = None,
    max_failures: int = 0,
    data: DataSets | None = None,
) -> None:
    """Train with workers of Ray and wait for the end. Ctrl-C writes a checkpoint first; a second one does not.

    Args:
        run: Folder of the run.
        address: Address of the cluster; None: a private one on this machine.
        workers: Number of ranks.
        min_workers: Number of ranks to go on with when not all can be had; None: all are needed.
        max_failures: Number of times to start again after a worker failed.
        data: The data sets, where config.json must not name them in full.

    Raises:
        RunFailed: The training ended early; with the message of the worker that failed first.
        ValueError: There is no such cluster.
    """
    # Forget an earlier start: its failure, and a request to stop that it did not get to.
    failures = FailureLog(run.logs)
    failures.clear()
    run.stop_file.unlink(missing_ok=True)
    watch = Watch(run)
    cpus = max(workers, len(os.sched_getaffinity(0)))
    number = (min_workers, workers) if min_workers else workers
    # The watch looks after the workers in a thread, since `fit` blocks this one until the end.
    if address is None:
        # All ranks are on this machine: they meet in a folder that is closed to other users, and listen on loopback.
        with (
            tempfile.TemporaryDirectory(prefix="talkinghead-ranks-") as folder,
            ray_cluster(None, cpus=cpus, variables=loopback_settings()),
            watch,
        ):
            error = _fit(run, number, max_failures, data, watch, folder)
    else:
        with ray_cluster(address, cpus=cpus), watch:
            error = _fit(run, number, max_failures, data, watch)
    shutil.rmtree(run.logs / "ray", ignore_errors=True)
    if error is None:
        return
    # Someone asked to end, and no failure that followed from that counts. Else the rank that failed first is to be
    # believed.
    if watch.asked:
        raise RunFailed(_interrupted(run)) from error
    found = failures.first()
    # A worker that was killed writes no failure, and the others only that they lost it; then Ray knows more.
    raise RunFailed(found if found is not None and found.kind != "peer" else _failure(error)) from error


def _fit(
    run: RunFolder,
    workers: int | tuple[int, int],
    max_failures: int,
    data: DataSets | None,
    watch: Watch,
    meeting: str | None = None,
) -> Exception | None:
    """Run Ray Train to its end; returns the error that ended it early, if any.

    Args:
        run: Folder of the run.
        workers: Number of ranks, or the smallest and the largest one.
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

    class GroupOfOurOwn(Backend):
        """Preparation of workers that make their process group themselves: each sees all GPUs of its node."""

        share_cuda_visible_devices = True

    class MeetingConfig(TorchConfig):
        """Settings that keep Ray from opening a TCPStore."""

        @property
        def backend_cls(self) -> type[Backend]:
            return GroupOfOurOwn

    class Trainer(TorchTrainer):
        """Trainer that leaves Ctrl-C to the watch; Ray's own handler would end the workers at once."""

        def _register_sigint_handler(self, controller: Any) -> None:
            watch.over(lambda: ray.kill(controller))

    # GPUs if the cluster has any and they are not refused; one for each rank.
    parallel = run.recipe.train.parallel
    gpus = parallel.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    trainer = Trainer(
        _worker,
        train_loop_config={"run": str(run.path), "data": data and data.to_text(), "meeting": meeting},
        torch_config=(TorchConfig if meeting is None else MeetingConfig)(
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=max(1, int(parallel.timeout_s))
        ),
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=train.RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(run.logs / "ray"),
            failure_config=train.FailureConfig(max_failures=max_failures),
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

    # Rank 0 draws a secret and a name for each start of the workers; Ray's own channels, which ask for its token, carry
    # them. They are no part of `config`, which Ray shows to whoever may see its state.
    drawn = broadcast_from_rank_zero({"key": secrets.token_hex(32), "store": secrets.token_hex(8)})
    store = None if config["meeting"] is None else Path(config["meeting"]) / drawn["store"]
    meeting = Meeting(key=bytes.fromhex(drawn["key"]), store=store)
    path = Path(config["run"])
    data = DataSets.from_text(config["data"]) if config["data"] else None
    run_worker(path, RayPort(train, RunFolder.open(path).stop_file), data, meeting)


def _interrupted(run: RunFolder) -> Failure:
    step = max(whole_steps(run.checkpoints), default=None)
    where = "before the first checkpoint" if step is None else f"the newest checkpoint is of step {step}"
    return Failure(kind="interrupted", message=f"interrupted; {where}; the same command continues")


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
