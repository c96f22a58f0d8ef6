"""What the user asks of `infer landmarks`, `infer audio` and `infer video`; their shared options stand once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro

from infer.weights.speech_weights import WeightsPlace, find_weights
from talkinghead.motion.blink import FASTEST_RATE

TEMPLATE_FPS = 30.0
"""Frame rate of AniPortrait's template files, which do not say it themselves."""

PREVIEW_STEPS = 8
PREVIEW_SIDE = 256
PREVIEW_SECONDS = 2.0
"""What `--preview` reduces steps, the longer side of the video, and the length to."""

PoseKind = Literal["audio", "video", "template", "still"]


@dataclass(frozen=True, kw_only=True)
class PoseSource:
    """What `--pose` asks for."""

    kind: PoseKind
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> PoseSource:
        """From `audio`, `still`, `video:FILE` or `template:FILE.npy`.

        Raises:
            ValueError: Another text; says what there is.
        """
        kind, colon, name = text.partition(":")
        if kind in ("audio", "still") and not colon:
            return cls(kind=cast(PoseKind, kind))
        if kind in ("video", "template") and name:
            return cls(kind=cast(PoseKind, kind), path=Path(name))
        raise ValueError(f"--pose is {text!r}, must be audio, still, video:FILE or template:FILE.npy")


@dataclass(frozen=True, kw_only=True)
class PortraitOptions:
    """The portrait, the video, and what is laid over the motion that drives it."""

    reference: Path
    """Portrait: an image with a face, best with the mouth closed."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Video to write (.mp4); what belongs to it goes next to it."""
    face: str | None = None
    """Which of several faces in the portrait: its number from 0, left to right; `largest`; or `X,Y`, one at a pixel."""
    expression_gain: float = 1.0
    """Factor of the expression: 0 holds the face at rest, 1 is what drives it, more exaggerates."""
    blink: str = "none"
    """Blinks laid over the motion: `none`, or how many a minute (people: 15 to 20)."""
    seed: int = 0
    """Draws what is not chosen: the same seed and settings give the same frames."""
    width: int | None = None
    """Width of the video in pixels; default: what suits --height, the weights or the portrait."""
    height: int | None = None
    """Height of the video in pixels; default: what suits --width, the weights or the portrait."""
    limit_seconds: float | None = None
    """Only the first so many seconds."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the models run."""

    def check(self) -> None:
        """Raise `ValueError` for a value that no input could make right.

        Not in `__post_init__`: the command line's parser would show it in its own words.
        """
        _check_within("--expression-gain", self.expression_gain, -10, 10)
        _check_within("--limit-seconds", self.limit_seconds, 0.01, math.inf)
        for name, side in (("--width", self.width), ("--height", self.height)):
            if side is not None and side < 1:
                raise ValueError(f"{name} is {side}, must be a number of pixels")
        _ = self.blink_rate

    @property
    def blink_rate(self) -> float | None:
        """Blinks per minute; raises `ValueError` when `blink` is nothing of the kind."""
        if self.blink == "none":
            return None
        try:
            rate = float(self.blink)
        except ValueError:
            rate = math.nan
        if not 0 < rate <= FASTEST_RATE:
            raise ValueError(
                f"--blink is {self.blink!r}, must be none, or blinks per minute: more than 0 and at most"
                f" {FASTEST_RATE:g}"
            )
        return rate


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """Speech, the models that attend to it, and how the head moves to it."""

    audio: Path
    """Speech: an audio or video file."""
    audio2mesh: Path | None = None
    """Weights of the mesh model: a folder (a training's pretrained_model, or converted) or the published file."""
    audio2pose: Path | None = None
    """Weights of the head pose model, in the same forms; needed for --pose audio."""
    pose: str = "audio"
    """Where the head's motion comes from: `audio` (the speech), `video:FILE`, `template:FILE.npy`, or `still`."""
    pose_gain: float | None = None
    """Factor of the head's angles; default: the pose model's own for `audio`, 1 otherwise."""
    smooth: int | None = None
    """Frames (odd) of the moving average over the head pose; default: what suits the source."""
    smooth_mesh: int | None = None
    """Frames (odd) of the moving average over the mesh; default: the mesh model's own."""
    template_fps: float = TEMPLATE_FPS
    """Frame rate of the pose template, which does not say it itself."""
    identity: str | None = None
    """Whose way of moving the head `--pose audio` takes: a speaker's name or number; default: drawn by the seed."""
    neutralise: Literal["none", "mouth", "all"] = "none"
    """Take an open mouth, or the whole expression, out of the portrait's mesh first."""
    fps: float | None = None
    """Frame rate of the video; default: the weights' own."""

    def check_speech(self) -> None:
        """Raise `ValueError` for a value that no input could make right."""
        _check_window("--smooth", self.smooth)
        _check_window("--smooth-mesh", self.smooth_mesh)
        _check_within("--fps", self.fps, 1, 240, " frames per second")
        _check_within("--template-fps", self.template_fps, 1, 240, " frames per second")
        _check_within("--pose-gain", self.pose_gain, -10, 10)
        for option, value in {"--audio2pose": self.audio2pose, "--identity": self.identity}.items():
            if value is not None and self.pose_source.kind != "audio":
                raise ValueError(f"{option} is of --pose audio, and the head's motion comes from --pose {self.pose}")
        if self.template_fps != TEMPLATE_FPS and self.pose_source.kind != "template":
            raise ValueError(f"--template-fps is of --pose template:FILE.npy, not of --pose {self.pose}")

    @property
    def pose_source(self) -> PoseSource:
        """`pose`, taken apart; raises `ValueError` when it is nothing of the kind."""
        return PoseSource.parse(self.pose)

    def find_audio2mesh(self, weights: Path | None) -> WeightsPlace:
        """Where the mesh model lies, in a folder of weights if nothing else is said.

        Raises:
            ValueError: It is not there.
        """
        path = self.audio2mesh or weights
        if path is None:
            raise ValueError("no weights: give --audio2mesh and --audio2pose, or --weights with a folder of both")
        return find_weights("audio2mesh", path)

    def find_audio2pose(self, weights: Path | None) -> WeightsPlace | None:
        """Where the pose model lies, in a folder of weights if nothing else is said; None when the head's motion comes
        from elsewhere.

        Raises:
            ValueError: It is not there.
        """
        if self.pose_source.kind != "audio":
            return None
        path = self.audio2pose or weights
        if path is None:
            raise ValueError(
                "--pose audio needs the weights of the pose model: give --audio2pose, or take --pose still,"
                " video:FILE or template:FILE.npy"
            )
        return find_weights("audio2pose", path)


