"""The executor: runs units on Ray, each exactly once and none lost; an input that crashes workers is tried alone, then
quarantined.

Plain Ray tasks, one unit each, rather than Ray Data: a unit's failure must stay its own (Ray Data drops whole blocks),
a rejected or quarantined unit must count as done (a Ray Data checkpoint knows only rows that reach the sink), and only
paths and records cross the object store, so its block machinery has nothing to carry. Tasks rather than actors: a
worker process holds nothing worth keeping but loaded networks, which a task's process keeps too, and `max_calls`
renews the process before MediaPipe's leak of about 0.5 MB per clip matters.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestration.cluster import Cluster
from orchestration.units.alone import run_alone
from orchestration.units.frame_reports import EVERY_S, FrameWatch, noting, reporting
from orchestration.units.ledger import Ledger
from orchestration.units.lost import lost_outputs, refuse_changed
from orchestration.units.memory_limit import limit_memory
from orchestration.units.records import Attempt, PassRecord, QuarantineRecord, UnitRecord
from orchestration.units.unit import CHANGED, JobStoppedError, Unit, failed_attempt, run_unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

# The machine's fault comes back as a value: Ray would wrap a raised one in an error of its own.
Result = UnitRecord | Attempt | JobStoppedError
"""Return value of a Ray task."""

UNITS_PER_PROCESS = 200
"""Units after which a worker process is renewed (MediaPipe leaks about 0.5 MB per landmarker)."""
ALONE_TIMES = 4.0
"""Time limit of a unit that is tried again, alone, over that of its first try: the same one would only pass again."""
LONGEST_LIMIT_S = 1e8
"""Longest time limit that a unit may be given, in seconds: three years, far below what clocks of the system hold."""
LONG_FRAMES = 1500
"""Frames of a unit from which on its own progress is followed, too: a minute of video."""


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """Number of tries, and limits, of a failing unit before it is quarantined."""

    attempts: int = 3
    """Tries of a unit that crashed, hung or ran out of memory; all but the first are made alone."""
    memory_gb: float = 8.0
    """Memory that a unit's process may take, in GiB."""
    time_limit_s: float | None = None
    """Wall-clock limit of one unit in seconds; four times as long when it is tried again (default: from the length and
    the frame size of its clip)."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"--attempts is {self.attempts}, must be at least 1")
        if self.memory_gb < 1:
            raise ValueError(f"--memory-gb is {self.memory_gb}, must be at least 1")
        if self.time_limit_s is not None and not 0 < self.time_limit_s <= LONGEST_LIMIT_S:
            raise ValueError(
                f"--time-limit-s is {self.time_limit_s:g}, must be above 0 and at most {LONGEST_LIMIT_S:,.0f}"
            )


@dataclass
class Tally:
    """Counts of one pass over a job's units, in units."""

    planned: int = 0
    """Units that the job has."""
    done_before: int = 0
    """Units that an earlier command has committed or quarantined."""
    quarantined_before: int = 0
    """Units among `done_before` that were quarantined."""
    committed: int = 0
    """Units committed now."""
    quarantined: int = 0
    """Units quarantined now."""
    wall_seconds: float = 0.0
    frames: int = 0
    """Frames that the units committed now put out."""


@dataclass(frozen=True, kw_only=True)
class UnitRunner:
    """Runner that every job gives its units to; it knows where they store and compute, and their limits."""

    storage: Storage
    """DATA, the data set's folder or bucket."""
    cluster: Cluster
    retry: RetrySettings

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        """Run the pending units, and note frames and wall time in DATA for the report.

        Args:
            job: Name of the job.
            units: All units of the job, done or not.
            gpu_share: Share of a GPU that a unit takes, where the cluster has GPUs.

        Raises:
            JobStoppedError: The machine is at fault.
        """
        tally = run_units(self.storage, job, units, self.cluster, self.retry, gpu_share=gpu_share)
        # A pass that did nothing has no speed to report.
        if tally.committed or tally.quarantined:
            about = PassRecord(
                job=job,
                units=tally.committed + tally.quarantined,
                frames=tally.frames,
                wall_seconds=round(tally.wall_seconds, 3),
            )
            self.storage.create(dataroot.run(job, time.time_ns()), about.to_json())
        return tally


