"""Training of Lmk2Video, stage 1: single frames from a reference portrait and landmarks.

Denoiser, reference network and PoseGuider learn; VAE and image encoder are frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import read_sd15_unet
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import Size, denoiser_config, pose_guider_config, reference_net_config
from talkinghead.models.weights import first_weights, parameter_hash
from train.config import ParallelConfig, ParameterGroup
from train.lmk2video.config import (
    PUBLISHED_OPTIMIZER,
    Lmk2VideoConfig,
    paper_training,
    small_training,
    tiny_training,
)
from train.lmk2video.dataset import WindowShape
from train.lmk2video.module import Lmk2Video
from train.lmk2video.task import Lmk2VideoTask, check_encoder, provenance_of, read_networks
from train.many_gpus import MACHINES, NEW_RATE, many_gpus_training
from train.recipe import Recipe
from train.sources import Source, check_fits
from train.task import Provenance


@dataclass(frozen=True, kw_only=True)
class Stage1Config(Lmk2VideoConfig):
    """Settings of stage 1."""

    size: Size
    """Size of the networks. With `init`, whose networks have theirs, it is only compared."""
    vae: str
    """Folder of the VAE in diffusers' layout; or `tiny`: a VAE that needs no training."""
    image_encoder: str
    """Folder of the CLIP image encoder in transformers' layout; or `tiny`, `small`: first weights from a fixed seed."""
    sd15: str | None = None
    """Folder of Stable Diffusion 1.5, whose UNet gives denoiser and reference network their first weights (size sd15
    only); None: first weights from a fixed seed."""
    fold_token: bool = True
    """Whether queries and keys of the attention to the single image token stay untrained: their gradient is 0."""
    new_rate: float = 1.0
    """Factor on the learning rate of the PoseGuider, for which there are no pretrained weights, and whose output layers
    begin at zero. 1: as all the rest, as published. Without effect with `init`, where nothing is new."""

    def __post_init__(self) -> None:
        super().__post_init__()
        reference_net_config(self.size)
        if self.sd15 is not None and self.size != "sd15":
            raise ValueError(f"weights of Stable Diffusion 1.5 do not fit networks of size {self.size}: take size sd15")
        if not 0 < self.new_rate < math.inf:
            raise ValueError(f"new_rate must be a number above 0, not {self.new_rate}")


