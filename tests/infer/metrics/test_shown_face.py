"""Metrics of the face that images show against the one that was asked for: found again, and read from pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from annotate.engines.litert import LitertEngine
from infer.metrics import Clip, Unavailable
from infer.metrics.face_reading import ENLARGED, MouthReader, cut_upright, enlarged, planar_similarity, redetect
from infer.metrics.shown_face import (
    face_found,
    face_size,
    landmark_distance,
    lip_landmark_distance,
    mouth_read_correlation,
    mouth_shown_correlation,
    mouth_shown_gain,
)
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LIPS
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.pipelines.lmk2video.frames import as_bytes, decode
from tests.support.real_clips import FRAMES, OTHER, WOMAN, RealClip, blurred, noisy, real_clip

WINDOW = slice(30, 80)
NUMBERS = np.arange(WINDOW.start, WINDOW.stop)


def face(frames: int = 20, opening: float = 0.3) -> np.ndarray:
    """Landmarks `[F, 468, 2]` of a face whose lower lip falls and rises by a share of its height."""
    vertices = mean_face().vertices
    points = np.repeat((0.5 + vertices[None, :, :2] * (0.03, -0.03)).astype(np.float32), frames, axis=0)
    low = [vertex for vertex in LIPS if vertices[vertex, 1] < vertices[list(LIPS), 1].mean()]
    points[:, low, 1] += opening * (0.5 - 0.5 * np.cos(np.arange(frames)))[:, None].astype(np.float32)
    return points


def of(asked: np.ndarray, shown: np.ndarray, width: int = 64, height: int = 64) -> Clip:
    video = np.zeros((len(asked), height, width, 3), np.uint8)
    return Clip(
        key="a",
        valid=np.ones(len(asked), bool),
        predicted_video=video,
        asked_landmarks=asked.astype(np.float32),
        shown_landmarks=shown.astype(np.float32),
    )


def test_distances_are_in_shares_of_the_face() -> None:
    asked = face(opening=0)
    size = face_size(asked[0], 200, 100)
    assert size == pytest.approx(np.sqrt(np.prod(np.ptp(asked[0], axis=0) * (200, 100))))
    shifted = asked + np.array([0.01, 0])
    assert landmark_distance(of(asked, shifted, 200, 100)) == pytest.approx(100 * 2 / size, rel=1e-4)
    assert landmark_distance(of(asked, asked)) == 0
    only_lips = asked.copy()
    only_lips[:, list(LIPS)] += 0.01
    clip = of(asked, only_lips)
    assert lip_landmark_distance(clip) == pytest.approx(landmark_distance(clip) * 468 / len(LIPS), rel=1e-4)


@pytest.mark.parametrize("share", [0.25, 1.0, 1.5])
def test_the_gain_is_how_far_the_mouth_opens(share: float) -> None:
    clip = of(face(opening=0.2), face(opening=0.2 * share))
    assert mouth_shown_gain(clip) == pytest.approx(share, rel=1e-3)
    assert mouth_shown_correlation(clip) == pytest.approx(1.0, abs=1e-5)


def test_frames_without_a_face_are_counted_and_left_out() -> None:
    asked = face()
    shown = asked.copy()
    shown[:5] = np.nan
    clip = of(asked, shown)
    assert face_found(clip) == 75
    assert landmark_distance(clip) == 0
    assert mouth_shown_correlation(clip) == pytest.approx(1.0)
    shown[:12] = np.nan
    with pytest.raises(Unavailable, match="fewer than 10 images"):
        mouth_shown_correlation(of(asked, shown))
    with pytest.raises(Unavailable, match="no face is found"):
        landmark_distance(of(asked, np.full_like(asked, np.nan)))


def test_what_has_no_answer() -> None:
    with pytest.raises(Unavailable, match="shown mouth does not move"):
        mouth_shown_correlation(of(face(), face(opening=0)))
    with pytest.raises(Unavailable, match="not asked to move"):
        mouth_shown_correlation(of(face(opening=0), face()))
    with pytest.raises(Unavailable, match="does not move where a face is found"):
        asked, shown = face(), face(opening=0.2)
        asked[:10] = face(opening=0)[:10]
        shown[10:] = np.nan
        mouth_shown_gain(of(asked, shown))
    with pytest.raises(Unavailable, match="no extent"):
        landmark_distance(of(np.full((20, 468, 2), 0.5), face()))


def test_enlarging_keeps_the_aspect() -> None:
    assert enlarged(np.zeros((64, 96, 3), np.uint8)).shape == (ENLARGED, 768, 3)
    large = np.zeros((600, 700, 3), np.uint8)
    assert enlarged(large) is large


def test_the_best_similarity() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(9, 2))
    turn = 0.7
    matrix = 3 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    found = planar_similarity(source, source @ matrix.T + (5, -2))
    np.testing.assert_allclose(found, np.column_stack((matrix, (5, -2))), atol=1e-12)


def test_a_cut_out_part_lies_where_the_template_says() -> None:
    """Each pixel holds its own coordinates, so that the cut image shows which places it was sampled from."""
    y, x = np.mgrid[:40, :60] + 0.5
    image = np.stack((x, y, np.ones_like(x)), axis=-1).astype(np.float32)
    points = np.array([[20.0, 10.0], [40.0, 10.0], [30.0, 30.0]])
    template = np.array([[2.0, 2.0], [6.0, 2.0], [4.0, 6.0]])  # the points at a fifth of their size
    cut = cut_upright(image, points, template, 8, 8, beyond=0)
    np.testing.assert_allclose(cut[2, 2, :2], [10 + 2.5 * 5, 2.5 * 5], atol=0.01)
    np.testing.assert_allclose(cut[5, 3, :2], [10 + 3.5 * 5, 5.5 * 5], atol=0.01)


@pytest.fixture(scope="module")
def woman(shared: Path) -> RealClip:
    return real_clip(shared, WOMAN)


def shown_clip(video: np.ndarray, woman: RealClip, side: int, engine: LitertEngine) -> Clip:
    reader = MouthReader.of(woman.at(side), woman.landmarks, np.arange(FRAMES))
    asked = woman.landmarks[WINDOW]
    return Clip(
        key="a",
        valid=np.ones(len(asked), bool),
        predicted_video=video,
        asked_landmarks=asked,
        shown_landmarks=redetect(video, engine),
        mouth_reading=reader.read(video, asked, NUMBERS),
    )


@pytest.mark.parametrize(
    ("side", "least", "away"), [pytest.param(128, 0.98, 0.5, marks=pytest.mark.slow), (64, 0.95, 1.0), (48, 0.93, 1.5)]
)
def test_small_true_images_show_what_was_asked(
    woman: RealClip, face_model: FaceModel, side: int, least: float, away: float
) -> None:
    clip = shown_clip(woman.at(side)[WINDOW], woman, side, LitertEngine(face_model))
    assert face_found(clip) == 100
    assert landmark_distance(clip) < away
    assert mouth_shown_correlation(clip) > least
    assert 0.8 < mouth_shown_gain(clip) < 1.1
    assert mouth_read_correlation(clip) > 0.9


def test_coarse_images_still_show_it_and_wrong_ones_do_not(
    woman: RealClip, shared: Path, face_model: FaceModel
) -> None:
    """Both correlations at 64 pixels: images with blur or noise keep them, images that move differently lose them."""
    engine, whole = LitertEngine(face_model), woman.at(64)
    true = whole[WINDOW]

    def of_video(video: np.ndarray) -> Clip:
        return shown_clip(video, woman, 64, engine)

    for degraded in (blurred(true, 1.5), noisy(true, 12)):
        clip = of_video(degraded)
        assert face_found(clip) == 100 and landmark_distance(clip) < 3
        assert mouth_shown_correlation(clip) > 0.85 and mouth_read_correlation(clip) > 0.85
    late = of_video(whole[WINDOW.start - 5 : WINDOW.stop - 5])
    assert mouth_shown_correlation(late) < 0.2 and mouth_read_correlation(late) < 0.2
    assert lip_landmark_distance(late) > 2
    frozen = of_video(np.repeat(whole[:1], len(true), axis=0))
    assert landmark_distance(frozen) > 8 and mouth_read_correlation(frozen) < 0.2
    with pytest.raises(Unavailable, match="does not move"):
        mouth_shown_correlation(frozen)
    other = of_video(real_clip(shared, OTHER).at(64)[WINDOW])
    assert landmark_distance(other) > 20
    assert mouth_shown_correlation(other) < 0.5 and mouth_read_correlation(other) < 0.3
    noise = of_video(noisy(np.full_like(true, 128), 60))
    assert face_found(noise) == 0 and mouth_read_correlation(noise) < 0.4


def test_the_reader_reads_what_an_early_model_leaves(woman: RealClip, face_model: FaceModel) -> None:
    """Noise in the latents of the tiny VAE: blocks of colour over the face, 20 dB, where the engine sees little."""
    vae = ImageNetworks.load("tiny", "tiny")
    true = torch.from_numpy(np.ascontiguousarray(np.moveaxis(woman.at(64)[WINDOW], 3, 1)))
    latents = vae.mean(vae.moments(true))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    (decoded,) = decode(vae, latents + 0.7 * noise, len(true))
    clip = shown_clip(as_bytes(decoded), woman, 64, LitertEngine(face_model))
    assert mouth_read_correlation(clip) > 0.75
    assert face_found(clip) < 60


def test_the_reader_never_reads_what_it_was_fitted_to(woman: RealClip) -> None:
    """Random labels cannot be read, although a fit to the same frames would learn them by heart."""
    video, asked = woman.at(64), woman.landmarks
    reader = MouthReader.of(video, asked, np.arange(FRAMES))
    chance = np.random.default_rng(1).normal(size=FRAMES)
    by_heart = MouthReader(patches=reader.patches, opening=chance, frames=reader.frames)
    assert np.corrcoef(by_heart.read(video, asked, None), chance)[0, 1] > 0.6
    assert abs(np.corrcoef(by_heart.read(video, asked, np.arange(FRAMES)), chance)[0, 1]) < 0.3


def test_too_few_true_frames_and_missing_faces(woman: RealClip) -> None:
    video, asked = woman.at(48)[:40], woman.landmarks[:40].copy()
    asked[3] = np.nan
    reader = MouthReader.of(video, asked, np.arange(40))
    assert len(reader.opening) == 39
    assert np.isnan(reader.read(video, asked, np.arange(40))).all()
    reading = reader.read(video, asked, None)
    assert np.isnan(reading[3]) and np.isfinite(np.delete(reading, 3)).all()
    flat = MouthReader.of(video, np.full_like(asked, 0.5), np.arange(40))
    assert len(flat.opening) == 0
