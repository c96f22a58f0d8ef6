"""Options of `infer animate` and its short forms `audio`, `video` and `landmarks`; what they share is defined once.

The class and field docstrings are the help of the command line.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from infer.part_source import PartSource
from infer.weights.speech_weights import WeightsPlace, find_weights
from talkinghead.motion.blink import FASTEST_RATE

if TYPE_CHECKING:
    from talkinghead.models.noise_schedule import Distillation

TEMPLATE_FPS = 30.0
"""Frame rate of AniPortrait's pose templates, in frames per second; the files do not contain it."""

PREVIEW_STEPS = 8
PREVIEW_SIDE = 256
PREVIEW_SECONDS = 2.0
"""Limits of `--preview`: sampling steps, longer side of the video in pixels, and length in seconds."""


@dataclass(frozen=True, kw_only=True)
class PortraitOptions:
    """The portrait, the output, and edits of the motion: options that all three commands share."""

    reference: Path
    """Portrait: an image with a face, best with the mouth closed."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Video to write (.mp4); its companion files go next to it."""
    face: str | None = None
    """Which of several faces in the portrait: number from 0, left to right; `largest`; or `X,Y`, nearest to a pixel."""
    expression_gain: float = 1.0
    """Factor of the expression: 0 keeps the face at rest, 1 leaves the motion as it is, more exaggerates."""
    lips_gain: float = 1.0
    """Factor of the expression of mouth, jaw and lower cheeks alone."""
    brows_gain: float = 1.0
    """Factor of the expression of the brows alone."""
    still_in_silence: bool = False
    """Keep the mouth shut where nobody speaks in the sound, by the network of the column speech_activity."""
    blink: str = "none"
    """Blinks added to the motion: `none`, or blinks per minute (people: 15 to 20)."""
    seed: int = 0
    """Seed of everything random: the same seed and settings give the same frames."""
    width: int | None = None
    """Width of the video in pixels; default: what suits --height, the weights or the portrait."""
    height: int | None = None
    """Height of the video in pixels; default: what suits --width, the weights or the portrait."""
    limit_seconds: float | None = None
    """Longest length of the video in seconds; what comes later is left out."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device on which the models run."""
    adapter: tuple[Path, ...] = ()
    """Adapters of trainings with `--lora.match`: folders `adapter/`, or the RUNs that hold them. Each goes with the
    weights that its training began with."""

    def check(self) -> None:
        """Check the values of the options, without reading a file.

        Not in `__post_init__`: the command line's parser would report the error in a format of its own.

        Raises:
            ValueError: A value is out of range; the message names the option and what it must be.
        """
        check_within("--expression-gain", self.expression_gain, 0, 10)
        check_within("--lips-gain", self.lips_gain, 0, 10)
        check_within("--brows-gain", self.brows_gain, 0, 10)
        check_within("--limit-seconds", self.limit_seconds, 0.01, math.inf)
        for name, side in (("--width", self.width), ("--height", self.height)):
            if side is not None and side < 1:
                raise ValueError(f"{name} is {side}, must be a number of pixels")
        _ = self.blink_rate  # parsed, and so checked

    @property
    def blink_rate(self) -> float | None:
        """Blinks per minute, None for no blinks; raises `ValueError` when `blink` is neither `none` nor a rate."""
        if self.blink == "none":
            return None
        try:
            rate = float(self.blink)
        except ValueError:
            rate = math.nan  # no comparison with NaN holds, so it is refused below
        if not 0 < rate <= FASTEST_RATE:
            raise ValueError(
                f"--blink is {self.blink!r}, must be none, or blinks per minute: more than 0 and at most"
                f" {FASTEST_RATE:g}"
            )
        return rate


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """The speech, the models that turn it into motion, and the motion of the head."""

    audio: Path
    """Speech: an audio or video file."""
    audio2mesh: Path | None = None
    """Weights of the mesh model: a folder (a training's pretrained_model, or converted) or the published file."""
    audio2pose: Path | None = None
    """Weights of the head pose model, in the same forms; needed for --pose audio."""
    pose: str = "audio"
    """Source of the head's motion: `audio` (the speech), `video:FILE`, `template:FILE.npy`, or `still`."""
    pose_gain: float | None = None
    """Factor of the head's angles; default: the pose model's own for `audio`, 1 otherwise."""
    smooth: int | None = None
    """Window of the moving average over the head pose, in frames (odd); default: what suits the source."""
    smooth_mesh: int | None = None
    """Window of the moving average over the mesh, in frames (odd); default: the mesh model's own."""
    template_fps: float = TEMPLATE_FPS
    """Frame rate of the pose template; the file does not contain it."""
    identity: str | None = None
    """Speaker whose way of moving the head `--pose audio` takes, a name or number; default: drawn by the seed."""
    neutralise: Literal["none", "mouth", "all"] = "none"
    """Remove an open mouth, or the whole expression, from the portrait's mesh first."""
    fps: float | None = None
    """Frame rate of the video; default: the weights' own."""

    def check_speech(self) -> None:
        """Check the options of this class; raises `ValueError` when a value is out of range or belongs elsewhere."""
        check_window("--smooth", self.smooth)
        check_window("--smooth-mesh", self.smooth_mesh)
        check_within("--fps", self.fps, 1, 240, " frames per second")
        check_within("--template-fps", self.template_fps, 1, 240, " frames per second")
        check_within("--pose-gain", self.pose_gain, -10, 10)
        # An option that would have no effect is refused: the user expects one.
        for option, value in {"--audio2pose": self.audio2pose, "--identity": self.identity}.items():
            if value is not None and self.pose_source.kind != "audio":
                raise ValueError(f"{option} belongs to --pose audio, but the head's motion is --pose {self.pose}")
        if self.template_fps != TEMPLATE_FPS and self.pose_source.kind != "template":
            raise ValueError(f"--template-fps belongs to --pose template:FILE.npy, not to --pose {self.pose}")

    @property
    def pose_source(self) -> PartSource:
        """`pose`, parsed; raises `ValueError` when it has none of the forms."""
        return PartSource.parse("--pose", self.pose, "audio", "still", "video:FILE", "template:FILE.npy")

    def find_audio2mesh(self, weights: Path | None) -> WeightsPlace:
        """Location of the mesh model's weights: `audio2mesh` where it is given, else a folder of weights.

        Args:
            weights: Folder to search when `audio2mesh` is not given.

        Raises:
            ValueError: Neither is given, or there are no such weights.
        """
        path = self.audio2mesh or weights
        if path is None:
            raise ValueError("no weights: give --audio2mesh and --audio2pose, or --weights with a folder of both")
        return find_weights("audio2mesh", path)

    def find_audio2pose(self, weights: Path | None) -> WeightsPlace | None:
        """Location of the pose model's weights: `audio2pose` where it is given, else a folder of weights.

        Args:
            weights: Folder to search when `audio2pose` is not given.

        Returns:
            The location; None when the head's motion does not come from the speech, so that no model is needed.

        Raises:
            ValueError: Neither is given, or there are no such weights.
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
    """A portrait and speech: options that `landmarks` and `audio` share."""

    def check(self) -> None:
        """Check all options; raises `ValueError` as the parts do."""
        super().check()
        self.check_speech()


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Weights and settings of the image generation."""

    weights: Path
    """Weights: a pipeline's folder (made by `infer convert`, or the RUN of a training), AniPortrait's published files,
    or a folder that holds one of these next to audio2mesh/ and audio2pose/."""
    steps: int | None = None
    """Number of sampling steps: more is slower and finer; default: 25, or 4 with distilled weights."""
    guidance: float | None = None
    """Guidance scale: how strictly the images follow the portrait; 1 or less turns guidance off and halves the time;
    default: 3.5, or 1 with distilled weights, which take no more."""
    sampler: Literal["ddim", "dpm++", "euler", "unipc"] | None = None
    """Sampler that turns noise into images; default: the weights' own."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the networks; default: fp32 on a CPU, else fp16."""
    pose_guider_mode: Literal["published", "trained", "running"] | None = None
    """How the PoseGuider of published weights normalises: as the published program does, as in its training, or with
    the running statistics, which makes frames independent of each other; default: as converted, or `published`."""
    memory: Literal["auto", "8", "12", "16", "24"] = "auto"
    """Memory preset: gigabytes of the device's memory to stay within; `auto` chooses by the device."""
    mark_synthetic: bool = True
    """Say in the video's own metadata that a model made it (comment, and IPTC digital source type)."""
    preview: bool = False
    """Quick preview: few steps, a small image, the first 2 seconds."""

    def check_generation(self) -> None:
        """Check the options of this class; raises `ValueError` when a value is out of range."""
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise ValueError(f"--steps is {self.steps}, must be 1 to 1000")
        check_within("--guidance", self.guidance, 0, 100)

    def steps_and_guidance(self, distilled: Distillation | None) -> tuple[int, float]:
        """Number of sampling steps after `preview` is applied, and guidance scale.

        Args:
            distilled: What the weights say of themselves, on which the defaults depend.
        """
        from talkinghead.pipelines.lmk2video.animation import steps_and_guidance

        steps, guidance = steps_and_guidance(self.steps, self.guidance, distilled)
        return min(steps, PREVIEW_STEPS) if self.preview else steps, guidance

    def seconds(self, limit: float | None) -> float | None:
        """Longest length in seconds after `preview` is applied to a limit in seconds; None: no limit."""
        if not self.preview:
            return limit
        return PREVIEW_SECONDS if limit is None else min(limit, PREVIEW_SECONDS)


