"""Weights of networks: first weights, files of weights, and the hash that identifies them.

Missing weights are never filled in at random: a folder loads whole or not at all, and every tensor of a published file
is accounted for.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from talkinghead import rng

_WRAPPERS = ("state_dict", "module")
"""Names under which training programs store the weights when they save other things with them."""


# --- first weights ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def weights_from(*key: int | str) -> Iterator[None]:
    """Context in which modules draw their first weights from the key alone; the global generator is left as it was.

    So they are equal on every rank and at every start, whatever was computed before.
    """
    # Modules are made on the CPU, so GPU generators need no saving; manual_seed takes 63 bits.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key_bits(*key) % 2**63)
        yield


def first_weights(name: str) -> contextlib.AbstractContextManager[None]:
    """`weights_from` with the name of what is trained as the key."""
    return weights_from(0, "first weights", name)


# --- folders of our own -----------------------------------------------------------------------------------------------


class StrictModel(ModelMixin, ConfigMixin):
    """A model that `save_pretrained` writes and `from_pretrained` reads, whole or not at all."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A model from a folder of `save_pretrained`, in evaluation mode.

        Stricter than the method it replaces, which fills missing weights with random ones.

        Raises:
            ValueError: The folder is missing, damaged, or holds other weights than its configuration describes.
        """
        # The plain way of loading, as the fast one needs the package `accelerate`; with the report of keys.
        kwargs = {"low_cpu_mem_usage": False, "local_files_only": True} | kwargs | {"output_loading_info": True}
        try:
            model, report = super().from_pretrained(folder, **kwargs)  # pyright: ignore[reportGeneralTypeIssues]
        except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
            text = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
            raise ValueError(
                f"{folder} is no whole {cls.__name__}: {text}. Give the folder that training or"
                " conversion wrote, or copy it again"
            ) from error
        # The library only warns of these.
        wrong = [*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])]
        if wrong:
            raise ValueError(
                f"the weights in {folder} are not of the {cls.__name__} that its config.json describes: {len(wrong)}"
                f" tensors missing, left over or of another shape, such as {wrong[0]}"
            )
        return model


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Context in which transformers and diffusers log errors only and show no progress bars; callers report instead.

    Exceptions pass through.
    """
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels, bar = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()


# --- files as others publish them -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """Comparison of a file's tensors with those that a model needs. Names are those of the published file."""

    file: str
    kind: str
    loaded: int
    """Number of tensors that fit."""
    parameters: int
    """Number of values in those tensors."""
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every tensor of the file fits the model and the model needs no other."""
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

    Nothing but tensors and plain values is unpickled. Weights under `state_dict` are taken from there; the prefix
    `module.` of data-parallel training is cut off; plain values next to tensors (step numbers, settings) are left out.

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
    # Unwrap, and keep the tensors.
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
    """Comparison of tensors with the names and shapes that a model needs.

    Args:
        file: Name of the file, for the report.
        kind: Kind of weights that it should hold, for the report.
        found: Tensors of the file by name.
        wanted: Name → shape that the model needs.
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
        # Mapped into memory: of gigabytes only the pages in use are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # A file from before PyTorch 1.6 is no zip archive and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


# --- what identifies weights ------------------------------------------------------------------------------------------


def parameter_hash(module: nn.Module) -> str:
    """SHA-256 of all parameters and persistent buffers.

    Hashes (name, dtype, shape, bytes) in the order of the names, so neither the order of registration nor the device
    matters. Buffers that `state_dict` leaves out do not count.

    Args:
        module: Network with whole tensors: gather sharded parameters first.

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
