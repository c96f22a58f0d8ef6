"""Ranks that are to be on GPUs, on a machine without: refused in one line by every launcher, before RUN exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from tests.support.train_commands import SITE, run_train, toy
from train.config import ParallelConfig
from train.recipe import TASKS, recipes_of
from train.trainer import parallel
from train.trainer.parallel import check_devices

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ((), "1 rank"),
        (("--workers", 2), "2 ranks"),
        (("--workers", 2, "--launch", "ray", "--min-workers", 1), "1 rank"),
    ],
)
def test_nothing_is_begun_without_the_gpus_that_are_asked_for(
    tmp_path: Path, options: tuple[object, ...], ranks: str
) -> None:
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", "--train.parallel.device", "cuda", *options))
    assert done.process.exitcode == 2 and not (tmp_path / "run").exists(), done.stderr
    (line,) = done.errors
    assert f"parallel.device is cuda, and this machine has no GPUs for {ranks}: set --train.parallel.device cpu" in line


@pytest.mark.slow
def test_nor_by_a_torchrun(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "train"]
    command += map(str, toy(tmp_path / "run", "--train.parallel.device", "cuda"))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([SITE, str(ROOT)]), "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "parallel.device is cuda, and this machine has no GPUs for 2 ranks" in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_too_few_are_refused_for_cuda_and_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes the CPU only where there is no GPU at all."""
    monkeypatch.setattr(parallel, "_gpus", lambda: 2)
    for device in ("auto", "cuda"):
        config = ParallelConfig(device=device)
        check_devices(config, 2)
        with pytest.raises(ValueError, match="this machine has 2 GPUs for 3 ranks: start fewer ranks on it, or set"):
            check_devices(config, 3)
    check_devices(ParallelConfig(device="cpu"), 3)
    monkeypatch.setattr(parallel, "_gpus", lambda: 0)
    check_devices(ParallelConfig(), 3)


@pytest.mark.parametrize("task", [task for task, module in TASKS.items() if module.startswith("train.")])
def test_the_recipes_for_gpus_ask_for_them(task: str) -> None:
    for name in ("a100x4", "h100x8", "h100x64"):
        with pytest.raises(ValueError, match="no GPUs for 4 ranks"):
            check_devices(recipes_of(task)[name]().train.parallel, 4)