@dataclass(frozen=True, kw_only=True)
class ImageOptions(GenerationOptions):
    """Weights and settings of the image generation, and the part of the portrait that is animated."""

    crop: Literal["face", "none"] = "face"
    """Part of the portrait that is animated: a box around the face, or the whole image."""
    paste_back: bool = False
    """Put the animated part back into the whole portrait; the video then has the portrait's size."""


@dataclass(frozen=True, kw_only=True)
class LandmarkRequest(SpeechRequest):
    """Options of `infer landmarks`: a portrait, speech, and how the landmarks move."""

    weights: Path | None = None
    """Folder that holds both models: audio2mesh/ and audio2pose/, or the published audio2mesh.pt and audio2pose.pt."""


@dataclass(frozen=True, kw_only=True)
class AudioRequest(ImageOptions, SpeechRequest):
    """Options of `infer audio`: a portrait, speech, and how the images are generated."""

    def check(self) -> None:
        """Check all options; raises `ValueError` as the parts do."""
        super().check()
        self.check_generation()


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """A driving video, and how its motion goes over to the portrait."""

    driving: Path
    """Video with a face; its sound goes into the result."""
    pose: Literal["relative", "absolute", "still"] = "relative"
    """How the head moves: `relative`, from the portrait's own pose as the driving head moves from its rest;
    `absolute`, at the driving head's angles; or `still`."""
    pose_gain: float = 1.0
    """Factor of the head's angles."""
    smooth: int = 3
    """Window of the moving average over the head pose, in frames (odd)."""
    smooth_mesh: int = 1
    """Window of the moving average over the mesh, in frames (odd)."""
    neutralise: Literal["none", "mouth", "all"] = "mouth"
    """Close an open mouth of the portrait first, in the way in which the driving mouth closes; or take out its whole
    expression."""
    fps: float | None = None
    """Frame rate of the video; default: the weights' own."""

    def check_video(self) -> None:
        """Check the options of this class; raises `ValueError` when a value is out of range."""
        check_window("--smooth", self.smooth)
        check_window("--smooth-mesh", self.smooth_mesh)
        check_within("--fps", self.fps, 1, 240, " frames per second")
        check_within("--pose-gain", self.pose_gain, -10, 10)


