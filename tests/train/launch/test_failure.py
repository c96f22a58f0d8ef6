"""What ends a training becomes one line that says what to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from train.config import TrainConfig
from train.launch.failure import failure_of

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
    assert torchs[:2] == ["RuntimeError", "machine"] and pythons[:2] == ["MemoryError", "machine"]
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
    assert failure.kind == "machine" and failure.rank == 1 and said in failure.message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "machine"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "machine"),
        ("mat1 and mat2 shapes cannot be multiplied", "fault"),
    ],
)
def test_other_errors_of_a_gpu(text: str, kind: str) -> None:
    failure = failure_of(RuntimeError(text), 0, Path("traceback"), CONFIG)
    assert failure.kind == kind and "\n" not in failure.message
    assert ("microbatches of 8" in failure.message) == (kind == "machine")
