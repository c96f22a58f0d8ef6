"""Networks of a pipeline without their weights, whose operations and memory can be counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPVisionModelWithProjection

from talkinghead.models.image.cosine_vae import CLASS_NAMES, CosineVae
from talkinghead.models.image.networks import Vae
from talkinghead.models.image.weights import vision_config
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import published_pose_guider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.network_settings import CONFIG_FILE, arguments_of, declared, read_settings
from talkinghead.models.weights import no_larger_than

NETWORKS = ("vae", "image_encoder", "reference_net", "denoiser", "pose_guider")
_TENSORS, _NUMBERS = 20_000, 10**11
"""Most tensors and numbers of all networks together, many times those of the published ones: a `config.json` may be a
stranger's."""
# The published sizes, as in the configurations of sd-vae-ft-mse and CLIP ViT-L/14.
_SD_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}


@dataclass(frozen=True, kw_only=True)
class HollowNetworks:
    """Networks of a pipeline on the meta device: shapes without memory for weights."""

    vae: Vae
    image_encoder: CLIPVisionModelWithProjection
    reference_net: ReferenceNet
    denoiser: Denoiser
    pose_guider: PoseGuider

    @classmethod
    def published(cls) -> Self:
        """Networks of the published sizes: sd-vae-ft-mse, CLIP ViT-L/14, Stable Diffusion 1.5."""
        configs = {"vae": _SD_VAE, "image_encoder": _CLIP_L, "denoiser": {"motion": True}}
        return cls.described({"pose_guider": published_pose_guider("running"), "reference_net": {}} | configs)

    @classmethod
    def described(cls, configs: Mapping[str, Mapping[str, Any]]) -> Self:
        """Networks of the given settings.

        Args:
            configs: Settings of each network by its name in `NETWORKS`. Those of the VAE name its class as
                `_class_name`, unless it is Stable Diffusion's.
        """
        vae = CosineVae if configs["vae"].get("_class_name") in CLASS_NAMES else AutoencoderKL
        classes: dict[str, Any] = {
            "vae": vae,
            "reference_net": ReferenceNet,
            "denoiser": Denoiser,
            "pose_guider": PoseGuider,
        }
        made: dict[str, Any] = {}
        with torch.device("meta"), no_larger_than(_TENSORS, _NUMBERS):
            for name, kind in classes.items():
                made[name] = kind(**declared(configs[name], arguments_of(kind)))
            made["image_encoder"] = CLIPVisionModelWithProjection(
                vision_config(configs["image_encoder"], "image_encoder")
            )
        return cls(**{name: network.eval() for name, network in made.items()})

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Networks of a pipeline's folder, of which only the configurations are read.

        Args:
            folder: Folder of a saved pipeline.

        Raises:
            ValueError: A configuration is missing or damaged.
        """
        try:
            return cls.described({name: read_settings(folder / name / CONFIG_FILE) for name in NETWORKS})
        except MemoryError:
            raise
        except Exception as error:  # the libraries' classes fail in many ways on settings they do not expect
            raise ValueError(f"{folder} does not describe a whole pipeline ({error}): copy it again") from error

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each network, by its name."""
        return {name: sum(value.numel() for value in getattr(self, name).parameters()) for name in NETWORKS}

    def to(self, dtype: torch.dtype) -> Self:
        """Cast all networks, in place."""
        for name in NETWORKS:
            getattr(self, name).to(dtype)
        return self
