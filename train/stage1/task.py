"""Lmk2Video, stage 1: denoiser, reference network and PoseGuider learn single frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from talkinghead.models.denoiser import Denoiser
from talkinghead.models.lmk2video_config import Size, denoiser_config, pose_guider_config, reference_net_config
from talkinghead.models.lmk2video_published import read_sd15_unet
from talkinghead.models.parameter_hash import parameter_hash
from talkinghead.models.pose_guider import PoseGuider
from talkinghead.models.reference_net import ReferenceNet
from train.first_weights import first_weights
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.module import Lmk2Video
from train.lmk2video.task import Lmk2VideoTask
from train.lmk2video.window import WindowShape
from train.task import Provenance


@dataclass(frozen=True, kw_only=True)
class Stage1Config(Lmk2VideoConfig):
    """Settings of stage 1."""

    size: Size
    """Of the networks."""
    vae: str
    """Folder of the codec in diffusers' layout; or `tiny`: one that needs no training."""
    image_encoder: str
    """Folder of the CLIP image encoder in transformers' layout; or `tiny`, `small`: first weights from a fixed seed."""
    sd15: str | None = None
    """Folder of Stable Diffusion 1.5, from whose UNet denoiser and reference network begin (size sd15 only); None:
    first weights from a fixed seed."""
    fold_token: bool = True
    """Leave queries and keys of the attention to the single picture token untrained: their gradient is 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        reference_net_config(self.size)
        if self.sd15 is not None and self.size != "sd15":
            raise ValueError(f"weights of Stable Diffusion 1.5 do not fit networks of size {self.size}: take size sd15")


class Stage1Task(Lmk2VideoTask[Stage1Config]):
    """See `train.task.Task`."""

    name = "stage1"

    @property
    def window(self) -> WindowShape:
        """Single frames."""
        return WindowShape()

    @property
    def picture_networks(self) -> tuple[str, str]:
        """Sources of codec and image encoder."""
        return self.config.vae, self.config.image_encoder

    def first_weights(self) -> dict[str, Provenance]:
        """Codec, image encoder, and Stable Diffusion where it is given."""
        found = self.encoder.provenance()
        wanted = reference_net_config(self.config.size).get("cross_attention_dim", 768)
        if (width := self.encoder.embedding_size) != wanted:
            raise ValueError(
                f"the image encoder {self.config.image_encoder} makes {width} numbers of a picture, and networks of"
                f" size {self.config.size} take {wanted}: choose another image_encoder or size"
            )
        if self.config.sd15 is None:
            return found
        if self.encoder.channels != 4:
            raise ValueError(f"Stable Diffusion 1.5 has latents of 4 channels, vae {self.config.vae} others")
        with torch.device("meta"):
            unet = Denoiser()
        unet.load_state_dict(read_sd15_unet(self.config.sd15), assign=True)
        name = Path(self.config.sd15).resolve().name
        return found | {"sd15": {"kind": "folder", "name": name, "sha256": parameter_hash(unet)}}

    def build(self) -> Lmk2Video:
        """The module with its first weights."""
        with first_weights(self.name):
            module = make_module(self.config.size, self.encoder.channels)
        if self.config.sd15 is not None:
            state = read_sd15_unet(self.config.sd15)
            module.denoiser.load_spatial(state)
            module.reference_net.load_denoiser(state)
        module.train_pictures(fold=self.config.fold_token)
        return module


def make_module(size: Size, channels: int) -> Lmk2Video:
    """The networks of stage 1, with weights from the global generator.

    Args:
        size: Of all three.
        channels: Of the latents.
    """
    denoiser, reference = denoiser_config(size, motion=False), reference_net_config(size)
    denoiser["in_channels"] = denoiser["out_channels"] = reference["in_channels"] = channels
    return Lmk2Video(
        Denoiser(**denoiser),
        ReferenceNet(**reference),
        PoseGuider(**pose_guider_config(size)),
    )
