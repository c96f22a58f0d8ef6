"""Speech to landmarks: lengths, rates, options, long speech, and the numbers of the published system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.published import load_published
from talkinghead.models.speech.weights import Pretrained
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from tests.support.golden_weights import golden_shapes, golden_state

REFERENCE: dict[str, Any] = {
    "reference_mesh": mean_face().vertices.astype(np.float32),
    "reference_pose_matrix": matrix_from_pose(np.array([3.0, -5.0, 2.0, 0.5, 1.0, -35.0])),
    "width": 512,
    "height": 640,
}


def audio2mesh(**options: Any) -> Audio2Mesh:
    torch.manual_seed(0)
    model = Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config(), hidden=32, **options)
    torch.nn.init.normal_(model.out_fn.weight, std=0.02)
    return model.eval()


def audio2pose(**options: Any) -> Audio2Pose:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "width": 32,
        "layers": 1,
        "heads": 2,
        "feed_forward": 64,
        "num_identities": 4,
        "context": 25,
    }
    model = Audio2Pose(wav2vec=Pretrained("tiny").wav2vec_config(), **(sizes | options))
    torch.nn.init.normal_(model.pose_map_r.weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def pipeline() -> AudioToLandmarks:
    return AudioToLandmarks(audio2mesh(), audio2pose())


def speech(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (640, 1), (641, 2), (16000, 25), (80000, 125), (48001, 76)])
def test_any_length(pipeline: AudioToLandmarks, samples: int, frames: int) -> None:
    motion = pipeline(speech(samples / 16000), **REFERENCE)
    assert len(motion) == frames and motion.fps == 25 and motion.valid.all()
    assert motion.meshes().shape == (frames, 468, 3) and motion.pose_matrix.shape == (frames, 4, 4)
    assert (motion.width, motion.height) == (512, 640) and np.isfinite(motion.landmarks()).all()


@pytest.mark.parametrize(("fps", "encoded"), [(25.0, 13 * 640), (30.0, 8000)])
def test_frames_fall_on_features_as_in_training(fps: float, encoded: int) -> None:
    """Speech is padded to whole frames where a frame has a whole number of samples; at 30 fps it is not."""
    model = audio2mesh(fps=fps)
    lengths: list[int] = []
    extractor: Any = model.audio_encoder.feature_extractor
    extractor.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    offsets = AudioToLandmarks(model).predict_offsets(speech(0.5))
    assert lengths == [encoded] and len(offsets) == -(-fps // 2)


def test_no_motion_is_the_reference(pipeline: AudioToLandmarks) -> None:
    """Fresh models predict no offsets and no motion, and silence does not change that."""
    fresh = Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config())
    motion = AudioToLandmarks(fresh)(np.zeros(3200, np.float32), pose="still", **REFERENCE)
    assert np.array_equal(motion.mesh, REFERENCE["reference_mesh"][None].repeat(5, axis=0))
    assert np.array_equal(motion.neutral, REFERENCE["reference_mesh"])
    np.testing.assert_allclose(motion.pose_matrix, REFERENCE["reference_pose_matrix"][None].repeat(5, axis=0))


def test_same_arguments_same_arrays(pipeline: AudioToLandmarks) -> None:
    first, again = (pipeline(speech(2), identity=2, **REFERENCE) for _ in range(2))
    other = pipeline(speech(2), identity=3, **REFERENCE)
    for name in ("mesh", "pose_matrix"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert np.array_equal(first.mesh, other.mesh) and not np.array_equal(first.pose_matrix, other.pose_matrix)


def test_gain_and_smoothing(pipeline: AudioToLandmarks) -> None:
    """Options replace the model's own settings."""
    halved = AudioToLandmarks(audio2mesh(smoothing=5), audio2pose(angle_gain=0.5, smoothing=7))
    samples = speech(2)
    raw = halved.predict_pose(samples, gain=1.0, smoothing=1)
    own = halved.predict_pose(samples)
    gained = halved.predict_pose(samples, smoothing=1)
    np.testing.assert_allclose(gained[:, :3], raw[:, :3] / 2, rtol=1e-6)
    np.testing.assert_array_equal(gained[:, 3:], raw[:, 3:])
    np.testing.assert_allclose(own[10], gained[7:14].mean(axis=0), rtol=1e-5, atol=1e-6)
    offsets = halved.predict_offsets(samples, smoothing=1)
    np.testing.assert_allclose(halved.predict_offsets(samples)[10], offsets[8:13].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(pipeline.predict_offsets(samples), offsets)


def test_models_of_different_rates(pipeline: AudioToLandmarks) -> None:
    """A mesh at 30 and a pose at 25 frames per second give a result at 30, or at the requested rate."""
    mixed = AudioToLandmarks(audio2mesh(fps=30.0), audio2pose())
    samples = speech(3)
    motion = mixed(samples, **REFERENCE)
    assert motion.fps == 30 and len(motion) == 90
    pose, shown = mixed.predict_pose(samples), motion.pose_about(REFERENCE["reference_pose_matrix"])
    for frame in (4, 31, 64):  # frame k at 30 lies between two at 25
        at = (frame + 0.5) / 30 * 25 - 0.5
        low = int(at)
        np.testing.assert_allclose(
            shown[frame], pose[low] + (at - low) * (pose[low + 1] - pose[low]), rtol=1e-5, atol=1e-6
        )
    slower = mixed(samples, fps=10, **REFERENCE)
    assert slower.fps == 10 and len(slower) == 30


def test_motion_from_elsewhere(pipeline: AudioToLandmarks) -> None:
    given = np.random.default_rng(1).uniform(-5, 5, (25, 6))
    motion = pipeline(speech(1), pose=given, **REFERENCE)
    np.testing.assert_allclose(motion.pose_about(REFERENCE["reference_pose_matrix"]), given, atol=1e-9)
    with pytest.raises(ValueError, match=r"must be \(25, 6\)"):
        pipeline(speech(1), pose=given[:20], **REFERENCE)


def test_long_speech_is_its_parts(pipeline: AudioToLandmarks) -> None:
    """Speech of 45 s is processed in windows; far from their seams each equals one alone, and progress is reported."""
    reported: list[tuple[str, int, int]] = []
    samples = speech(45)
    motion = pipeline(samples, progress=lambda *step: reported.append(step), **REFERENCE)
    assert len(motion) == 1125
    assert {stage for stage, _, _ in reported} == {"mesh from speech", "pose from speech", "head motion"}
    for stage in ("mesh from speech", "pose from speech"):
        steps = [done for name, done, _ in reported if name == stage]
        assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 1125 and len(steps) > 3
    steps = np.abs(np.diff(motion.mesh, axis=0)).max(axis=(1, 2))
    assert steps.max() < 4 * np.median(steps), "no jump at a join"


def test_refused(pipeline: AudioToLandmarks) -> None:
    with pytest.raises(ValueError, match="no samples"):
        pipeline(speech(0), **REFERENCE)
    with pytest.raises(ValueError, match="identity 4"):
        pipeline(speech(1), identity=4, **REFERENCE)
    with pytest.raises(ValueError, match="Audio2Pose"):
        AudioToLandmarks(audio2mesh())(speech(1), **REFERENCE)
    with pytest.raises(ValueError, match="Audio2Mesh"):
        AudioToLandmarks(None, audio2pose())(speech(1), **REFERENCE)


@pytest.mark.slow
def test_published_weights_give_the_published_numbers(shared: Path, tmp_path: Path) -> None:
    """Speech through both published files: offsets, and poses as the published scripts chunk, halve and smooth them."""
    with np.load(shared / "goldens" / "dev" / "audio.npz", allow_pickle=False) as content:
        golden = dict(content)
    models: dict[str, Any] = {}
    for kind in ("audio2mesh", "audio2pose"):
        file = tmp_path / f"{kind}.pt"
        torch.save(golden_state(file.name, golden_shapes(shared / "goldens", kind)), file)
        models[kind] = load_published(kind, file, "restart")[0]
        file.unlink()
    pipeline = AudioToLandmarks(models["audio2mesh"], models["audio2pose"])
    samples = golden["samples"].astype(np.float32) / 32768
    offsets = pipeline.predict_offsets(samples[: int(golden["short_samples"])])
    wanted = golden["mesh.out"].reshape(-1, 468, 3)
    assert np.linalg.norm(offsets - wanted) / np.linalg.norm(wanted) < 1e-4
    pose = pipeline.predict_pose(samples, identity=int(golden["long.identity"]))
    assert np.linalg.norm(pose - golden["long.pose"]) / np.linalg.norm(golden["long.pose"]) < 2e-4
