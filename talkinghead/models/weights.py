"""Weights of networks: first weights, files of weights, and the hash that identifies them.

Missing weights are never filled in at random: a folder loads whole or not at all, and every tensor of a published file
is accounted for.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.utils import logging as transformers_logging

from talkinghead import rng
from talkinghead.models.network_settings import CONFIG_FILE, arguments_of, declared, read_settings
from talkinghead.models.weight_files import DIFFUSERS_FILES, read_folder
from talkinghead.runtime.errors import error_text

Network = TypeVar("Network", bound=nn.Module)


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
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A model from a folder of `save_pretrained`, in single precision and evaluation mode.

        Stricter than the method it replaces, which fills missing weights with random ones, and runs what the folder's
        settings ask for.

        Raises:
            ValueError: The folder is missing, damaged, or holds other weights than its configuration describes.
        """
        place = Path(folder)
        try:
            settings = declared(read_settings(place / CONFIG_FILE), arguments_of(cls))
            found = read_folder(place, DIFFUSERS_FILES)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} is no whole {cls.__name__}: {error_text(error)}. Give the folder that training or"
                " conversion wrote, or copy it again"
            ) from error
        return filled(lambda: cls(**settings), found, cls.__name__, place).eval()


def filled(
    make: Callable[[], Network],
    found: Mapping[str, Tensor],
    kind: str,
    folder: Path,
    *,
    optional: Container[str] = (),
    left_over: Callable[[str], bool] = lambda _: False,
    tables: Callable[[Network], object] = lambda _: None,
) -> Network:
    """A network with weights of a folder, whose settings may speak of any size: no more is made than the weights hold.

    Args:
        make: Function that makes the network by the folder's settings.
        found: Weights by the network's names.
        kind: Name of the network, for messages.
        folder: Folder of both, for messages.
        optional: Names of tensors that the folder may lack; they become zeros.
        left_over: Function that tells whether the folder may have a tensor of this name that the network lacks.
        tables: Function that makes the network's buffers that are not saved.

    Returns:
        The network on the CPU, its floating-point numbers in float32.

    Raises:
        ValueError: The settings describe no network, or another one than the weights are of.
    """
    # Made on the meta device, which needs no memory and draws no first weights, and counted while it is made: a million
    # layers would take hours also there.
    try:
        # Twice and a little more: some are made, then replaced or divided into several (weight norms).
        numbers = sum(value.numel() for value in found.values())
        with torch.device("meta"), no_larger_than(2 * len(found) + 64, 2 * numbers + (1 << 20)):
            network = make()
    except MemoryError:
        raise
    except Exception as error:  # the libraries' classes fail in many ways on settings they do not expect
        text = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
        raise ValueError(
            f"{folder} describes no {kind} that can be made: {text}. Give the folder that training or conversion wrote,"
            " or copy it again"
        ) from error

    # Names and shapes agree before anything is copied.
    wanted = network.state_dict()
    wrong = [f"{name} missing" for name in wanted if name not in found and name not in optional]
    wrong += [f"{name} left over" for name in found if name not in wanted and not left_over(name)]
    wrong += [
        f"{name} of shape {tuple(found[name].shape)} for {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"the weights in {folder} are not of the {kind} that its {CONFIG_FILE} describes: {len(wrong)} tensors"
            f" missing, left over or of another shape: {', '.join(wrong[:5])}{more}"
        )

    # Mapped tensors stay mapped where they are in float32: the bytes of a network are read when it computes, or moves.
    # Counters stay whole numbers.
    state = {
        name: found[name].to(torch.float32 if like.is_floating_point() else like.dtype).contiguous()
        if name in found
        else torch.zeros(like.shape, device="cpu")
        for name, like in wanted.items()
    }
    network.load_state_dict(state, assign=True)
    tables(network)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())), "a tensor has no values"
    return network


@contextlib.contextmanager
def no_larger_than(tensors: int, numbers: int) -> Iterator[None]:
    """Context in which making a network ends with `ValueError` as soon as it has too many weights.

    Args:
        tensors: Most tensors of weights.
        numbers: Most numbers in all of them.
    """
    thread = threading.get_ident()
    made = [0, 0]

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        made[0] += 1
        made[1] += parameter.numel()
        if made[0] > tensors or made[1] > numbers:
            raise ValueError("its settings describe a larger network than its weights, or than any")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


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
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """`parameter_hash` of the parameters and buffers by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content = tensor.detach().cpu().contiguous()
        for part in (name, str(content.dtype), ",".join(map(str, content.shape))):
            digest.update(f"{len(part)}:{part};".encode())
        # Bytes rather than numbers: NumPy has no bfloat16, and -0.0 differs from 0.0.
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
