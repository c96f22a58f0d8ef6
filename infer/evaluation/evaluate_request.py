"""What the user asks of `infer evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infer.weights.pipeline_weights import PipelinePlace, find_pipeline
from infer.weights.speech_weights import WeightsPlace, find_weights

MODELS = ("audio2mesh", "audio2pose", "lmk2video")
_VIDEO_ONLY = (
    "frames",
    "drive",
    "width",
    "height",
    "steps",
    "guidance",
    "seed",
    "device",
    "identity_model",
    "sync_model",
    "fid_model",
    "fvd_model",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """One model, and the clips to measure it on."""

    data: str
    """Data folder, or a URI such as s3://bucket/folder."""
    split: Literal["train", "val", "test"] = "val"
    """Which clips."""
    audio2mesh: Path | None = None
    """Weights of the mesh model."""
    audio2pose: Path | None = None
    """Weights of the head pose model."""
    lmk2video: Path | None = None
    """Weights of the video pipeline: its folder, or the RUN of a training."""
    version: str | None = None
    """Annotation version; default: the newest."""
    limit: int | None = None
    """Only the first so many clips."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for validation.json and validation.txt; of the video pipeline also contact sheets and videos."""
    frames: int | None = 50
    """Frames of each clip, from its middle, for the video pipeline; None: all."""
    drive: Literal["own", "next"] = "own"
    """Whose landmarks drive a clip's reference frame in the video pipeline: its own, which are compared with the true
    frames, or the next clip's, of which there is no truth but whether the face follows."""
    width: int | None = None
    """Width of the images in pixels; default: what the weights have learnt."""
    height: int | None = None
    """Height of the images in pixels; default: what the weights have learnt."""
    steps: int = 25
    """Steps of the sampler."""
    guidance: float = 3.5
    """Guidance scale; 1 or less turns guidance off."""
    seed: int = 0
    """Seed of the noise."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the video pipeline runs."""
    identity_model: Path | None = None
    """TorchScript network that embeds faces, for identity_similarity; see infer/metrics/learned_metrics.py."""
    sync_model: Path | None = None
    """TorchScript network that embeds lips and sound, for the sync measures."""
    fid_model: Path | None = None
    """TorchScript network that describes images, for frechet_inception_distance."""
    fvd_model: Path | None = None
    """TorchScript network that describes videos, for frechet_video_distance."""

    def check(self) -> None:
        """Raise `ValueError` for values that no data could make right."""
        given = [name for name in MODELS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of --audio2mesh, --audio2pose and --lmk2video")
        if self.lmk2video is None:
            for setting in fields(self):
                if setting.name in _VIDEO_ONLY and getattr(self, setting.name) != setting.default:
                    option = setting.name.replace("_", "-")
                    raise ValueError(f"--{option} is of --lmk2video only: {given[0]} makes no video")
        for name in ("limit", "frames", "width", "height", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, must be at least 1")

    def find(self) -> WeightsPlace | PipelinePlace:
        """The weights.

        Raises:
            ValueError: They are not there.
        """
        if self.audio2mesh is not None:
            return find_weights("audio2mesh", self.audio2mesh)
        if self.audio2pose is not None:
            return find_weights("audio2pose", self.audio2pose)
        assert self.lmk2video is not None, "checked before"
        return find_pipeline(self.lmk2video)
