"""The annotation of one clip: its columns, their tar members, and a real clip."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from annotate.clip import INFO_FIELDS, annotate_clip, encode_annotation
from annotate.landmarks import Landmarks
from annotate.settings import AnnotateSettings
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, COLUMNS, check_arrays
from talkinghead.column import decode_column
from talkinghead.geometry.camera import NEAR_HEIGHT, project, transform
from talkinghead.geometry.canonical import canonical_face, mean_face
from talkinghead.geometry.pose import matrix_from_pose

INFO = {"annotate_key": "0123456789abcdef", "engine": "litert", "model": "face_mesh_2020", "model_sha256": "ab" * 32}
WIDTH, HEIGHT = 96, 64


class NoDetector:
    def detect(self, frame: np.ndarray) -> list:
        return []


class ScriptedEngine:
    """Engine that consumes the frames and returns prepared landmarks."""

    name = "scripted"

    def __init__(self, points: np.ndarray, blendshapes: np.ndarray | None = None) -> None:
        self.points = points
        self.blendshapes = np.full((len(points), 52), 0.25, np.float32) if blendshapes is None else blendshapes

    def __call__(self, frames: Iterable[np.ndarray]) -> Landmarks:
        for _ in frames:
            pass
        return Landmarks(self.points, self.blendshapes)


def frames(count: int) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def turning_face(count: int) -> np.ndarray:
    """Landmarks of the mean face turning from left to right."""
    pose = np.zeros((count, 6))
    pose[:, 1] = np.linspace(-20, 20, count)
    pose[:, 5] = -40
    matrix = matrix_from_pose(pose)
    xy = project(mean_face().vertices, matrix, WIDTH, HEIGHT) / (WIDTH, HEIGHT)
    distance = -transform(mean_face().vertices, matrix)[..., 2]
    points = np.full((count, 478, 3), 0.5, np.float32)
    points[:, :468, :2] = xy
    points[:, :468, 2] = distance / 40 / (NEAR_HEIGHT * WIDTH / HEIGHT)
    return points


def annotate(points: np.ndarray, **engine) -> dict[str, np.ndarray]:
    engine = ScriptedEngine(points, **engine)
    return annotate_clip(frames(len(points)), engine, NoDetector(), mean_face(), AnnotateSettings())


def test_damaged_frames_count_as_frames_without_a_face() -> None:
    points = turning_face(12)
    engine = ScriptedEngine(points)
    arrays = annotate_clip(frames(12), engine, NoDetector(), mean_face(), AnnotateSettings(), damaged=[0, 7, 8])
    assert check_arrays(arrays) == 12
    np.testing.assert_array_equal(np.flatnonzero(~arrays["valid"]), [0, 7, 8])
    assert np.isfinite(points).all(), "the engine's own stay"
    whole = annotate(points)
    for column in COLUMNS:
        if column.name != "quality":  # jitter looks at neighbours
            kept = arrays[column.name][[1, 2, 6, 9]]
            np.testing.assert_array_equal(kept, whole[column.name][[1, 2, 6, 9]])
        if column.name not in ("valid", "quality"):
            assert np.isnan(arrays[column.name][[0, 7, 8]]).all()


def test_columns_fit_and_missing_frames_are_nan() -> None:
    points = turning_face(12)
    points[[0, 5, 6]] = np.nan
    arrays = annotate(points)
    assert check_arrays(arrays) == 12
    np.testing.assert_array_equal(np.flatnonzero(~arrays["valid"]), [0, 5, 6])
    for column in COLUMNS:
        values = arrays[column.name]
        assert values.dtype == (bool if column.name == "valid" else np.float32)
        if column.name not in ("valid", "quality"):
            assert np.isnan(values[~arrays["valid"]]).all(), column.name
            assert np.isfinite(values[arrays["valid"]]).all(), column.name
    yaw = arrays["pose"][arrays["valid"], 1]
    assert (np.diff(yaw) > 0).all() and yaw[0] < -10 and yaw[-1] > 10
    np.testing.assert_allclose(
        project(arrays["mesh"], arrays["pose_matrix"], WIDTH, HEIGHT)[arrays["valid"]],
        points[arrays["valid"], :468, :2] * (WIDTH, HEIGHT),
        atol=1e-3,
    )
    np.testing.assert_allclose(matrix_from_pose(arrays["pose"])[1:5], arrays["pose_matrix"][1:5], atol=1e-4)


def test_model_without_iris_and_blendshapes() -> None:
    points = turning_face(4)
    points[:, 468:] = np.nan
    arrays = annotate(points, blendshapes=np.full((4, 52), np.nan, np.float32))
    assert arrays["valid"].all() and np.isnan(arrays["blendshapes"]).all()
    members = encode_annotation(arrays, INFO)
    assert np.isnan(decode_column(COLUMN["landmarks"], members["landmarks.npy"])[:, 468:]).all()


def test_landmarks_that_no_shard_can_hold_are_no_face() -> None:
    """One wild frame must not cost the clip, and the engine's own array is not changed."""
    points = turning_face(6)
    points[2] *= 50
    points[4, 0, 0] = 1.9  # inside the range of landmarks, but a metre away from the head
    before = points.copy()
    arrays = annotate(points)
    np.testing.assert_array_equal(arrays["valid"], [1, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(points, before)
    assert set(encode_annotation(arrays, INFO)) == set(ANNOTATION_MEMBERS)


def test_clip_without_any_face() -> None:
    arrays = annotate(np.full((7, 478, 3), np.nan, np.float32))
    assert not arrays["valid"].any()
    document = json.loads(encode_annotation(arrays, INFO)["ann.json"])
    assert document["scores"]["valid_fraction"] == 0 and document["scores"]["yaw_mean"] is None


def test_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        annotate(np.empty((0, 478, 3), np.float32))


def test_members_come_back_within_the_stated_error() -> None:
    points = turning_face(10)
    points[3] = np.nan
    arrays = annotate(points)
    members = encode_annotation(arrays, INFO)
    assert tuple(members) == ANNOTATION_MEMBERS
    assert members == encode_annotation(arrays, INFO)
    for column in COLUMNS:
        back, values = decode_column(column, members[column.member]), arrays[column.name]
        tolerance = column.step / 2 if column.step else 0.00025 if column.name == "blendshapes" else 0
        np.testing.assert_allclose(back.astype(float), values.astype(float), rtol=0, atol=tolerance + 1e-6)
    landmarks = decode_column(COLUMN["landmarks"], members["landmarks.npy"])
    assert np.nanmax(np.abs(landmarks - points)) * 512 <= 0.05
    assert np.nanmax(np.abs(decode_column(COLUMN["mesh"], members["mesh.npy"]) - arrays["mesh"])) <= 0.002


def test_document_reads_the_columns_without_our_code() -> None:
    import io

    arrays = annotate(turning_face(5))
    members = encode_annotation(arrays, {**INFO, "settings": {"detector_every": 5}}, {"sharpness": None, "mine": 1.0})
    document = json.loads(members["ann.json"])
    assert document["settings"] == {"detector_every": 5} and document["num_frames"] == 5
    assert document["scores"] == {"sharpness": None, "mine": 1.0}
    for name, entry in document["columns"].items():
        stored = np.load(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False)
        assert stored.dtype == np.dtype(entry["dtype"]) and list(stored.shape) == entry["shape"]
        values = stored * (entry["step"] or 1)
        np.testing.assert_allclose(values, arrays[name], rtol=0, atol=(entry["step"] or 1e-3))


def test_incomplete_provenance_is_refused() -> None:
    arrays = annotate(turning_face(3))
    for name in INFO_FIELDS:
        with pytest.raises(ValueError, match=name):
            encode_annotation(arrays, {**INFO, name: ""})
    del arrays["pose"]
    with pytest.raises(ValueError, match="lacks pose"):
        encode_annotation(arrays, INFO)


def test_real_clip(media: Path, shared: Path) -> None:
    """All parts together on half a second of a real clip, against the entry in its manifest."""
    from annotate.engines import make_engine
    from talkinghead.face.detector import FaceDetector
    from talkinghead.face.model import load_official

    model = load_official(shared / "models" / "face_landmarker.task")

    def decoded() -> Iterator[np.ndarray]:
        with av.open(str(media / "video" / "Talking-Face_PC-AVS_00086.mp4")) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number == 13:
                    return
                yield frame.to_ndarray(format="rgb24")

    arrays = annotate_clip(
        decoded(),
        make_engine("litert", model),
        FaceDetector(model),
        canonical_face(model.geometry_metadata),
        AnnotateSettings(),
    )
    assert arrays["valid"].all() and len(arrays["valid"]) == 13
    scores = json.loads(encode_annotation(arrays, INFO)["ann.json"])["scores"]
    assert 0.6 < scores["face_fraction"] < 0.7 and scores["face_height_px"] == pytest.approx(
        224 * scores["face_fraction"]
    )
    assert -28 < scores["yaw_mean"] < -2 and scores["roll_abs_median"] < 10
    assert scores["faces_max"] == 1 and scores["detection_score"] > 0.8
    assert 50 < scores["brightness"] < 200 and scores["sharpness"] > 30 and 0 < scores["jitter_px"] < 6
