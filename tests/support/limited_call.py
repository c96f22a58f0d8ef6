"""Calls of our functions in a process with little memory: what they say, and the memory that they took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from tests.support.paths import ROOT

ADDRESS_SPACE = 4 << 30
"""Bytes of address space: libraries reserve far more than they take."""

_PROGRAM = """
import json, resource, sys
{code}
before = peak_memory()
resource.setrlimit(resource.RLIMIT_AS, ({limit}, resource.RLIM_INFINITY))
try:
    said = call(*sys.argv[1:])
except ValueError as error:
    said = f"error: {{error}}"
print(json.dumps([str(said), peak_memory() - before]))
"""


@dataclass(frozen=True)
class Called:
    """Outcome of a call."""

    said: str
    """Its result, or `error: ` and the message of a `ValueError`."""
    stderr: str
    memory: int
    """Bytes that the process took during the call, at its peak."""


def call_limited(code: str, *arguments: object) -> Called:
    """Run `call(*arguments)`, which `code` defines or imports, in a process of its own."""
    program = _PROGRAM.format(
        code="from talkinghead.runtime.peak_memory import peak_memory\n" + code, limit=ADDRESS_SPACE
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, memory = json.loads(done.stdout.splitlines()[-1])
    return Called(said, done.stderr, memory)
