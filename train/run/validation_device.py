"""Devices of validations: which one a setting means, and whether two processes may share it.

A GPU in exclusive mode (`nvidia-smi --compute-mode`) takes one process. Where the training has it, a validation in a
process of its own would fail at every step that is validated, hours after the start: it is refused before.
"""

from __future__ import annotations

import subprocess

import torch

from train.config import ValidationConfig

RANKS = "ranks"
"""Setting by which the ranks validate, each on its own device, while the training waits."""
_EXCLUSIVE = ("Exclusive_Process", "Exclusive_Thread", "Prohibited")
_PATIENCE_S = 30.0  # nvidia-smi waits for the driver, which may be starting


def device_of(config: ValidationConfig) -> torch.device:
    """Device of a validation in a process of its own; for `ranks`, by hand, the first GPU where there is one.

    Raises:
        ValueError: A GPU was asked for that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cpu" or (config.device in ("auto", RANKS) and not gpus):
        return torch.device("cpu")
    number = int(config.device.partition(":")[2] or 0)
    if number >= gpus:
        there = "no GPU" if not gpus else "only GPU 0" if gpus == 1 else f"only GPU 0 to {gpus - 1}"
        raise ValueError(f"validation.device is {config.device}, and there is {there} here: take validation.device cpu")
    return torch.device("cuda", number)


def check_device(config: ValidationConfig, training: torch.device, local_world: int) -> None:
    """Raise `ValueError` where a validation could not run next to a training. On rank 0, which starts it.

    Args:
        config: When and where to validate.
        training: Device of rank 0.
        local_world: Number of ranks on its machine, which have its first GPUs.
    """
    if not config.every or config.device == RANKS:
        return
    device = device_of(config)
    if device.type == "cpu" or training.type == "cpu" or (device.index or 0) >= local_world:
        return
    if (mode := compute_mode(device)) in _EXCLUSIVE:
        raise ValueError(
            f"validation.device is {config.device}, which the training has, and that GPU takes one process (compute"
            f" mode {mode}): take validation.device {RANKS}, cpu, or cuda:N of a GPU that no rank has"
        )


def compute_mode(device: torch.device) -> str | None:
    """Compute mode of a GPU, such as Default or Exclusive_Process; None where nvidia-smi does not tell."""
    # By its identity: nvidia-smi counts without CUDA_VISIBLE_DEVICES.
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", f"--id={identity}", "--query-gpu=compute_mode", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
