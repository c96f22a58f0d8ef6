"""Lmk2Video networks small enough for tests, with weights that all matter, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet

SMALL: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "attention_levels": (True, True, False),
    "num_attention_heads": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
GUIDER: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "stem_channels": (3, 8, 8, 8, 12),
    "attention_heads": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "reference_heads": 2,
}


def shake(model: nn.Module, seed: int = 0) -> None:
    """Move every parameter, so that layers which start at zero or at one count too."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=draws))


def small_denoiser(*, motion: bool = False, seed: int = 1, **settings: Any) -> Denoiser:
    """A denoiser of three levels."""
    torch.manual_seed(seed)
    model = Denoiser(**{**SMALL, "motion": motion, "motion_heads": 2, **settings})
    shake(model, seed)
    return model


def small_reference_net(seed: int = 2) -> ReferenceNet:
    """Reference network of that denoiser."""
    torch.manual_seed(seed)
    model = ReferenceNet(**SMALL)
    shake(model, seed)
    return model


def small_guider(*, shaken: bool = True, seed: int = 3, **settings: Any) -> PoseGuider:
    """PoseGuider of that denoiser."""
    torch.manual_seed(seed)
    model = PoseGuider(**{**GUIDER, **settings})
    if shaken:
        shake(model, seed)
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = 2, frames: int = 3, size: tuple[int, int] = (8, 12), seed: int = 0) -> dict[str, Any]:
    """Arguments of a small denoiser: `latents`, `timestep`, `token`, `reference`, `pose`."""
    height, width = size
    net = small_reference_net().eval()
    token = draw(batch, 1, 12, seed=seed + 1)
    with torch.no_grad():
        reference = net(draw(batch, 4, height, width, seed=seed + 2), token)
    sizes = [(8, size), (8, _half(size)), (16, _half(_half(size))), (16, _half(_half(size)))]
    return {
        "latents": draw(batch, frames, 4, height, width, seed=seed + 3),
        "timestep": torch.arange(batch) * 300 + 100,
        "token": token,
        "reference": reference,
        "pose": [draw(batch, frames, width, *size, seed=seed + 4 + n) for n, (width, size) in enumerate(sizes)],
    }


def rows(given: dict[str, Any], which: slice) -> dict[str, Any]:
    """Some samples of `inputs`."""
    return {
        "latents": given["latents"][which],
        "timestep": given["timestep"][which],
        "token": given["token"][which],
        "reference": {name: value[which] for name, value in given["reference"].items()},
        "pose": [value[which] for value in given["pose"]],
    }


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2
