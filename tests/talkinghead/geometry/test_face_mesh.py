from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.geometry.camera import project, transform
from talkinghead.geometry.canonical import CanonicalFace
from talkinghead.geometry.face_mesh import metric_mesh, similarity
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix, rotation_from_euler

Golden = Callable[[str], dict[str, np.ndarray]]
SIZES = st.tuples(st.integers(64, 2048), st.integers(64, 2048))
POSES = st.tuples(*(st.floats(-50, 50) for _ in range(3)), st.floats(-10, 10), st.floats(-10, 10), st.floats(-150, -30))


def numbers(path: Path, key: str) -> np.ndarray:
    return np.array([float(value) for value in re.findall(rf"\b{key}: (\S+)", path.read_text())])


def screen(mesh: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Landmarks `[F, 468, 3]` that a mesh would give: projected x and y, and z in the scale of x at the mean depth.

    MediaPipe's landmarks have weak-perspective depth, so z is built as the inverse of its unprojection.
    """
    points = transform(mesh, matrix)
    xy = project(mesh, matrix, width, height) / (width, height)
    near_width = 2 * np.tan(np.radians(31.5)) * width / height
    distance = -points[..., 2]
    return np.concatenate((xy, ((distance / distance.mean(axis=-1, keepdims=True)) / near_width)[..., None]), axis=-1)


def test_golden_frames(golden: Golden, official_face: CanonicalFace) -> None:
    data = golden("geometry")
    for landmarks, size, mesh, matrix in zip(
        data["lmks"], data["size_wh"], data["lmks3d"], data["trans_mat"], strict=True
    ):
        found, pose = metric_mesh(landmarks[None], int(size[0]), int(size[1]), official_face)
        np.testing.assert_allclose(found[0], mesh, atol=2e-4)
        np.testing.assert_allclose(pose[0, :3, :3], matrix[:3, :3], atol=1e-5)
        np.testing.assert_allclose(pose[0, :3, 3], matrix[:3, 3], atol=2e-5 * float(np.linalg.norm(matrix[:3, 3])))
        np.testing.assert_array_equal(pose[0, 3], [0, 0, 0, 1])


def test_mediapipes_own_geometry_test(mediapipe_data: Path, official_face: CanonicalFace) -> None:
    """MediaPipe's landmarks-to-geometry graph on fixed landmarks of an 820 x 1024 image: no network is involved."""
    landmarks = np.stack([numbers(mediapipe_data / "face_blendshapes_in_landmarks.prototxt", k) for k in "xyz"], axis=1)
    expected = mediapipe_data / "face_geometry_expected_out.pbtxt"
    mesh, matrix = metric_mesh(landmarks[None], 820, 1024, official_face)
    vertices = numbers(expected, "vertex_buffer").reshape(-1, 5)[:, :3]
    np.testing.assert_allclose(mesh[0], vertices, atol=5e-5)
    np.testing.assert_allclose(matrix[0], numbers(expected, "packed_data").reshape(4, 4).T, atol=5e-5)


@settings(max_examples=40, deadline=None)
@given(pose=POSES, size=SIZES)
def test_projecting_returns_the_landmarks(official_face: CanonicalFace, pose: tuple[float, ...], size) -> None:
    width, height = size
    landmarks = screen(official_face.vertices[None], matrix_from_pose(np.array([pose])), width, height)
    landmarks += np.random.default_rng(0).normal(0, 2e-3, landmarks.shape)
    mesh, matrix = metric_mesh(landmarks, width, height, official_face)
    np.testing.assert_allclose(
        project(mesh, matrix, width, height), landmarks[..., :2] * (width, height), atol=1e-7 * max(size)
    )


@pytest.mark.parametrize(("axis", "name"), [(0, "pitch"), (1, "yaw"), (2, "roll")])
def test_synthetic_turning_head(official_face: CanonicalFace, axis: int, name: str) -> None:
    """The canonical face itself, turned about one axis: angles come back, with the signs of the convention."""
    angles = np.linspace(-40, 40, 17)
    pose = np.zeros((17, 6))
    pose[:, axis] = angles
    pose[:, 3:] = (2.0, -1.0, -45.0)
    landmarks = screen(official_face.vertices[None], matrix_from_pose(pose), 640, 480)
    mesh, matrix = metric_mesh(landmarks, 640, 480, official_face)
    found = pose_from_matrix(matrix)
    # Exact but for the two-step scale: MediaPipe's procedure is approximate under perspective.
    np.testing.assert_allclose(found[:, :3], pose[:, :3], atol=1.0)
    np.testing.assert_allclose(found[:, 5], -45.0, atol=2.0)
    np.testing.assert_allclose(mesh, np.broadcast_to(official_face.vertices, mesh.shape), atol=0.3)
    xy = landmarks[-1, :, :2] * (640, 480)
    nose, between_eyes, left_eye, right_eye = xy[4], (xy[33] + xy[263]) / 2, xy[263], xy[33]
    still = landmarks[8, :, :2] * (640, 480)
    assert {
        "pitch": nose[1] > still[4, 1] + 10,  # down
        "yaw": nose[0] > still[4, 0] + 10 and abs(nose[1] - still[4, 1]) < 5,  # to the image's right
        "roll": left_eye[1] < right_eye[1] - 10 and nose[0] > between_eyes[0],  # counter-clockwise in the image
    }[name]


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*(st.floats(-180, 180) for _ in range(3))),
    move=st.tuples(*(st.floats(-50, 50) for _ in range(3))),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 1000),
)
def test_similarity_is_equivariant(angles, move, scale: float, seed: int) -> None:
    """Fitting a moved target moves the fit: the same noise, seen from elsewhere, gives the same residual."""
    rng = np.random.default_rng(seed)
    source, weights = rng.normal(size=(12, 3)), rng.random(12)
    target = source + rng.normal(0, 0.05, source.shape)
    turn = rotation_from_euler(np.array(angles))
    moved = scale * target @ turn.T + move
    s0, r0, t0 = similarity(source, target[None], weights)
    s1, r1, t1 = similarity(source, moved[None], weights)
    np.testing.assert_allclose(s1, scale * s0, rtol=1e-9)
    np.testing.assert_allclose(r1[0], turn @ r0[0], atol=1e-9)
    np.testing.assert_allclose(t1[0], scale * turn @ t0[0] + move, atol=1e-8 * max(scale, 1))
    assert np.linalg.det(r1[0]) == pytest.approx(1.0)


