"""Collectives of the ranks, written down when they end."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path

import torch
from torch._C import _distributed_c10d

from tests.support.paths import ROOT
from train.launch.flight_recorder import _CPU_DUMP, _GPU_DUMP, PREFIX, recorder_settings

_PROGRAM = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from train.launch.flight_recorder import dump, record

logs, rank = Path(sys.argv[1]), int(sys.argv[2])
record(logs)
dist.init_process_group("gloo", init_method=f"file://{logs}/store", rank=rank, world_size=2)
for _ in range(2):
    dist.all_reduce(torch.ones(5))
if rank == 0:  # one that nobody joins
    unfinished = dist.all_reduce(torch.ones(7), async_op=True)
dump(logs, rank)
import os; os._exit(0)
"""


def test_what_the_ranks_have_begun_is_written_down(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", _PROGRAM, str(tmp_path), str(rank)], cwd=ROOT) for rank in range(2)
    ]
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    entries = [json.loads((tmp_path / f"{PREFIX}{rank}.json").read_text())["entries"] for rank in range(2)]
    sums = [[entry for entry in part if "all_reduce" in entry["profiling_name"]] for part in entries]
    # Rank 0 has begun one that rank 1 did not come to.
    assert [[entry["input_sizes"] for entry in part] for part in sums] == [[[[5]], [[5]], [[7]]], [[[5]], [[5]]]]


def test_pytorch_still_knows_the_names(tmp_path: Path) -> None:
    """Names of its library for variables and functions, which it would leave unread without a word."""
    assert hasattr(_distributed_c10d, _CPU_DUMP)
    assert hasattr(_distributed_c10d, _GPU_DUMP) == torch.distributed.is_nccl_available()
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in recorder_settings(tmp_path):
            assert content.find(name.encode()) >= 0 or name in header.read_text(), name
