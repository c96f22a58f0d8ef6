"""What ends a training becomes one line that says what to do."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from train.config import TrainConfig
from train.launch.failure import Failure, FailureLog, Kind, PeerError, Repetition, RunFailed, StrangerError, failure_of
from train.trainer.port import Interrupted, Preempted

CONFIG = TrainConfig(steps=10, global_batch=16, microbatch=8)

_PROGRAM = """
import resource
from pathlib import Path
import torch
from train.config import TrainConfig
from train.launch.failure import failure_of

config = TrainConfig(steps=10, global_batch=16, microbatch=8)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
for allocate in (lambda: torch.zeros(1 << 28), lambda: bytearray(1 << 30)):
    try:
        allocate()
    except (RuntimeError, MemoryError) as error:
        failure = failure_of(error, 0, Path("traceback"), config)
        print(type(error).__name__, failure.kind, failure.message, sep="|")
"""


def test_memory_that_is_really_refused_on_a_cpu() -> None:
    """By PyTorch's allocator, which raises a plain RuntimeError, and by Python's."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    torchs, pythons = (line.split("|") for line in done.stdout.splitlines())
    assert torchs[:2] == ["RuntimeError", "memory"] and pythons[:2] == ["MemoryError", "memory"]
    expected = "out of memory with microbatches of 8: take a smaller --train.microbatch"
    assert torchs[2].startswith(expected) and "you tried to allocate 1073741824 bytes" in torchs[2]
    assert pythons[2] == expected


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "out of memory with microbatches of 8: take a smaller --train.microbatch (CUDA out of memory)"),
        ({"microbatch_seconds": 12.5}, "with microbatches of 12.5 s: take a smaller --train.microbatch-seconds ("),
        ({"microbatch": 1}, "with microbatches of 1: set --train.parallel.activation-checkpointing"),
    ],
)
def test_the_microbatch_in_force_is_named(changed: dict[str, float], said: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a capacity of …")
    failure = failure_of(error, 1, Path("traceback"), dataclasses.replace(CONFIG, **changed))
    assert failure.kind == "memory" and failure.rank == 1 and said in failure.message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory"),
        ("mat1 and mat2 shapes cannot be multiplied", "fault"),
    ],
)
def test_other_errors_of_a_gpu(text: str, kind: str) -> None:
    failure = failure_of(RuntimeError(text), 0, Path("traceback"), CONFIG)
    assert failure.kind == kind and "\n" not in failure.message
    assert ("microbatches of 8" in failure.message) == (kind == "memory")


@pytest.mark.parametrize(
    ("error", "kind", "final", "status"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk", True, 1),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "disk", True, 1),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "machine", False, 1),
        (TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), "machine", False, 1),
        (MemoryError(), "memory", False, 1),
        (PeerError("rank 0 failed"), "peer", False, 1),
        (RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"), "peer", False, 1),
        (torch.distributed.DistNetworkError("failed to listen: EADDRINUSE, port 29500"), "machine", False, 1),
        (StrangerError("an object came that no rank has signed"), "fault", True, 1),
        (ZeroDivisionError("division by zero"), "fault", True, 1),
        (ValueError("the learning rate is negative"), "user", True, 2),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), "user", True, 2),
        (KeyboardInterrupt(), "interrupted", True, 1),
        (Interrupted(7), "interrupted", True, 1),
        (Interrupted(7, requeue=True), "preempted", True, 75),
        (Preempted("asked to make room"), "preempted", True, 75),
    ],
)
def test_what_another_start_may_mend(error: BaseException, kind: Kind, final: bool, status: int) -> None:
    failure = failure_of(error, 1, Path("traceback"))
    assert (failure.kind, failure.final, failure.status) == (kind, final, status)
    assert failure.line.startswith("error: ") == (kind not in ("interrupted", "preempted"))
    assert ("when it is mended" in failure.line) == (kind not in ("interrupted", "preempted", "user"))


def test_a_full_disk_that_an_error_explains_is_one() -> None:
    explained = ValueError("the checkpoint cannot be written")
    explained.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failure_of(explained, 0, Path("traceback")).kind == "disk"


def test_memory_that_does_not_suffice_twice_in_one_place_is_final() -> None:
    repetition = Repetition()
    one, two, three, four = (Failure(kind="memory", message="out of memory", rank=rank) for rank in range(4))
    assert not repetition.final(one, None) and not repetition.final(one, None)  # the same one, asked again
    assert not repetition.final(two, 500)  # there was a checkpoint in between
    assert not repetition.final(Failure(kind="lost", message="rank 3 ended without a word"), 500)
    assert repetition.final(three, 500)
    assert not repetition.final(four, 600)


def test_who_lost_a_rank_covers_no_cause(tmp_path: Path) -> None:
    log = FailureLog(tmp_path)
    lost = Failure(kind="peer", message="rank 2 lost the other ranks", rank=2)
    assert log.first() is None and log.claim(lost) and log.first() == lost
    assert not log.claim(Failure(kind="peer", message="rank 1 lost the other ranks", rank=1))
    cause = Failure(kind="memory", message="out of memory", rank=3)
    assert log.claim(cause) and log.first() == cause
    assert not log.claim(Failure(kind="lost", message="rank 3 ended without a word", rank=3)) and log.first() == cause
    assert not log.claim(lost) and log.first() == cause
    log.clear()
    assert log.first() is None


def test_a_failure_is_recorded_and_told_once(tmp_path: Path) -> None:
    log, told = FailureLog(tmp_path), []
    with pytest.raises(RunFailed) as error, log.recorded(2), log.recorded(2, CONFIG, told.append):
        raise ZeroDivisionError("division by zero")
    assert told == [error.value.failure] == [log.first()] and error.value.first
    assert "ZeroDivisionError" in (tmp_path / "traceback-2.txt").read_text()


def test_an_interruption_on_which_all_agree_is_told_to_nobody(tmp_path: Path) -> None:
    told: list[Failure] = []
    with pytest.raises(RunFailed), FailureLog(tmp_path).recorded(1, CONFIG, told.append):
        raise Interrupted(7)
    assert told == []
    with pytest.raises(RunFailed), FailureLog(tmp_path).recorded(1, CONFIG, told.append):
        raise KeyboardInterrupt
    assert [failure.kind for failure in told] == ["interrupted"]