def test_similarity_never_mirrors() -> None:
    source = np.random.default_rng(3).normal(size=(10, 3))
    _, rotation, _ = similarity(source, (source * (1, 1, -1))[None], np.ones(10))
    assert np.linalg.det(rotation[0]) == pytest.approx(1.0)


def test_frames_do_not_see_each_other_and_missing_faces_stay_missing(golden: Golden, official_face) -> None:
    landmarks = golden("geometry")["lmks"][:6].copy()
    alone = [metric_mesh(frame[None], 512, 384, official_face) for frame in landmarks]
    landmarks[2] = np.nan
    landmarks[4, 468:] = np.nan  # no iris: the mesh does not need it
    mesh, matrix = metric_mesh(landmarks, 512, 384, official_face)
    assert np.isnan(mesh[2]).all() and np.isnan(matrix[2]).all()
    for frame in (0, 1, 3, 4, 5):
        np.testing.assert_allclose(mesh[frame], alone[frame][0][0], atol=1e-10)
        np.testing.assert_allclose(matrix[frame], alone[frame][1][0], atol=1e-10)
    mesh, matrix = metric_mesh(np.full((3, 478, 3), np.nan), 512, 384, official_face)
    assert np.isnan(mesh).all() and np.isnan(matrix).all()
    assert metric_mesh(np.empty((0, 478, 3)), 512, 384, official_face)[0].shape == (0, 468, 3)


