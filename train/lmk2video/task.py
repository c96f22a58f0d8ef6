"""Base of both trainings of Lmk2Video: data, conditions, noise, loss, and what is exported.

Dimensions: B samples, F frames of a window; H, W size of images; C, h, w channels and size of latents; D numbers of the
image embedding.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from shards.drawn import DrawnDataset
from shards.loader import SlotDataset
from shards.reader_chain import ReaderChain
from talkinghead.models.image.networks import ImageNetworks, check_image_size
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.noise_schedule import PAPER
from talkinghead.models.weights import parameter_hash
from talkinghead.provenance import canonical_json, hash_bytes
from train.clip_choice import ReadVersions
from train.data_sets import DataSets, check_together, together
from train.lmk2video.clip_source import ClipSource, Pinned
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.dataset import HeldOutDataset, ImageSize, ItemConfig, Lmk2VideoDataset, WindowShape
from train.lmk2video.draws import Draws, WindowDraws
from train.lmk2video.loss import loss_figures, velocity_loss
from train.lmk2video.module import Conditions, Lmk2Video
from train.run.crew import ONE, Crew
from train.sources import check_finite
from train.task import Batch, Provenance, Step, Task, Totals
from train.trainer.precision import computed_in, prepare_frozen

Config = TypeVar("Config", bound=Lmk2VideoConfig)
INDEX_FILE = "model_index.json"
log = logging.getLogger(__name__)


class Lmk2VideoTask(Task, Generic[Config]):
    """A stage of Lmk2Video in training; see `train.task.Task`.

    Args:
        config: Settings of the stage.
        data: The data sets.
        folder: Folder for the pinned annotations and latents.
    """

    columns: ClassVar[tuple[str, ...]] = ("landmarks", "valid")
    """Annotation columns of a batch."""
    networks: ClassVar[dict[str, str]] = {"motion_modules": r"\.motion_modules\."}
    """Parts of the denoiser that are watched by themselves."""
    weights_key: ClassVar[str]
    """Key by which first weights are drawn. It stays when a task is renamed, else the weights would change."""

    def __init__(self, config: Config, data: DataSets, folder: Path) -> None:
        self.config = config
        self.data = data
        self.clips = [ClipSource(config, place, folder, number) for number, place in enumerate(data.locations)]
        self._encoders: dict[tuple[torch.device, torch.dtype], ImageNetworks] = {}

    @property
    @abc.abstractmethod
    def image_sources(self) -> tuple[str, str]:
        """Sources of VAE and image encoder, without `init`; see `ImageNetworks.load`."""

    @property
    @abc.abstractmethod
    def window(self) -> WindowShape:
        """Shape of the windows."""

    @abc.abstractmethod
    def first_weights(self) -> dict[str, Provenance]:
        """Read the first weights; returns setting → provenance of what lies there.

        Raises:
            ValueError: Weights are missing, damaged, or do not fit.
        """

    @abc.abstractmethod
    def build(self) -> Lmk2Video:
        """Module with its first weights; see `train.task.Task`."""

    def check(self) -> dict[str, Provenance]:
        """Check settings, weights and data; see `train.task.Task`."""
        check_image_size(self.config.width, self.config.height, self.encoder.vae)
        weights = self.first_weights()
        self._find(self.window.num_frames)
        return weights

    def prepare(self) -> None:
        """Pin the annotations and latents that the run reads; see `train.lmk2video.clip_source`."""
        for clips, found in zip(self.clips, self._find(), strict=True):
            clips.pin(found)

    def _find(self, num_frames: int = 1) -> list[Pinned]:
        """Find what to train on in each data set, and check that all go together."""
        encoders = self.encoder.provenance()
        found = [clips.find(encoders, num_frames) for clips in self.clips]
        # Latents are read where all data sets have them: one batch cannot hold both latents and images.
        without = [clips.storage.uri for clips, one in zip(self.clips, found, strict=True) if one.latents is None]
        if without and len(without) < len(found):
            log.warning("%s has no latents, so that images are encoded in every step", " and ".join(without))
            found = [clips.find(encoders, num_frames, latents_too=False) for clips in self.clips]
        check_together([clips.open_found(one) for clips, one in zip(self.clips, found, strict=True)])
        return found

    def reads(self) -> tuple[ReadVersions, ...]:
        """Versions that the run reads of each data set; see `train.task.Task`."""
        return tuple(clips.reads() for clips in self.clips)

    @functools.cached_property
    def encoder(self) -> ImageNetworks:
        """VAE and image encoder as they were read, for exports and hashes. Images are encoded by `encoder_on`."""
        if self.config.init is not None:
            return ImageNetworks.load(*(str(self.init_folder / name) for name in ("vae", "image_encoder")))
        return ImageNetworks.load(*self.image_sources)

    @functools.cached_property
    def init_folder(self) -> Path:
        """Folder of the pipeline that `init` names.

        Raises:
            ValueError: There is none.
        """
        assert self.config.init is not None
        return pipeline_folder(self.config.init, "Lmk2Video", "--config.init")

    def dataset(self, seed: int) -> SlotDataset:
        """Target windows with references and what is drawn for them; see `Lmk2VideoDataset` and `WindowDraws`."""
        size = self.item_config()
        windows = self.data.mixed([Lmk2VideoDataset(clips.reader(), size, seed) for clips in self.clips], seed)
        return DrawnDataset(windows, self._draws(size, seed))

    def held_out(self, seed: int, count: int) -> SlotDataset | None:
        """Held-out windows with references, each with a `timestep`; see `train.task.Task`."""
        # Read once, so that nothing need be kept.
        size = dataclasses.replace(self.item_config(), keep_in_memory_mb=0)
        readers = [clips.held_out_reader() for clips in self.clips]
        long_enough = [reader for reader in readers if (reader.num_frames >= self.window.num_frames).any()]
        found = together([Lmk2VideoDataset(reader, size, seed) for reader in long_enough], seed)
        return None if found is None else DrawnDataset(HeldOutDataset(found, count), self._draws(size, seed))

    def item_config(self) -> ItemConfig:
        """Content of an item of the data set."""
        config = self.config
        return ItemConfig(
            size=ImageSize(width=config.width, height=config.height, factor=self.encoder.scale),
            window=self.window,
            min_reference_gap=config.min_reference_gap,
            latents=self.clips[0].pinned.latents is not None,
            face_weight=config.face_weight,
            mouth_weight=config.mouth_weight,
            keep_in_memory_mb=config.keep_in_memory_mb,
        )

    def _draws(self, content: ItemConfig, seed: int) -> WindowDraws:
        """What is drawn for an item with this content."""
        width, height = content.size.latent
        shape = (content.window.num_frames, self.encoder.channels, height, width)
        return WindowDraws(config=self.config, seed=seed, shape=shape)

    def loss(
        self,
        module: nn.Module,
        batch: Batch,
        *,
        seed: int,
        step: int,
        total: Totals,
        critic: nn.Module | None = None,
    ) -> Step:
        """Error of the predicted velocity at one timestep of each sample; see `velocity_loss`."""
        # Distributions of the latents, read or encoded, and the random numbers of the samples.
        target, reference, embedding = self._encoded(batch)
        frames = target.shape[:2]
        drawn = Draws.of(batch)
        # Latents of target [B, F, C, h, w] and reference [B, C, h, w] out of their distributions; some samples lose
        # conditions.
        clean = self.encoder.sample(target.flatten(0, 1), drawn.target.flatten(0, 1)).unflatten(0, frames)
        given = self._conditions(batch, self.encoder.sample(reference, drawn.reference), embedding, drawn)
        # Predict the velocity from the noisy target, and compare in the frames that count.
        noisy = PAPER.add_noise(clean, drawn.noise, drawn.timesteps)
        predicted = module(noisy, drawn.timesteps, given)
        velocity = PAPER.velocity(clean, drawn.noise, drawn.timesteps)
        losses = velocity_loss(
            predicted, velocity, drawn.timesteps, batch["mask"], batch.get("region"), self.config.snr_gamma
        )
        return Step(losses=losses, figures=loss_figures(self.config, losses["loss"], drawn))

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the whole pipeline, ready to animate a portrait; see `train.task.Task`."""
        from talkinghead.pipelines.talking_head import TalkingHeadPipeline

        assert isinstance(module, Lmk2Video)
        encoder = self.encoder
        # Inference then takes the size and the window that were trained by default.
        settings: dict[str, Any] = {"width": self.config.width, "height": self.config.height}
        if (frames := self.window.num_frames) > 1:
            settings["context_frames"] = frames
        TalkingHeadPipeline(
            vae=encoder.vae,
            image_encoder=encoder.image_encoder,
            reference_net=module.reference_net,
            denoiser=module.denoiser,
            pose_guider=module.pose_guider,
            scheduler=PAPER.sampler("ddim"),
            **settings,
        ).save_pretrained(folder)

    def validate(self, weights: Path, folder: Path, device: torch.device, crew: Crew = ONE) -> dict[str, float]:
        """Compare clips, driven by their own landmarks from their own reference frame, with the true frames."""
        from train.lmk2video.validation import COLUMNS, validate

        held_out, training = (
            ReaderChain([clips.validation_reader(split, COLUMNS) for clips in self.clips]) for split in ("val", "train")
        )
        return validate(self.config, held_out, training, weights, folder, device, crew)

    def encoder_on(self, device: torch.device) -> ImageNetworks:
        """VAE and image encoder on the device of the batches, in bf16 where a GPU trains in bf16.

        They move once, in the first step; they are frozen and no part of the wrapped module.
        """
        dtype = computed_in(device)
        if (device, dtype) not in self._encoders:
            vae, image_encoder = (
                prepare_frozen(network, dtype, device) for network in (self.encoder.vae, self.encoder.image_encoder)
            )
            self._encoders = {(device, dtype): ImageNetworks(vae, image_encoder)}
        return self._encoders[device, dtype]

    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Moments of target `[B, F, 2C, h, w]` and reference `[B, 2C, h, w]`, the reference's embedding `[B, D]`."""
        if "target_moments" in batch:
            return batch["target_moments"], batch["reference_moments"], batch["reference_embedding"]
        target, reference = batch["target"], batch["reference"]
        encoder = self.encoder_on(target.device)
        # Target and reference images together, [B * F + B, 3, H, W], in parts that bound the memory; CLIP takes
        # references only.
        images = torch.cat([target.flatten(0, 1), reference])
        # The encoders have a precision of their own, and autocast on a CPU cannot join what is in half precision.
        with torch.autocast(target.device.type, enabled=False):
            moments = torch.cat([encoder.moments(part) for part in images.split(self.config.encode_chunk)])
            embedding = torch.cat([encoder.embedding(part) for part in reference.split(self.config.encode_chunk)])
        count = len(reference)
        return moments[:-count].unflatten(0, target.shape[:2]), moments[-count:], embedding

    @staticmethod
    def _conditions(batch: Batch, reference: Tensor, embedding: Tensor, drawn: Draws) -> Conditions:
        token = embedding.float()[:, None]
        return Conditions(
            token=torch.where(drawn.without_token[:, None, None], 0.0, token),
            reference=reference,
            dropped=drawn.without_reference,
            guidance=_pixels(batch["guidance"]),
            reference_guidance=_pixels(batch["reference_guidance"]),
        )