class Stage1Task(Lmk2VideoTask[Stage1Config]):
    """Stage 1 in training; see `train.task.Task`."""

    weights_key = "stage1"

    @property
    def window(self) -> WindowShape:
        """Windows of a single frame."""
        return WindowShape()

    @property
    def image_sources(self) -> tuple[str, str]:
        """Sources of VAE and image encoder, as the settings name them."""
        return self.config.vae, self.config.image_encoder

    def first_weights(self) -> dict[str, Provenance]:
        """Provenance of VAE and image encoder, and of Stable Diffusion where it is given.

        Raises:
            ValueError: Weights are missing or damaged, or do not fit the networks.
        """
        if self.config.init is not None:
            return {"init": provenance_of(self.config.init, self.encoder, self._from_init())}
        # VAE and image encoder. The networks must be able to take its embedding.
        found = self.encoder.provenance()
        wanted = reference_net_config(self.config.size).get("cross_attention_dim", 768)
        if (width := self.encoder.embedding_size) != wanted:
            raise ValueError(
                f"the image encoder {self.config.image_encoder} makes {width} numbers of an image, and networks of"
                f" size {self.config.size} take {wanted}: choose another image_encoder or size"
            )
        if self.config.sd15 is None:
            return found
        # Stable Diffusion's UNet, whose tensors must be exactly those of a denoiser without motion.
        if self.encoder.channels != 4:
            raise ValueError(f"Stable Diffusion 1.5 has latents of 4 channels, vae {self.config.vae} others")
        # Without memory of its own until the tensors are assigned.
        with torch.device("meta"):
            unet = Denoiser()
        unet.load_state_dict(read_sd15_unet(self.config.sd15), assign=True)
        name = Path(self.config.sd15).resolve().name
        return found | {"sd15": {"kind": "folder", "name": name, "sha256": parameter_hash(unet)}}

    def build(self) -> Lmk2Video:
        """Module with its first weights; see `train.task.Task`."""
        if self.config.init is not None:
            module = self._from_init()
            module.train_images(fold=self.config.fold_token)
            return module
        with first_weights(self.weights_key):
            module = make_module(self.config.size, self.encoder.channels)
        # Both networks have the layout of the UNet: it replaces the first weights of all their spatial layers.
        if self.config.sd15 is not None:
            state = read_sd15_unet(self.config.sd15)
            module.denoiser.load_spatial(state)
            module.reference_net.load_denoiser(state)
        module.train_images(fold=self.config.fold_token)
        return module

    def sources(self) -> dict[str, Source]:
        """Weights of the pipeline, or of its parts."""
        if self.config.init is not None:
            return {"init": Source(what="whole pipeline, trained or published")}
        found = {
            "vae": Source(what="VAE", frozen=True),
            "image_encoder": Source(what="CLIP image encoder", frozen=True),
        }
        if self.config.sd15 is not None:
            found["sd15"] = Source(what="Stable Diffusion 1.5's UNet, for denoiser and reference network")
        return found

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The PoseGuider, where it is new and has a rate of its own."""
        if self.config.init is not None or self.config.new_rate == 1:
            return ()
        return (ParameterGroup(match=r"^pose_guider\.", rate=self.config.new_rate),)

    def _from_init(self) -> Lmk2Video:
        """Networks of `init`, without motion modules, which belong to stage 2.

        Raises:
            ValueError: They are damaged or of another size.
        """
        assert self.config.init is not None
        known = read_networks(self.init_folder)
        spatial = {name: value for name, value in known.denoiser.state_dict().items() if ".motion_modules." not in name}
        source = self.sources()["init"]
        channels = self.encoder.channels  # read here, not on the meta device
        with torch.device("meta"):
            wanted = make_module(self.config.size, channels)
        place = self.config.init
        check_encoder(known, self.encoder, place)
        check_fits(wanted.denoiser, spatial, place, source)
        check_fits(wanted.reference_net, known.reference_net.state_dict(), place, source)
        if known.denoiser.max_frames is None:
            return known
        settings: dict[str, Any] = dict(known.denoiser.config) | {"motion": False}
        with torch.device("meta"):
            denoiser = Denoiser(**{name: value for name, value in settings.items() if not name.startswith("_")})
        denoiser.load_state_dict(spatial, assign=True)
        return Lmk2Video(denoiser.eval(), known.reference_net, known.pose_guider)


def make_module(size: Size, channels: int) -> Lmk2Video:
    """Networks of stage 1, with weights from PyTorch's global generator.

    Args:
        size: Size of all three networks.
        channels: Number of channels of the latents.
    """
    denoiser, reference = denoiser_config(size, motion=False), reference_net_config(size)
    # The sizes are those for four channels; the VAE decides.
    denoiser["in_channels"] = denoiser["out_channels"] = reference["in_channels"] = channels
    return Lmk2Video(
        Denoiser(**denoiser),
        ReferenceNet(**reference),
        PoseGuider(**pose_guider_config(size)),
    )


# --- recipes ----------------------------------------------------------------------------------------------------------


def tiny() -> Recipe:
    """Small networks with first weights, images of 64 pixels, a VAE that needs no training: a handful of clips on a
    CPU in minutes."""
    config = Stage1Config(
        size="tiny",
        vae="tiny",
        image_encoder="tiny",
        width=64,
        height=64,
        mouth_weight=4.0,
        keep_in_memory_mb=512,
    )
    return Recipe(config=config, train=tiny_training(steps=800, global_batch=8, learning_rate=3e-3))


def small() -> Recipe:
    """Networks of a fraction of the paper's width with first weights, images of 128 pixels, a VAE that needs no
    training: what can be learnt without any weights to begin from, on one GPU in hours."""
    config = Stage1Config(
        size="small",
        vae="tiny",
        image_encoder="small",
        width=128,
        height=128,
        mouth_weight=2.0,
    )
    return Recipe(config=config, train=small_training(steps=60_000, global_batch=32))


def paper() -> Recipe:
    """Published settings: Stable Diffusion 1.5's sizes at 512 x 512, batches of 8 on four GPUs, AdamW 1e-5.

    Set `--config.sd15`, `--config.vae` and `--config.image_encoder` to folders with Stable Diffusion 1.5, sd-vae-ft-mse
    and the image encoder of sd-image-variations. 1.89 billion parameters are trained: their weights, gradients, both
    moments and averages take 37.8 GB on each GPU (DDP). The activations of up to four images at once come on top (2.8
    GB each), weights in bf16 (3.8 GB), and the frozen VAE and CLIP (0.8 GB in bf16) where latents are not read: 54 GB,
    for GPUs of 80 GB. On smaller ones `--train.parallel.strategy fsdp2 --train.parallel.most-at-once 2` shares it out
    (four GPUs of 40 GB: 27 GB each); on one GPU of 48 GB `--train.optimizer.name adamw8bit --train.ema.decay 0` is 19
    GB less. Activations are planned with room: by the sizes of their tensors an image keeps 2.03 GB here, and 1.85 GB
    with `fold_token`, as in the recipes for many GPUs.
    Forward and backward, an image costs 5.4 TFLOP in the networks, and 2.4 TFLOP for encoding, which make latents
    saves. The paper trained for two days on four A100; the published settings say 300,000 steps, their example loads
    30,000.
    Not published: averages of the weights (decay 0.9999; `--train.ema.decay 0` keeps none, as published), bf16, moments
    in 32 bits, normalisation frame by frame, attention to the reference's landmarks, 1 x 1 layers after each scale of
    the pose, conditions dropped for each sample (by zeros) rather than for a whole batch, no weight decay on norms and
    biases.
    """
    parallel = ParallelConfig(precision="bf16", most_at_once=4)
    return Recipe(config=_published(fold_token=False), train=paper_training(30_000, 8, parallel))


def a100x4() -> Recipe:
    """Four A100 of 40 GB or more: 2.4 million images at 512 x 512 in 37,500 steps of 64, about 9 hours.

    Set `--config.sd15`, `--config.vae` and `--config.image_encoder` as for `paper`, and run make latents first.

    Images: the published 300,000 steps of 8. Rate: the published 1e-5 for 8 images, times the square root of 64 / 8:
    2.8e-5. The PoseGuider, new and with outputs of zero, learns at 4 times that, 1.1e-4. That factor, the batch, the
    warm-up (1,000 steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: a quarter (FSDP2) of 37.1 GB of weights, gradients, moments and averages; 7.4 GB of
    gradients, which are whole until the last microbatch of a step; weights in bf16, 3.8 GB; 2.5 GB for each of 2 images
    at once: 26 GB, and room for a validation. With 80 GB, `--train.parallel.most-at-once 8` is faster.

    Time, counted: 5.27 TFLOP an image, forward and backward, at 30 % (assumed) of 4 x 312 TFLOPS: 9.4 hours. Nothing
    was measured on a GPU.
    """
    return _many_gpus("a100x4", most_at_once=2, sharded=True)


def h100x8() -> Recipe:
    """Eight H100 of 80 GB: 4.8 million images at 512 x 512 in 37,500 steps of 128, about 3 hours.

    Set `--config.sd15`, `--config.vae` and `--config.image_encoder` as for `paper`, and run make latents first.

    Images: twice the published 300,000 steps of 8, for more data. Rate: the published 1e-5 for 8 images, times the
    square root of 128 / 8: 4e-5. The PoseGuider, new and with outputs of zero, learns at 4 times that, 1.6e-4. That
    factor, the batch, the warm-up (1,000 steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 37.1 GB (DDP), weights in bf16 3.8 GB, 2.5 GB for
    each of 8 images at once: 61 GB, and room for a validation.

    Time, counted: 5.27 TFLOP an image, forward and backward, at 30 % (assumed) of 8 x 989 TFLOPS: 3.0 hours. Nothing
    was measured on a GPU.
    """
    return _many_gpus("h100x8", most_at_once=8)


def h100x64() -> Recipe:
    """64 H100 of 80 GB: 9.6 million images at 512 x 512 in 37,500 steps of 256, about 3 hours.

    Set `--config.sd15`, `--config.vae` and `--config.image_encoder` as for `paper`, and run make latents first.

    Images: four times the published 300,000 steps of 8, for more data. Rate: the published 1e-5 for 8 images, times the
    square root of 256 / 8: 5.7e-5. The PoseGuider, new and with outputs of zero, learns at 4 times that, 2.3e-4. That
    factor, the batch, the warm-up (1,000 steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 37.1 GB (DDP), weights in bf16 3.8 GB, 2.5 GB for
    each of 4 images at once: 51 GB, and room for a validation.

    Time, counted: 5.27 TFLOP an image, forward and backward, at 30 % (assumed) of 64 x 989 TFLOPS: 0.7 hours, 0.07 s a
    step. The exchange takes longer: every step moves 7.4 GB of gradients twice, 0.3 s with 400 Gbit/s for each GPU, 3.1
    hours in all. A batch of 1,024 would hide it: `--train.global-batch 1024 --train.steps 9375
    --train.optimizer.learning-rate 1.1e-4`. Nothing was measured on a GPU.
    """
    return _many_gpus("h100x64", most_at_once=8)


def _published(**settings: Any) -> Stage1Config:
    """Published sizes and sources; validation as we see fit."""
    return Stage1Config(
        size="sd15",
        vae="sd-vae-ft-mse",
        image_encoder="image_encoder",
        sd15="stable-diffusion-v1-5",
        validation_clips=16,
        **settings,
    )


def _many_gpus(name: str, *, most_at_once: int, sharded: bool = False) -> Recipe:
    train = many_gpus_training(
        MACHINES[name],
        samples=300_000 * 8,
        batch=64,
        published=PUBLISHED_OPTIMIZER,
        published_batch=8,
        warmup_steps=1000,
        most_at_once=most_at_once,
        strategy="fsdp2" if sharded else "ddp",
    )
    return Recipe(config=_published(new_rate=NEW_RATE), train=train)


RECIPES = {"tiny": tiny, "small": small, "paper": paper, "a100x4": a100x4, "h100x8": h100x8, "h100x64": h100x64}
Config = Stage1Config
make = Stage1Task
