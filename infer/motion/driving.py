"""What drives a portrait: speech, or the face of a video. One interface, so that everything around it stands once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from infer.motion.driven_motion import driven_motion, read_driving
from infer.motion.driving_video import DrivingClip
from infer.motion.speech_motion import (
    SpeechInputs,
    SpeechPlaces,
    find_speech_places,
    load_speech_models,
    read_speech_inputs,
    speech_motion,
)
from infer.portrait import Portrait
from infer.request import AudioRequest, VideoRequest
from infer.sidecar import describe_speech
from talkinghead.face.model import FaceModel
from talkinghead.motion.landmark_motion import LandmarkMotion
from talkinghead.provenance import hash_file
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS


class Driving(Protocol):
    """Called in the order of its methods; each raises `ValueError` for what the user gave wrongly."""

    command: str
    """Of `python -m infer`."""
    files: list[Path]
    """The user's, which no output may replace."""

    def find(self, pipeline: Path) -> None:
        """Look whether all files and weights are there; `pipeline` is the folder of the pipeline that was found."""
        ...

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read and check what drives; no more than so many seconds of it."""
        ...

    @property
    def sound(self) -> Path | None:
        """File whose sound goes into the video."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was read, for the sidecar."""
        ...

    def move(
        self, portrait: Portrait, progress: Progress, *, fps: float, compat: bool, device: str
    ) -> tuple[LandmarkMotion, dict[str, Any]]:
        """The motion of the portrait's face, and what was decided on the way; loads what it needs."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Weights that took part, for the sidecar."""
        ...


class DrivingSpeech:
    """Speech, heard by Audio2Mesh and Audio2Pose."""

    command = "audio"

    def __init__(self, request: AudioRequest) -> None:
        self._request = request
        source = request.pose_source.path
        self.files = [request.audio, *([source] if source else [])]
        self._places: SpeechPlaces | None = None
        self._inputs: SpeechInputs | None = None
        self._provenance: dict[str, Any] = {}

    def find(self, pipeline: Path) -> None:
        """See `Driving`. Speech models may be parts of the pipeline, or stand beside it."""
        weights = self._request.weights
        beside = any(weights.glob("audio2mesh*"))
        self._places = find_speech_places(self._request, weights if beside else pipeline)

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """See `Driving`."""
        assert self._places is not None
        self._inputs = read_speech_inputs(self._request, self._places, portrait, model, progress, seconds)

    @property
    def sound(self) -> Path:
        """The speech."""
        return self._request.audio

    def describe(self) -> dict[str, Any]:
        """See `Driving`."""
        assert self._inputs is not None
        found: dict[str, Any] = {"audio": describe_speech(self._request.audio, self._inputs.speech)}
        source = self._request.pose_source.path
        return found if source is None else found | {"pose": {"sha256": hash_file(source)}}

    def move(
        self, portrait: Portrait, progress: Progress, *, fps: float, compat: bool, device: str
    ) -> tuple[LandmarkMotion, dict[str, Any]]:
        """See `Driving`."""
        assert self._inputs is not None
        # Not kept: what they take of the device's memory is free then.
        models = load_speech_models(self._inputs, device)
        self._provenance = models.provenance()
        return speech_motion(self._request, self._inputs, models, portrait, progress, fps=fps, compat=compat)

    def provenance(self) -> dict[str, Any]:
        """See `Driving`."""
        return self._provenance


class DrivingVideo:
    """The face of a video."""

    command = "video"

    def __init__(self, request: VideoRequest) -> None:
        self._request = request
        self.files = [request.driving]
        self._clip: DrivingClip | None = None

    def find(self, pipeline: Path) -> None:
        """See `Driving`."""
        if not self._request.driving.exists():
            raise ValueError(f"the driving video {self._request.driving} is not there")

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """See `Driving`."""
        self._clip = read_driving(self._request.driving, model, progress, seconds)

    @property
    def sound(self) -> Path | None:
        """The driving video's own, where it has any."""
        assert self._clip is not None
        return self._clip.path if self._clip.has_audio else None

    def describe(self) -> dict[str, Any]:
        """See `Driving`."""
        clip = self._clip
        assert clip is not None
        return {
            "driving": {
                "sha256": hash_file(clip.path),
                "size": [clip.width, clip.height],
                "seconds": round(len(clip) / FPS, 6),
                "sound": clip.has_audio,
            }
        }

    def move(
        self, portrait: Portrait, progress: Progress, *, fps: float, compat: bool, device: str
    ) -> tuple[LandmarkMotion, dict[str, Any]]:
        """See `Driving`."""
        assert self._clip is not None
        return driven_motion(self._request, self._clip, portrait, fps=fps, compat=compat)

    def provenance(self) -> dict[str, Any]:
        """See `Driving`."""
        return {}
