"""A confined process: what is taken from it, on this processor for real, and by the filter's program on both kinds."""

from __future__ import annotations

import errno
import json
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from infer.metrics.confinement import MACHINES, Machine, NotConfinedError, confine, filter_program
from tests.support.paths import ROOT

ALLOWED, KILLED, REFUSED, MISSING = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def decided(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """What the filter says to a call: its program, run as the kernel runs it."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", program))
    at, word = 0, 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:  # load
            (word,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:  # return
            return value
        else:
            tests = {0x15: word == value, 0x45: bool(word & value)}
            at += yes if tests[code] else no


@pytest.mark.skipif(platform.machine() not in MACHINES or sys.platform != "linux", reason="no confinement here")
def test_nothing_is_left_but_computing(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"there")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.confined_program", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    results = json.loads(done.stdout)
    assert len(results) > 90
    assert results.pop("memory") == errno.ENOMEM
    assert {name: found for name, found in results.items() if found != errno.EPERM} == {}
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_bytes() == b"there"


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_every_call_that_is_not_listed_fails(machine: Machine) -> None:
    program = filter_program(machine)
    assert len(program) % 8 == 0 and len(program) // 8 < 4096
    special = {machine.clone3, machine.mmap, machine.clone, machine.prlimit64}
    for number in [*range(1200), *range(0x40000000, 0x40000300), 0xFFFFFFFF]:
        if number not in special:
            wanted = ALLOWED if number in machine.free.values() else REFUSED
            assert decided(program, machine.audit, number) == wanted, number
        # Calls of 32 bits (x86, ARM) come under another number of the machine.
        for other in (0x40000003, 0x40000028, *(found.audit for found in MACHINES.values() if found is not machine)):
            assert decided(program, other, number) == KILLED


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_threads_and_own_memory_are_allowed(machine: Machine) -> None:
    program = filter_program(machine)

    def result(number: int, *arguments: int) -> int:
        return decided(program, machine.audit, number, *arguments)

    assert result(machine.clone3, 0x7FFF0000, 88) == MISSING
    # Threads of glibc and of musl; fork, vfork, a thread in a new mount namespace.
    assert [result(machine.clone, flags) for flags in (0x3D0F00, 0x7D0F00)] == [ALLOWED] * 2
    assert [result(machine.clone, flags) for flags in (17, 0x4111, 0x3C0F00, 0x3F0F00)] == [REFUSED] * 4
    # Private and anonymous, with stack and no reserve; a file, privately; shared, anonymous; a file, shared.
    assert [result(machine.mmap, 0, 4096, 3, flags) for flags in (0x22, 0x24022)] == [ALLOWED] * 2
    assert [result(machine.mmap, 0, 4096, 3, flags) for flags in (0x02, 0x21, 0x01, 0x23)] == [REFUSED] * 4
    # Reading a limit; setting one, in either half of the pointer; another process.
    assert result(machine.prlimit64, 0, 3, 0, 1) == ALLOWED
    assert result(machine.prlimit64, 0, 3, 1, 0) == result(machine.prlimit64, 0, 3, 1 << 40, 0) == REFUSED
    assert result(machine.prlimit64, os.getpid(), 3, 0, 1) == REFUSED


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(NotConfinedError, match=r"Linux on x86_64 or aarch64, not .* riscv64"):
        confine(2**30)
