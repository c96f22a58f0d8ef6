"""Base of the trainings from speech: settings, data, first weights, export, and windows of speech.

Dimensions: B samples, F frames of a window; a frame has 640 audio samples.
"""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from infer.weights.speech_weights import (
    EXPORT_FOLDER,
    Kind,
    Weights,
    find_weights,
    load_audio2mesh,
    load_audio2pose,
)
from shards.drawn import DrawnDataset
from shards.loader import SlotDataset, WindowConfig, WindowDataset
from shards.reader import ShardReader
from talkinghead.models.speech.encoder import SpeechModel, build_encoder, standardise
from talkinghead.models.speech.weights import Pretrained
from talkinghead.models.weights import first_weights
from talkinghead.motion.annotated import MOTION_COLUMNS
from talkinghead.timebase import SAMPLES_PER_FRAME
from train.audio2lmk.corpus import Corpus, CorpusConfig
from train.audio2lmk.windows import FactsOf, HeldOutFacts, MotionKind, SpeechDraws, SpeechWindows, TrainedFacts
from train.clip_choice import ClipChoice, ReadVersions
from train.config import (
    CheckpointConfig,
    EmaConfig,
    OptimizerConfig,
    ParameterGroup,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)
from train.data_sets import together
from train.many_gpus import MACHINES, many_gpus_training
from train.sources import Source, check_fits, fill, warn_of_settings
from train.task import Batch, Provenance, Task


