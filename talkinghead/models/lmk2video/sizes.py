"""Named sizes of the Lmk2Video networks, with settings that fit each other."""

from __future__ import annotations

from typing import Any, Literal, get_args

Size = Literal["tiny", "small", "sd15"]
"""Name of a size. `sd15`: Stable Diffusion 1.5's, as in the paper. `small`: a fraction of its width, to train from
random weights on one GPU. `tiny`: for tests and for learning one clip on a CPU."""

_UNETS: dict[Size, dict[str, Any]] = {
    "tiny": {
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 1,
        "attention_levels": (True, True, True, False),
        "num_attention_heads": 4,
        "cross_attention_dim": 64,
        "norm_num_groups": 8,
    },
    "small": {
        "block_out_channels": (96, 192, 288, 288),
        "layers_per_block": 2,
        "attention_levels": (True, True, True, False),
        "num_attention_heads": 6,
        "cross_attention_dim": 256,
        "norm_num_groups": 16,
    },
    "sd15": {},
}
_POSE_GUIDERS: dict[Size, dict[str, Any]] = {
    "tiny": {
        "stem_channels": (3, 16, 16, 32, 32),
        "attention_heads": 4,
        "attention_head_dim": 16,
        "norm_num_groups": 8,
        "reference_heads": 4,
    },
    "small": {
        "stem_channels": (3, 16, 32, 64, 96),
        "attention_heads": 6,
        "attention_head_dim": 48,
        "norm_num_groups": 16,
        "reference_heads": 6,
    },
    "sd15": {},
}


def reference_net_config(size: Size) -> dict[str, Any]:
    """Settings of a `ReferenceNet`, as its arguments; what is missing has Stable Diffusion 1.5's default.

    Raises:
        ValueError: There is no such size.
    """
    return dict(_UNETS[_known(size)])


def denoiser_config(size: Size, *, motion: bool) -> dict[str, Any]:
    """Settings of a `Denoiser`, with motion modules (stage 2) or without (stage 1).

    Raises:
        ValueError: There is no such size.
    """
    config = dict(_UNETS[_known(size)])
    # In the smaller sizes attention over time has as many heads as attention over positions; `sd15` keeps the defaults.
    heads = {"motion_heads": config["num_attention_heads"]} if config else {}
    return config | heads | {"motion": motion}


def pose_guider_config(size: Size) -> dict[str, Any]:
    """Settings of a `PoseGuider`.

    Raises:
        ValueError: There is no such size.
    """
    # The guider's features must have the channels of the denoiser's levels.
    unet = _UNETS[_known(size)]
    channels = {"block_out_channels": unet["block_out_channels"]} if unet else {}
    return channels | _POSE_GUIDERS[size]


def _known(size: Size) -> Size:
    if size not in get_args(Size):
        raise ValueError(f"size must be one of {', '.join(get_args(Size))}, not {size!r}")
    return size
