"""Weights by formula: every tensor of a published checkpoint made from its key and its shape.

The goldens' README states the formula (section 1); outputs of the original networks with these weights are stored
next to it, so a network can be compared without any published file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

REVERSED = ("reference_unet.pth", "audio2pose.pt")
"""Files whose draws are reversed in memory, so that they share no tensor with their likes."""
SHARP = ("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight", "in_proj_weight")
WEAK = ("out_proj.weight", "output_dense.weight", "linear2.weight")


def golden_tensor(file: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of a checkpoint, float32 (int64 for counters)."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith(".pe"):
        return _position_code(shape)
    if key == "scale":
        return np.full(shape, 2, np.float32)
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape, dtype=np.float32)
    if file in REVERSED:
        draws = np.ascontiguousarray(draws.reshape(-1)[::-1]).reshape(shape)
    if key.endswith("running_mean"):
        return np.float32(0.1) * draws
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(draws)
    if key.endswith("bias"):
        return np.float32(0.02) * draws
    if key.endswith("weight_g"):
        return np.float32(2) + np.float32(0.2) * draws
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * draws if key.endswith(".weight") else np.float32(0.02) * draws
    if key == "id_embed.weight":
        return draws
    return draws * np.float32(_gain(key) / math.sqrt(math.prod(shape[1:])))


def _gain(key: str) -> float:
    if key.startswith("conv_layers"):
        return math.sqrt(2.0)
    if key.endswith(SHARP):
        return 2.0
    return 0.3 if key.endswith(WEAK) else 1.0


def _position_code(shape: tuple[int, ...]) -> np.ndarray:
    _, length, width = shape
    position = np.arange(length, dtype=np.float32)[:, None]
    rate = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / width))
    code = np.zeros(shape, np.float32)
    code[0, :, 0::2] = np.sin(position * rate)
    code[0, :, 1::2] = np.cos(position * rate)
    return code


def golden_shapes(goldens: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of a published checkpoint, e.g. `audio2mesh`."""
    with np.load(goldens / "weights_check.npz") as check:
        return {
            str(key): tuple(int(size) for size in str(shape).split(",") if size)
            for key, shape in zip(check[f"{name}.keys"], check[f"{name}.shape"], strict=True)
        }


def golden_state(file: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A whole checkpoint."""
    return {key: torch.from_numpy(golden_tensor(file, key, shape)) for key, shape in shapes.items()}