@dataclass(frozen=True, kw_only=True)
class SpeechConfig(ClipChoice):
    """Settings of all models from speech."""

    free_settings: ClassVar[tuple[str, ...]] = ("validation_clips",)
    """Settings that may change when a run goes on: they decide what is shown, not what is learnt."""

    init: str | None = None
    """Weights of the whole model to begin with: a RUN, its pretrained_model, converted or published weights. They bring
    their encoder along, so that `wav2vec` is not read. None: first weights, but for the encoder."""
    wav2vec: str
    """Folder of a wav2vec 2.0 (or similar) model in transformers' layout; or `tiny`: small, random first weights."""
    freeze_cnn: bool = True
    """Whether the convolutional feature extractor of the encoder stays untrained."""
    window_frames: int = 125
    """Number of frames of a window, at 25 fps."""
    min_window_frames: int | None = None
    """Smallest length to which windows are shortened, at random for each; None: no window is shortened."""
    velocity_weight: float = 0.0
    """Weight in the loss of the L1 between true and predicted velocity (change per frame); 0: off."""
    smoothing: int = 1
    """Number of frames, odd, of the moving average over predictions at inference; exported with the model. 1: none."""
    validation_clips: int = 4
    """Number of held-out clips that are validated, and of training clips next to them."""
    new_rate: float = 1.0
    """Factor on the learning rate of everything but the speech encoder, which alone begins with pretrained weights. 1:
    all have the same. Without effect with `init`, where nothing is new."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if not 0 < self.new_rate < math.inf:
            raise ValueError(f"new_rate must be a number above 0, not {self.new_rate}")


Config = TypeVar("Config", bound=SpeechConfig)


class SpeechTask(Task, Generic[Config]):
    """A model from speech in training; see `train.task.Task`.

    Args:
        config: Settings of the model.
        corpus: Settings that choose the clips.
        folder: Folder for what is derived from them.
    """

    kind: ClassVar[Kind]
    """Kind of model; the key by which first weights are drawn, too, so that it stays."""
    columns: ClassVar[tuple[str, ...]]
    """Annotation columns of a batch."""

    def __init__(self, config: Config, corpus: CorpusConfig, folder: Path) -> None:
        self.config = config
        self.corpus = Corpus(corpus, folder)

    def check(self) -> dict[str, Provenance]:
        """Check settings, weights and data; see `train.task.Task`."""
        if self.config.init is not None:
            # Do the weights fit these settings, and are there clips? Without memory for the weights.
            settings = dict(self.init.model.config["wav2vec"])  # read here, not on the meta device
            with torch.device("meta"):
                model = self.make_model(settings)
            check_fits(model, self.init.model.state_dict(), self.config.init, self.sources()["init"])
            self.corpus.check()
            place = self.init.place.path.resolve()
            name = (place.parent if place.name == EXPORT_FOLDER else place).name
            return {"init": {"kind": "folder", "name": name, "sha256": self.init.sha256}}
        # Does its configuration make an encoder? Without memory for the weights.
        encoder = Pretrained(self.config.wav2vec)
        with torch.device("meta"):
            build_encoder(encoder.wav2vec_config())
        # Are there clips, and is the weight file whole?
        self.corpus.check()
        return {"wav2vec": encoder.check()}

    def prepare(self) -> None:
        """Derive speakers, neutral meshes, rest poses and statistics; see `train.audio2lmk.corpus`."""
        self.corpus.derive()

    def reads(self) -> tuple[ReadVersions, ...]:
        """Versions and fits that the run reads; see `train.task.Task`."""
        return self.corpus.reads()

    def build(self) -> nn.Module:
        """Model with its first weights; see `train.task.Task`."""
        if self.config.init is not None:
            model = self.make_model(dict(self.init.model.config["wav2vec"]))
            warn_of_settings(self.init.model.config, model.config, self.config.init)
            fill(model, self.init.model.state_dict(), self.config.init, self.sources()["init"])
        else:
            encoder = Pretrained(self.config.wav2vec)
            with first_weights(self.kind):
                model = self.make_model(encoder.wav2vec_config())
            encoder.load_wav2vec(model.audio_encoder)
        if self.config.freeze_cnn:
            model.freeze_cnn()
        return model

    def sources(self) -> dict[str, Source]:
        """The whole model's weights, or those of its encoder."""
        if self.config.init is not None:
            return {"init": Source(what=f"weights of {self.kind}")}
        return {"wav2vec": Source(what="speech encoder", part="audio_encoder")}

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Everything but the encoder, where it is new and has a rate of its own."""
        if self.config.init is not None or self.config.new_rate == 1:
            return ()
        return (ParameterGroup(match=r"^(?!audio_encoder\.)", rate=self.config.new_rate),)

    @functools.cached_property
    def init(self) -> Weights[Any]:
        """Weights that the training begins with.

        Raises:
            ValueError: There are none, or they are damaged or of another model.
        """
        assert self.config.init is not None
        place = find_weights(self.kind, Path(self.config.init))
        return load_audio2mesh(place) if self.kind == "audio2mesh" else load_audio2pose(place)

    @abc.abstractmethod
    def make_model(self, wav2vec: dict[str, Any]) -> SpeechModel:
        """Model around an encoder with this configuration."""

    def dataset(self, seed: int) -> SlotDataset:
        """Windows of speech and motion, and what is drawn for them; see `train.audio2lmk.windows`."""
        neutral = None
        if self.motion == "mesh":
            neutral = np.stack([speaker.neutral.mesh for speaker in self.corpus.speakers.values()])
        facts = TrainedFacts(clips=self.corpus.clips, neutral=neutral, identities=self.identities)
        windows = [self._windows(reader, facts, seed) for reader in self.corpus.reader(self.columns).readers]
        return DrawnDataset(self.corpus.config.data.mixed(windows, seed), self.draws(seed))

    def _windows(self, reader: ShardReader, facts: FactsOf, seed: int) -> SpeechWindows:
        window = WindowConfig(num_frames=self.config.window_frames, columns=("audio", *self.columns))
        return SpeechWindows(WindowDataset(reader, window, seed), facts, self.corpus.config.pose_origin)

    @property
    def motion(self) -> MotionKind:
        """Kind of motion that is learnt."""
        return "mesh" if self.kind == "audio2mesh" else "pose"

    def draws(self, seed: int) -> SpeechDraws:
        """What is drawn for a window."""
        return SpeechDraws(seed=seed, min_frames=self.config.min_window_frames)

    @property
    def identities(self) -> int:
        """Number of rows of the model's identity embedding, if it has one."""
        return 1

    def held_out(self, seed: int, count: int) -> SlotDataset | None:
        """Held-out windows of speech and motion; see `train.task.Task`."""
        facts = HeldOutFacts(kind=self.motion, speakers=self.corpus.speakers, identities=self.identities)
        readers = self.corpus.reader(MOTION_COLUMNS, "val").readers
        found = together([self._windows(reader, facts, seed) for reader in readers if len(reader)], seed)
        return None if found is None else DrawnDataset(found, self.draws(seed))

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the model, the speakers (whose names are the identities, and from whose neutral meshes offsets are),
        and the expression basis that neutralises a portrait."""
        assert isinstance(module, SpeechModel)
        module.save_pretrained(folder)
        self.corpus.export(folder)


# --- windows of speech ------------------------------------------------------------------------------------------------


def speech_window(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised speech of a batch, and which frames count.

    Args:
        batch: Batch with `audio` `[B, F * 640]`; `mask` `[B, F]`, False where a short clip was padded or a window was
            shortened; and `speech_levels` `[B, 2]`, mean and variance of the audio of each whole clip: a window is as
            loud as inference, which normalises whole recordings, would make it.

    Returns:
        Samples `[B, F * 640]` with zeros after the frames that count, and the mask `[B, F]` bool.
    """
    mask: torch.Tensor = batch["mask"]
    # Normalise, then set what does not count to 0, which is the mean of the clip.
    mean, variance = batch["speech_levels"].split(1, dim=1)
    samples = standardise(batch["audio"], mean, variance)
    return torch.where(mask.repeat_interleave(SAMPLES_PER_FRAME, dim=1), samples, 0.0), mask


