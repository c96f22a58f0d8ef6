"""Metrics by the user's own networks: the mathematics around them, with small networks scripted here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import Tensor, nn

from infer.metrics import Clip, Result
from infer.metrics.face_reading import aligned_faces, five_points
from infer.metrics.learned_metrics import LEARNED, LearnedMeasurement, LearnedModels, embed, frechet_distance
from infer.metrics.lip_sync import FRAMES
from infer.metrics.scripted_model import ScriptedModel
from talkinghead.geometry.canonical import mean_face
from talkinghead.provenance import hash_file
from tests.support.real_clips import OTHER, WOMAN, blurred, real_clip

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Patches(nn.Module):
    """Describes images or videos by their means over a grid; has a switch like the published files."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        if not return_features:
            return torch.zeros(x.shape[0], 10)
        flat = x.mean(dim=2) if x.dim() == 5 else x
        return nn.functional.adaptive_avg_pool2d(flat, 4).flatten(1)


class Face(nn.Module):
    """Embeds a face by its coarse image."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (3, 112, 112):
            raise RuntimeError("wrong size")
        pooled = nn.functional.adaptive_avg_pool2d(x, 6).flatten(1)
        return pooled - pooled.mean(dim=1, keepdim=True)


class Sync(nn.Module):
    """Embeds lips by their brightness and sound by its loudness, so that equal curves are near each other."""

    def forward(self, lips: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        return lips.amax(dim=(2, 3, 4)), sound.reshape(sound.shape[0], 5, 640).square().mean(2).sqrt()


class Broken(nn.Module):
    """Returns too few rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:0]


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


def face(frames: int) -> np.ndarray:
    return np.repeat((0.5 + mean_face().vertices[None, :, :2] * (0.04, -0.04)).astype(np.float32), frames, axis=0)


def measured(models: LearnedModels, clip: Clip, reference: np.ndarray | None = None) -> dict[str, Result]:
    with models.loaded() as networks:
        measurement = LearnedMeasurement(networks)
        measurement.add(clip, reference)
    return {result.name: result for result in measurement.results()}


