"""How a pipeline gets by with the memory of a device: presets, networks that rest, and what to do when it runs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from diffusers.utils.torch_utils import empty_device_cache
from torch import nn

KeepPose = Literal["device", "cpu", "none"]
"""Where features wait for the next step: where they were computed, in the computer's memory, or nowhere."""


Network = TypeVar("Network", bound=nn.Module)

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "unable to allocate")
"""How PyTorch's allocators, which share no exception, say it (GPU, CPU on Linux, CPU on Windows, NumPy)."""


@dataclass(frozen=True, kw_only=True)
class MemoryPreset:
    """Settings for a device with so many gigabytes, at Stable Diffusion 1.5's sizes and 512x512 pixels."""

    gigabytes: int
    dtype: torch.dtype
    """Precision of the networks on a device that is not the CPU."""
    rest: bool
    """Networks that look at the portrait only wait in the computer's memory, and visit the device for that."""
    decode_chunk_size: int
    """Frames decoded at once."""
    keep_pose: KeepPose
    """Where pose features wait."""
    share: bool
    """See `velocity.GuidedVelocity.share`: a hundredth of the operations, for most of a gigabyte."""


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
"""By gigabytes."""


LOOK_ONCE = ("image_encoder", "reference_net")
"""Networks of a pipeline that only look at the portrait: with `MemoryPreset.rest` they rest."""


def spread(parts: Mapping[str, Any], preset: MemoryPreset, device: torch.device) -> None:
    """Move a pipeline's networks, by their names, to a device or where a preset lets them rest."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.to("cpu" if preset.rest and name in LOOK_ONCE else device)


def memory_preset(gigabytes: int) -> MemoryPreset:
    """A preset by its number.

    Raises:
        ValueError: There is no such preset.
    """
    if gigabytes not in PRESETS:
        raise ValueError(f"memory presets are {', '.join(map(str, PRESETS))} (gigabytes), not {gigabytes!r}")
    return PRESETS[gigabytes]


def fitting_preset(num_bytes: int) -> MemoryPreset:
    """The most generous preset for a device with so much memory; the smallest where none fits.

    A device sold as 24 GB has a little less: a twentieth may be missing.
    """
    fitting = [preset for preset in PRESETS.values() if preset.gigabytes * 2**30 * 0.95 <= num_bytes]
    return fitting[-1] if fitting else next(iter(PRESETS.values()))


def device_memory(device: torch.device) -> int | None:
    """Bytes of a device; None where it does not say."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    module: Any = torch.get_device_module(device)
    return module.get_device_properties(device).total_memory


@contextmanager
def at_work(network: nn.Module, device: torch.device, *, rest: bool) -> Iterator[None]:
    """Have a network on a device inside, and (`rest`) in the computer's memory afterwards.

    `diffusers` has several kinds of offloading, all of which need the accelerate library.
    """
    if rest:
        network.to(device)
    try:
        yield
    finally:
        if rest:
            network.to("cpu")
            empty_device_cache(device.type)


def awake(network: Network) -> Network:
    """A network whose other methods than `forward` shall be called.

    Accelerate's hooks (`enable_model_cpu_offload`) move a network to its device in front of `forward` only.
    """
    hook: Any = getattr(network, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(network)
    return network


@contextmanager
def out_of_memory_explained(preset: MemoryPreset | None, device: torch.device, what: str) -> Iterator[None]:
    """Say what to try where memory runs out inside.

    Args:
        preset: In force; None: none.
        device: Where the networks are.
        what: Is computed, such as "frames of 512x512 pixels".

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
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def _advice(preset: MemoryPreset | None, device: torch.device) -> str:
    smaller = [number for number in PRESETS if preset is None or number < preset.gigabytes]
    total = device_memory(device)
    if total is not None and smaller:
        smaller = [number for number in smaller if number <= fitting_preset(total).gigabytes] or smaller[:1]
    if not smaller:
        return "this is the smallest memory preset already; make the image smaller (width, height)"
    best = smaller[-1]
    return f"try the memory preset {best} (apply_preset({best}), --memory {best}), or a smaller image"
