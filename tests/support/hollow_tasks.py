"""Tasks at the published sizes, without the weights that they begin with: their modules are counted, not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Wav2Vec2Config

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.speech.weights import encoder_settings
from train.audio2lmk.audio2mesh import Audio2MeshTask
from train.audio2lmk.audio2pose import Audio2PoseTask
from train.data_sets import DataSets
from train.lmk2video.module import Lmk2Video
from train.lmk2video.stage1 import Stage1Task, make_module
from train.lmk2video.stage2 import Stage2Task
from train.recipe import Recipe
from train.task import Task


def hollow(task: str, recipe: Recipe) -> Task:
    """Task of a recipe, by the task's full name."""
    kind = {
        "lmk2video-stage1": HollowStage1,
        "lmk2video-stage2": HollowStage2,
        "audio2mesh": HollowMesh,
        "audio2pose": HollowPose,
    }[task]
    return kind(recipe.config, DataSets.of("none"), Path("nowhere"))


class HollowSpeech:
    """Either model from speech, around wav2vec 2.0 base."""

    config: Any
    make_model: Any

    def build(self) -> nn.Module:
        model = self.make_model(encoder_settings(Wav2Vec2Config()))
        model.freeze_cnn()
        return model


class HollowMesh(HollowSpeech, Audio2MeshTask):
    """Audio2Mesh at the published size."""


class HollowPose(HollowSpeech, Audio2PoseTask):
    """With 300 speakers, about as many as HDTF has."""

    num_identities = 300  # type: ignore[assignment]

    def make_model(self, wav2vec: dict[str, Any]) -> Audio2Pose:
        config = self.config
        return Audio2Pose(
            wav2vec=wav2vec,
            num_identities=self.num_identities,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            feed_forward=config.feed_forward,
            context=config.context,
            position_period=config.position_period,
        )


class HollowStage1(Stage1Task):
    """Stage 1 at the published size, without the weights that it begins with."""

    def build(self) -> Lmk2Video:
        module = make_module("sd15", 4)
        module.train_images(fold=self.config.fold_token)
        return module


class HollowStage2(Stage2Task):
    """Stage 2 at the published size, without the weights that it begins with."""

    def build(self) -> Lmk2Video:
        images = make_module("sd15", 4)
        settings: dict[str, Any] = {
            name: value for name, value in images.denoiser.config.items() if not name.startswith("_")
        }
        denoiser = type(images.denoiser)(**settings | {"motion": True, "motion_frames": self.config.max_frames})
        module = Lmk2Video(denoiser, images.reference_net, images.pose_guider)
        module.train_motion()
        return module
