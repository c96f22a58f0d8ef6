"""Speech as a driver: Audio2Mesh moves the face, Audio2Pose the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from talkinghead.face.portrait import Portrait
from talkinghead.models.network_settings import read_settings
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MESHES, MotionKind
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.timebase import FPS

if TYPE_CHECKING:
    from talkinghead.models.speech.recording import Recording
    from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks

_MESH, _POSE, _CONFIG = "audio2mesh", "audio2pose", "config.json"


@dataclass(frozen=True, kw_only=True)
class SpeechMotion:
    """Settings of the motion; each is an argument of `AudioToLandmarks.stream`."""

    pose: np.ndarray | Literal["audio", "still"] = "audio"
    """Head motion: of the speech, none, or given as `[F, 6]`."""
    identity: int = 0
    """Row of Audio2Pose's identity embedding."""
    pose_gain: float | None = None
    """Factor of the head's angles; None: the model's."""
    pose_smoothing: int | None = None
    """Number of frames of the moving average over the pose; None: the model's."""
    mesh_smoothing: int | None = None
    """Number of frames of the moving average over the mesh; None: the model's."""
    rest_mesh: np.ndarray | None = None
    """Face that moves, at rest, `[468, 3]` cm; None: the portrait's as it is."""


class Audio2LmkDriver:
    """Motion from speech. Its source is float samples `[N]`, mono at 16 kHz, or a `Recording`; options `SpeechMotion`.

    Args:
        models: Function that loads the models; it is called once, when motion is first made.
        fps: Frame rate of the mesh model.
    """

    name = "audio2lmk"
    gives = MotionKind(space=MESHES, fps=FPS, needs=("mesh",), delay=round(20 * FPS))

    def __init__(self, models: Callable[[], AudioToLandmarks], fps: float = FPS) -> None:
        # The windows in which speech is encoded are looked ahead.
        self.gives = MotionKind(space=MESHES, fps=fps, needs=("mesh",), delay=round(20 * fps))
        self._models = models
        self._loaded: AudioToLandmarks | None = None

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder holds a mesh model, in `audio2mesh/`."""
        return (folder / _MESH / _CONFIG).is_file()

    @classmethod
    def of_folder(cls, folder: Path, device: str = "cpu") -> Self:
        """Driver of the models in a folder: `audio2mesh/`, and `audio2pose/` where the head's motion is wanted too.

        Raises:
            ValueError: The configuration is missing or damaged.
        """
        fps = read_settings(folder / _MESH / _CONFIG, "JSON").get("fps", FPS)
        if not isinstance(fps, int | float) or not 0 < fps < 1000:
            raise ValueError(f"{folder / _MESH / _CONFIG} has the frame rate {fps!r}: copy the folder again")

        def models() -> AudioToLandmarks:
            from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
            from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
            from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks

            mesh: Any = Audio2Mesh.from_pretrained(folder / _MESH)
            pose: Any = Audio2Pose.from_pretrained(folder / _POSE) if (folder / _POSE / _CONFIG).is_file() else None
            return AudioToLandmarks(mesh.to(device), None if pose is None else pose.to(device))

        return cls(models, float(fps))

    def check(self, portrait: Portrait, source: np.ndarray | Recording, options: SpeechMotion | None = None) -> None:
        """Refuse speech without samples or with values that are not finite; raises `ValueError`."""
        from talkinghead.pipelines.audio_to_landmarks import recorded

        del portrait, options
        recorded(source)

    def move(
        self,
        portrait: Portrait,
        source: np.ndarray | Recording,
        options: SpeechMotion | None = None,
        *,
        fps: float | None = None,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> MotionStream:
        """Motion of the portrait's face, in parts; arguments as `protocols.Driver.move`. Nothing is random."""
        from talkinghead.pipelines.audio_to_landmarks import recorded

        del seed
        recording = recorded(source)
        options = options or SpeechMotion()
        if self._loaded is None:
            self._loaded = self._models()
        return self._loaded.stream(
            recording,
            reference_mesh=portrait.mesh if options.rest_mesh is None else options.rest_mesh,
            reference_pose_matrix=portrait.pose_matrix,
            width=portrait.width,
            height=portrait.height,
            pose=options.pose,
            identity=options.identity,
            pose_gain=options.pose_gain,
            pose_smoothing=options.pose_smoothing,
            mesh_smoothing=options.mesh_smoothing,
            fps=fps,
            progress=progress,
        )

    def about(self) -> dict[str, dict[str, Any]]:
        """Nothing: who has read the speech and found the weights tells of them."""
        return {}