def pipeline_folder(given: str, what: str, option: str) -> Path:
    """Folder of the pipeline in a RUN, an export or converted weights.

    Raises:
        ValueError: There is none.
    """
    for place in (Path(given), Path(given) / "pretrained_model"):
        if (place / INDEX_FILE).is_file():
            return place
    raise ValueError(
        f"there are no weights of {what} in {given}: give the RUN of a training that has ended, its"
        f" pretrained_model, or converted weights, as {option}"
    )


def read_networks(folder: Path) -> Lmk2Video:
    """The three networks of a pipeline's folder.

    Raises:
        ValueError: One is missing or damaged, or has numbers that are not finite.
    """
    module = Lmk2Video(
        Denoiser.from_pretrained(folder / "denoiser"),
        ReferenceNet.from_pretrained(folder / "reference_net"),
        PoseGuider.from_pretrained(folder / "pose_guider"),
    )
    check_finite(module.state_dict(), str(folder))
    return module


def check_encoder(module: Lmk2Video, encoder: ImageNetworks, place: str) -> None:
    """Raise `ValueError` unless networks take the latents and embeddings of a VAE and an image encoder.

    Args:
        module: The networks.
        encoder: VAE and image encoder.
        place: Where all of them come from, for messages.
    """
    settings = module.denoiser.config
    for what, made, taken in (
        ("the VAE has latents of {} channels", encoder.channels, settings["in_channels"]),
        ("the image encoder makes {} numbers of an image", encoder.embedding_size, settings["cross_attention_dim"]),
    ):
        if made != taken:
            raise ValueError(
                f"the weights in {place} do not go together: {what.format(made)}, and the denoiser takes {taken}"
            )


def provenance_of(place: str, encoder: ImageNetworks, module: Lmk2Video) -> Provenance:
    """Provenance of a pipeline: one hash over VAE, image encoder and the three networks."""
    parts = {name: about["sha256"] for name, about in encoder.provenance().items()}
    sha256 = hash_bytes(canonical_json(parts | {"networks": parameter_hash(module)}))
    return {"kind": "folder", "name": Path(place).resolve().name, "sha256": sha256}


def _pixels(images: Tensor) -> Tensor:
    """Images from uint8 to float in [-1, 1]."""
    return images.float() / 127.5 - 1.0
