"""The inputs of `../shared/failing`, each through ingest, annotation, scores and filters: as its MANIFEST says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate.filters import FilterSettings, judge
from annotate.scores import info_scores
from ingest.settings import IngestSettings
from shards.reader import SPEECH
from talkinghead.face.model import load_official
from talkinghead.media.audio import read_sound
from talkinghead.media.video_source import VideoSource
from tests.support.ingested_clips import Judged, WholeWay, made_of, pieces_of
from tests.support.media_files import write_video


@pytest.fixture(scope="module")
def way(shared: Path) -> WholeWay:
    return WholeWay(load_official(shared / "models" / "face_landmarker.task"))


@pytest.fixture(scope="module")
def failing(shared: Path) -> Path:
    if not (shared / "failing").is_dir():
        pytest.skip("needs the inputs of ../shared/failing, which are not here")
    return shared / "failing"


def _good(judged: Judged) -> None:
    """A sample that any training takes, as far as its pictures go."""
    assert judged.verdict() is None and judged.scores["valid_fraction"] == 1.0


def _lag_s(audio: np.ndarray, judged: Judged) -> float:
    """Seconds by which the loudness of the sound lags behind the opening of the mouth, as a hint on their order."""
    opening = judged.arrays["quality"][:, 9].astype(np.float64)
    loud = np.sqrt((audio.reshape(-1, 640).astype(np.float64) ** 2).mean(axis=1))
    opening, loud = opening - opening.mean(), loud - loud.mean()
    lags = range(-10, 11)
    fits = [float((np.roll(opening, lag) * loud)[10:-10].sum()) for lag in lags]
    return lags[int(np.argmax(fits))] / 25


def test_outlier_plus60s(failing: Path, way: WholeWay) -> None:
    (piece,) = way.pieces(failing / "outlier_plus60s.mkv")
    judged = way.judged(piece)
    _good(judged)
    assert piece.num_frames in (74, 75) and judged.scores["damaged_time_stamps"] == 1
    assert judged.scores["repeated_frame_fraction"] == 0
    assert any("damaged time stamp" in note for note in judged.made.info.notes)


def test_cat_two_ts(failing: Path, way: WholeWay) -> None:
    pieces = [way.judged(piece) for piece in way.pieces(failing / "cat_two_ts.ts")]
    assert sum(judged.made.info.num_frames for judged in pieces) == 124
    for judged in pieces:
        _good(judged)
        assert judged.scores["clock_jumps"] == 1 and judged.made.info.audio == "present"
        assert judged.scores["audio_padded_fraction"] == 0
        assert judged.verdict(require_audio=True) is None
        assert abs(_lag_s(judged.made.audio, judged)) <= 0.2
    # Not the same sound twice.
    one, two = (judged.made.audio[:39040] for judged in pieces)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.3


def test_dissolve_25(failing: Path, way: WholeWay) -> None:
    before, between, after = way.pieces(failing / "dissolve_25.mp4")
    assert before.num_frames + between.num_frames + after.num_frames == 125
    assert between.rejection is not None and between.rejection.reason == "transition"
    assert 25 <= between.num_frames <= 35
    for piece in (before, after):
        assert piece.num_frames >= 40
        _good(way.judged(piece))


def test_bitrot_every10(failing: Path, way: WholeWay) -> None:
    (piece,) = way.pieces(failing / "bitrot_every10.mp4")
    judged = way.judged(piece)
    damaged = judged.made.info.damaged_frames
    assert not judged.arrays["valid"][damaged].any() and np.isnan(judged.arrays["landmarks"][damaged]).all()
    assert judged.scores["damaged_fraction"] == len(damaged) / 125 >= 0.5
    verdict = judged.verdict()
    assert verdict is not None and (verdict.reason, verdict.score) == ("damaged", judged.scores["damaged_fraction"])


def test_hflip(failing: Path, way: WholeWay) -> None:
    (piece,) = way.pieces(failing / "hflip.mp4")
    judged = way.judged(piece)
    _good(judged)
    assert judged.scores["mirrored"] == 1 and (judged.scores["roll_abs_median"] or 0) < 20
    # Unmirrored: the same woman as in the clip it was made of, seen from the same side.
    source = failing.parent / "media" / "video" / "Real3DPortrait_May_5s.mp4"
    with VideoSource(source) as reader:
        wanted = next(reader.frames()).reduced(64, 64).astype(np.float64)
    with VideoSource(failing / "hflip.mp4") as reader:
        shown = next(reader.frames()).reduced(64, 64).astype(np.float64)
    assert np.abs(shown - wanted).mean() < 0.5 * np.abs(shown[:, ::-1] - wanted).mean()


def test_hdr_hlg(failing: Path, way: WholeWay) -> None:
    (piece,) = way.pieces(failing / "hdr_hlg.mp4")
    judged = way.judged(piece)
    _good(judged)
    assert judged.scores["hdr"] == 1 and judged.made.info.source_hdr == "HLG"
    verdict = judged.verdict(reject_hdr=True)
    assert verdict is not None and verdict.reason == "hdr"
    # Skin is neither grey nor green: the middle of the face is redder than green, and greener than blue.
    face = judged.made.frames[:, 200:350, 200:312].reshape(-1, 3).mean(axis=0)
    assert face[0] > face[1] + 15 and face[1] > face[2] + 10 and face.mean() > 90


def test_audio_rate_change(failing: Path, way: WholeWay) -> None:
    pieces = [way.judged(piece) for piece in way.pieces(failing / "audio_rate_change.ts")]
    assert sum(judged.made.info.num_frames for judged in pieces) == 75
    for judged in pieces:
        _good(judged)
        assert judged.made.info.audio == "present" and judged.scores["audio_padded_fraction"] == 0
    # The sound is that of the clip it was made of, without an offset after the joint.
    whole = read_sound(failing.parent / "media" / "video" / "Real3DPortrait_May_5s.mp4").samples.astype(np.float64)
    joined = np.concatenate([judged.made.audio for judged in pieces]).astype(np.float64)
    lags = []
    for begin in (4000, 30000):
        part = joined[begin : begin + 12000]
        fits = np.correlate(whole, part, "valid") / np.sqrt(
            np.convolve(whole**2, np.ones(len(part)), "valid") * (part**2).sum() + 1e-12
        )
        assert fits.max() > 0.9
        lags.append(int(np.argmax(fits)) - begin)
    assert abs(lags[1] - lags[0]) <= 0.045 * 16000, "a frame at most, by which the second part follows the first"


def test_audio_ends_early(failing: Path, way: WholeWay) -> None:
    (piece,) = way.pieces(failing / "audio_ends_early.mp4")
    judged = way.judged(piece)
    assert judged.scores["audio_padded_fraction"] == pytest.approx(0.84, abs=0.01)
    verdict = judged.verdict(require_audio=True)
    assert verdict is not None and verdict.reason == "no_audio"
    assert any((judged.scores[name] or 0) > most for name, most in SPEECH.items()), "never trains a speech model"


def test_inverted_2s(failing: Path, tmp_path: Path) -> None:
    """The sound alone, and as the sound of a video."""
    alone = read_sound(failing / "inverted_2s.wav")
    assert np.abs(alone.samples).max() > 0.1 and any("cancel" in note for note in alone.notes)
    stereo = np.stack([alone.samples, -alone.samples])
    noise = np.random.default_rng(0).integers(40, 120, (8, 8, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (128, 128), interpolation=cv2.INTER_CUBIC)
    video = write_video(tmp_path / "a.mp4", [picture] * 50, audio=stereo, audio_rate=16000)
    (piece,) = pieces_of(video)
    made = made_of(piece)
    assert made.info.audio == "present" and any("cancel" in note for note in made.info.notes)
    assert abs(np.corrcoef(made.audio[:31000], alone.samples[:31000])[0, 1]) > 0.95, "one of the two channels"
    assert judge(info_scores(made.info), FilterSettings(require_audio=True)) is None


# --- upside down ------------------------------------------------------------------------------------------------------

TURNED = ("Real3DPortrait_May_5s", "LatentSync_demo1_video", "EDTalk_mouth_source", "Talking-Face_PC-AVS_00086")
"""Clips in which landmarks are found in 97, 0, 31 and 18 % of the frames when they are upside down."""


@pytest.mark.parametrize("name", TURNED)
def test_upside_down_faces_are_called_so(media: Path, way: WholeWay, tmp_path: Path, name: str) -> None:
    with VideoSource(media / "video" / f"{name}.mp4") as reader:
        width, height = (
            round(side * 384 / max(reader.info.width, reader.info.height) / 2) * 2 for side in _size(reader)
        )
        upright = [frame.reduced(width, height) for frame, _ in zip(reader.frames(), range(75), strict=False)]
    turned = write_video(tmp_path / "turned.mp4", [image[::-1, ::-1] for image in upright])
    pieces = way.pieces(turned, IngestSettings(min_crop=64))
    reasons = {piece.rejection.reason for piece in pieces if piece.rejection}
    assert len(pieces) == sum(piece.rejection is not None for piece in pieces)
    assert "upside_down" in reasons and reasons <= {"upside_down", "short_piece"}
    share = sum(p.num_frames for p in pieces if p.rejection and p.rejection.reason == "upside_down")
    assert share >= 60
    plain = write_video(tmp_path / "plain.mp4", upright)
    assert [piece.rejection for piece in way.pieces(plain, IngestSettings(min_crop=64))] == [None]


def _size(reader: VideoSource) -> tuple[int, int]:
    return reader.info.width, reader.info.height
