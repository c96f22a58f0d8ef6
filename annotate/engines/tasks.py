"""The `tasks` engine: MediaPipe Tasks' own FaceLandmarker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarkerResult

from annotate.landmarks import Landmarks
from talkinghead.face.model import FaceModel
from talkinghead.timebase import FPS

_MILLISECONDS = 1000 // FPS  # from frame to frame

Mode = Literal["video", "image"]


class TasksEngine:
    """Landmarks by MediaPipe Tasks: `video` tracks and smooths over time, `image` detects anew in every frame.

    Each clip gets a landmarker of its own, because one in video mode carries its filters from clip to clip. Making and
    closing one leaks about 0.3 MB inside MediaPipe, so a process should end after some thousands of clips.
    """

    def __init__(self, model: FaceModel, mode: Mode = "video") -> None:
        """Prepare the options.

        Args:
            model: The official model, which has a bundle for Tasks to open (`check_engine` reports others).
            mode: `video` tracks and smooths, `image` detects in every frame.
        """
        assert model.task_file is not None
        self.name = "tasks" if mode == "video" else "tasks-image"
        self._mode = mode
        self._options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model.task_file), delegate=BaseOptions.Delegate.CPU),
            running_mode=vision.RunningMode.VIDEO if mode == "video" else vision.RunningMode.IMAGE,
            num_faces=1,  # Tasks smooths one face only; the separate detector counts the faces
            output_face_blendshapes=True,
        )

    def __call__(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """Annotate the frames of one clip (RGB uint8 `[H, W, 3]`, all of one size, 25 fps, in order)."""
        points: list[np.ndarray] = []
        blendshapes: list[np.ndarray] = []
        with vision.FaceLandmarker.create_from_options(self._options) as landmarker:
            for number, frame in enumerate(frames):
                image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
                # Video mode needs the time, from which its filters take their speed.
                if self._mode == "video":
                    result = landmarker.detect_for_video(image, number * _MILLISECONDS)
                else:
                    result = landmarker.detect(image)
                points.append(_points(result))
                blendshapes.append(_blendshapes(result))
        return Landmarks(
            np.array(points, dtype=np.float32).reshape(-1, 478, 3),
            np.array(blendshapes, dtype=np.float32).reshape(-1, 52),
        )


def _points(result: FaceLandmarkerResult) -> np.ndarray:
    """Landmarks `[478, 3]` of the face in a frame; NaN without one."""
    if not result.face_landmarks:
        return np.full((478, 3), np.nan, dtype=np.float32)
    face = result.face_landmarks[0]
    # One list per coordinate: half the time of 478 tuples.
    return np.array([[p.x for p in face], [p.y for p in face], [p.z for p in face]], dtype=np.float32).T


def _blendshapes(result: FaceLandmarkerResult) -> np.ndarray:
    """Coefficients `[52]` of the face in a frame; NaN without one."""
    if not result.face_blendshapes:
        return np.full(52, np.nan, dtype=np.float32)
    return np.array([category.score for category in result.face_blendshapes[0]], dtype=np.float32)
