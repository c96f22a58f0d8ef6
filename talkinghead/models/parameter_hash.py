"""One number for a module's weights, to tell whether two runs ended at the same ones."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def parameter_hash(module: nn.Module) -> str:
    """SHA-256 of all parameters and persistent buffers.

    Over (name, dtype, shape, bytes) in the order of the names, so neither the order of registration nor the device
    matters. Buffers that `state_dict` leaves out do not count.

    Args:
        module: With whole tensors: gather sharded parameters first.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content = tensor.detach().cpu().contiguous()
        for part in (name, str(content.dtype), ",".join(map(str, content.shape))):
            digest.update(f"{len(part)}:{part};".encode())
        # Bytes rather than numbers: NumPy has no bfloat16, and -0.0 differs from 0.0.
        digest.update(content.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
