"""A process that gives up, for ever, whatever reaches beyond its own memory: before it runs a stranger's program.

What is left to it: to compute, in threads, with a limited amount of memory, and to read and write the pipes that are
open already. It cannot open, make, rename or remove files, connect, start programs, or touch other processes. Root is
not needed, and root has no more rights in it.

1. A filter of system calls in the kernel (Linux: seccomp). It is a list of the few calls that a computation needs;
   every other call fails with EPERM, also those that future kernels add. It holds for all threads, cannot be taken
   back, and holds whatever machine code runs: also where a faulty native library is made to run a program's bytes.
2. Limits of the process. No file descriptor can be made any more, so that a gap in the filter would open nothing; no
   core file is written by a crash; the address space has an end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# linux/prctl.h, linux/seccomp.h
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

# linux/bpf_common.h: load a word of the call's data, jump if equal, if at least, if any of these bits is set, return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE = 0, 4  # places in struct seccomp_data

# linux/sched.h: the flags with which C libraries start a thread; of a process, CLONE_THREAD is not among them.
_CLONE_THREAD, _THREAD_FLAGS = 0x00010000, 0x007D0F00
# linux/mman.h
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """System calls of one kind of processor."""

    audit: int
    """Number by which the kernel tells the filter the kind of call (linux/audit.h)."""
    free: Mapping[str, int]
    """Calls that are allowed with any arguments: they reach the process itself, the clock, and its open files."""
    mmap: int
    """Allowed for fresh memory of the process itself, never for a file or shared."""
    clone: int
    """Allowed for threads."""
    clone3: int
    """Does not exist in the process: C libraries then use clone, whose flags a filter can read."""
    prlimit64: int
    """Allowed for reading the process's own limits."""
    seccomp: int
    """The call that sets the filter; not allowed in it."""


# Names of the columns: x86-64 (asm/unistd_64.h), and ARM's 64 bits (asm-generic/unistd.h).
_FREE = {
    # The pipes, and giving back what is open.
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    # Memory.
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    # Threads, how they wait for each other, and signals within the process.
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # Clocks, random bytes, and what the machine is.
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
}

MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        free={name: numbers[0] for name, numbers in _FREE.items()},
        mmap=9,
        clone=56,
        clone3=435,
        prlimit64=302,
        seccomp=317,
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        free={name: numbers[1] for name, numbers in _FREE.items()},
        mmap=222,
        clone=220,
        clone3=435,
        prlimit64=261,
        seccomp=277,
    ),
}
"""Processor, as `platform.machine()` names it → its system calls."""


class NotConfinedError(Exception):
    """The system cannot confine a process; the message says what it lacks."""


def confine(memory: int) -> None:
    """Confine this process, all its threads, for ever.

    What the process needs of files (modules, shared libraries) must be loaded before.

    Args:
        memory: Bytes of address space that it may take in addition to what it has.

    Raises:
        NotConfinedError: The system has no such filter, or refuses it; nothing is to be run then.
    """
    machine = MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        raise NotConfinedError(f"that takes Linux on {' or '.join(MACHINES)}, not {sys.platform} {platform.machine()}")
    # Limits first: the filter also forbids setting them.
    _limit(memory)
    _filter(machine)
    # A system that only pretends (an emulated kernel) is found out.
    try:
        os.close(os.open("/", os.O_RDONLY))
    except OSError as error:
        if error.errno == errno.EPERM:
            return
    raise NotConfinedError("the system took a filter of system calls and does not keep to it")


def _limit(memory: int) -> None:
    """Set the limits of the process."""
    # When the machine runs out of memory all the same, this process is the one to go.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, wanted in (
        (resource.RLIMIT_AS, taken + memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))


def _filter(machine: Machine) -> None:
    """Set the filter of system calls for all threads."""
    program = filter_program(machine)
    instructions = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    # Not readable for other processes of the user either; and without the next line only root may set a filter.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise NotConfinedError(f"the kernel lacks no_new_privs ({os.strerror(ctypes.get_errno())})")
    # struct sock_fprog: the number of instructions, and where they are. prctl() would set it for one thread only.
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    wanted = (machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(described))
    if libc.syscall(*(ctypes.c_long(value) for value in wanted)):
        raise NotConfinedError(f"the kernel takes no filter of system calls ({os.strerror(ctypes.get_errno())})")


def filter_program(machine: Machine) -> bytes:
    """The filter as the kernel's instructions (classic BPF, 8 bytes each); it runs before every system call."""
    steps = [
        # Calls of another kind (32 bits) have other numbers: no library of this process makes one.
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    # The x32 calls of x86-64 have numbers above all of the others: they match none of the list.
    for number in machine.free.values():
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    # Each block begins with the number loaded, and is left out where it is another call's.
    for number, block in (
        (machine.clone3, [(_RETURN, 0, 0, _FAIL | errno.ENOSYS)]),
        (
            machine.clone,
            [
                (_LOAD, 0, 0, _argument(0)),
                (_ANY_BIT, 2, 0, 0xFFFFFFFF ^ _THREAD_FLAGS),
                (_ANY_BIT, 0, 1, _CLONE_THREAD),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _FAIL | errno.EPERM),
            ],
        ),
        (
            machine.mmap,
            [
                (_LOAD, 0, 0, _argument(3)),
                (_ANY_BIT, 2, 0, _MAP_SHARED),
                (_ANY_BIT, 0, 1, _MAP_ANONYMOUS),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _FAIL | errno.EPERM),
            ],
        ),
        (
            machine.prlimit64,
            [
                # This process (0), and no new limits (NULL, in both halves of the pointer).
                (_LOAD, 0, 0, _argument(0)),
                (_EQUAL, 0, 5, 0),
                (_LOAD, 0, 0, _argument(2)),
                (_EQUAL, 0, 3, 0),
                (_LOAD, 0, 0, _argument(2) + 4),
                (_EQUAL, 0, 1, 0),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _FAIL | errno.EPERM),
            ],
        ),
    ):
        steps += [(_EQUAL, 0, len(block), number), *block]
    steps.append((_RETURN, 0, 0, _FAIL | errno.EPERM))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _argument(number: int) -> int:
    """Place of the lower half of an argument in struct seccomp_data; both kinds of processor are little-endian."""
    return 16 + 8 * number
