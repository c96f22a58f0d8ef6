"""Speech as what drives a portrait. All inputs are read and checked first; the models run later."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.drivers.driving import reference_at_rest
from infer.drivers.pose_source import DrivingPose, read_driving_video, read_template
from infer.part_source import PartSource
from infer.request import SpeechRequest
from infer.speech import describe_speech, read_speech
from infer.weights.adapters import PIPELINE, find_adapters, refuse_left_over
from infer.weights.speech_weights import Weights, WeightsPlace, load_audio2mesh, load_audio2pose
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.audio2lmk.driver import Audio2LmkDriver, SpeechMotion
from talkinghead.pipelines.protocols import MotionKind
from talkinghead.provenance import hash_file
from talkinghead.rng import generator
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

if TYPE_CHECKING:
    from talkinghead.models.speech.recording import Recording

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Weights and template that were found, before the speech is read."""

    audio2mesh: WeightsPlace
    audio2pose: WeightsPlace | None
    template: DrivingPose | None
    """Pose template of `--pose template:FILE.npy`; small, so it is read at once."""


@dataclass(frozen=True, kw_only=True)
class SpeechModels:
    """The models that are driven by speech."""

    mesh: Weights[Any]
    """Audio2Mesh."""
    pose: Weights[Any] | None
    """Audio2Pose; None when the head's motion comes from elsewhere."""

    def provenance(self) -> dict[str, Any]:
        """Path, hash and origin of each model's weights, for the sidecar."""
        return {w.place.kind: w.provenance() for w in (self.mesh, self.pose) if w is not None}


class SpeechDriving:
    """Speech through Audio2Mesh and Audio2Pose; a `Driving`.

    Args:
        request: The speech and its options.
        weights: Folder of the models, where the request does not name them one by one; None: next to the renderer's.
        renders: Whether a pipeline of images takes part, for which one of the adapters may be.
    """

    name = Audio2LmkDriver.name

    def __init__(self, request: SpeechRequest, weights: Path | None, *, renders: bool) -> None:
        self._request = request
        self._weights = weights
        self._renders = renders
        source = request.pose_source.path
        self.files = [request.audio, *([source] if source else [])]
        self._places: _Places | None = None
        self._about: dict[str, Any] = {}
        self._recording: Recording | None = None
        self._driving: DrivingPose | None = None
        self._provenance: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}

    @property
    def gives(self) -> MotionKind:
        """Meshes; after `find`, at the mesh model's frame rate."""
        if self._places is None:
            return Audio2LmkDriver.gives
        place = self._places.audio2mesh
        return replace(Audio2LmkDriver.gives, fps=place.fps, compat=place.published)

    def find(self, pipeline: Path | None) -> None:
        """Find the models' weights: in the pipeline's folder, next to it, or named one by one.

        Raises:
            ValueError: Weights or the pose template are not there, or are something else.
        """
        request = self._request
        # `--weights` may hold the models for speech next to the pipeline, which then lies in a folder below.
        next_to_it = self._weights is not None and any(self._weights.glob("audio2mesh*"))
        folder = self._weights if next_to_it or pipeline is None else pipeline
        source = request.pose_source
        mesh, pose = request.find_audio2mesh(folder), request.find_audio2pose(folder)
        adapters = find_adapters(request.adapter)
        refuse_left_over(adapters, ["audio2mesh", *["audio2pose"] * bool(pose), *[PIPELINE] * self._renders])
        self._places = _Places(
            audio2mesh=replace(mesh, adapter=adapters.get("audio2mesh")),
            audio2pose=pose and replace(pose, adapter=adapters.get("audio2pose")),
            template=read_template(source.path, request.template_fps)
            if source.kind == "template" and source.path
            else None,
        )

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read the speech, at most `seconds` of it, into a scratch file, and the file that moves the head.

        Raises:
            ValueError: A file cannot be read.
        """
        from talkinghead.models.speech.recording import Recording

        assert self._places is not None
        speech = read_speech(self._request.audio, seconds=seconds)
        self._about = {"audio": describe_speech(self._request.audio, speech)}
        self._recording = Recording(speech.samples, on_disk=True)
        self._driving = self._places.template or _driving_video(
            self._request.pose_source, speech.duration_s, model, progress
        )

    @property
    def sound(self) -> Path:
        """File whose sound goes into the video: the speech."""
        return self._request.audio

    @property
    def recording(self) -> Recording | None:
        """The speech."""
        return self._recording

    def describe(self) -> dict[str, Any]:
        """Facts about the speech, and the hash of the file that moves the head where there is one, for the sidecar."""
        source = self._request.pose_source.path
        return self._about if source is None else self._about | {"pose": {"sha256": hash_file(source)}}

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """Load the models and return the motion, which they make part by part.

        Raises:
            ValueError: Weights are damaged, or there is no such identity.
        """
        from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks

        assert self._places is not None and self._recording is not None
        places, request, speech = self._places, self._request, self._recording
        models = SpeechModels(
            mesh=load_audio2mesh(places.audio2mesh, device),
            pose=None if places.audio2pose is None else load_audio2pose(places.audio2pose, device),
        )
        self._provenance = models.provenance()
        pipeline = AudioToLandmarks(models.mesh.model, None if models.pose is None else models.pose.model)

        # Motion of the head: from another file, or from the pose model as one of its speakers.
        pose: Any = request.pose_source.kind
        if self._driving is not None:
            frames = pipeline.num_frames(speech, fps)
            pose = self._driving.play(frames, fps, gain=request.pose_gain, smoothing=request.smooth)
            self._facts["interpolated_pose_frames"] = self._driving.interpolated
        identity = 0
        if models.pose is not None:
            identity = self._facts["identity"] = choose_identity(request.identity, request.seed, models.pose)

        options = SpeechMotion(
            pose=pose,
            identity=identity,
            pose_gain=request.pose_gain,
            pose_smoothing=request.smooth,
            mesh_smoothing=request.smooth_mesh,
            rest_mesh=reference_at_rest(portrait, request.neutralise, models.mesh.expression),
        )
        driver = Audio2LmkDriver(lambda: pipeline, models.mesh.model.fps)
        # Without progress of its own: its parts are made while the renderer tells of its frames.
        return driver.move(portrait, speech, options, fps=fps)

    @property
    def facts(self) -> dict[str, Any]:
        """Identity of the head's motion, and frames of a driving video that were interpolated."""
        return self._facts

    def provenance(self) -> dict[str, Any]:
        """Weights that took part, for the sidecar; empty before `move`."""
        return self._provenance


