"""Options of `infer dub`; the class and field docstrings are the help of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infer.request import GenerationOptions, check_window, check_within


@dataclass(frozen=True, kw_only=True)
class DubRequest(GenerationOptions):
    """A video, the speech that is put into its face's mouth, and how the mouth is generated."""

    video: tyro.conf.Positional[Path]
    """Video with the face; its head, eyes and background stay as they are, at 25 frames per second."""
    audio: tyro.conf.Positional[Path]
    """New speech: an audio or video file."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Video to write (.mp4); its companion files go next to it."""
    match: Literal["cut", "loop"] = "cut"
    """Where video and speech differ in length: `cut` both where the shorter one ends; or `loop`, as long as the speech,
    with the video played to and fro where it is shorter."""
    face: str | None = None
    """Which of several faces in the first frame that shows any: number from 0, left to right; `largest`; or `X,Y`,
    nearest to a pixel."""
    reference_frame: int | None = None
    """Frame (from 0, at 25 per second) that the renderer takes as the portrait; default: a sharp one that shows the
    face from the front with its mouth closed."""
    still_in_silence: bool = False
    """Shut the mouth where the new speech pauses for half a second or longer."""
    audio2mesh: Path | None = None
    """Weights of the mesh model: a folder (a training's pretrained_model, or converted) or the published file."""
    smooth_mesh: int | None = None
    """Window of the moving average over the mesh, in frames (odd); default: the mesh model's own."""
    lips_gain: float = 1.0
    """Factor of the mouth's motion: 1 leaves it as it is, more exaggerates."""
    seed: int = 0
    """Seed of everything random: the same seed and settings give the same frames."""
    width: int | None = None
    """Width in pixels of the generated images of the face; default: what suits --height, or the weights."""
    height: int | None = None
    """Height in pixels of the generated images of the face; default: what suits --width, or the weights."""
    limit_seconds: float | None = None
    """Longest length of the video in seconds; what comes later is left out."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device on which the models run."""
    adapter: tuple[Path, ...] = ()
    """Adapters of trainings with `--lora.match`: folders `adapter/`, or the RUNs that hold them."""

    def check(self) -> None:
        """Check the values of the options, without reading a file; raises `ValueError` when one is out of range."""
        self.check_generation()
        check_window("--smooth-mesh", self.smooth_mesh)
        check_within("--lips-gain", self.lips_gain, 0, 10)
        check_within("--limit-seconds", self.limit_seconds, 0.04, float("inf"))
        for name, side in (("--width", self.width), ("--height", self.height)):
            if side is not None and side < 1:
                raise ValueError(f"{name} is {side}, must be a number of pixels")
        if self.reference_frame is not None and self.reference_frame < 0:
            raise ValueError(f"--reference-frame is {self.reference_frame}, must be a frame's number from 0 on")
