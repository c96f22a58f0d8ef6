"""What the tasks share whose model hears speech: their settings, their data, how a model begins and is kept."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from shards.loader import ClipLoader, WindowConfig, WindowDataset
from talkinghead.models.first_weights import first_weights
from talkinghead.models.speech.encoder import SpeechModel, build_encoder
from talkinghead.models.speech.weights import Pretrained
from train.audio2lmk.corpus import Corpus, CorpusConfig
from train.task import Batch, Losses, Provenance


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Settings that all models that hear speech have."""

    free_settings: ClassVar[tuple[str, ...]] = ("validation_clips",)
    """Settings that may change when a run goes on: they decide what it shows, not what is learnt."""

    wav2vec: str
    """Folder of a wav2vec 2.0 (or similar) model in transformers' layout; or `tiny`: small, random first weights."""
    freeze_cnn: bool = True
    """Leave the encoder's convolutional feature extractor as it is."""
    window_frames: int = 125
    """Frames of a window at 25 fps."""
    min_window_frames: int | None = None
    """Shorten windows to a random length from here up; None: never."""
    velocity_weight: float = 0.0
    """Weight of the L1 between the velocities, which are per frame; 0: off."""
    smoothing: int = 1
    """Frames of the moving average over predictions at inference; goes into the exported model; 1: none."""
    persons: tuple[str, ...] = ()
    """Train on these persons (or split groups) only; empty: all."""
    annotation: str | None = None
    """Annotation version; None: the newest when the run begins."""
    validation_clips: int = 4
    """Held-out clips that are validated, and as many training clips beside them."""

    def __post_init__(self) -> None:
        if self.window_frames < 2 or (self.min_window_frames or 2) < 2:
            raise ValueError("window_frames and min_window_frames must be at least 2")
        if self.min_window_frames is not None and self.min_window_frames > self.window_frames:
            raise ValueError(f"min_window_frames {self.min_window_frames} is above window_frames {self.window_frames}")
        if self.velocity_weight < 0:
            raise ValueError("velocity_weight must be at least 0")
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ValueError(f"smoothing must be an odd number of frames, not {self.smoothing}")
        if self.validation_clips < 1:
            raise ValueError("validation_clips must be at least 1")


Config = TypeVar("Config", bound=SpeechConfig)


class SpeechTask(abc.ABC, Generic[Config]):
    """See `train.task.Task`.

    Args:
        config: Settings.
        corpus: Which clips.
        folder: Where it keeps what it derives from them.
    """

    name: ClassVar[str]
    """Of the task; its first weights are drawn from it."""
    columns: ClassVar[tuple[str, ...]]
    """Annotation columns of a batch."""

    def __init__(self, config: Config, corpus: CorpusConfig, folder: Path) -> None:
        self.config = config
        self.corpus = Corpus(corpus, folder)

    def check(self) -> dict[str, Provenance]:
        """See `train.task.Task`."""
        encoder = Pretrained(self.config.wav2vec)
        with torch.device("meta"):
            build_encoder(encoder.wav2vec_config())
        self.corpus.check()
        return {"wav2vec": encoder.check()}

    def prepare(self) -> None:
        """Speakers, neutral meshes, rest poses and statistics; see `train.audio2lmk.corpus`."""
        self.corpus.derive()

    def build(self) -> nn.Module:
        """The model with its first weights."""
        encoder = Pretrained(self.config.wav2vec)
        with first_weights(self.name):
            model = self.make_model(encoder.wav2vec_config())
        encoder.load_wav2vec(model.audio_encoder)
        if self.config.freeze_cnn:
            model.freeze_cnn()
        return model

    @abc.abstractmethod
    def make_model(self, wav2vec: dict[str, Any]) -> SpeechModel:
        """The model around an encoder of this configuration."""

    def loader(self, *, global_batch: int, seed: int, rank: int, world: int, num_workers: int) -> ClipLoader:
        """Windows of speech and annotations."""
        window = WindowConfig(num_frames=self.config.window_frames, columns=("audio", *self.columns))
        return ClipLoader(
            WindowDataset(self.corpus.reader(self.columns), window, seed),
            global_batch=global_batch,
            rank=rank,
            world=world,
            num_workers=num_workers,
        )

    @abc.abstractmethod
    def loss(self, module: nn.Module, batch: Batch, *, seed: int) -> Losses:
        """See `train.task.Task`."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """The model, the speakers (their names are the identities, their neutral meshes what offsets are from), and the
        expression basis that neutralises a portrait."""
        assert isinstance(module, SpeechModel)
        module.save_pretrained(folder)
        self.corpus.export(folder)

    @abc.abstractmethod
    def validate(self, weights: Path, folder: Path, device: torch.device) -> dict[str, float]:
        """Whole held-out clips, and training clips to see the fit, against the baselines."""
