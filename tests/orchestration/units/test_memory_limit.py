"""The memory limit of a unit's process ends what takes too much, and minds no address space that is only reserved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.units.alone import run_alone
from orchestration.units.memory_limit import ENDED
from orchestration.units.records import Attempt
from orchestration.units.unit import Unit
from talkinghead.files.storage import Storage

RESERVE = """
import ctypes, mmap, sys, time
from orchestration.units.memory_limit import limit_memory
PROT_NONE = 0
system = ctypes.CDLL(None, use_errno=True)
system.mmap.restype = ctypes.c_void_p
system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def reserve(gigabytes, protection):
    place = system.mmap(None, gigabytes << 30, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
    return place != ctypes.c_void_p(-1).value  # 0x4000: MAP_NORESERVE
"""
"""Reserves address space as CUDA does when it begins."""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RESERVE + program], capture_output=True, text=True, check=False)


def test_on_a_cpu_an_allocation_beyond_the_limit_fails() -> None:
    done = run("""
limit_memory(1.0)
assert reserve(200, PROT_NONE), "nobody can write there"
try:
    bytearray(2 << 30)
except MemoryError:
    print("refused")
assert not reserve(200, mmap.PROT_READ | mmap.PROT_WRITE), "counts, though it is not used"
""")
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_on_a_gpu_only_what_is_used_counts() -> None:
    done = run("""
limit_memory(1.0, on_gpu=True)
assert reserve(200, PROT_NONE) and reserve(200, mmap.PROT_READ | mmap.PROT_WRITE)
some = bytearray(300 << 20)
time.sleep(1)
print("alive", flush=True)
more = bytearray(2 << 30)  # written: zeros that Python puts there
for part in range(0, len(more), 4096):
    more[part] = 1
time.sleep(60)
print("still alive")
""")
    assert (done.returncode, done.stdout) == (ENDED, "alive\n"), done.stderr
    assert "GiB, may hold 1" in done.stderr


def test_the_last_limit_counts() -> None:
    """A worker process that had a unit on a CPU may get one on a GPU, and the other way round."""
    done = run("""
limit_memory(1.0)
limit_memory(1.0, on_gpu=True)
assert reserve(200, mmap.PROT_READ | mmap.PROT_WRITE), "the system's limit is off"
limit_memory(4.0)
big = bytearray(b"x") * (1500 << 20)
time.sleep(1)
print("alive")
""")
    assert "alive" not in done.stdout, "the reserved space now counts, and a copy of a byte does not fit"
    done = run("""
limit_memory(1.0, on_gpu=True)
limit_memory(4.0)
big = bytearray(b"x") * (1500 << 20)
time.sleep(1)
print("alive")
""")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_unit_alone_that_takes_too_much_has_the_cause_memory(tmp_path: Path, on_gpu: bool) -> None:
    unit = Unit(
        job="test",
        key="greedy",
        pkey="0123456789abcdef",
        function="tests.support.poison:behave",
        payload={"behaviour": "memory", "runs": str(tmp_path / "runs")},
        source="",
        time_limit_s=300.0,
    )
    outcome = run_alone(Storage(tmp_path / "data"), unit, attempts=1, memory_gb=1.0, on_gpu=on_gpu)
    assert isinstance(outcome, Attempt) and outcome.cause == "memory", outcome
    assert ("more than 1 GiB" in outcome.message) == on_gpu
