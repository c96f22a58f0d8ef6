"""Quality of frames: faces are counted, measured in their boxes, and matched with the landmarks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate.quality import MAX_FACES, FaceMeter, frame_quality, jitter, sharpness
from annotate.settings import AnnotateSettings
from talkinghead.annotation import QUALITY_FIELDS
from talkinghead.face.detector import Detection
from talkinghead.geometry.canonical import mean_face

KEYPOINTS = np.zeros((6, 2), dtype=np.float32)
LEFT, RIGHT = (0.1, 0.2, 0.4, 0.6), (0.6, 0.2, 0.9, 0.6)


class ScriptedDetector:
    """Detector that returns the faces of a script, one entry per call, and repeats the last."""

    def __init__(self, *script: list[tuple[float, tuple[float, float, float, float]]]) -> None:
        self.script, self.calls = list(script), 0

    def detect(self, frame: np.ndarray) -> list[Detection]:
        faces = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        return [Detection(score, box, KEYPOINTS) for score, box in faces]


def noise(seed: int, width: int = 200, height: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def face_in(box: tuple[float, float, float, float]) -> np.ndarray:
    """The mean face seen from the front, filling a box: landmarks `[478, 3]`."""
    flat = mean_face().vertices[:, :2] * (1, -1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    x0, y0, x1, y1 = box
    xy = (flat - low) / (high - low) * (x1 - x0, y1 - y0) + (x0, y0)
    return np.concatenate((np.column_stack((xy, np.zeros(468))), np.full((10, 3), np.nan)))


def qualities(meter: FaceMeter, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    mesh = np.broadcast_to(mean_face().vertices, (len(landmarks), 468, 3)).copy()
    pose = np.tile(np.array([1.0, 2.0, 3.0, 0.0, 0.0, -40.0]), (len(landmarks), 1))
    gone = np.isnan(landmarks[:, 0, 0])
    mesh[gone], pose[gone] = np.nan, np.nan
    values = frame_quality(landmarks, mesh, pose, meter)
    assert values.dtype == np.float32 and values.shape == (len(landmarks), len(QUALITY_FIELDS))
    return dict(zip(QUALITY_FIELDS, values.T, strict=True))


def test_sharpness_falls_with_blur_and_not_with_resolution() -> None:
    grey = cv2.GaussianBlur(noise(0, 512, 512)[..., 0], (0, 0), 5)
    blurred = [sharpness(cv2.GaussianBlur(grey, (0, 0), sigma)) for sigma in (2, 6, 12)]
    assert sharpness(grey) > blurred[0] > blurred[1] > blurred[2]
    enlarged = cv2.resize(grey, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    assert sharpness(enlarged) == pytest.approx(sharpness(grey), rel=0.15)
    assert sharpness(np.full((40, 30), 77, np.uint8)) == 0.0


def test_meter_passes_frames_on_and_keeps_none() -> None:
    references: list[weakref.ref] = []

    def frames() -> Iterator[np.ndarray]:
        for number in range(40):
            frame = noise(number)
            references.append(weakref.ref(frame))
            yield frame

    detector = ScriptedDetector([(0.9, LEFT)])
    meter = FaceMeter(detector, 5)
    most = 0
    for number, frame in enumerate(meter.watch(frames())):
        np.testing.assert_array_equal(frame, noise(number))
        most = max(most, sum(reference() is not None for reference in references))
    assert most <= 2
    assert detector.calls == 8
    assert (meter.width, meter.height) == (200, 160)
    assert sum(faces.nbytes for faces in meter.faces) / 40 < 300


def test_faces_are_counted_and_held_between_passes() -> None:
    detector = ScriptedDetector([(0.9, LEFT)], [(0.9, LEFT), (0.8, RIGHT)], [])
    meter = FaceMeter(detector, 2)
    list(meter.watch(noise(0) for _ in range(7)))
    assert meter.num_faces == [1, 1, 2, 2, 0, 0, 0]
    crowd = FaceMeter(ScriptedDetector([(0.9, LEFT)] * 9), 1)
    list(crowd.watch([noise(0)]))
    assert crowd.num_faces == [9] and crowd.faces[0].shape == (MAX_FACES, 7)


def test_the_annotated_face_is_the_one_that_is_measured() -> None:
    frame = noise(1)
    frame[:, :100] = 30  # left half: dark and flat
    detector = ScriptedDetector([(0.9, LEFT), (0.7, RIGHT)])
    for box, score, brightness, sharp in ((LEFT, 0.9, 30, False), (RIGHT, 0.7, 127, True)):
        meter = FaceMeter(detector, 1)
        list(meter.watch([frame]))
        quality = qualities(meter, face_in(box)[None])
        assert quality["detection_score"][0] == pytest.approx(score)
        assert quality["brightness"][0] == pytest.approx(brightness, abs=5)
        assert (quality["sharpness"][0] > 100) == sharp
        assert quality["face_width_px"][0] == pytest.approx(0.3 * 200, abs=1e-3)
        assert quality["face_height_px"][0] == pytest.approx(0.4 * 160, abs=1e-3)
        assert [quality[name][0] for name in ("pitch_deg", "yaw_deg", "roll_deg")] == [1, 2, 3]


def test_detector_that_misses_the_face_costs_only_its_own_measures() -> None:
    """Score 0 where it finds no face; the box is kept for the pixels, but no face elsewhere is measured instead."""
    detector = ScriptedDetector([(0.9, LEFT)], [])
    meter = FaceMeter(detector, 1)
    list(meter.watch(noise(number) for number in range(3)))
    held = qualities(meter, np.stack([face_in(LEFT)] * 3))
    np.testing.assert_allclose(held["detection_score"], [0.9, 0, 0], atol=1e-6)
    assert (held["sharpness"] > 100).all() and (held["num_faces"] == [1, 0, 0]).all()
    elsewhere = qualities(meter, np.stack([face_in(RIGHT)] * 3))
    assert (elsewhere["detection_score"] == 0).all() and np.isnan(elsewhere["sharpness"]).all()


def test_frames_without_a_face_are_nan_but_for_the_count() -> None:
    meter = FaceMeter(ScriptedDetector([(0.9, LEFT)]), 1)
    list(meter.watch(noise(number) for number in range(6)))
    landmarks = np.stack([face_in(LEFT)] * 6)
    landmarks[2] = np.nan
    quality = qualities(meter, landmarks)
    assert (quality.pop("num_faces") == 1).all()
    for name, values in quality.items():
        assert np.isnan(values[2]), name
    np.testing.assert_array_equal(np.isnan(quality["jitter_px"]), [True, True, True, True, False, True])
    assert qualities(FaceMeter(ScriptedDetector([]), 1), np.empty((0, 478, 3)))["yaw_deg"].shape == (0,)


@pytest.mark.parametrize("box", [(-0.5, -0.5, -0.1, -0.1), (0.99, 0.2, 1.4, 0.6), (0.3, 0.3, 0.3, 0.3)])
def test_a_box_outside_the_frame_is_not_measured(box: tuple[float, float, float, float]) -> None:
    meter = FaceMeter(ScriptedDetector([(0.9, box)]), 1)
    list(meter.watch([noise(0)]))
    assert np.isnan(meter.faces[0][0, 5:]).all()


def test_a_box_that_reaches_out_is_cut() -> None:
    meter = FaceMeter(ScriptedDetector([(0.9, (-0.3, -0.2, 0.4, 1.4))]), 1)
    list(meter.watch([noise(0)]))
    assert np.isfinite(meter.faces[0]).all()


@given(st.integers(3, 9), st.floats(-20, 20), st.floats(-20, 20), st.integers(0, 99))
def test_jitter_sees_acceleration_and_not_speed(frames: int, dx: float, dy: float, seed: int) -> None:
    time = np.arange(frames)[:, None, None]
    face = np.random.default_rng(seed).uniform(0, 512, (1, 468, 2))
    steady = face + time * np.array([dx, dy])
    np.testing.assert_allclose(jitter(steady)[1:-1], 0, atol=1e-9)
    np.testing.assert_allclose(jitter(steady + (time % 2) * np.array([3.0, 4.0]))[1:-1], 10.0)
    assert np.isnan(jitter(steady)[[0, -1]]).all()


def test_bad_frames_are_named() -> None:
    def watch(*frames: np.ndarray) -> None:
        list(FaceMeter(ScriptedDetector([]), 1).watch(frames))

    with pytest.raises(ValueError, match=r"frame 1 is 100 x 160, but the clip began with 200 x 160"):
        watch(noise(0), noise(0)[:, :100])
    with pytest.raises(ValueError, match="RGB uint8"):
        watch(noise(0)[..., 0])
    with pytest.raises(ValueError, match="float32"):
        watch(noise(0).astype(np.float32))


@pytest.mark.parametrize("wrong", [{"engine": "dlib"}, {"detector_every": 0}])
def test_settings_are_checked(wrong: dict) -> None:
    assert AnnotateSettings().detector_every == 5
    with pytest.raises(ValueError):
        AnnotateSettings(**wrong)


def test_jitter_refers_to_a_longer_side_of_512() -> None:
    meter = FaceMeter(ScriptedDetector([]), 1)
    list(meter.watch(noise(0) for _ in range(3)))
    landmarks = np.stack([face_in(LEFT)] * 3)
    landmarks[1, :, 0] += 3 / 200  # 3 pixels of a 200 x 160 image, there and back
    assert qualities(meter, landmarks)["jitter_px"][1] == pytest.approx(2 * 3 * 512 / 200, rel=1e-5)
