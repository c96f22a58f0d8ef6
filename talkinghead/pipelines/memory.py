"""Memory of a pipeline's device: presets, networks that are moved off it, and advice when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from diffusers.utils.import_utils import is_accelerate_available
from diffusers.utils.torch_utils import empty_device_cache, get_device
from torch import Tensor, nn

KeepPose = Literal["device", "cpu", "none"]
"""Place where pose features are kept for the next step: on the device, in the computer's memory (`kept_aside`), or
nowhere."""


Network = TypeVar("Network", bound=nn.Module)

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "unable to allocate")
"""Parts of the messages of a failed allocation (GPU, CPU on Linux, CPU on Windows, NumPy), which share no exception."""


@dataclass(frozen=True, kw_only=True)
class MemoryPreset:
    """Settings for a device of a given memory, at Stable Diffusion 1.5's sizes and 512x512 pixels."""

    gigabytes: int
    """Memory of the device, in gigabytes as it is sold."""
    dtype: torch.dtype
    """Precision of the networks on a device that is not the CPU."""
    rest: bool
    """Whether networks that only encode the portrait stay in the computer's memory, except while they work."""
    decode_chunk_size: int
    """Number of frames decoded at once."""
    keep_pose: KeepPose
    """Place where pose features are kept for the next step."""
    share: bool
    """Whether windows share their first layers (`velocity.GuidedVelocity.share`): saves a hundredth of the operations,
    and costs most of a gigabyte."""


PRESETS: Mapping[int, MemoryPreset] = MappingProxyType(
    {
        8: MemoryPreset(gigabytes=8, dtype=torch.float16, rest=True, decode_chunk_size=1, keep_pose="cpu", share=False),
        12: MemoryPreset(
            gigabytes=12, dtype=torch.float16, rest=True, decode_chunk_size=2, keep_pose="cpu", share=False
        ),
        16: MemoryPreset(
            gigabytes=16, dtype=torch.float16, rest=False, decode_chunk_size=4, keep_pose="device", share=True
        ),
        24: MemoryPreset(
            gigabytes=24, dtype=torch.float16, rest=False, decode_chunk_size=8, keep_pose="device", share=True
        ),
    }
)
"""Presets by their gigabytes, from the smallest."""


LOOK_ONCE = ("image_encoder", "reference_net")
"""Names of a pipeline's networks that only encode the portrait, to which `MemoryPreset.rest` applies."""


def spread(parts: Mapping[str, Any], preset: MemoryPreset, device: torch.device) -> None:
    """Move a pipeline's networks to a device, or to the computer's memory where the preset says so.

    Args:
        parts: Components of the pipeline by name; those that are no networks are left alone.
        preset: Memory preset.
        device: Device of the computation.
    """
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.to("cpu" if preset.rest and name in LOOK_ONCE else device)


def memory_preset(gigabytes: int) -> MemoryPreset:
    """Preset by its number.

    Args:
        gigabytes: One of `PRESETS`.

    Raises:
        ValueError: There is no such preset.
    """
    if gigabytes not in PRESETS:
        raise ValueError(f"memory presets are {', '.join(map(str, PRESETS))} (gigabytes), not {gigabytes!r}")
    return PRESETS[gigabytes]


def fitting_preset(num_bytes: int) -> MemoryPreset:
    """Largest preset that fits a device; the smallest preset where none fits.

    Args:
        num_bytes: Memory of the device. A device sold as 24 GB has a little less: a twentieth may be missing.
    """
    fitting = [preset for preset in PRESETS.values() if preset.gigabytes * 2**30 * 0.95 <= num_bytes]
    return fitting[-1] if fitting else next(iter(PRESETS.values()))


def device_memory(device: torch.device) -> int | None:
    """Memory of a device in bytes; None for the CPU, whose memory other programs share."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    module: Any = torch.get_device_module(device)
    return module.get_device_properties(device).total_memory


@contextmanager
def at_work(network: nn.Module, device: torch.device, *, rest: bool) -> Iterator[None]:
    """Context in which a network is on a device, and after which it is in the computer's memory.

    A memory preset's own offloading: that of `diffusers` needs the accelerate library in all of its kinds.

    Args:
        network: Network to move.
        device: Device of the computation.
        rest: Whether to move the network at all; otherwise it stays where it is.
    """
    if rest:
        network.to(device)
    try:
        yield
    finally:
        if rest:
            network.to("cpu")
            empty_device_cache(device.type)


def kept_aside(tensor: Tensor) -> Tensor:
    """Copy of a tensor in the computer's memory, to be brought back to its device by `to(device, non_blocking=True)`.

    A GPU's goes into pinned memory, to and from which the GPU copies by itself, in the order of its work, while Python
    goes on. With memory that the system may move, Python would wait for all work before, at every copy.

    Args:
        tensor: Tensor on any device.

    Returns:
        Copy on the CPU. A GPU may still be writing it: only that GPU may read it without waiting.
    """
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def check_offload(device: torch.device | str | None) -> None:
    """Check what `diffusers` needs to offload networks.

    Args:
        device: Device of the computation that was asked for; None: the first accelerator.

    Raises:
        ValueError: The accelerate library is missing, or there is no accelerator; says what to do.
    """
    if not is_accelerate_available():
        raise ValueError(
            "enable_model_cpu_offload needs accelerate: pip install -c constraints.txt '.[offload]'; or take a memory"
            " preset (apply_preset), which needs nothing more"
        )
    if device is None and get_device() == "cpu":
        raise ValueError("enable_model_cpu_offload needs a GPU, and there is none: leave it out")


def without_weights(parts: Mapping[str, Any]) -> list[str]:
    """Names of a pipeline's networks without parameters, such as `CosineVae`: accelerate cannot offload them.

    Its hooks ask a network's first parameter for its device.
    """
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    return [name for name, network in networks.items() if next(network.parameters(), None) is None]


def awake(network: Network) -> Network:
    """The network, on its device, so that other methods than `forward` can be called.

    Accelerate's hooks (`enable_model_cpu_offload`) move a network to its device only before `forward`.
    """
    # A private attribute of accelerate; networks without offloading lack it.
    hook: Any = getattr(network, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(network)
    return network


@contextmanager
def out_of_memory_explained(preset: MemoryPreset | None, device: torch.device, what: str) -> Iterator[None]:
    """Context that turns an out-of-memory error into advice.

    Args:
        preset: Present memory preset; None: none.
        device: Device of the networks.
        what: Description of what is computed, such as "frames of 512x512 pixels".

    Raises:
        ValueError: Memory ran out; names the next smaller preset.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ValueError(f"not enough memory on {device} for {what}: {_advice(preset, device)}") from error


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator raises a plain RuntimeError, which only its text tells apart.
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def _advice(preset: MemoryPreset | None, device: torch.device) -> str:
    smaller = [number for number in PRESETS if preset is None or number < preset.gigabytes]
    # Of the smaller presets, those that fit the device; if none does, the smallest may still help.
    total = device_memory(device)
    if total is not None and smaller:
        smaller = [number for number in smaller if number <= fitting_preset(total).gigabytes] or smaller[:1]
    if not smaller:
        return "this is the smallest memory preset already; make the image smaller (width, height)"
    # The largest of them costs the least speed.
    best = smaller[-1]
    return f"try the memory preset {best} (apply_preset({best}), --memory {best}), or a smaller image"
