"""Devices of validations, without a GPU: what is asked of CUDA and of nvidia-smi is answered for them here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from train.config import ValidationConfig
from train.run.validation_device import check_device, compute_mode, device_of

GPU = torch.device("cuda", 0)


def with_gpus(monkeypatch: pytest.MonkeyPatch, folder: Path, mode: str, count: int = 2) -> None:
    """GPUs with an identity each, and an nvidia-smi that knows them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    about: Any = type("About", (), {"uuid": "1234-56"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = --id=GPU-1234-56 ] && echo {mode}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), "/usr/bin", "/bin"]))


@pytest.mark.parametrize("name", ["cpu", "auto", "cuda", "cuda:0", "cuda:17", "ranks"])
def test_names_of_devices(name: str) -> None:
    assert ValidationConfig(device=name).device == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "mps", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="it must be auto, cpu, cuda, cuda:N"):
        ValidationConfig(device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu() -> None:
    for name in ("cpu", "auto", "ranks"):
        assert device_of(ValidationConfig(device=name)) == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"validation.device is {name}, and there is no GPU here"):
            device_of(ValidationConfig(device=name))
        with pytest.raises(ValueError, match="there is no GPU here"):
            check_device(ValidationConfig(device=name), torch.device("cpu"), 2)
        check_device(ValidationConfig(device=name, every=0), torch.device("cpu"), 2)


def test_gpus_by_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpus(monkeypatch, tmp_path, "Default")
    for name, index in (("auto", 0), ("ranks", 0), ("cuda", 0), ("cuda:1", 1)):
        assert device_of(ValidationConfig(device=name)) == torch.device("cuda", index)
    with pytest.raises(ValueError, match=r"validation\.device is cuda:2, and there is only GPU 0 to 1 here"):
        device_of(ValidationConfig(device="cuda:2"))


def test_a_gpu_in_exclusive_mode_is_not_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpus(monkeypatch, tmp_path, "Exclusive_Process")
    assert compute_mode(GPU) == "Exclusive_Process"
    for name in ("cuda", "auto", "cuda:0"):
        with pytest.raises(ValueError, match=r"takes one process .*: take validation.device ranks, cpu, or cuda:N"):
            check_device(ValidationConfig(device=name), GPU, 1)
    # One that no rank has, the ranks themselves, and a training on CPUs need not share.
    for name, local in (("cuda:1", 1), ("ranks", 2), ("cpu", 2)):
        check_device(ValidationConfig(device=name), GPU, local)
    check_device(ValidationConfig(device="cuda"), torch.device("cpu"), 2)


def test_a_shared_gpu_and_one_that_does_not_tell_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpus(monkeypatch, tmp_path, "Default")
    check_device(ValidationConfig(device="cuda"), GPU, 1)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert compute_mode(GPU) is None
    check_device(ValidationConfig(device="cuda"), GPU, 1)
