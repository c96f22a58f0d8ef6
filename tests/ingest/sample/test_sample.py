"""The embedded sample: what is drawn, said and written, and that a stock landmark model sees it talk."""

from __future__ import annotations

import itertools
import socket
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.error import FFmpegError

from ingest.sample import make_sample
from ingest.sample.expression import Expression, pose_face
from ingest.sample.motion import HeadMotion, View, head_motion, portrait_map
from ingest.sample.portrait import SIZE, TEXTURE_SCALE, portrait_texture
from ingest.sample.scene import BROKEN, NO_FACE, SCENES, scene_frames
from ingest.sample.speech import CONTROL_RATE, synthesise


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole sample, made without a network."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise AssertionError("the sample must not use the network")

        patch.setattr(socket.socket, "connect", refuse)
        return make_sample(tmp_path_factory.mktemp("sample") / "new")


def _decode(path: Path) -> tuple[list[float], list[np.ndarray], np.ndarray, int]:
    with av.open(str(path)) as container:
        frames = [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
        pieces = [piece for frame in container.decode(stream) for piece in resampler.resample(frame)]
        audio = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
        first = pieces[0].pts or 0
        audio = audio[-first:] if first < 0 else np.pad(audio, (first, 0))
        return [time for time, _ in frames], [frame for _, frame in frames], audio, stream.rate


def _loudness(audio: np.ndarray, rate: int, times: np.ndarray, fps: float) -> np.ndarray:
    def level(time: float) -> float:
        block = audio[max(0, int((time - 0.01) * rate)) : int((time + 1 / fps + 0.01) * rate)]
        return float(np.sqrt(np.mean(block**2))) if len(block) else 0.0

    return np.array([level(time) for time in times])


def test_the_clips_differ_in_size_rate_and_container(sample: Path) -> None:
    assert sorted(path.name for path in sample.iterdir()) == sorted([*(s.file for s in SCENES), NO_FACE, BROKEN])
    seen = set()
    for scene in SCENES:
        times, frames, audio, rate = _decode(sample / scene.file)
        assert frames[0].shape == (scene.view.height, scene.view.width, 3)
        assert len(frames) == int(scene.seconds * scene.rate)
        assert np.allclose(times, np.arange(len(times)) / float(scene.rate), atol=2e-3)
        assert rate == scene.sample_rate
        assert abs(len(audio) / rate - scene.seconds) < 0.05
        seen.add((frames[0].shape, scene.rate, Path(scene.file).suffix, rate))
    assert len(seen) == len(SCENES)
    assert {scene.rate for scene in SCENES} >= {Fraction(25), Fraction(30)}


def test_the_broken_file_cannot_be_opened(sample: Path) -> None:
    with pytest.raises(FFmpegError), av.open(str(sample / BROKEN)) as container:
        next(container.decode(video=0))


def test_the_seed_decides_images_and_sound() -> None:
    def start(seed: int) -> tuple[np.ndarray, np.ndarray]:
        speech = synthesise(seed, SCENES[0].file, SCENES[0].seconds, SCENES[0].sample_rate)
        return np.stack(list(itertools.islice(scene_frames(SCENES[0], speech, seed), 3))), speech.audio

    for left, right in zip(start(1), start(1), strict=True):
        assert np.array_equal(left, right)
    for left, right in zip(start(1), start(2), strict=True):
        assert not np.array_equal(left, right)


@pytest.mark.slow
def test_media_are_the_same_each_time(sample: Path, tmp_path: Path) -> None:
    make_sample(tmp_path)
    for path in sample.iterdir():
        if path.suffix == ".mp4":  # Matroska puts a random segment id into its header
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    (mkv,) = (scene.file for scene in SCENES if scene.file.endswith(".mkv"))
    for left, right in zip(_decode(sample / mkv), _decode(tmp_path / mkv), strict=True):
        assert np.array_equal(left, right)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken"):
        make_sample(tmp_path / "taken")


def test_the_mouth_opens_below_the_nose_only() -> None:
    texture = portrait_texture()
    closed = pose_face(texture, Expression(opening=0, rounding=0, blink=0))
    wide = pose_face(texture, Expression(opening=1, rounding=0, blink=0))
    changed = np.argwhere(np.abs(closed.astype(int) - wide).max(axis=2) > 8) / TEXTURE_SCALE
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert 130 < top < 140 and 170 < bottom < 210 and left > 176 and right < 271
    x, y = 223, 152  # just under the middle of the upper teeth: dark when open, lip when closed
    at = (int(y * TEXTURE_SCALE), int(x * TEXTURE_SCALE))
    assert wide[at].max() < 90 < closed[at].max()


def test_a_blink_changes_the_eyes_only() -> None:
    texture = portrait_texture()
    opened = pose_face(texture, Expression(opening=0.4, rounding=0.2, blink=0))
    shut = pose_face(texture, Expression(opening=0.4, rounding=0.2, blink=1))
    changed = np.argwhere(np.abs(opened.astype(int) - shut).max(axis=2) > 0) / TEXTURE_SCALE
    assert changed[:, 0].min() > 85 and changed[:, 0].max() < 113
    for x, y in ((205.0, 101.0), (246.0, 103.3)):  # the irises
        row, column = int(y * TEXTURE_SCALE), int(x * TEXTURE_SCALE)
        assert shut[row, column].astype(int).sum() > opened[row, column].astype(int).sum() + 60


def test_a_still_head_maps_to_itself_and_shoulders_stay() -> None:
    view = View(SIZE, SIZE, zoom=1.0, x0=0.0, y0=0.0)
    zero, one = np.zeros(1), np.ones(1)
    still = HeadMotion(yaw=zero, pitch=zero, roll=zero, shift=np.zeros((1, 2)), growth=one, blink=zero)
    identity = portrait_map(view, still, 0)
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    for found, pixel in zip(identity, (columns, rows), strict=True):
        assert np.abs(found - ((pixel + 0.5) * TEXTURE_SCALE - 0.5)).max() < 1e-3
    moving = HeadMotion(
        yaw=one * 0.1, pitch=zero, roll=one * 0.05, shift=np.array([[3.0, 1.0]]), growth=one, blink=zero
    )
    moved = [now - before for now, before in zip(portrait_map(view, moving, 0), identity, strict=True)]
    assert np.hypot(*moved)[110, 226] > 3 * TEXTURE_SCALE  # the face
    assert np.hypot(*moved)[260:].max() == 0  # chest and below
    for found, axis in zip(portrait_map(view, moving, 0), (1, 0), strict=True):
        assert np.diff(found, axis=axis).min() > 0  # nothing folds over


def test_motion_is_smooth_and_blinks() -> None:
    times = np.arange(0, 6, 1 / 25)
    motion = head_motion(1, "clip", times, np.zeros_like(times))
    for angle, most in ((motion.yaw, 0.35), (motion.pitch, 0.1), (motion.roll, 0.1)):
        assert np.abs(angle).max() < most and np.abs(np.diff(angle)).max() < 0.03
    assert np.ptp(motion.yaw) > 0.05
    assert motion.blink.max() > 0.7 and (motion.blink < 0.05).mean() > 0.7
    assert not np.array_equal(motion.yaw, head_motion(1, "other", times, np.zeros_like(times)).yaw)


def test_speech_has_phrases_pitch_and_formants() -> None:
    rate = 48_000
    speech = synthesise(3, "clip", 5.0, rate)
    assert speech.audio.dtype == np.float32 and len(speech.audio) == 5 * rate
    assert 0.6 < np.abs(speech.audio).max() <= 0.71
    assert len(speech.opening) == 5 * CONTROL_RATE and speech.opening.min() >= 0 and speech.opening.max() <= 1
    shut = speech.opening < 0.06
    runs = np.flatnonzero(np.diff(shut.astype(int)) == 1)
    assert len(runs) >= 8  # lips meet between syllables
    centre = int(speech.opening.argmax() / CONTROL_RATE * rate)
    block = speech.audio[centre - 2048 : centre + 2048] * np.hanning(4096)
    spectrum = np.abs(np.fft.rfft(block))
    lag = np.fft.irfft(spectrum**2)[rate // 300 : rate // 130]
    assert 150 < rate / (lag.argmax() + rate // 300) < 260  # voice of a woman
    hertz = np.fft.rfftfreq(4096, 1 / rate)
    assert spectrum[(hertz > 400) & (hertz < 3500)].sum() > 5 * spectrum[hertz > 5000].sum()
    quiet = speech.audio[-rate // 20 :]
    assert np.sqrt(np.mean(quiet**2)) < 0.01


def _mouth_opening(path: Path, model: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inner lip distance over mouth width, and jawOpen, per frame `[F]`: by MediaPipe Tasks, NaN without a face."""
    import mediapipe as mp

    vision = mp.tasks.vision
    options = vision.FaceLandmarkerOptions(
        base_options=mp.tasks.BaseOptions(model_asset_path=str(model)),
        running_mode=vision.RunningMode.VIDEO,
        output_face_blendshapes=True,
        num_faces=2,
    )
    times, frames, _, _ = _decode(path)
    opening = np.full((len(frames), 2), np.nan)
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        for row, (time, frame) in enumerate(zip(times, frames, strict=True)):
            image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
            found = landmarker.detect_for_video(image, round(time * 1000))
            assert len(found.face_landmarks) <= 1, f"{len(found.face_landmarks)} faces in {path.name} frame {row}"
            if found.face_landmarks:
                size = frame.shape[1::-1]
                points = np.array([[mark.x, mark.y] for mark in found.face_landmarks[0]]) * size
                inner, width = points[13] - points[14], points[61] - points[291]
                scores = {shape.category_name: shape.score for shape in found.face_blendshapes[0]}
                opening[row] = np.linalg.norm(inner) / np.linalg.norm(width), scores["jawOpen"]
    return opening[:, 0], opening[:, 1]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.file)
def test_mediapipe_sees_the_mouth_follow_the_sound(sample: Path, shared: Path, scene) -> None:
    times, _, audio, rate = _decode(sample / scene.file)
    opening, jaw = _mouth_opening(sample / scene.file, shared / "models" / "face_landmarker.task")
    seen = np.isfinite(opening)
    assert seen.mean() >= 0.98
    loudness = _loudness(audio, rate, np.array(times), float(scene.rate))
    assert np.corrcoef(opening[seen], loudness[seen])[0, 1] > 0.8
    assert opening[seen].min() < 0.05 and opening[seen].max() > 0.3 and jaw[seen].max() > 0.1


def test_mediapipe_sees_nobody_at_the_rocket(sample: Path, shared: Path) -> None:
    opening, _ = _mouth_opening(sample / NO_FACE, shared / "models" / "face_landmarker.task")
    assert len(opening) > 50 and np.isnan(opening).all()
    _, frames, _, _ = _decode(sample / NO_FACE)
    assert cv2.absdiff(frames[0], frames[-1]).mean() > 3  # it is a moving image all the same
