"""Baselines of annotating: MediaPipe in plain loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarker

from talkinghead.face.model import FaceModel

_MILLISECONDS = 40  # from frame to frame at 25 fps
_PARTS = ("landmarks", "mesh", "matrix", "blendshapes")


def write_images(frames: Mapping[str, Sequence[np.ndarray]], folder: Path) -> list[Path]:
    """Write frames as PNG files, as the original's preprocessing wants them; returns their paths in order."""
    paths = []
    for key, images in frames.items():
        (folder / key).mkdir(parents=True)
        for number, image in enumerate(images):
            paths.append(folder / key / f"{number:06d}.png")
            cv2.imwrite(str(paths[-1]), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return paths


def image_loop(model: FaceModel, images: Sequence[Path], out: Path) -> None:
    """Annotate the original way: read a PNG, detect anew, save landmarks, mesh, matrix and blendshapes, one file each.

    Its MediaPipe was patched to hand out the metric mesh that it computes for the matrix anyway; here a product with
    the matrix stands in for it, which costs next to nothing.
    """
    for clip in {image.parent.name for image in images}:
        (out / clip).mkdir(parents=True)
    with _landmarker(model, video=False) as landmarker:
        for image in images:
            pixels = cv2.imread(str(image))
            assert pixels is not None, f"{image} is gone"
            result = landmarker.detect(_image(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
            if not result.face_landmarks:
                continue
            # Landmarks [478, 3] and the matrix [4, 4] of the pose; the mesh has the 468 points without the irises.
            folder = out / image.parent.name
            landmarks = np.array([[p.x, p.y, p.z] for p in result.face_landmarks[0]], np.float32)
            matrix = np.asarray(result.facial_transformation_matrixes[0], np.float32)
            mesh = landmarks[:468] @ matrix[:3, :3]
            blendshapes = np.array([shape.score for shape in result.face_blendshapes[0]], np.float32)
            for name, values in zip(_PARTS, (landmarks, mesh, matrix, blendshapes), strict=True):
                np.save(folder / f"{image.stem}_{name}.npy", values)


def video_loop(model: FaceModel, clips: Sequence[Sequence[np.ndarray]]) -> None:
    """Detect in MediaPipe's video mode on frames in memory, and do nothing else."""
    # A landmarker for each clip: it tracks from frame to frame, and times must grow.
    for clip in clips:
        with _landmarker(model, video=True) as landmarker:
            for number, image in enumerate(clip):
                landmarker.detect_for_video(_image(image), number * _MILLISECONDS)


def _image(pixels: np.ndarray) -> Any:
    return mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels)


def _landmarker(model: FaceModel, *, video: bool) -> FaceLandmarker:
    return FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model.task_file), delegate=BaseOptions.Delegate.CPU),
            running_mode=vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
    )
