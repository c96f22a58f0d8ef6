"""A worker that runs segments: it only supervises, a child process of it computes one unit after the other.

    run_segment    the worker: hands the units to its child, takes their outcomes, commits the segment
    _Child         the child as the worker sees it, kept for the segments that follow, so that a job opens what it
                   needs once; it is killed when a unit takes longer than it may
    main           the child: computes, and appends samples to the temporary file of the segment's tar

A unit at which the child dies is tried again alone, in a child of its own (`orchestration.units.alone`), and
quarantined when it fails there, too; a new child goes on with the units after it. What was complete in the file stays.
So an input costs its neighbours nothing, and the death of the worker itself is the machine's fault, never an input's.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import faulthandler
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestration import ROOT
from orchestration.units.alone import cause_of_end, run_alone
from orchestration.units.frame_reports import Tell, reporting
from orchestration.units.memory_limit import limit_memory
from orchestration.units.output_tar import UnwritableError, writing_to
from orchestration.units.records import Attempt, UnitRecord, checked
from orchestration.units.retry import RetrySettings, alone, may_pass_later, quarantine
from orchestration.units.segment import Segment, SegmentTar, commit_segment
from orchestration.units.segment_records import SegmentRecord, SegmentRow, read_segment
from orchestration.units.unit import JobStoppedError, Unit, compute, failed_attempt, reader_ahead
from talkinghead import dataroot
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.runtime.child_process import end_with
from talkinghead.runtime.errors import error_text

UNITS_PER_CHILD = 200
"""Units after which a child is renewed (MediaPipe leaks about 0.5 MB per landmarker)."""
START_LIMIT_S = 600.0
"""Seconds in which a child must begin with its first unit. It has only the interpreter to load, also on a machine that
is so busy that this takes minutes."""
_TRACE_BYTES = 4000


# --- the worker -------------------------------------------------------------------------------------------------------


def run_segment(
    storage: Storage, segment: Segment, retry: RetrySettings, *, on_gpu: bool = False, tell: Tell | None = None
) -> tuple[SegmentRecord, dict[str, Attempt]]:
    """Run the units of a segment, and commit it.

    Args:
        storage: DATA, the data set's folder or bucket.
        segment: Segment to run.
        retry: Tries and limits of a failing unit.
        on_gpu: Whether its units compute on a GPU.
        tell: Called now and then with the number of frames that the segment has gone through.

    Returns:
        The commit record that counts; and the last failed try of each unit that was quarantined now, by its key.

    Raises:
        JobStoppedError: The machine is at fault. Nothing was committed.
    """
    # Who calls twice, because an answer was lost, gets the same answer.
    try:
        if storage.exists(dataroot.segment_record(segment.job, segment.name)):
            with contextlib.suppress(ValueError, FileNotFoundError):  # damaged or gone: as where two workers race
                return read_segment(storage, segment.job, segment.name), {}
    except OSError as error:
        raise JobStoppedError(f"cannot read from {storage.uri}: {error_text(error)}") from error
    run = _Run(storage, segment, retry, on_gpu, tell)
    return commit_segment(storage, segment, run.make), run.failed


class _Run:
    """One run of a segment."""

    def __init__(
        self, storage: Storage, segment: Segment, retry: RetrySettings, on_gpu: bool, tell: Tell | None
    ) -> None:
        self.storage, self.segment, self.retry = storage, segment, retry
        self.on_gpu, self.tell = on_gpu, tell
        self.failed: dict[str, Attempt] = {}

    def make(self, scratch: Path, path: str) -> tuple[list[SegmentRow], int]:
        """Rows of all units, and bytes of their samples in the temporary file; see `commit_segment`."""
        rows: dict[str, SegmentRow] = {}
        again: list[tuple[Unit, list[Attempt]]] = []
        todo, end, frames = list(self.segment.units), 0, 0
        while todo:
            child = _child(self.retry.memory_gb, self.on_gpu)
            try:
                for outcome in child.run(self.storage, todo, scratch, path, end, self._told(frames)):
                    unit = todo.pop(0)
                    frames += unit.frames
                    if isinstance(outcome, Attempt):
                        again.append((unit, [outcome]))
                    else:
                        record, end = outcome
                        rows[unit.key] = SegmentRow.of(record)
            except _ChildEndedError as error:
                # The unit that was computed, and the one that was read ahead: either may have ended the child.
                suspects = todo[: error.begun]
                again += [(unit, [] if number else [error.attempt]) for number, unit in enumerate(suspects)]
                frames += sum(unit.frames for unit in suspects)
                del todo[: error.begun]
        if any(self._is_tried_alone(attempts) for _, attempts in again):
            _end_child()  # alone on the machine, as far as this worker has it
        for unit, attempts in again:
            rows[unit.key] = self._retried(unit, attempts)
        return [rows[unit.key] for unit in self.segment.units], end

    def _told(self, before: int) -> Tell:
        def told(frames: int) -> None:
            if self.tell is not None:
                self.tell(before + frames)

        return told

    def _is_tried_alone(self, attempts: Sequence[Attempt]) -> bool:
        """Whether a unit gets a try alone: after a failure that may pass, at least one, so that no unit is blamed for
        what others did to their common process."""
        if not attempts:
            return True
        tries_left = len(attempts) < self.retry.attempts or not any(attempt.alone for attempt in attempts)
        return tries_left and may_pass_later(attempts[-1])

    def _retried(self, unit: Unit, attempts: list[Attempt]) -> SegmentRow:
        """Row of a unit that has failed next to others, after the tries alone."""
        limits = {"memory_gb": self.retry.memory_gb, "on_gpu": self.on_gpu}
        while self._is_tried_alone(attempts):
            result = run_alone(self.storage, alone(unit), attempts=len(attempts) + 1, **limits)
            if isinstance(result, UnitRecord):  # committed on its own
                return SegmentRow(key=unit.key, pkey=unit.pkey, outcome="alone", attempts=result.attempts)
            attempts = [*attempts, result]
        with writing_to(self.storage):
            last = self.failed[unit.key] = quarantine(self.storage, unit, attempts)
        return SegmentRow(
            key=unit.key, pkey=unit.pkey, outcome="quarantined", reason=last.cause, attempts=len(attempts)
        )


# --- the child as the worker sees it ----------------------------------------------------------------------------------


class _ChildEndedError(Exception):
    """The child died, or was killed because a unit took too long.

    Attributes:
        attempt: The failed try of the unit that was computed.
        begun: Number of units that may have ended it: this one, and one that was read ahead; 0: it died idle.
    """

    def __init__(self, attempt: Attempt, begun: int) -> None:
        super().__init__(attempt.message)
        self.attempt = attempt
        self.begun = begun


class _Child:
    """A child process that computes units, and the pipes to it."""

    def __init__(self, memory_gb: float, on_gpu: bool) -> None:
        self.limits = (memory_gb, on_gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.units = 0
        """Units that it was given so far."""
        # Whatever libraries print: a pipe that nobody reads would stop them.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the child
        # A session of its own, so that its end is also that of the processes that a unit has started.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.units.segment_worker", str(os.getpid())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._read = b""
        self._has_ended = False

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kill it, with the processes that it has started."""
        if self._has_ended:  # its number may be another process's by now
            return
        self._has_ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for stream in (self._requests, self._replies, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def run(
        self, storage: Storage, units: Sequence[Unit], scratch: Path, path: str, end: int, tell: Tell
    ) -> Iterator[tuple[UnitRecord, int] | Attempt]:
        """Outcomes of units, in their order: the record and the bytes that are complete in the file, or a failed try.

        Raises:
            _ChildEndedError: It is no more; the units without an outcome are left.
            JobStoppedError: The machine is at fault.
        """
        units = list(units)  # the caller takes them off its list
        self.units += len(units)
        given = {
            "storage": storage.location,
            "linked": storage.linked,
            "epoch": storage.epoch,
            "units": [asdict(unit) for unit in units],
            "scratch": str(scratch),
            "path": path,
            "end": end,
            "memory_gb": self.limits[0],
            "on_gpu": self.limits[1],
        }
        # In a file, since a pipe holds less, and who fills it waits for the reader.
        with tempfile.TemporaryFile() as request:
            request.write(json.dumps(given).encode())
            request.flush()
            self._ask(f"/proc/{os.getpid()}/fd/{request.fileno()}")
            try:
                yield from self._outcomes(units, tell)
            except BaseException:
                self.end()  # what it still says, or writes, is about these units
                raise

    def _ask(self, request: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: the missing replies tell
            self._requests.write(f"{request}\n".encode())
            self._requests.flush()

    def _outcomes(self, units: Sequence[Unit], tell: Tell) -> Iterator[tuple[UnitRecord, int] | Attempt]:
        frames = 0
        is_new = self.units == len(units)
        for number, unit in enumerate(units):
            # Once a unit was begun, the next one may be read ahead at any time.
            started, begun = time.monotonic(), int(number > 0)
            limit = START_LIMIT_S
            while True:
                message = self._message(started + limit)
                if message is None:
                    raise self._ended(unit, begun, time.monotonic() - started, is_new=is_new)
                if "begun" in message:
                    # Its own time begins when the one before has ended, which it does by this very message.
                    started, limit, begun = time.monotonic(), unit.time_limit_s, message["begun"]
                elif "frames" in message:
                    tell(frames + message["frames"])
                elif "run_error" in message:
                    raise JobStoppedError(message["run_error"])
                elif "attempt" in message:
                    yield checked(Attempt, message["attempt"], "the reply")
                    break
                else:
                    yield checked(UnitRecord, message["record"], "the reply"), message["end"]
                    break
            frames += unit.frames
            tell(frames)

    def _message(self, deadline: float) -> dict[str, Any] | None:
        """Next message; None when the child has ended, or at the deadline, at which it is killed."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                return None
            data = os.read(self._replies.fileno(), 1 << 20)
            if not data:
                return None
            self._read += data
        line, self._read = self._read.split(b"\n", 1)
        return parse_json(line, "the reply")

    def _ended(self, unit: Unit, begun: int, seconds: float, *, is_new: bool) -> Exception:
        """Error about a child that has ended without an outcome of a unit, or is over its time and is ended now."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)  # its pipe closes a moment before it is gone
        returncode = self._process.poll()
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - _TRACE_BYTES))
        trace = self._stderr.read().decode(errors="replace")
        self.end()
        if not begun and is_new:  # no unit was touched
            how = f"did not start in {START_LIMIT_S:g} s" if returncode is None else f"ended with {returncode}"
            return JobStoppedError(f"a worker's process {how}: {trace.strip()[-300:] or 'it said nothing'}")
        if returncode is None:
            cause, message = "timeout", f"took longer than {unit.time_limit_s:g} s"
        else:
            cause, message = cause_of_end(returncode, self.limits[0])
        return _ChildEndedError(Attempt(cause=cause, message=message, trace=trace, seconds=round(seconds, 3)), begun)