def run_units(
    storage: Storage,
    job: str,
    units: Sequence[Unit],
    cluster: Cluster,
    retry: RetrySettings,
    *,
    gpu_share: float = 0.0,
) -> Tally:
    """Run every unit that has no record yet.

    Args:
        storage: DATA, the data set's folder or bucket.
        job: Name of the job.
        units: All units of the job, done or not.
        cluster: Ray cluster that runs them; not started when nothing is pending.
        retry: Tries and limits of a failing unit.
        gpu_share: Share of a GPU that a unit takes, where the cluster has GPUs.

    Returns:
        Counts of units done before and now.

    Raises:
        LinkError: A link lies where records should go.
        ValueError: What is packed of a unit is lost, and came out with other bytes now. All other units were run.
        JobStoppedError: The machine is at fault. Everything committed so far stays, and a rerun goes on from there.
    """
    # What is left to do: units without a record under their present provenance key, or whose output is lost.
    started = time.perf_counter()
    ledger = Ledger(storage, job)
    lost = lost_outputs(ledger, units)
    pending = [unit for unit in units if unit.key in lost or not ledger.is_done(unit)]
    # Two commands on an object store, which has no lock, may leave a unit both records: then it counts as committed.
    left_out = ledger.quarantined - ledger.committed
    before = sum((unit.key, unit.pkey) in left_out for unit in units)
    tally = Tally(planned=len(units), done_before=len(units) - len(pending), quarantined_before=before)
    # Asking for the slots starts or joins Ray. Where records cannot go is said before that.
    if pending:
        storage.check_links(dataroot.records(job), dataroot.quarantines(job), dataroot.RUNS_FOLDER)
        slots, gpus = cluster.gpu_slots(gpu_share) if gpu_share else (cluster.slots, 0.0)
        with Progress() as progress:
            this = _Pass(storage, job, retry, slots, gpus, tally, progress)
            this.run(units, pending)
        _check_committed(storage, job, pending)
        refuse_changed(this.changed)
    tally.wall_seconds = time.perf_counter() - started
    log.info(
        "%s: %d units, %d done and %d quarantined before, %d done now, %d quarantined, %.1f s",
        job, tally.planned, tally.done_before - before, before, tally.committed, tally.quarantined,
        tally.wall_seconds,
    )  # fmt: skip
    return tally


def _check_committed(storage: Storage, job: str, units: Sequence[Unit]) -> None:
    """Raise `JobStoppedError` unless every unit has a record here: workers on other nodes may see another DATA."""
    ledger = Ledger(storage, job)
    lost = [unit for unit in units if not ledger.is_done(unit)]
    if lost:
        raise JobStoppedError(
            f"{len(lost)} units were run but left no record in {storage.uri} (first: {lost[0].source}): "
            "DATA must be a place that every node of the cluster reaches"
        )