def _driving_video(source: PartSource, seconds: float, model: FaceModel, progress: Progress) -> DrivingPose | None:
    """Motion of the head in a driving video; None where it comes from elsewhere."""
    if source.kind != "video" or source.path is None:
        return None
    frames = max(1, round(seconds * FPS))
    progress("head motion of the video", 0, frames)
    on_frame = functools.partial(progress, "head motion of the video", total=frames)
    # As long as the speech, since more motion would not be shown.
    return read_driving_video(source.path, seconds, model, on_frame)


def choose_identity(asked: str | None, seed: int, weights: Weights[Any]) -> int:
    """Row of the pose model's identity embedding: that of a named speaker, a number, or one drawn by the seed.

    A text that names a speaker is taken as the name, even when it is a number. The draw is among the speakers that the
    model was trained on, where they are known.

    Raises:
        ValueError: No such name or number; the message tells which there are.
    """
    # Training put speaker k into row k modulo the number of rows; rows beyond the speakers were never trained.
    rows = int(weights.model.config.num_identities)
    known = weights.speakers
    if asked is None:
        return int(generator(seed, "identity").integers(rows if known is None else min(rows, len(known))))
    if known is not None and asked in known:
        return known.identity(asked) % rows
    if asked.isdecimal():
        if int(asked) >= rows:
            raise ValueError(f"--identity {asked} does not exist: the pose model has 0 … {rows - 1}")
        if known is not None and int(asked) >= len(known):
            log.warning("warning: no speaker of the training had --identity %s: it moves the head by chance", asked)
        return int(asked)
    if known is None:
        raise ValueError(f"--identity {asked!r}: these weights do not name their speakers; give a number below {rows}")
    return known.identity(asked) % rows
