"""Driving videos: every frame at 25 fps from 0:00 on, gaps bridged up to a limit, and warnings."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.drivers.driving_video import LONGEST_GAP_S, DrivingClip, bridged_clip, read_driving_clip
from talkinghead.face.model import FaceModel
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from tests.support.damaged_packets import encoded, flipped, with_packets_changed
from tests.support.media_files import write_video

LIMIT = round(LONGEST_GAP_S * 25)


def clip(valid: list[bool]) -> DrivingClip:
    """A head that turns and a mesh that grows by the frame; NaN where there is no face."""
    frames = np.arange(len(valid), dtype=np.float64)
    pose = np.stack([0 * frames, 0.5 * frames, 0 * frames, frames, 0 * frames, -40 + 0 * frames], axis=1)
    mesh = np.broadcast_to(frames[:, None, None], (len(valid), 468, 3)).astype(np.float32).copy()
    gone = ~np.array(valid)
    pose[gone] = mesh[gone] = np.nan
    blendshapes = np.full((len(valid), 52), np.nan, np.float32)
    neutral = neutral_mesh(mesh, blendshapes, ~gone)
    motion = Motion(
        pose_matrix=matrix_from_pose(pose),
        neutral=neutral.mesh,
        mesh=mesh,
        valid=~gone,
        fps=25,
        width=64,
        height=64,
    )
    return DrivingClip(path=Path("d.mp4"), motion=motion, neutral=neutral, blendshapes=blendshapes, has_audio=False)


@given(valid=st.lists(st.booleans(), min_size=1, max_size=LIMIT).filter(any))
def test_gaps_are_bridged_in_a_straight_line(valid: list[bool]) -> None:
    found = bridged_clip(clip(valid))
    first, last = valid.index(True), len(valid) - 1 - valid[::-1].index(True)
    wanted = np.clip(np.arange(len(valid)), first, last)
    np.testing.assert_allclose(found.motion.meshes()[:, 0, 0], wanted, atol=1e-4)
    np.testing.assert_allclose(found.motion.pose[:, 1], 0.5 * wanted, atol=1e-6)
    assert found.motion.valid.all() and found.interpolated == valid.count(False)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (30, 30, "from 1.20 to 2.24 s.*--limit-seconds 1.2"),
        (30, 0, "from 1.20 to 2.24 s.*--limit-seconds 1.2"),
        (0, 30, "from 0.00 to 1.04 s.*begins with the face"),
    ],
)
def test_a_face_that_is_away_for_too_long(before: int, after: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bridged_clip(clip([True] * before + [False] * (LIMIT + 1) + [True] * after))
    assert bridged_clip(clip([True] * before + [False] * LIMIT + [True] * after)).interpolated == LIMIT


def frames_of(path: Path, count: int) -> list[np.ndarray]:
    with VideoSource(path) as source:
        return [frame.image for frame in itertools.islice(source.frames(), count)]


def test_a_video_that_begins_late_stands_until_then(media: Path, face_model: FaceModel, tmp_path: Path) -> None:
    """Frame k is what a player shows at k/25 s, so that the sound fits; also at other rates."""
    images = frames_of(media / "video" / "Real3DPortrait_May_5s.mp4", 12)
    silence = np.zeros((1, 44100), np.float32)
    ticks = [*range(6, 18)]
    path = write_video(tmp_path / "late.mp4", images, rate=25, ticks=ticks, time_base=Fraction(1, 25), audio=silence)
    found = read_driving_clip(path, face_model)
    assert len(found) == 18 and found.has_audio and found.motion.valid.all()
    mesh = found.motion.meshes()
    assert np.array_equal(mesh[:7], mesh[[6] * 7]) and not np.array_equal(mesh[7], mesh[6])
    short = read_driving_clip(path, face_model, seconds=0.3)
    assert len(short) == 8 and np.array_equal(short.motion.meshes(), mesh[:8])
    doubled = read_driving_clip(write_video(tmp_path / "fast.mp4", images, rate=50), face_model)
    assert len(doubled) == 6


def test_cuts_and_several_faces_are_told(
    media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = frames_of(media / "derived" / "identity_cut.mp4", 95)[55:]
    path = write_video(tmp_path / "cut.mp4", images)
    read_driving_clip(path, face_model)
    assert "has a cut at 0.80 s" in caplog.text and "several faces:" not in caplog.text
    caplog.clear()
    read_driving_clip(media / "derived" / "two_people.mp4", face_model, seconds=0.4)
    assert "several faces: the one at" in caplog.text
    caplog.clear()
    read_driving_clip(media / "video" / "SadTalker_WDA_AlexandriaOcasioCortez_000.mp4", face_model, seconds=1)
    assert not caplog.text


def test_a_clock_that_jumps_goes_on(
    media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two recordings joined by `cat`: every frame of both drives, one after the other."""
    images = frames_of(media / "video" / "Real3DPortrait_May_5s.mp4", 20)
    sound = np.zeros((1, 35280))
    one, two = (write_video(tmp_path / f"{n}.ts", images[n : n + 10], audio=sound[:, :17640]) for n in (0, 10))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    found = read_driving_clip(both, face_model)
    assert found.motion.valid.all() and len(found) == pytest.approx(20, abs=1) and found.has_audio
    assert "the clock jumps once" in caplog.text and "cut" not in caplog.text


def test_damaged_frames_are_interpolated_and_told(
    media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = frames_of(media / "video" / "Real3DPortrait_May_5s.mp4", 40)
    whole = encoded(tmp_path / "whole.mp4", "h264", images, g="10", bf="0")
    rng = np.random.default_rng(0)
    broken = with_packets_changed(
        whole, tmp_path / "broken.mp4", lambda n, packet: flipped(packet, rng, 6) if n == 14 else bytes(packet)
    )
    found = read_driving_clip(broken, face_model)
    valid = found.motion.valid
    assert not valid[14:20].any() and valid[:14].all() and valid[20:].all()
    assert np.isnan(found.blendshapes[14:20]).all()
    assert "is damaged in 6 of 40 frames" in caplog.text
    assert bridged_clip(found).interpolated == 6
    # Where it never ends there is nothing to interpolate between: what can be followed is.
    caplog.clear()
    worse = with_packets_changed(
        whole, tmp_path / "worse.mp4", lambda n, packet: flipped(packet, rng, 3) if n % 10 == 1 else bytes(packet)
    )
    found = read_driving_clip(worse, face_model)
    assert found.motion.valid.sum() >= 4 and "is damaged in" in caplog.text


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_put_upright(
    media: Path, face_model: FaceModel, tmp_path: Path, degrees: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames that are stored turned, without a mark: the face's motion is that of the upright video."""
    with VideoSource(media / "video" / "Talking-Face_PC-AVS_00086.mp4") as source:
        images = [frame.image[:, :200].copy() for frame in itertools.islice(source.frames(), 10)]
    upright = read_driving_clip(write_video(tmp_path / "upright.mp4", images), face_model)
    assert "is turned by" not in caplog.text and upright.turned_deg == 0
    stored = [np.ascontiguousarray(np.rot90(image, degrees // 90)) for image in images]
    found = read_driving_clip(write_video(tmp_path / "turned.mp4", stored), face_model)
    assert (found.turned_deg, found.motion.width, found.motion.height) == (degrees, 200, 224)
    assert f"the video is turned by {degrees}°" in caplog.text
    assert np.abs(found.motion.meshes() - upright.motion.meshes()).mean() < 0.06, "cm, after H.264"
    assert np.abs(found.motion.pose - upright.motion.pose)[:, :3].max() < 3, "degrees"