def test_only_the_aspect_ratio_matters(golden: Golden, official_face: CanonicalFace) -> None:
    landmarks = golden("geometry")["lmks"][:3]
    for one, other in zip(
        metric_mesh(landmarks, 320, 180, official_face), metric_mesh(landmarks, 1920, 1080, official_face), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_bad_input_is_named(official_face: CanonicalFace) -> None:
    with pytest.raises(ValueError, match="468 or more"):
        metric_mesh(np.zeros((2, 400, 3)), 512, 512, official_face)
    with pytest.raises(ValueError, match="0 x 512"):
        metric_mesh(np.zeros((2, 478, 3)), 0, 512, official_face)
    with pytest.raises(ValueError, match="one spot"):
        metric_mesh(np.zeros((2, 478, 3)), 512, 512, official_face)


@pytest.mark.parametrize(
    "clip", ["Moore-AnimateAnyone_4.mp4", "Talking-Face_PC-AVS_00086.mp4", "ditto-train-fixed-for-HDTF"]
)
def test_pose_equals_mediapipe_tasks(media: Path, task_file: Path, official_face: CanonicalFace, clip: str) -> None:
    """Our matrix from MediaPipe's landmarks against the matrix that it computes itself, on frames of real clips."""
    from mediapipe.tasks.python import BaseOptions

    landmarks, matrices, size = _tasks(BaseOptions, next((media / "video").glob(f"{clip}*")), task_file, every=12)
    assert len(landmarks) >= 8
    _, found = metric_mesh(landmarks, *size, official_face)
    np.testing.assert_allclose(found[:, :3, :3], matrices[:, :3, :3], atol=1e-3)
    np.testing.assert_allclose(found[:, :3, 3], matrices[:, :3, 3], atol=1e-2)


def _tasks(base_options, path: Path, task_file: Path, every: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    import mediapipe as mp
    from mediapipe.tasks.python import vision

    options = vision.FaceLandmarkerOptions(
        base_options=base_options(model_asset_path=str(task_file)), output_facial_transformation_matrixes=True
    )
    landmarks, matrices, size = [], [], (0, 0)
    with vision.FaceLandmarker.create_from_options(options) as tasks, av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % every or len(landmarks) == 10:
                continue
            size = (frame.width, frame.height)
            result = tasks.detect(mp.Image(mp.ImageFormat.SRGB, np.ascontiguousarray(frame.to_ndarray(format="rgb24"))))
            if result.face_landmarks:
                landmarks.append([(point.x, point.y, point.z) for point in result.face_landmarks[0]])
                matrices.append(result.facial_transformation_matrixes[0])
    return np.array(landmarks), np.array(matrices), size


def test_portrait_within_mediapipes_tolerances(
    mediapipe_data: Path, task_file: Path, official_face: CanonicalFace
) -> None:
    """Tasks on MediaPipe's own portrait, with the released bundle, then our geometry, against its expected geometry."""
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(task_file)),
        output_facial_transformation_matrixes=True,
        output_face_blendshapes=True,
    )
    image = mp.Image.create_from_file(str(mediapipe_data / "portrait.jpg"))
    with vision.FaceLandmarker.create_from_options(options) as tasks:
        result = tasks.detect(image)
    points = np.array([[(point.x, point.y, point.z) for point in result.face_landmarks[0]]])
    expected = mediapipe_data / "portrait_expected_face_landmarks.pbtxt"
    np.testing.assert_allclose(points[0, :, 0], numbers(expected, "x"), atol=0.01)
    np.testing.assert_allclose(points[0, :, 1], numbers(expected, "y"), atol=0.01)
    scores = numbers(mediapipe_data / "portrait_expected_blendshapes.pbtxt", "score")
    np.testing.assert_allclose([shape.score for shape in result.face_blendshapes[0]], scores, atol=0.15)
    _, matrix = metric_mesh(points, image.width, image.height, official_face)
    expected = mediapipe_data / "portrait_expected_face_geometry.pbtxt"
    target = numbers(expected, "packed_data").reshape(4, 4).T
    np.testing.assert_allclose(matrix[0, :3, :3], target[:3, :3], atol=0.05)
    np.testing.assert_allclose(matrix[0, :3, 3], target[:3, 3], atol=0.4)