class _Pass:
    """One pass over the pending units: all of them in the pool of workers first, then the failed ones alone."""

    def __init__(
        self,
        storage: Storage,
        job: str,
        retry: RetrySettings,
        slots: int,
        gpus: float,
        tally: Tally,
        progress: Progress,
    ) -> None:
        import ray

        self.ray = ray
        self.storage = storage
        self.job = job
        self.retry = retry
        self.slots = slots
        self.on_gpu = gpus > 0
        self.tally = tally
        self.progress = progress
        self.failures: dict[str, list[Attempt]] = {}
        self.changed: list[str] = []
        self.watch: FrameWatch | None = None
        self.running: dict[str, Unit] = {}
        # No retries by Ray: a unit that took a worker down must not meet its neighbours again.
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus or None, "max_retries": 0}
        self.pool_task = ray.remote(max_calls=UNITS_PER_PROCESS, **options)(_pool_task)
        self.alone_task = ray.remote(**options)(_alone_task)

    def run(self, units: Sequence[Unit], pending: Sequence[Unit]) -> None:
        """Run the pending ones among the units until each is committed or quarantined."""
        # Only long units are worth a process that knows how far each one is.
        if any(unit.frames >= LONG_FRAMES for unit in pending):
            self.watch = FrameWatch(self.ray)
        self.work = _Work(units, pending)
        self._show()
        # First round, in the pool: cheap processes that many units share. The longest units come first, so that none
        # is left to run when all others have ended.
        again: deque[Unit] = deque()
        self._drain(deque(sorted(pending, key=lambda unit: -unit.frames)), again, self._submit_pool)
        # Every further round, alone: only after the pool is done, so that a crash takes no healthy unit with it.
        while again:
            queue, again = again, deque()
            self._drain(queue, again, self._submit_alone)

    def _board(self) -> Any:
        """Board on which workers note how far their units are; None without one."""
        return self.watch and self.watch.board

    def _submit_pool(self, unit: Unit) -> Any:
        return self.pool_task.remote(self.storage, unit.to_json(), self.retry.memory_gb, self.on_gpu, self._board())

    def _submit_alone(self, unit: Unit) -> Any:
        attempts = len(self.failures[unit.key]) + 1
        longer = replace(unit, time_limit_s=ALONE_TIMES * unit.time_limit_s)
        limits = (attempts, self.retry.memory_gb, self.on_gpu)
        return self.alone_task.remote(self.storage, longer.to_json(), *limits, self._board())

    def _drain(self, queue: deque[Unit], again: deque[Unit], submit: Callable[[Unit], Any]) -> None:
        """Run a queue of units, at most `slots` at a time; what may pass later is appended to `again`."""
        from ray.exceptions import RayError

        # Ray's reference → the unit, and when it was submitted (seconds of `perf_counter`).
        running: dict[Any, tuple[Unit, float]] = {}
        try:
            while queue or running:
                # No more than can run at once: then a unit's time is counted from when it starts.
                while queue and len(running) < self.slots:
                    unit = queue.popleft()
                    running[submit(unit)] = (unit, time.perf_counter())
                    self.running[unit.key] = unit
                finished, _ = self.ray.wait(list(running), num_returns=1, timeout=EVERY_S if self.watch else None)
                for reference in finished:
                    unit, started = running.pop(reference)
                    del self.running[unit.key]
                    self._settle(unit, self._result(reference, unit, time.perf_counter() - started), again)
                if self.watch:
                    self.watch.look()
                    self._show()
        except RayError as error:
            raise JobStoppedError(
                f"Ray ended while units were running: {str(error).strip().splitlines()[0]}"
            ) from error
        finally:
            # Left early, by an error or Ctrl-C: no unit may go on writing to DATA after its driver.
            for reference in running:
                with contextlib.suppress(RayError):
                    self.ray.cancel(reference, force=True)

    def _result(self, reference: Any, unit: Unit, seconds: float) -> UnitRecord | Attempt:
        """Outcome of a finished task.

        A task that ended with its process is the unit's failed try; a task that could not run is the cluster's fault.
        """
        from ray import exceptions

        try:
            result: Result = self.ray.get(reference)
        except exceptions.OutOfMemoryError as error:
            # Ray's memory monitor killed the worker before the kernel would have.
            return Attempt(cause="memory", message="the machine ran out of memory", trace=str(error)[-4000:])
        except exceptions.LocalRayletDiedError as error:
            raise JobStoppedError("Ray ended on this machine while units were running") from error
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError) as error:
            if not self._nodes_alive():
                raise JobStoppedError("the Ray cluster has no node left") from error
            # The watchdog of a pool worker ends the process with no word to Ray: the clock tells hanging from crashing.
            # Alone, it is a child that has the limit, and its end comes back as a value.
            hung = unit.key not in self.failures and seconds >= unit.time_limit_s
            cause = "timeout" if hung else "crash"
            message = f"took longer than {unit.time_limit_s:g} s" if hung else "the worker process died"
            return Attempt(cause=cause, message=message, trace=str(error)[-4000:], seconds=round(seconds, 3))
        except exceptions.RayError as error:
            # The task catches what a unit raises, so this is the cluster's: no environment, no access, no packages.
            raise JobStoppedError(f"Ray could not run {unit.source}: {str(error).strip().splitlines()[-1]}") from error
        if isinstance(result, JobStoppedError):
            raise result
        return result

    def _nodes_alive(self) -> bool:
        """Whether any node of the cluster is alive; without one, a failure is not the unit's."""
        from ray.exceptions import RayError

        try:
            return any(node["Alive"] for node in self.ray.nodes())
        except RayError:
            return False

    def _settle(self, unit: Unit, result: UnitRecord | Attempt, again: deque[Unit]) -> None:
        """Count a result: committed, to be tried again, or quarantined after the last try."""
        # The worker has written the commit record itself.
        if isinstance(result, UnitRecord):
            self.tally.committed += 1
            self.tally.frames += result.frames
            self.work.end(unit)
            self._show()
            return
        if result.cause == CHANGED:
            self.changed.append(result.message)
            self.work.end(unit)
            return
        attempts = self.failures.setdefault(unit.key, [])
        log.debug("%s: %s (%s)", unit.source, result.message, result.cause)
        if len(attempts) + 1 < self.retry.attempts and may_pass_later(result):
            attempts.append(result)
            again.append(unit)
            if result.cause == "timeout":
                longer = ALONE_TIMES * unit.time_limit_s
                log.warning("%s: %s; to be tried again alone, for up to %g s", unit.source, result.message, longer)
            return
        result = _with_advice(result, unit)
        attempts.append(result)
        # `create` keeps a record that is already there: object stores have no lock, and another driver may be first.
        record = QuarantineRecord(job=unit.job, key=unit.key, pkey=unit.pkey, source=unit.source, attempts=attempts)
        self.storage.create(dataroot.quarantine(unit.job, unit.key, unit.pkey), record.to_json())
        self.tally.quarantined += 1
        self.work.end(unit)
        self._show()
        log.warning("quarantined %s: %s (%s)", unit.source, result.message, result.cause)

    def _show(self) -> None:
        tally = self.tally
        done = tally.done_before + tally.committed + tally.quarantined
        heard = self.watch.frames if self.watch else {}
        now = {key: heard[key] for key in self.running.keys() & heard.keys()}
        share = self.work.share(now, self.running)
        self.progress(self.job, done, tally.planned, frames=tally.frames + sum(now.values()), share=share)


