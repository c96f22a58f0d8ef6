"""Options of `infer evaluate`: one model, or pairs of a driver and a renderer, and the clips to measure them on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infer.evaluation.bootstrap import RESAMPLES
from infer.weights.pipeline_weights import PipelinePlace, find_pipeline
from infer.weights.speech_weights import WeightsPlace, find_weights

MODELS = ("audio2mesh", "audio2pose", "lmk2video")
_MOST = 1_000_000  # GiB or seconds of a metric's network: as good as no limit
# Options without effect on some forms; given with one of these, they are an error instead of being ignored.
_VIDEOS = (
    "frames",
    "width",
    "height",
    "steps",
    "guidance",
    "device",
    "identity_model",
    "sync_model",
    "metric_memory",
    "metric_seconds",
)
"""Options of all forms that make videos."""
_PIPELINE_ONLY = ("drive", "seed", "fid_model", "fvd_model")
_PAIRS_ONLY = ("weights", "seeds", "resamples")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """One model, or pairs, and the clips to measure them on."""

    data: str
    """Data folder, or a URI such as s3://bucket/folder."""
    split: Literal["train", "val", "test"] = "val"
    """Split whose clips are measured."""
    audio2mesh: Path | None = None
    """Weights of the mesh model."""
    audio2pose: Path | None = None
    """Weights of the head pose model."""
    lmk2video: Path | None = None
    """Weights of the video pipeline: its folder, or the RUN of a training."""
    pair: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """DRIVER+RENDERER, each as `infer animate` names it or a folder of weights: `audio2lmk+lmk2video`,
    `build/mesh+build/stage2`, `video+landmarks`; the driver `truth` is the clip's own motion. Give it once for each
    pair: all are measured on the same clips, next to five baselines, into a page."""
    weights: Path | None = None
    """Weights of the drivers and renderers that a pair names without a folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds with which every pair shows every clip."""
    resamples: int = RESAMPLES
    """Number of bootstrap resamples for the 95 % intervals of pairs."""
    version: str | None = None
    """Annotation version; default: the newest."""
    limit: int | None = None
    """Number of clips that are measured, from the first on; default: all."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for validation.json and validation.txt; for the video pipeline also for contact sheets and videos. For
    pairs it is needed: index.html, evaluation.txt, evaluation.json, and the scores that a second run goes on from."""
    frames: int | None = 50
    """Number of frames of each clip, near its middle, for the video pipeline and pairs; None: all."""
    drive: Literal["own", "next"] = "own"
    """Clip whose landmarks drive a reference frame in the video pipeline: own, so that the result is compared with the
    true frames; or next, the next clip, so that only whether the face follows can be measured."""
    width: int | None = None
    """Width of the images in pixels; default: the width that the weights were trained on."""
    height: int | None = None
    """Height of the images in pixels; default: the height that the weights were trained on."""
    steps: int = 25
    """Steps of the sampler."""
    guidance: float = 3.5
    """Guidance scale; 1 or less turns guidance off."""
    seed: int = 0
    """Seed of the noise of the video pipeline; pairs have several, --seeds."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the video pipeline."""
    identity_model: Path | None = None
    """TorchScript network that embeds faces, for identity_similarity; its form: infer/metrics/learned_metrics.py. Such
    a file is a program of its author: each of the four runs in a process of its own that can neither open files nor
    connect, and only where the system can keep it so (Linux on x86-64 or 64-bit ARM)."""
    sync_model: Path | None = None
    """TorchScript network that embeds lips and sound, for the sync metrics."""
    fid_model: Path | None = None
    """TorchScript network that describes images, for frechet_inception_distance."""
    fvd_model: Path | None = None
    """TorchScript network that describes videos, for frechet_video_distance."""
    metric_memory: float = 8.0
    """Memory that each TorchScript network may take, in GiB, in addition to PyTorch's own."""
    metric_seconds: float = 600.0
    """Seconds that each TorchScript network may take to load, and for each batch of 16."""

    def check(self) -> None:
        """Raise `ValueError` for values that are wrong whatever the data."""
        given = [name for name in MODELS if getattr(self, name) is not None]
        if len(given) + bool(self.pair) != 1:
            raise ValueError("give one of --audio2mesh, --audio2pose and --lmk2video, or --pair for each pair")
        if self.pair:
            self._refuse(_PIPELINE_ONLY, "--lmk2video", "a pair: --help tells which options it has")
            if self.output is None:
                raise ValueError("pairs are written into a folder: give -o DIR")
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise ValueError("--seeds must be one or more different numbers")
        elif self.lmk2video is not None:
            self._refuse(_PAIRS_ONLY, "--pair", "--lmk2video")
        else:
            self._refuse(_PIPELINE_ONLY, "--lmk2video", f"{given[0]}, which makes no video")
            self._refuse(_VIDEOS, "--lmk2video and --pair", f"{given[0]}, which makes no video")
            self._refuse(_PAIRS_ONLY, "--pair", given[0])
        for name in ("limit", "frames", "width", "height", "steps", "resamples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, must be at least 1")
        for name in ("metric_memory", "metric_seconds"):
            value = getattr(self, name)
            if not 0 < value <= _MOST:
                raise ValueError(f"--{name.replace('_', '-')} is {value:g}, must be above 0 and at most {_MOST:,}")

    def _refuse(self, names: tuple[str, ...], form: str, given: str) -> None:
        """Refuse options of another form: `form` names the one that they belong to, `given` the one that there is."""
        defaults = {setting.name: setting.default for setting in fields(self)}
        for name in names:
            # An option at its default counts as not given: the command line does not tell the two apart.
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{name.replace('_', '-')} applies to {form} only, not to {given}")

    def find(self) -> WeightsPlace | PipelinePlace:
        """Place of the weights.

        Raises:
            ValueError: There are none.
        """
        if self.audio2mesh is not None:
            return find_weights("audio2mesh", self.audio2mesh)
        if self.audio2pose is not None:
            return find_weights("audio2pose", self.audio2pose)
        assert self.lmk2video is not None, "checked before"
        return find_pipeline(self.lmk2video)