_kept: _Child | None = None
"""The child of this process, kept from one segment to the next."""


def _child(memory_gb: float, on_gpu: bool) -> _Child:
    global _kept
    wanted = (memory_gb, on_gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if _kept is not None and (not _kept.is_alive or _kept.limits != wanted or _kept.units >= UNITS_PER_CHILD):
        _end_child()
    if _kept is None:
        try:
            _kept = _Child(memory_gb, on_gpu)
        except OSError as error:
            raise JobStoppedError(f"a worker cannot start a process: {error}") from error
    return _kept


@atexit.register
def _end_child() -> None:
    global _kept
    if _kept is not None:
        _kept.end()
        _kept = None


# --- the child --------------------------------------------------------------------------------------------------------


def main() -> None:
    """The child: a line on stdin names the file with a request; its replies are lines on stdout."""
    end_with(int(sys.argv[1]))
    faulthandler.enable()
    # Libraries print to stdout too: the replies go to a private copy of it, and what they print to stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    for line in sys.stdin:
        request = parse_json(Path(line.strip()).read_bytes(), "the request")
        limit_memory(request["memory_gb"], on_gpu=request["on_gpu"])
        storage = Storage(request["storage"], request["linked"])
        storage.epoch = request["epoch"]
        units = [Unit(**unit) for unit in request["units"]]
        try:
            with SegmentTar(storage, Path(request["scratch"]), request["path"], request["end"]) as tar:
                for number, unit in enumerate(units):
                    _run_unit(storage, unit, units[number + 1 : number + 2], tar, reply)
        except (JobStoppedError, UnwritableError, OSError) as error:
            reply(run_error=str(error))


def _run_unit(storage: Storage, unit: Unit, following: Sequence[Unit], tar: SegmentTar, reply: Any) -> None:
    """Compute one unit while the next one is read ahead, and reply with its outcome."""
    read_ahead = reader_ahead(unit)
    ahead = following if read_ahead is not None else ()
    reply(begun=1 + len(ahead))
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        if read_ahead is not None:
            for other in ahead:
                read_ahead(storage, other)
        with reporting(lambda frames: reply(frames=frames)):
            output = compute(storage, unit)
    except JobStoppedError:
        raise
    except Exception as error:  # noqa: BLE001  every failure of an input becomes an attempt on its record
        attempt = failed_attempt(error, alone=False, seconds=time.perf_counter() - started)
        reply(attempt=asdict(attempt))
        return
    record = dataclasses.replace(
        tar.add(unit, output),
        seconds=round(time.perf_counter() - started, 4),
        cpu_seconds=round(time.process_time() - cpu_started, 4),
    )
    reply(record=asdict(UnitRecord.from_json(record.to_json())), end=tar.end)


if __name__ == "__main__":
    main()
