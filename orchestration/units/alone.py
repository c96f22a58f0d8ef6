"""Running one unit alone in a child process, under a wall-clock limit and a memory limit.

A unit that took its worker down is retried here, so that a second crash hurts no other unit and leaves a precise cause:
the signal, the time-out, or the exception, with the end of stderr.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

from orchestration import ROOT
from orchestration.units.frame_reports import EVERY_S, Tell, reporting
from orchestration.units.memory_limit import ENDED, limit_memory
from orchestration.units.records import Attempt, UnitRecord, checked
from orchestration.units.unit import JobStoppedError, Unit, failed_attempt, run_unit
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.runtime.child_process import end_with_parent

_TRACE_BYTES = 4000
_LOOK_S = 2.0
"""How long before its time is up a child prints its stack, in seconds."""
_DIGITS = 20  # bytes in which a child writes its number of frames


def run_alone(
    storage: Storage, unit: Unit, *, attempts: int, memory_gb: float, on_gpu: bool = False, tell: Tell | None = None
) -> UnitRecord | Attempt:
    """Run a unit in a fresh child process.

    Args:
        storage: DATA, the data set's folder or bucket.
        unit: Unit to run.
        attempts: Number of this try, counted from 1, for the record.
        memory_gb: Memory limit of the child, in GiB.
        on_gpu: Whether the child computes on a GPU.
        tell: Called now and then with the number of frames that the unit has gone through.

    Returns:
        The commit record, or what went wrong.

    Raises:
        JobStoppedError: The machine is at fault.
    """
    place = {"storage": storage.location, "linked": storage.linked, "epoch": storage.epoch}
    # A session of its own, so that a time-out also ends the processes that the unit has started. Its time counts from
    # here: on a busy machine it takes seconds to start. All processes of a machine have the same monotonic clock.
    started = time.monotonic()
    look_at = started + max(1.0, unit.time_limit_s - _LOOK_S)
    limits = {"attempts": attempts, "memory_gb": memory_gb, "on_gpu": on_gpu, "look_at": look_at}
    # The child writes how far it is into a few bytes of memory that both have: neither waits for the other.
    with os.fdopen(os.memfd_create("frames"), "rb") as frames:
        request = json.dumps({**place, "unit": unit.to_json(), **limits, "frames": frames.fileno()})
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "orchestration.units.alone"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[frames.fileno()],
            )
        except OSError as error:
            raise JobStoppedError(f"a worker cannot start a process: {error}") from error
        stdout, stderr = _communicate(child, request.encode(), started + unit.time_limit_s, frames.fileno(), tell)
    if stdout is None:
        message = f"took longer than {unit.time_limit_s:g} s"
        return _attempt("timeout", message, stderr, time.monotonic() - started)
    seconds = time.monotonic() - started
    try:
        reply = parse_json(stdout, "the reply") if child.returncode == 0 else None
    except ValueError:
        reply = None
    if reply is None:
        cause, message = cause_of_end(child.returncode, memory_gb)
        return _attempt(cause, message, stderr, seconds)
    if "run_error" in reply:
        raise JobStoppedError(reply["run_error"])
    if "record" in reply:
        return checked(UnitRecord, reply["record"], "the reply")
    return checked(Attempt, reply["attempt"], "the reply")


def _communicate(
    child: subprocess.Popen[bytes], request: bytes, deadline: float, frames: int, tell: Tell | None
) -> tuple[bytes | None, bytes]:
    """What a child prints to stdout and stderr until it ends; at the deadline it is killed, and stdout is None."""
    sent: bytes | None = request
    while (left := deadline - time.monotonic()) > 0:
        try:
            return child.communicate(sent, timeout=min(left, EVERY_S))
        except subprocess.TimeoutExpired:
            sent = None  # it is on its way
        if tell is not None and (text := os.pread(frames, _DIGITS, 0)):
            tell(int(text))
    # The child's own watchdog printed its stack before the limit, so that stderr shows where it hung.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return None, child.communicate()[1]


def cause_of_end(returncode: int, memory_gb: float) -> tuple[str, str]:
    """Cause of a failed try whose process ended without a result, and a message about it.

    Args:
        returncode: How it ended, as of `subprocess`.
        memory_gb: Its memory limit, in GiB.
    """
    # Ended by a signal: a crash in native code, or the kernel's out-of-memory killer.
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"crash:{name}", f"the process was ended by {name}"
    if returncode == ENDED:
        return "memory", f"took more than {memory_gb:g} GiB of memory"
    # Ended by itself: something called exit() under it.
    return f"crash:exit{returncode}", "the process ended without a result"


def _attempt(cause: str, message: str, stderr: bytes, seconds: float) -> Attempt:
    """Failed try of a child that left no reply: the end of its stderr takes the place of a traceback."""
    trace = stderr[-_TRACE_BYTES:].decode(errors="replace")
    return Attempt(cause=cause, message=message, trace=trace, alone=True, seconds=round(seconds, 3))


def _write_frames(descriptor: int, frames: int) -> None:
    os.pwrite(descriptor, str(frames).rjust(_DIGITS).encode(), 0)


def main() -> None:
    """The child: one request on stdin, one reply on stdout."""
    end_with_parent()
    faulthandler.enable()
    request = parse_json(sys.stdin.read(), "the request")
    unit = Unit.from_json(request["unit"])
    # Libraries print to stdout too: the reply goes to a private copy of it, and what they print to stderr.
    reply_stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Both limits hold before the job's modules are loaded. The watchdog only prints; the parent kills.
    limit_memory(request["memory_gb"], on_gpu=request["on_gpu"])
    faulthandler.dump_traceback_later(max(0.1, request["look_at"] - time.monotonic()))
    started = time.perf_counter()
    try:
        storage = Storage(request["storage"], request["linked"])
        storage.epoch = request["epoch"]
        with reporting(lambda frames: _write_frames(request["frames"], frames)):
            record = run_unit(storage, unit, attempts=request["attempts"])
        reply = {"record": asdict(record)}
    except JobStoppedError as error:
        reply = {"run_error": str(error)}
    except Exception as error:  # noqa: BLE001  every failure of an input becomes an attempt on its record
        reply = {"attempt": asdict(failed_attempt(error, alone=True, seconds=time.perf_counter() - started))}
    json.dump(reply, reply_stream)
    reply_stream.close()


if __name__ == "__main__":
    main()