@dataclass(frozen=True, kw_only=True)
class SpeechRequest(SpeechOptions, PortraitOptions):
    """A portrait and speech: what `landmarks` and `audio` have in common."""

    def check(self) -> None:
        """Raise `ValueError` for a value that no input could make right."""
        super().check()
        self.check_speech()


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How the images are made."""

    weights: Path
    """Weights: a pipeline's folder (made by `infer convert`, or the RUN of a training), AniPortrait's published files,
    or a folder that holds one of these next to audio2mesh/ and audio2pose/."""
    crop: Literal["face", "none"] = "face"
    """What of the portrait is animated: a box around the face, or the whole image."""
    paste_back: bool = False
    """Put the animated part back into the whole portrait, which then gives the video's size."""
    steps: int = 25
    """Steps of the sampler: more is slower and finer."""
    guidance: float = 3.5
    """How strictly the images follow the portrait; 1 or less turns guidance off, which halves the time."""
    sampler: Literal["ddim", "dpm++", "euler", "unipc"] | None = None
    """How noise becomes images; default: the weights' own."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the networks; default: fp32 on a CPU, else fp16."""
    pose_guider_mode: Literal["published", "trained", "running"] | None = None
    """How the PoseGuider of published weights normalises: as their program runs it, as it was trained, or with the
    running statistics, which makes frames independent of each other; default: as converted, or `published`."""
    memory: Literal["auto", "8", "12", "16", "24"] = "auto"
    """Gigabytes of the device's memory to get by with."""
    preview: bool = False
    """A quick look: few steps, a small image, the first 2 seconds."""

    def check_images(self) -> None:
        """Raise `ValueError` for a value that no input could make right."""
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"--steps is {self.steps}, must be 1 to 1000")
        _check_within("--guidance", self.guidance, 0, 100)

    @property
    def sampled_steps(self) -> int:
        """Steps that are really taken."""
        return min(self.steps, PREVIEW_STEPS) if self.preview else self.steps

    def seconds(self, limit: float | None) -> float | None:
        """Length that is really made, with a limit or without."""
        if not self.preview:
            return limit
        return PREVIEW_SECONDS if limit is None else min(limit, PREVIEW_SECONDS)


@dataclass(frozen=True, kw_only=True)
class LandmarkRequest(SpeechRequest):
    """A portrait and speech, and how its landmarks shall move."""

    weights: Path | None = None
    """Folder that holds both models: audio2mesh/ and audio2pose/, or the published audio2mesh.pt and audio2pose.pt."""


@dataclass(frozen=True, kw_only=True)
class AudioRequest(ImageOptions, SpeechRequest):
    """A portrait and speech, and how the portrait shall speak it."""

    def check(self) -> None:
        """Raise `ValueError` for a value that no input could make right."""
        super().check()
        self.check_images()


@dataclass(frozen=True, kw_only=True)
class VideoRequest(ImageOptions, PortraitOptions):
    """A portrait and a video whose face it shall follow."""

    driving: Path
    """Video with a face; its sound goes into the result."""
    pose: Literal["relative", "absolute", "still"] = "relative"
    """How the head moves: from the portrait's own pose as the driving head from its rest, at the driving head's angles,
    or not at all."""
    pose_gain: float = 1.0
    """Factor of the head's angles."""
    smooth: int = 3
    """Frames (odd) of the moving average over the head pose."""
    smooth_mesh: int = 1
    """Frames (odd) of the moving average over the mesh."""
    neutralise: Literal["none", "mouth"] = "mouth"
    """Close an open mouth of the portrait first, in the way in which the driving mouth closes."""
    fps: float | None = None
    """Frame rate of the video; default: the weights' own."""

    def check(self) -> None:
        """Raise `ValueError` for a value that no input could make right."""
        super().check()
        self.check_images()
        _check_window("--smooth", self.smooth)
        _check_window("--smooth-mesh", self.smooth_mesh)
        _check_within("--fps", self.fps, 1, 240, " frames per second")
        _check_within("--pose-gain", self.pose_gain, -10, 10)


def _check_window(name: str, frames: int | None) -> None:
    if frames is not None and (frames < 1 or frames % 2 == 0):
        raise ValueError(f"{name} is {frames}, must be an odd number of frames (1: no smoothing)")


def _check_within(name: str, value: float | None, least: float, most: float, unit: str = "") -> None:
    # An infinite number is none that the sidecar could hold.
    if value is not None and not (least <= value <= most and math.isfinite(value)):
        limits = f"{least:g} to {most:g}{unit}" if most < math.inf else f"a number of at least {least:g}"
        raise ValueError(f"{name} is {value:g}, must be {limits}")
