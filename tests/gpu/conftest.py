"""The device that is measured: a GPU at the sizes of the paper, and in every run of the tests a CPU at tiny ones."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from talkinghead.provenance import library_versions
from tests.support.gpu_bench import Bench
from tests.support.gpu_report import Report
from tests.support.paths import ROOT

FOLDER = ROOT / "build" / "gpu"
"""Folder of the report of a GPU."""

# Read when cuBLAS is first used, which is before the tests of determinism.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def missing() -> str | None:
    """Why nothing can be measured on a GPU; None: it can."""
    if not torch.cuda.is_available():
        return "needs a GPU"
    if "PYTEST_XDIST_WORKER" in os.environ:
        return "needs a GPU to itself: make test ARGS='-n 0 -m gpu tests/gpu'"
    return None


@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Device, sizes and report."""
    about: dict[str, Any] = library_versions("torch", "diffusers", "transformers")
    if request.param == "cpu":
        about |= {"device": platform.processor() or "CPU"}
        report = Report(tmp_path_factory.mktemp("report"), about)
        return Bench(device=torch.device("cpu"), size="tiny", side=64, frames=3, images=1, repeats=1, report=report)
    if (reason := missing()) is not None:
        pytest.skip(reason)
    found = torch.cuda.get_device_properties(0)
    about |= {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gb": round(found.total_memory / 1e9, 1),
        "gpus": torch.cuda.device_count(),
        "cuda": str(torch.version.cuda),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
    report = Report(FOLDER, about)
    device = torch.device("cuda", 0)
    return Bench(device=device, size="sd15", side=512, frames=16, images=4, repeats=5, report=report)


@pytest.fixture(autouse=True)
def same_arithmetic() -> Iterator[None]:
    """What a training sets for its whole process is as it was after each test."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)