class _Work:
    """Share of a job's work that is done, by the frames of its units; one that does not know its own counts as usual.

    Args:
        units: All units of the job.
        pending: Those that are to be run.
    """

    def __init__(self, units: Sequence[Unit], pending: Sequence[Unit]) -> None:
        known = [unit.frames for unit in units if unit.frames]
        self._usual = sum(known) / len(known) if known else 1.0
        self._all = sum(map(self._of, units))
        self._left = sum(map(self._of, pending))

    def _of(self, unit: Unit) -> float:
        return unit.frames or self._usual

    def end(self, unit: Unit) -> None:
        """Count a unit that is committed or quarantined."""
        self._left -= self._of(unit)

    def share(self, frames: Mapping[str, int], running: Mapping[str, Unit]) -> float:
        """Share that is done, 0 to 1.

        Args:
            frames: Key of a running unit → frames that it has gone through.
            running: Key of a running unit → unit.
        """
        now = sum(min(count, self._of(running[key])) for key, count in frames.items())
        return min(1.0, 1.0 - (self._left - now) / self._all) if self._all else 1.0


def _with_advice(result: Attempt, unit: Unit) -> Attempt:
    """The last failed try of a unit; where its time was up, with what the user can do."""
    if result.cause != "timeout":
        return result
    # The next first try gets what the longest try has had in vain, and the try alone more than that.
    tried = unit.time_limit_s * (ALONE_TIMES if result.alone else 1.0)
    then = f"make retry CAUSE=timeout, then again with ARGS='--time-limit-s {math.ceil(tried)}'"
    return replace(result, message=f"{result.message}; if it is not stuck but long: {then}")


def may_pass_later(attempt: Attempt) -> bool:
    """Whether a retry can help: after crash, hang, memory and system errors, but not after a verdict on the input, nor
    where the longer time of a try alone was up."""
    if attempt.cause == "timeout":
        return not attempt.alone
    if attempt.cause.startswith(("media:", "column:")):
        return False
    if not attempt.cause.startswith("error:"):
        return True
    # The same input gives these errors again.
    name = attempt.cause.removeprefix("error:")
    never = {"ValueError", "FileNotFoundError", "PermissionError", "IsADirectoryError"}
    return name not in never


def _pool_task(storage: Storage, unit_json: str, memory_gb: float, on_gpu: bool, board: Any) -> Result:
    """One unit in a pool worker. A hang ends the process (the watchdog thread needs no interpreter lock)."""
    unit = Unit.from_json(unit_json)
    limit_memory(memory_gb, on_gpu=on_gpu)
    faulthandler.dump_traceback_later(unit.time_limit_s, exit=True)
    started = time.perf_counter()
    try:
        with noting(board, unit.key) as tell, reporting(tell):
            return run_unit(storage, unit, attempts=1)
    except JobStoppedError as error:
        return error
    except Exception as error:  # noqa: BLE001  every failure of an input becomes an attempt on its record
        return failed_attempt(error, alone=False, seconds=time.perf_counter() - started)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _alone_task(storage: Storage, unit_json: str, attempts: int, memory_gb: float, on_gpu: bool, board: Any) -> Result:
    """One unit in a child process of a pool worker."""
    unit = Unit.from_json(unit_json)
    try:
        with noting(board, unit.key) as tell:
            return run_alone(storage, unit, attempts=attempts, memory_gb=memory_gb, on_gpu=on_gpu, tell=tell)
    except JobStoppedError as error:
        return error