def textbook(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance by the formula of the textbooks, with a matrix root."""
    first, second = np.cov(one.T), np.cov(other.T)
    root = linalg.sqrtm(first @ second)
    apart = one.mean(0) - other.mean(0)
    return float(apart @ apart + np.trace(first + second - 2 * np.real(root)))


@settings(deadline=None, max_examples=20)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(2, 6), st.integers(0, 1000))
def test_the_frechet_distance_is_the_textbook_s(n: int, m: int, dims: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(n, dims)), rng.normal(size=(m, dims)) @ rng.normal(size=(dims, dims)) + 1
    distance = frechet_distance(one, other)
    assert distance == pytest.approx(textbook(one, other), rel=1e-6, abs=1e-6)
    assert frechet_distance(other, one) == pytest.approx(distance)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(4 * dims)


def test_fewer_samples_than_dimensions() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(5, 30)), rng.normal(size=(7, 30))
    # Rotated into a space of more dimensions, the features keep their distance.
    turn = np.linalg.qr(rng.normal(size=(60, 60)))[0][:30]
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other))
    with pytest.raises(ValueError, match="2 or more"):
        frechet_distance(one[:1], other)


def test_without_a_model_everything_is_unavailable() -> None:
    clip = Clip(key="a", valid=np.ones(9, bool), predicted_video=np.zeros((9, 8, 8, 3), np.uint8))
    found = measured(LearnedModels(), clip)
    assert list(found) == list(LEARNED)
    for name, result in found.items():
        assert result.value is None
        assert result.reason_unavailable == f"no {LEARNED[name].model} model was given"


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_sync_finds_how_late_the_lips_are(tmp_path: Path, late: int) -> None:
    model = saved(Sync(), tmp_path / "sync.pt")
    level = np.random.default_rng(0).uniform(0.1, 0.9, 90)
    seen = np.roll(level, late)
    video = np.broadcast_to((255 * seen).round().astype(np.uint8)[:, None, None, None], (90, 32, 32, 3))
    audio = np.repeat(level, 640).astype(np.float32)
    clip = Clip(key="a", valid=np.ones(90, bool), predicted_video=video, asked_landmarks=face(90), audio=audio)
    found = measured(LearnedModels(sync=model), clip)
    assert found["sync_offset"].value == late
    distance, confidence = found["sync_distance"].value, found["sync_confidence"].value
    assert distance is not None and distance < 0.1
    assert confidence is not None and confidence > 0.4
    chance = Clip(key="a", valid=clip.valid, predicted_video=video, asked_landmarks=face(90), audio=audio[::-1].copy())
    weaker = measured(LearnedModels(sync=model), chance)["sync_confidence"].value
    assert weaker is not None and weaker < confidence / 2
    short = Clip(
        key="a", valid=np.arange(90) < 20 + FRAMES, predicted_video=video, asked_landmarks=face(90), audio=audio
    )
    assert "too short" in str(measured(LearnedModels(sync=model), short)["sync_offset"].reason_unavailable)


def test_identity_tells_people_apart(tmp_path: Path, shared: Path) -> None:
    models = LearnedModels(identity=saved(Face(), tmp_path / "face.pt"))
    model = models.load()["identity"]
    clips = {}
    for name in (WOMAN, OTHER):
        real = real_clip(shared, name)
        video, points = real.at(128)[:20], real.landmarks[:20].astype(np.float32)
        clips[name] = Clip(key=name, valid=np.ones(20, bool), predicted_video=video, shown_landmarks=points)
    reference = embed(clips[WOMAN], model)[0]
    same, different = (measured(models, clips[name], reference)["identity_similarity"].value for name in (WOMAN, OTHER))
    assert same is not None and different is not None
    assert different < 0.7 < 0.95 < same
    lost = measured(models, clips[WOMAN], None)["identity_similarity"]
    assert lost.value is None and "in the reference" in str(lost.reason_unavailable)


def test_faces_are_aligned(shared: Path) -> None:
    real = real_clip(shared, WOMAN)
    size = np.array([512, 512])
    faces = aligned_faces(real.video[:1], real.landmarks[:1])
    assert faces.shape == (1, 112, 112, 3)
    turned = np.ascontiguousarray(np.rot90(real.video[0], -1))[None]  # clockwise: (x, y) → (1 - y, x)
    x, y = real.landmarks[:1, :, 0], real.landmarks[:1, :, 1]
    again = aligned_faces(turned, np.stack((1 - y, x), axis=-1))
    assert np.abs(again.astype(float) - faces).mean() < 2
    eyes = five_points(real.landmarks[0])[:2] * size
    assert eyes[0, 0] < eyes[1, 0]


@pytest.mark.slow
def test_frechet_distances_of_images_and_videos(tmp_path: Path, shared: Path) -> None:
    models = LearnedModels(fid=saved(Patches(), tmp_path / "fid.pt"), fvd=saved(Patches(), tmp_path / "fvd.pt"))
    true = real_clip(shared, WOMAN).at(64)[:60]
    found = {}
    for name, video in {"blurred": blurred(true, 2), "other": real_clip(shared, OTHER).at(64)[:60]}.items():
        clip = Clip(key=name, valid=np.ones(60, bool), predicted_video=video, true_video=true)
        results = measured(models, clip)
        found[name] = [results[f"frechet_{kind}_distance"].value for kind in ("inception", "video")]
    assert found["blurred"][0] < found["other"][0] / 10
    assert found["blurred"][1] < found["other"][1] / 10
    alone = Clip(key="a", valid=np.ones(60, bool), predicted_video=true)
    for kind in ("inception", "video"):
        result = measured(models, alone)[f"frechet_{kind}_distance"]
        assert result.value is None and "truth" in str(result.reason_unavailable)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there"):
        LearnedModels(sync=tmp_path / "gone.pt").load()
    (tmp_path / "bad.pt").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"no TorchScript file: save it with torch\.jit\.script"):
        LearnedModels(fid=tmp_path / "bad.pt").load()
    model = ScriptedModel.load("identity", saved(Face(), tmp_path / "face.pt"))
    assert model.sha256 == hash_file(tmp_path / "face.pt") and model.sha256 in model.provenance()
    with pytest.raises(ValueError, match=r"face\.pt fails on \(2, 3, 8, 8\): .*wrong size"):
        model.features(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="1 tensor"):
        ScriptedModel.load("fid", saved(Broken(), tmp_path / "broken.pt")).features(np.zeros((2, 3), np.float32))
    nan = ScriptedModel.load("fid", saved(Patches(), tmp_path / "patches.pt"))
    with pytest.raises(ValueError, match="not finite"):
        nan.features(np.full((2, 3, 8, 8), np.nan, np.float32))
