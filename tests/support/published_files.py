"""Weights of Lmk2Video as published files hold them."""

from __future__ import annotations

from torch import Tensor, nn

from talkinghead.models.lmk2video.published import published_names


def published_tensors(model: nn.Module, *, motion: bool) -> dict[str, Tensor]:
    """Tensors under their published names: of the motion modules, or all others."""
    return {
        name: value.clone()
        for key, value in model.state_dict().items()
        if (".motion_modules." in key) == motion
        for name in published_names(key)
    }
