"""What is measured, on a real clip: the truth is perfect, a copy does not move, and re-encoding loses a little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate.engines.litert import LitertEngine
from infer.evaluation.clip_scores import Scores, score
from infer.evaluation.given_motion import GivenMotionDriving
from infer.evaluation.held_out_clip import COLUMNS, HeldOutClip, read_held_out, write_driving
from infer.evaluation.subjects import CopiedReference, ReencodedTruth, Take, Truth, reencoded
from infer.metrics import METRICS, Clip
from infer.metrics.registry import metric
from shards.reader import Sample, ShardReader
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.media.audio import decode_wav
from talkinghead.media.video_source import VideoSource
from talkinghead.pipelines.still_driver import constant_motion
from talkinghead.timebase import FPS
from tests.support.real_clips import SIDE, build_real_data

FRAMES = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    root = tmp_path_factory.mktemp("real") / "data"
    build_real_data(root, shared)
    return root


@pytest.fixture(scope="module")
def sample(data: Path) -> Sample:
    return ShardReader(data, split="val", columns=COLUMNS)[0]


@pytest.fixture(scope="module")
def clip(sample: Sample, face_model: FaceModel) -> HeldOutClip:
    return read_held_out(sample, (128, 128), canonical_face(face_model.geometry_metadata), frames=FRAMES)


@pytest.fixture(scope="module")
def engine(face_model: FaceModel) -> LitertEngine:
    return LitertEngine(face_model)


@pytest.fixture(scope="module")
def scores(
    clip: HeldOutClip, engine: LitertEngine, face_model: FaceModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Scores]:
    face, scratch = canonical_face(face_model.geometry_metadata), tmp_path_factory.mktemp("scratch")
    subjects = (CopiedReference(), ReencodedTruth(engine, face, scratch), Truth())
    return {subject.name: score(subject.take(clip, 0), clip, engine, {}) for subject in subjects}


ERRORS = [
    name
    for name, entry in METRICS.items()
    if entry.better == "lower" and {"true_mesh", "true_pose", "true_video"} & set(entry.needs)
]
"""Distances from the truth."""


def test_a_portrait_is_the_clip_own_and_the_true_motion_lies_on_its_landmarks(
    clip: HeldOutClip, sample: Sample
) -> None:
    assert clip.portrait.image.shape == (SIDE, SIDE, 3)
    still = clip.driven.still
    assert np.array_equal(clip.portrait.image, sample.video(still, 1)[0])
    np.testing.assert_allclose(clip.portrait.mesh, sample.annotation("mesh", still, 1)[0], atol=5e-3)
    away = (clip.motion.landmarks() - clip.driven.landmarks) * SIDE
    assert np.abs(away).max() < 0.05
    assert clip.driven.frames is not None and still not in clip.driven.frames[clip.driven.valid]


def test_the_truth_is_perfect_by_construction(scores: dict[str, Scores]) -> None:
    truth = scores["truth"].values
    assert {name: truth[name] for name in ERRORS} == dict.fromkeys(ERRORS, 0.0)
    assert truth["ssim"] == pytest.approx(1) and truth["mouth_opening_correlation"] == pytest.approx(1)
    assert truth["psnr"] is None and "equal" in scores["truth"].reasons["psnr"]


def test_a_re_encoded_truth_loses_a_little_and_beats_a_copy(scores: dict[str, Scores]) -> None:
    again, copy = scores["re-encoded truth"].values, scores["copied reference"].values
    for name in ("psnr", "mouth_psnr", "ssim", "lip_error", "flicker", "lip_landmark_distance"):
        better, worse = again[name], copy[name]
        assert better is not None and worse is not None
        assert (better > worse) == (METRICS[name].better == "higher"), name
    assert again["psnr"] is not None and 30 < again["psnr"] < 60 and again["ssim"] is not None and again["ssim"] < 1


def test_a_copied_reference_does_not_move(scores: dict[str, Scores]) -> None:
    copy = scores["copied reference"]
    for name in (
        "mesh_jitter",
        "pose_diversity",
        "pose_jitter",
        "pose_largest_step",
        "temporal_change",
        "temporal_noise",
    ):
        value = copy.values[name]
        assert value is not None and abs(value) < 1e-6, name
    # A correlation with nothing is no 0.
    for name in ("mouth_opening_correlation", "mouth_shown_correlation"):
        assert copy.values[name] is None and "not move" in copy.reasons[name]


def test_drawn_frames_are_not_compared_with_true_ones(clip: HeldOutClip, engine: LitertEngine) -> None:
    take = Take(video=np.zeros_like(clip.truth), photographic=False, motion=clip.motion)
    found = score(take, clip, engine, {})
    assert found.values["psnr"] is None and "draws" in found.reasons["psnr"] and found.values["lip_error"] == 0


def test_a_take_of_another_size_or_with_holes_is_an_error(clip: HeldOutClip, engine: LitertEngine) -> None:
    with pytest.raises(ValueError, match="differ in size"):
        score(Take(video=clip.truth[:, :64], motion=None), clip, engine, {})


def test_reencoded_has_the_frames_of_an_output_video(clip: HeldOutClip, tmp_path: Path) -> None:
    found = reencoded(clip.truth, tmp_path)
    assert found.shape == clip.truth.shape and not list(tmp_path.iterdir())
    assert 0 < np.abs(found.astype(int) - clip.truth).mean() < 5


def test_what_drives_a_clip_is_its_own_sound_and_its_own_frames(
    sample: Sample, clip: HeldOutClip, tmp_path: Path
) -> None:
    files = write_driving(sample, tmp_path, (128, 128), frames=FRAMES, count=FRAMES, images=True)
    # 16 bits: the sound of the shard, sample by sample.
    np.testing.assert_allclose(decode_wav(files.speech.read_bytes()), clip.driven.audio, atol=1e-6)
    assert files.video is not None
    with VideoSource(files.video) as source:
        frames = np.stack([frame.image for frame in source.frames()])
    assert clip.driven.frames is not None
    first = int(clip.driven.frames[0])
    assert len(frames) == FRAMES
    assert np.abs(frames.astype(int) - sample.video(first, FRAMES)).mean() < 4


def test_a_clip_that_is_too_short_drives_to_and_fro(sample: Sample, tmp_path: Path) -> None:
    count = sample.num_frames + 30
    files = write_driving(sample, tmp_path, (128, 128), frames=None, count=count, images=False)
    sound = decode_wav(files.speech.read_bytes()).reshape(-1, 640)
    assert len(sound) == count and files.video is None
    own = sample.audio().reshape(-1, 640)
    np.testing.assert_allclose(sound[sample.num_frames], own[-2], atol=1e-6)


def test_a_given_motion_is_played_as_it_is(clip: HeldOutClip) -> None:
    played = GivenMotionDriving(clip.motion).move(clip.portrait, None, fps=25, device="cpu").whole()  # pyright: ignore[reportArgumentType]
    assert np.array_equal(played.meshes(), clip.motion.meshes())
    still = constant_motion(clip.portrait.mesh, clip.portrait, 3, FPS)
    assert len(still) == 3 and np.ptp(still.meshes(), axis=0).max() == 0


def test_a_broken_metric_is_noticed(clip: HeldOutClip, engine: LitertEngine) -> None:
    """A metric that gives NaN is a defect of the code, never a number or a dash."""
    before = dict(METRICS)
    try:

        @metric("broken", "", needs=(), better=None)
        def broken(clip: Clip) -> float:
            """Nothing."""
            return float("nan")

        with pytest.raises(AssertionError, match="broken of"):
            score(Take(video=clip.truth, motion=None), clip, engine, {})
    finally:
        METRICS.clear()
        METRICS.update(before)
