"""The executor: runs units on Ray, on their own or in segments, each exactly once and none lost; an input that crashes
workers is tried alone, then quarantined.

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
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orchestration.cluster import Cluster
from orchestration.units.alone import run_alone
from orchestration.units.frame_reports import EVERY_S, FrameWatch, noting, reporting
from orchestration.units.ledger import Ledger
from orchestration.units.lost import lost_outputs, refuse_changed
from orchestration.units.memory_limit import limit_memory
from orchestration.units.records import Attempt, PassRecord, UnitRecord
from orchestration.units.retry import ALONE_TIMES, RetrySettings, alone, may_pass_later, quarantine
from orchestration.units.segment import Segment, grouped
from orchestration.units.segment_records import SegmentRecord
from orchestration.units.segment_worker import run_segment
from orchestration.units.sweep import sweep
from orchestration.units.unit import CHANGED, JobStoppedError, Unit, failed_attempt, run_unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

# The machine's fault comes back as a value: Ray would wrap a raised one in an error of its own.
Result = UnitRecord | Attempt | JobStoppedError
"""Return value of the Ray task of a unit."""
SegmentResult = tuple[SegmentRecord, dict[str, Attempt]]
"""Return value of the Ray task of a segment: its record, and the last failed try of each unit quarantined now."""

Item = TypeVar("Item", Unit, Unit | Segment)

UNITS_PER_PROCESS = 200
"""Units after which a worker process is renewed (MediaPipe leaks about 0.5 MB per landmarker)."""
MOST_LOSSES = 5
"""Times that the worker of a segment may be lost, by whatever ends processes and nodes, before the job stops."""
LONG_FRAMES = 1500
"""Frames of a unit from which on its own progress is followed, too: a minute of video."""


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
    # What is packed is compared with the record that it has, which may be that of a segment by another name.
    pending = [
        replace(unit, segment=ledger.segment_of((unit.key, unit.pkey))) if unit.key in lost else unit
        for unit in units
        if unit.key in lost or not ledger.is_done(unit)
    ]
    # A writer that was taken over may have left a unit both records: then it counts as committed.
    left_out = ledger.quarantined - ledger.committed
    before = sum((unit.key, unit.pkey) in left_out for unit in units)
    tally = Tally(planned=len(units), done_before=len(units) - len(pending), quarantined_before=before)
    # Asking for the slots starts or joins Ray. Where records cannot go is said before that.
    if pending:
        storage.check_links(dataroot.records(job), dataroot.quarantines(job), dataroot.RUNS_FOLDER)
        slots, gpus = cluster.gpu_slots(gpu_share) if gpu_share else (cluster.slots, 0.0)
        with Progress() as progress:
            this = _Pass(storage, job, retry, slots, gpus, tally, progress)
            this.run(units, grouped(pending, ledger.segments))
        _check_committed(storage, job, pending)
        if any(unit.segment for unit in pending) and (losers := sweep(storage, job)):
            log.info("%s: removed %d tars of workers that were not the first", job, losers)
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
        self.running: dict[str, Unit | Segment] = {}
        self.losses: Counter[str] = Counter()
        # No retries by Ray: a unit that took a worker down must not meet its neighbours again.
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus or None, "max_retries": 0}
        self.pool_task = ray.remote(max_calls=UNITS_PER_PROCESS, **options)(_pool_task)
        self.alone_task = ray.remote(**options)(_alone_task)
        self.segment_task = ray.remote(max_calls=UNITS_PER_PROCESS, **options)(_segment_task)

    def run(self, units: Sequence[Unit], pending: Sequence[Unit | Segment]) -> None:
        """Run the pending ones among the units, on their own or in segments, until each is committed or quarantined."""
        # Only long units are worth a process that knows how far each one is.
        if any(unit.frames >= LONG_FRAMES for unit in pending):
            self.watch = FrameWatch(self.ray)
        self.work = _Work(units, [unit for item in pending for unit in _units_of(item)])
        self._show()
        # First round, in the pool: cheap processes that many units share. The longest units come first, so that none
        # is left to run when all others have ended.
        again: deque[Unit] = deque()
        self._drain(deque(sorted(pending, key=lambda unit: -unit.frames)), again, self._submit_pool)
        # Every further round, alone: only after the pool is done, so that a crash takes no healthy unit with it.
        # Workers of segments have done so themselves.
        while again:
            queue, again = again, deque()
            self._drain(queue, again, self._submit_alone)

    def _board(self) -> Any:
        """Board on which workers note how far their units are; None without one."""
        return self.watch and self.watch.board

    def _submit_pool(self, unit: Unit | Segment) -> Any:
        if isinstance(unit, Segment):
            return self.segment_task.remote(self.storage, unit.to_json(), self.retry, self.on_gpu, self._board())
        return self.pool_task.remote(self.storage, unit.to_json(), self.retry.memory_gb, self.on_gpu, self._board())

    def _submit_alone(self, unit: Unit) -> Any:
        attempts = len(self.failures[unit.key]) + 1
        limits = (attempts, self.retry.memory_gb, self.on_gpu)
        return self.alone_task.remote(self.storage, alone(unit).to_json(), *limits, self._board())

    def _drain(self, queue: deque[Item], again: deque[Unit], submit: Callable[[Item], Any]) -> None:
        """Run a queue of units or segments, at most `slots` at a time; units that may pass later go to `again`."""
        from ray.exceptions import RayError

        # Ray's reference → the unit, and when it was submitted (seconds of `perf_counter`).
        running: dict[Any, tuple[Item, float]] = {}
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
                    if isinstance(unit, Unit):
                        self._settle(unit, self._result(reference, unit, time.perf_counter() - started), again)
                    elif (done := self._segment_result(reference, unit)) is not None:
                        self._settle_segment(unit, *done)
                    else:
                        queue.appendleft(unit)
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

    def _segment_result(self, reference: Any, segment: Segment) -> SegmentResult | None:
        """Outcome of a finished segment; None where its worker was lost, and another one is to run it.

        Inputs run in a child of the worker, which tells of their failures, so that the end of a worker is never theirs.
        """
        from ray import exceptions

        try:
            result: SegmentResult | JobStoppedError = self.ray.get(reference)
        except exceptions.LocalRayletDiedError as error:
            raise JobStoppedError("Ray ended on this machine while units were running") from error
        except (exceptions.OutOfMemoryError, exceptions.WorkerCrashedError, exceptions.NodeDiedError) as error:
            if not self._nodes_alive():
                raise JobStoppedError("the Ray cluster has no node left") from error
            self.losses[segment.name] += 1
            said = str(error).strip().splitlines()[0]
            if self.losses[segment.name] >= MOST_LOSSES:
                raise JobStoppedError(
                    f"{MOST_LOSSES} workers were lost, one after the other, while they ran {segment.source}: {said}"
                ) from error
            log.warning("a worker was lost; another one runs %s: %s", segment.source, said)
            return None
        except exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1]
            raise JobStoppedError(f"Ray could not run {segment.source}: {said}") from error
        if isinstance(result, JobStoppedError):
            raise result
        return result

    def _settle_segment(self, segment: Segment, record: SegmentRecord, failed: Mapping[str, Attempt]) -> None:
        """Count the outcomes of a segment, all of which are on record."""
        rows = {(row.key, row.pkey): row for row in record.rows}
        for unit in segment.units:
            row = rows.get((unit.key, unit.pkey))
            # Whoever was first may have found a unit done, which this driver counts as pending.
            if row is None or row.outcome == "quarantined":
                self.tally.quarantined += row is not None
                if (last := failed.get(unit.key)) is not None:
                    log.warning("quarantined %s: %s (%s)", unit.source, last.message, last.cause)
            else:
                self.tally.committed += 1
                self.tally.frames += row.record.frames if row.record else unit.frames
            self.work.end(unit)
        self._show()

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
        attempts.append(result)
        result = quarantine(self.storage, unit, attempts)
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


def _units_of(item: Unit | Segment) -> Sequence[Unit]:
    return item.units if isinstance(item, Segment) else (item,)


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

    def share(self, frames: Mapping[str, int], running: Mapping[str, Unit | Segment]) -> float:
        """Share that is done, 0 to 1.

        Args:
            frames: Key of a running unit or segment → frames that it has gone through.
            running: Key of a running one → unit or segment.
        """
        now = sum(min(count, sum(map(self._of, _units_of(running[key])))) for key, count in frames.items())
        return min(1.0, 1.0 - (self._left - now) / self._all) if self._all else 1.0


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
        return _of_this_machine(error)
    except Exception as error:  # noqa: BLE001  every failure of an input becomes an attempt on its record
        return failed_attempt(error, alone=False, seconds=time.perf_counter() - started)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _segment_task(
    storage: Storage, segment_json: str, retry: RetrySettings, on_gpu: bool, board: Any
) -> SegmentResult | JobStoppedError:
    """One segment, whose units run in a child process of a pool worker."""
    segment = Segment.from_json(segment_json)
    try:
        with noting(board, segment.name) as tell:
            return run_segment(storage, segment, retry, on_gpu=on_gpu, tell=tell)
    except JobStoppedError as error:
        return _of_this_machine(error)


def _alone_task(storage: Storage, unit_json: str, attempts: int, memory_gb: float, on_gpu: bool, board: Any) -> Result:
    """One unit in a child process of a pool worker."""
    unit = Unit.from_json(unit_json)
    try:
        with noting(board, unit.key) as tell:
            return run_alone(storage, unit, attempts=attempts, memory_gb=memory_gb, on_gpu=on_gpu, tell=tell)
    except JobStoppedError as error:
        return _of_this_machine(error)


def _of_this_machine(error: JobStoppedError) -> JobStoppedError:
    """An error of the machine that says which one it is."""
    return JobStoppedError(f"{error} (on {socket.gethostname()})")