def frame_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of each sample over the frames that count, `[B, F]` → `[B]`; 0 for a sample without any.

    Args:
        values: Values of the frames, `[B, F]`.
        mask: Frames that count, `[B, F]` bool.
    """
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def frame_steps(error: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Error of the velocity: change of the error from frame to frame, `[B, F - 1, …]`, and which changes count."""
    return error[:, 1:] - error[:, :-1], mask[:, 1:] & mask[:, :-1]


# --- the trainer's settings -------------------------------------------------------------------------------------------


def tiny_training() -> TrainConfig:
    """Trainer settings for a small model with random first weights on a handful of clips: minutes on a CPU."""
    return TrainConfig(
        steps=1000,
        global_batch=8,
        microbatch=8,
        num_workers=0,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        ema=EmaConfig(decay=0.99),
        checkpoint=CheckpointConfig(every=250),
        validation=ValidationConfig(every=500),
    )


PUBLISHED_OPTIMIZER = OptimizerConfig(name="adam", learning_rate=1e-5)
"""AniPortrait's, for both models."""
_BATCH = 8
"""Windows of a step in `paper`."""


def paper_training(steps: int) -> TrainConfig:
    """Trainer settings with AniPortrait's Adam, 1e-5. Batch size, warm-up, clipping of the gradient and averaging of
    the weights were not published, so those are ours."""
    return TrainConfig(
        steps=steps,
        global_batch=_BATCH,
        optimizer=PUBLISHED_OPTIMIZER,
        schedule=ScheduleConfig(warmup_steps=500),
        ema=EmaConfig(decay=0.9995),
        checkpoint=CheckpointConfig(every=1000),
        validation=ValidationConfig(every=5000),
    )


def speech_on_many_gpus(name: str, paper_steps: int) -> TrainConfig:
    """Trainer settings for a machine: as many windows as `paper` on the smallest one, in batches of 32, 64 or 128.

    Args:
        name: Name of the machine, and of the recipe.
        paper_steps: Steps of `paper`.
    """
    return many_gpus_training(
        MACHINES[name],
        samples=paper_steps * _BATCH,
        batch=32,
        published=PUBLISHED_OPTIMIZER,
        published_batch=_BATCH,
        warmup_steps=500,
        most_at_once=32,
    )
