"""The face detector against MediaPipe's own, and what must hold for any image."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import mediapipe as mp
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from mediapipe.tasks.python import BaseOptions, vision

from talkinghead.face.detector import (
    LEFT_EYE,
    NOSE_TIP,
    RIGHT_EYE,
    Detection,
    FaceDetector,
    _square,
    _suppress,
    _tile_centers,
)
from talkinghead.face.model import FaceModel


@pytest.fixture(scope="module")
def detector(official: FaceModel) -> FaceDetector:
    return FaceDetector(official)


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def place(face: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """A grey frame with an image in it."""
    frame = np.full((height, width, 3), 128, dtype=np.uint8)
    frame[y : y + face.shape[0], x : x + face.shape[1]] = face
    return frame


def pixels(detection: Detection, frame: np.ndarray) -> np.ndarray:
    """Box corners and keypoints `[8, 2]` in pixels."""
    points = np.concatenate([np.reshape(detection.box, (2, 2)), detection.keypoints])
    return points * (frame.shape[1], frame.shape[0])


def test_agrees_with_mediapipe_on_images(official: FaceModel, detector: FaceDetector, media: Path):
    options = vision.FaceDetectorOptions(base_options=BaseOptions(model_asset_buffer=official.detector))
    counts = {}
    with vision.FaceDetector.create_from_options(options) as reference:
        for path in sorted((media / "image").iterdir()):
            frame = read(path)
            ours = detector.detect(frame)
            theirs = reference.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=frame)).detections
            counts[path.name] = len(ours)
            assert len(ours) == len(theirs), path.name
            assert [one.score for one in ours] == sorted((one.score for one in ours), reverse=True)
            for one in theirs:  # near ties may swap places
                keypoints = np.array([(point.x, point.y) for point in one.keypoints])
                nearest = min(ours, key=lambda our: np.abs(our.keypoints - keypoints).max())
                apart = (nearest.keypoints - keypoints) * (frame.shape[1], frame.shape[0])
                assert np.abs(apart).max() < 1e-3 * max(frame.shape)
                # theirs are rounded to whole pixels, and a corner outside the image is moved onto its edge
                low, high = pixels(nearest, frame)[:2]
                box = one.bounding_box
                assert np.abs(high - low - (box.width, box.height)).max() < 2 + 1e-3 * max(frame.shape)
                origin = np.maximum(low, 0) - (box.origin_x, box.origin_y)
                assert np.abs(origin).max() < 1 + 1e-3 * max(frame.shape)
                assert nearest.score == pytest.approx(one.categories[0].score, abs=5e-3)
    assert counts["tfjs-models_three_people.jpg"] == 3
    assert counts["scikit-image_chelsea.png"] == 0


def test_mediapipes_expected_output(detector: FaceDetector, shared: Path):
    folder = shared / "metadata" / "mediapipe"
    text = (folder / "portrait_expected_detection.pbtxt").read_text()
    x, y, width, height = (int(re.findall(rf"{name}: (\d+)", text)[0]) for name in ("xmin", "ymin", "width", "height"))
    keypoints = np.array(re.findall(r"x: ([\d.]+)\s+y: ([\d.]+)", text), dtype=float)
    frame = read(folder / "portrait.jpg")
    (found,) = detector.detect(frame)
    # the expected output was made with an earlier build of the network
    assert np.abs(found.keypoints - keypoints).max() < 0.015
    assert np.abs(pixels(found, frame)[:2] - [(x, y), (x + width, y + height)]).max() < 0.015 * max(frame.shape)


def test_sides_are_the_subjects(detector: FaceDetector):
    (found,) = detector.detect(skimage.data.astronaut())
    assert found.keypoints[RIGHT_EYE, 0] < found.keypoints[NOSE_TIP, 0] < found.keypoints[LEFT_EYE, 0]
    x0, y0, x1, y1 = found.box
    assert x0 < found.keypoints[NOSE_TIP, 0] < x1 and y0 < found.keypoints[NOSE_TIP, 1] < y1


@settings(max_examples=15, deadline=None)
@given(x=st.integers(0, 300), y=st.integers(0, 150))
def test_a_face_is_found_where_it_is(detector: FaceDetector, x: int, y: int):
    face = skimage.data.astronaut()[:400, 60:460]
    (here,) = detector.detect(face)
    frame = place(face, x, y, 700, 550)
    (there,) = detector.detect(frame)
    # the network sees the face (106 pixels) at another scale and place, and is not sure of ears
    assert np.abs(pixels(there, frame) - (x, y) - pixels(here, face))[:6].max() < 26


def test_no_face_in_noise_or_black(detector: FaceDetector):
    noise = np.random.default_rng(7).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for frame in (noise, np.zeros((1080, 1920, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)):
        assert detector.detect(frame, small_faces=True) == []


@pytest.mark.parametrize("height", [220, 150])
def test_small_faces_in_full_hd(detector: FaceDetector, height: int):
    face = skimage.data.astronaut()[30:210, 140:310]
    face = cv2.resize(face, (height * 17 // 18, height), interpolation=cv2.INTER_AREA)
    frame = place(face, 1300, 600, 1920, 1080)
    assert detector.detect(frame) == []
    (found,) = detector.detect(frame, small_faces=True)
    nose = pixels(found, frame)[2 + NOSE_TIP]
    assert np.abs(nose - (1300 + face.shape[1] / 2, 600 + height / 2)).max() < 0.2 * height


@pytest.mark.parametrize(
    ("left", "top", "side"),
    [(0, 0, 384), (128, 0, 384), (100, 37, 256), (400, 300, 128), (0, -64, 512), (0.5, 0, 256), (3, 4, 200)],
)
def test_the_networks_input_is_the_square_interpolated(left: float, top: float, side: float):
    frame = np.random.default_rng(3).integers(0, 256, (384, 512, 3), dtype=np.uint8)
    frame = frame[: int(top + side)] if top + side < 384 else frame  # ends where the square ends
    zoom = 128 / side
    matrix = np.array([[zoom, 0, -left * zoom], [0, zoom, -top * zoom]])
    assert np.array_equal(_square(frame, left, top, side), cv2.warpAffine(frame, matrix, (128, 128)))


def test_the_second_look_changes_nothing_where_the_first_succeeds(detector: FaceDetector, media: Path):
    frame = read(media / "image" / "tfjs-models_three_people.jpg")
    first, second = detector.detect(frame), detector.detect(frame, small_faces=True)
    assert [one.box for one in first] == [one.box for one in second]


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([1, 2]))
def test_tiles_cover_the_image(width: int, height: int, divisor: int):
    side = min(width, height) / divisor
    centers = np.array(_tile_centers(width, height, side))
    for axis, extent in enumerate((width, height)):
        steps = np.unique(centers[:, axis])
        assert steps[0] - side / 2 <= 1e-6 and steps[-1] + side / 2 >= extent - 1e-6
        assert np.diff(steps).max(initial=0) <= side / 2 + 1e-6


boxes = st.tuples(st.floats(0.5, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1))


@given(st.lists(boxes, max_size=12))
def test_suppression(faces: list[tuple[float, ...]]):
    rows = np.zeros((len(faces), 17))
    for row, (score, x, y, width, height) in zip(rows, faces, strict=True):
        row[:5] = score, x, y, x + width, y + height
        row[5:] = x + width / 2
    kept = _suppress(rows, 0.3)
    assert len(kept) <= len(rows) and (len(kept) > 0) == (len(rows) > 0)
    assert (np.diff(kept[:, 0]) <= 0).all()
    if len(rows):
        assert kept[0, 0] == rows[:, 0].max()
        assert (kept[:, 1:].min(axis=0) >= rows[:, 1:].min(axis=0) - 1e-9).all()
        assert (kept[:, 1:].max(axis=0) <= rows[:, 1:].max(axis=0) + 1e-9).all()
    once = np.repeat(kept[:1], 3, axis=0)
    assert len(_suppress(once, 0.3)) == len(kept[:1])
