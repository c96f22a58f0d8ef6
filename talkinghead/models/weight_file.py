"""Files of tensors as others publish them, and how their names compare with what a model needs."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "module")
"""Under which names training programs put the weights when they save other things beside them."""


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """How the tensors of a file compare with those that a model needs. Names are those of the published file."""

    file: str
    kind: str
    loaded: int
    parameters: int
    """Numbers in the loaded tensors."""
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Every tensor found its place, and every place its tensor."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [f"{self.file} as {self.kind}: {self.loaded} tensors, {self.parameters / 1e6:.2f} million numbers"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.wrong_shape),
        ):
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            lines.append(f"  {title}: {f'{len(names)} ({shown})' if names else 'none'}")
        return "\n".join(lines)


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Nothing but tensors and plain values is unpickled. Weights below `state_dict` are taken from there; the prefix
    `module.` of data-parallel training is cut off; plain values beside tensors (step numbers, settings) are left out.

    Args:
        file: `.safetensors`, or what `torch.save` wrote (`.pth`, `.pt`, `.ckpt`, `.bin`).

    Raises:
        ValueError: The file is missing or damaged, or holds no tensors.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        content: Any = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        text = str(error).strip() or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights; it is damaged, cut short or of another kind: copy it again"
            f" ({text.splitlines()[0][:200]})"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = (
        {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ValueError(f"{path} holds no table of tensors: give the published file as it is")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def compare_keys(
    file: str, kind: str, found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size | tuple[int, ...]]
) -> KeyReport:
    """How tensors compare with the names and shapes that a model needs.

    Args:
        file: Name of the file, for the report.
        kind: What it should hold, for the report.
        found: Its tensors.
        wanted: Name → shape.
    """
    shared = found.keys() & wanted.keys()
    wrong = sorted(key for key in shared if tuple(found[key].shape) != tuple(wanted[key]))
    return KeyReport(
        file=file,
        kind=kind,
        loaded=len(shared) - len(wrong),
        parameters=sum(found[key].numel() for key in shared if key not in wrong),
        missing=sorted(wanted.keys() - found.keys()),
        unexpected=sorted(found.keys() - wanted.keys()),
        wrong_shape=[f"{key} {tuple(found[key].shape)} for {tuple(wanted[key])}" for key in wrong],
    )


def _unpickle(path: Path) -> Any:
    try:
        # Gigabytes are read where they are used, not all at once.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # Written before PyTorch 1.6: no zip archive.
        return torch.load(path, map_location="cpu", weights_only=True)


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
