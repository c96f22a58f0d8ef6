"""Flight recorder of the process groups: which collectives each rank has begun and ended, written down when it ends.

PyTorch keeps the newest collectives of each rank in memory. NCCL's own watchdog writes them to a file when one of them
takes longer than `parallel.timeout_s`; ranks that end because of another one write theirs, too. Those of GPUs are read
by

    python -m torch.distributed.flight_recorder.fr_trace RUN/logs --prefix collectives-rank-

which names the collective in which the ranks have parted, and its place in the code. That program knows no gloo: of
ranks on CPUs the file is JSON, one entry for each collective that the rank has begun.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import torch
from torch._C import _distributed_c10d

from talkinghead.files.foreign import open_own

PREFIX = "collectives-rank-"
"""Beginning of the names of the files in RUN/logs; the number of the rank follows."""
_ENTRIES = 2000
_PATIENCE_S = 2.0
# Private names of PyTorch; a test notices when they change. The first one is there where it is built with NCCL.
_GPU_DUMP, _CPU_DUMP = "_dump_nccl_trace", "_dump_fr_trace_json"


def recorder_settings(logs: Path) -> dict[str, str]:
    """Environment variables by which PyTorch keeps and writes the newest collectives; it reads them when it makes the
    first process group.

    Args:
        logs: RUN/logs.
    """
    return {
        "TORCH_FR_BUFFER_SIZE": str(_ENTRIES),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": str(logs / PREFIX),
    }


def record(logs: Path) -> None:
    """Let the process groups that are made from now on keep their newest collectives; settings of the user's stay."""
    for name, value in recorder_settings(logs).items():
        os.environ.setdefault(name, value)


def dump(logs: Path, rank: int) -> None:
    """Write the newest collectives of this rank to RUN/logs, as far as that works at once.

    The device may hang, which is why the rank ends: then the file is missing, and nothing waits for it.
    """
    gpu = torch.cuda.is_initialized()
    arguments = (logs / f"{PREFIX}{rank}", _GPU_DUMP) if gpu else (logs / f"{PREFIX}{rank}.json", _CPU_DUMP)
    thread = threading.Thread(target=_write, args=arguments, name="flight recorder", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)


def _write(file: Path, name: str) -> None:
    with contextlib.suppress(OSError, RuntimeError), os.fdopen(open_own(file), "wb") as stream:
        stream.truncate(0)
        stream.write(getattr(_distributed_c10d, name)())
