"""Motion of a portrait before it is drawn: gains, blinks, and another face's motion on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.drivers.driving import edited
from infer.drivers.driving_video import DrivingClip, read_driving_clip
from infer.drivers.video import driven_motion
from infer.framing import face_crop
from infer.portrait import crop_portrait, read_portrait
from infer.request import AudioRequest, VideoRequest
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.geometry.face_regions import LOWER_FACE, eye_opening, lip_gap
from talkinghead.geometry.pose import pose_from_matrix
from tests.support.motions import motion_about


@pytest.fixture(scope="module")
def clip(media: Path, face_model: FaceModel) -> DrivingClip:
    """Two seconds of a woman who speaks and blinks."""
    path = media / "video" / "SadTalker_WDA_AlexandriaOcasioCortez_000.mp4"
    return read_driving_clip(path, face_model, seconds=2)


@pytest.fixture(scope="module", params=["AniPortrait_Aragaki.png", "AniPortrait_lyl.png", "AniTalker_cartoon_girl.png"])
def portrait(media: Path, face_model: FaceModel, request: pytest.FixtureRequest) -> Portrait:
    """A smile with parted lips, an old man who looks aside, a drawn girl with large eyes."""
    found = read_portrait(media / "image" / request.param, face_model)
    return crop_portrait(found, face_crop(found.face_px, found.width, found.height, 1.0), face_model)


def asked(**settings: Any) -> VideoRequest:
    paths: dict[str, Any] = {
        "reference": Path("r"),
        "output": Path("o.mp4"),
        "weights": Path("w"),
        "driving": Path("d"),
    }
    return VideoRequest(**(paths | settings))


def test_the_portrait_keeps_its_face_and_does_what_the_other_does(clip: DrivingClip, portrait: Portrait) -> None:
    motion, facts = driven_motion(asked(), clip, portrait, fps=25)
    assert len(motion) == 50 and facts["interpolated_frames"] == 0
    upper = np.setdiff1d(np.arange(468), LOWER_FACE)
    shape, other = np.median(motion.meshes()[:, upper], axis=0), np.median(clip.motion.meshes()[:, upper], axis=0)
    to_own = np.linalg.norm(shape - portrait.mesh[upper], axis=-1).mean()
    to_other = np.linalg.norm(shape - other, axis=-1).mean()
    assert to_own < 0.6 * to_other, "the face's shape is the portrait's, not the driving face's"
    # The mouth opens when the other opens, by about as much, and shuts when it shuts.
    theirs, ours = lip_gap(clip.motion.meshes()), lip_gap(motion.meshes())
    assert np.corrcoef(theirs, ours)[0, 1] > 0.98
    assert 0.8 < np.ptp(ours) / np.ptp(theirs) < 1.2 and ours.min() < theirs.min() + 0.2
    # Eyes shut as far as the other's do, whatever their size.
    their_eyes, our_eyes = (eye_opening(mesh) for mesh in (clip.motion.meshes(), motion.meshes()))
    shares = their_eyes / eye_opening(clip.neutral.mesh), our_eyes / eye_opening(portrait.mesh)
    assert np.abs(shares[0] - shares[1]).max() < 0.1 and shares[0].min() < 0.4


def test_ways_of_moving_the_head(clip: DrivingClip, portrait: Portrait) -> None:
    own = pose_from_matrix(portrait.pose_matrix)
    relative, _ = driven_motion(asked(smooth=1), clip, portrait, fps=25)
    np.testing.assert_allclose(np.median(relative.pose, axis=0)[:3], own[:3], atol=2)
    absolute, _ = driven_motion(asked(smooth=1, pose="absolute"), clip, portrait, fps=25)
    np.testing.assert_allclose(absolute.pose[:, :3], clip.motion.pose[:, :3], atol=1e-3)
    still, _ = driven_motion(asked(pose="still"), clip, portrait, fps=25)
    assert np.abs(still.pose_about(portrait.pose_matrix)).max() < 1e-9
    faster, _ = driven_motion(asked(), clip, portrait, fps=30.0)
    assert len(faster) == 60 and faster.fps == 30


def test_an_open_mouth_stays_only_where_it_is_asked_for(clip: DrivingClip, portrait: Portrait) -> None:
    kept, _ = driven_motion(asked(neutralise="none"), clip, portrait, fps=25)
    if float(lip_gap(portrait.mesh)) > 0.4:
        for what in ("mouth", "all"):
            closed, _ = driven_motion(asked(neutralise=what), clip, portrait, fps=25)
            assert lip_gap(kept.meshes()).min() > lip_gap(closed.meshes()).min() + 0.3


def test_a_face_model_without_blendshapes_says_that_a_smile_stays(
    clip: DrivingClip, portrait: Portrait, caplog: pytest.LogCaptureFixture
) -> None:
    plain = replace(portrait, face=replace(portrait.face, blendshapes=None))
    assert "only closes the mouth" not in caplog.text
    moved, _ = driven_motion(asked(neutralise="all"), clip, plain, fps=25)
    assert "--neutralise all only closes the mouth" in caplog.text and np.isfinite(moved.meshes()).all()


def test_gain_and_blinks_are_laid_over(portrait: Portrait) -> None:
    geometry: dict[str, Any] = {
        "reference_pose_matrix": portrait.pose_matrix,
        "width": portrait.width,
        "height": portrait.height,
        "neutral": portrait.mesh,
    }
    mesh = portrait.mesh[None].repeat(100, axis=0)
    mesh[:, 14, 1] -= np.linspace(0, 1, 100)
    motion = motion_about(mesh, np.zeros((100, 6)), **geometry)
    paths: dict[str, Any] = {"reference": Path("r"), "output": Path("o.mp4"), "weights": Path("w"), "audio": Path("a")}
    assert edited(motion, AudioRequest(**paths)) is motion
    doubled = edited(motion, AudioRequest(**paths, expression_gain=2.0))
    np.testing.assert_allclose(doubled.meshes()[:, 14, 1], portrait.mesh[14, 1] - 2 * np.linspace(0, 1, 100), atol=1e-4)
    still = edited(motion, AudioRequest(**paths, expression_gain=0.0))
    np.testing.assert_allclose(still.landmarks(), portrait.face.points[None, :468, :2].repeat(100, axis=0), atol=1e-4)
    blinking = edited(motion, AudioRequest(**paths, blink="60"))
    shares = eye_opening(blinking.meshes()) / eye_opening(portrait.mesh)
    assert shares.min() < 0.3 and shares.max() == pytest.approx(1) and 2 <= (np.diff(shares < 0.5) > 0).sum() <= 12
    assert np.array_equal(blinking.meshes()[:, 14], motion.meshes()[:, 14])
