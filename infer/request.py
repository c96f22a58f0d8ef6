"""What the user asks of `infer landmarks`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infer.pose_source import TEMPLATE_FPS, PoseSource
from infer.weights import WeightsPlace, find_weights


@dataclass(frozen=True, kw_only=True)
class LandmarkRequest:
    """A portrait and speech, and how its landmarks shall move."""

    reference: Path
    """Portrait: a picture with a face, best with the mouth closed."""
    audio: Path
    """Speech: an audio or video file."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Video to write (.mp4); the arrays (.npz) and the settings (.json) go beside it."""
    weights: Path | None = None
    """Folder that holds both models: audio2mesh/ and audio2pose/, or the published audio2mesh.pt and audio2pose.pt."""
    audio2mesh: Path | None = None
    """Weights of the mesh model: a folder (a training's pretrained_model, or converted) or the published file."""
    audio2pose: Path | None = None
    """Weights of the head pose model, likewise; needed for --pose audio."""
    face: str | None = None
    """Which of several faces in the portrait: its number from 0, left to right, or `largest`."""
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
    seed: int = 0
    """Draws what is not chosen."""
    neutralise: Literal["none", "mouth", "all"] = "none"
    """Take an open mouth, or the whole expression, out of the portrait's mesh first."""
    fps: float | None = None
    """Frame rate of the video; default: the mesh model's."""
    width: int | None = None
    """Width of the video in pixels, even; default: the portrait's, or what suits --height."""
    height: int | None = None
    """Height of the video in pixels, even; default: the portrait's, or what suits --width."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run."""

    def check(self) -> None:
        """Raise `ValueError` for a value that no input could make right.

        Not in `__post_init__`: the command line's parser would show it in its own words.
        """
        for name, value in (("--smooth", self.smooth), ("--smooth-mesh", self.smooth_mesh)):
            if value is not None and (value < 1 or value % 2 == 0):
                raise ValueError(f"{name} is {value}, must be an odd number of frames (1: no smoothing)")
        for name, rate in (("--fps", self.fps), ("--template-fps", self.template_fps)):
            if rate is not None and not 1 <= rate <= 240:
                raise ValueError(f"{name} is {rate}, must be 1 to 240 frames per second")
        if self.pose_gain is not None and not -10 <= self.pose_gain <= 10:
            raise ValueError(f"--pose-gain is {self.pose_gain}, must be within -10 and 10")

    @property
    def pose_source(self) -> PoseSource:
        """`pose`, taken apart; raises `ValueError` when it is nothing of the kind."""
        return PoseSource.parse(self.pose)

    def find_audio2mesh(self) -> WeightsPlace:
        """Where the mesh model lies; raises `ValueError` when it is not there."""
        path = self.audio2mesh or self.weights
        if path is None:
            raise ValueError("no weights: give --audio2mesh and --audio2pose, or --weights with a folder of both")
        return find_weights("audio2mesh", path)

    def find_audio2pose(self) -> WeightsPlace | None:
        """Where the pose model lies, None when the head's motion comes from elsewhere; raises like the above."""
        if self.pose_source.kind != "audio":
            return None
        path = self.audio2pose or self.weights
        if path is None:
            raise ValueError(
                "--pose audio needs the weights of the pose model: give --audio2pose, or take --pose still,"
                " video:FILE or template:FILE.npy"
            )
        return find_weights("audio2pose", path)