@dataclass(frozen=True, kw_only=True)
class VideoRequest(ImageOptions, VideoOptions, PortraitOptions):
    """Options of `infer video`: a portrait, and a video whose face it follows."""

    def check(self) -> None:
        """Check all options; raises `ValueError` when a value is out of range."""
        super().check()
        self.check_generation()
        self.check_video()


@dataclass(frozen=True, kw_only=True)
class AnimateRequest(ImageOptions, SpeechOptions, PortraitOptions):
    """Options of `infer animate`: a portrait, any driver or one for each part of the face, and any renderer."""

    # What other commands must be given, or have a default for, depends on the driver here.
    weights: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Weights of the renderer and of the driver, where they need any: a folder as for `infer audio`."""
    audio: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Speech of the driver audio2lmk; with other drivers, the sound of the video."""
    pose: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """What moves the head: `keep` (what moves the mouth; the default), `still`, `audio:FILE`, `video:FILE`,
    `file:FILE`, `template:FILE.npy`, or a driver of another package. Of a driving video also `relative` and `absolute`,
    as for `infer video`."""
    neutralise: Literal["none", "mouth", "all"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Take an open mouth, or the whole expression, out of the portrait first; default: `mouth` for a driving video,
    else `none`."""
    driver: str = "audio2lmk"
    """What moves the face: `audio2lmk` (speech, --audio), `video` (--driving), `file` (--motion), `still`, or a driver
    of another package; `python -m infer pairs` lists them."""
    renderer: str = "lmk2video"
    """What shows it: `lmk2video`, `landmarks` (drawn), or a renderer of another package."""
    driver_option: tuple[str, ...] = ()
    """Options of a driver of another package, NAME=VALUE; `python -m infer pairs` lists them."""
    renderer_option: tuple[str, ...] = ()
    """Options of a renderer of another package, NAME=VALUE."""
    driving: Path | None = None
    """Video of the driver `video`; its sound goes into the result."""
    motion: Path | None = None
    """File of the driver `file` (an .npz next to a landmark video, or a pose template .npy), or of another package's
    driver."""
    mouth: str | None = None
    """What moves the mouth, in place of --driver and its file: `audio:FILE`, `video:FILE`, `file:FILE`, `still`, or a
    driver of another package: `NAME` or `NAME:FILE`."""
    eyes: str = "keep"
    """What moves eyes and brows: `keep` (what moves the mouth), `still`, `audio:FILE`, `video:FILE`, `file:FILE`, or a
    driver of another package."""

    def check(self) -> None:
        """Check all options; raises `ValueError` as the parts do."""
        super().check()
        self.check_generation()
        check_window("--smooth", self.smooth)
        check_window("--smooth-mesh", self.smooth_mesh)
        check_within("--fps", self.fps, 1, 240, " frames per second")
        check_within("--template-fps", self.template_fps, 1, 240, " frames per second")
        check_within("--pose-gain", self.pose_gain, -10, 10)
        _ = self.mouth_source, self.eyes_source

    @property
    def mouth_source(self) -> PartSource:
        """What moves the mouth, by `mouth` or by `driver` and its file; raises `ValueError` for none of the forms."""
        if self.mouth is not None:
            if self.driver != "audio2lmk":
                raise ValueError(f"give --mouth {self.mouth} or --driver {self.driver}, not both")
            own = ("audio:FILE", "video:FILE", "file:FILE", "still")
            return PartSource.parse("--mouth", self.mouth, *part_forms(*own))
        files = {
            "audio2lmk": ("audio", self.audio),
            "video": ("driving", self.driving),
            "file": ("motion", self.motion),
        }
        kinds = {"audio2lmk": "audio"}
        if self.driver not in files:
            return PartSource(kind=self.driver, path=self.motion)
        option, path = files[self.driver]
        if path is None:
            raise ValueError(f"the driver {self.driver} needs --{option} FILE")
        return PartSource(kind=kinds.get(self.driver, self.driver), path=path)

    @property
    def eyes_source(self) -> PartSource:
        """What moves the eyes; raises `ValueError` for none of the forms."""
        own = ("keep", "still", "audio:FILE", "video:FILE", "file:FILE")
        return PartSource.parse("--eyes", self.eyes, *part_forms(*own))

    def as_speech(self, audio: Path, pose: str) -> SpeechRequest:
        """The options for speech from a file, with a head that moves as `pose` says."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(SpeechRequest)}
        return SpeechRequest(**(given | {"audio": audio, "pose": pose, "neutralise": self.neutralise or "none"}))

    def as_video(self, driving: Path, pose: Literal["relative", "absolute", "still"]) -> VideoOptions:
        """The options for a driving video; what is not given has the defaults of `infer video`."""
        given: dict[str, Any] = {
            "pose_gain": self.pose_gain,
            "smooth": self.smooth,
            "smooth_mesh": self.smooth_mesh,
            "neutralise": self.neutralise,
            "fps": self.fps,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return VideoOptions(driving=driving, pose=pose, **given)


def part_forms(*own: str) -> tuple[str, ...]:
    """Forms of what moves a part of the face: these, and `NAME` and `NAME:FILE` for each driver of another package."""
    from talkinghead.pipelines.registry import other_drivers

    return (*own, *(form for name in other_drivers() for form in (name, f"{name}:FILE")))


def check_window(name: str, frames: int | None) -> None:
    """Refuse a window of a moving average that is not an odd number of frames; None: not given."""
    if frames is not None and (frames < 1 or frames % 2 == 0):
        raise ValueError(f"{name} is {frames}, must be an odd number of frames (1: no smoothing)")


def check_within(name: str, value: float | None, least: float, most: float, unit: str = "") -> None:
    """Refuse a value of the option `name` that is not finite or not in `least` … `most`; None: not given."""
    # The sidecar holds the settings, and JSON has no infinite numbers: infinity is refused even without a limit.
    if value is not None and not (least <= value <= most and math.isfinite(value)):
        limits = f"{least:g} to {most:g}{unit}" if most < math.inf else f"a number of at least {least:g}"
        raise ValueError(f"{name} is {value:g}, must be {limits}")
