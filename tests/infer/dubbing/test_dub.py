"""`infer dub`: the video's own pixels but for the mouth, the mouth where it is meant, lengths, options, its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from scipy.interpolate import LinearNDInterpolator

from annotate.engines import DEFAULT_ENGINE, make_engine
from infer.__main__ import main
from infer.dubbing.dub import dubbed_frames
from infer.dubbing.face_track import FaceFollower, FramedFace, framed
from infer.dubbing.footage import Footage
from infer.dubbing.mouth_paste import SHARPEST, SOFTEST, MouthPaste, PasteArea
from talkinghead.face.model import FaceModel
from talkinghead.geometry.face_regions import BROWS, EYES, INNER_LIPS, NUM_VERTICES
from talkinghead.media.audio import encode_wav, read_whole_audio
from talkinghead.media.media_file import probe
from talkinghead.motion.compose import compose
from talkinghead.motion.motion import Motion
from talkinghead.motion.resampling import tile
from talkinghead.pipelines.lmk2video.renderer import Lmk2VideoRenderer
from tests.support.media_files import write_video
from tests.support.speech_weights import published_weights

CLIP = "Real3DPortrait_May_5s.mp4"


def tracked(path: Path, model: FaceModel, frames: int) -> FramedFace:
    follower = FaceFollower(model, None, path.name)
    with Footage(path) as footage:
        for image in footage.images(0, frames):
            follower.add(image)
        width, height = footage.size
    return framed(follower.found(), model, width=width, height=height, aspect=1.0, cuts=[])


def images(path: Path) -> list[np.ndarray]:
    with Footage(path) as footage:
        return list(footage.images())


def own_crops(path: Path, track: FramedFace) -> Iterator[np.ndarray]:
    with Footage(path) as footage:
        for image, crop in zip(footage.images(0, len(track.crops)), track.crops, strict=True):
            yield crop.cut(image)


@pytest.fixture(scope="module")
def track(media: Path, face_model: FaceModel) -> FramedFace:
    return tracked(media / "video" / CLIP, face_model, 36)


def test_its_own_crops_give_the_video_back(media: Path, track: FramedFace) -> None:
    """With a renderer that returns the original boxes, no pixel of any frame is off by more than a grey level."""
    path, paste = media / "video" / CLIP, MouthPaste()
    landmarks = track.motion.landmarks()
    with Footage(path) as footage:
        frames = np.arange(len(track.crops))
        dubbed = dubbed_frames(footage, track, frames, own_crops(path, track), landmarks, paste)
        for number, (found, image) in enumerate(zip(dubbed, images(path), strict=False)):
            assert np.abs(found.astype(int) - image).max() <= 1, number
    assert paste.report.frames == len(frames)


def test_a_head_that_wanders_is_put_back_where_it_was(media: Path, face_model: FaceModel, tmp_path: Path) -> None:
    """The box moves and changes its size from frame to frame, and is still put back to the pixel."""
    wide = []
    for number, image in enumerate(images(media / "video" / CLIP)[:30]):
        canvas, left = np.full((256, 1280, 3), 90, np.uint8), 34 * number
        canvas[:, left : left + 256] = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
        wide.append(canvas)
    path = write_video(tmp_path / "wide.mp4", wide)
    track = tracked(path, face_model, 30)
    assert track.face.valid.all()
    assert len({crop.x0 for crop in track.crops}) > 20
    landmarks = track.motion.landmarks()
    assert landmarks.min() > 0 and landmarks.max() < 1
    with Footage(path) as footage:
        dubbed = dubbed_frames(footage, track, np.arange(30), own_crops(path, track), landmarks, MouthPaste())
        for found, image in zip(dubbed, images(path), strict=True):
            assert np.abs(found.astype(int) - image).max() <= 1


def warped(image: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """An image whose landmarks `[468, 2]`, normalised, went from one place to another."""
    height, width = image.shape[:2]
    corners = np.array([(x, y) for x in (0, 0.5, 1) for y in (0, 0.5, 1) if (x, y) != (0.5, 0.5)])
    to, away = np.concatenate((after, corners)), np.concatenate((before - after, 0 * corners))
    field = LinearNDInterpolator(to, away, fill_value=0)
    rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    small = (field(columns[::4, ::4], rows[::4, ::4]) * (width, height)).astype(np.float32)
    moved = cv2.resize(small, (width, height))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return cv2.remap(image, (x + moved[..., 0]).astype(np.float32), (y + moved[..., 1]).astype(np.float32), 1)


def test_the_mouth_is_where_it_is_meant(media: Path, face_model: FaceModel, track: FramedFace) -> None:
    """The face that is found in the dubbed frames has the lips of the new motion, and all else of the video."""
    path, later = media / "video" / CLIP, 14
    # The mouth of half a second later in the same clip, on the head of now.
    own = track.motion.part(0, len(track.crops) - later)
    motion = compose(mouth=track.motion.part(later, len(own)), pose=own, eyes=own)
    landmarks, before = motion.landmarks(), own.landmarks()
    chosen = list(range(0, len(own), 3))
    rendered = [
        warped(crop, before[number], landmarks[number])
        for number, crop in enumerate(own_crops(path, track))
        if number in chosen
    ]
    with Footage(path) as footage:
        shown = list(footage.images(0, len(own)))
    paste = MouthPaste()
    dubbed = [
        paste(shown[k], drawn, track.crops[k], before=track.points[k], after=landmarks[k])
        for k, drawn in zip(chosen, rendered, strict=True)
    ]
    crop = track.crops[0]
    found = make_engine(DEFAULT_ENGINE, face_model)(dubbed).points[:, :NUM_VERTICES, :2] * 512
    meant, was = ((points[chosen] * (crop.width, crop.height) + (crop.x0, crop.y0)) for points in (landmarks, before))
    lips = list(INNER_LIPS)
    asked = np.abs(meant - was)[:, lips].mean()
    missed = np.abs(found - meant)[:, lips].mean()
    assert asked > 2.5 and missed < 0.5 * asked, f"moved by {asked:.1f} px, {missed:.1f} px off"
    others = [v for v in range(NUM_VERTICES) if np.abs(meant - was)[:, v].max() < 0.5]
    assert len(others) > 100 and np.abs(found - was)[:, others].mean() < 1.5


def test_outside_of_the_mouth_every_pixel_is_the_videos(media: Path, track: FramedFace) -> None:
    """Whatever is rendered; also where the video is played to and fro, and where a frame has no face."""
    path = media / "video" / CLIP
    count = len(track.crops) + 10
    frames = tile(np.arange(len(track.crops)), count)
    landmarks = compose(mouth=track.motion.part(5, 20), eyes=track.motion.part(0, 20)).landmarks()[
        tile(np.arange(20), count)
    ]
    noise = np.random.default_rng(0)
    rendered = (noise.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(count))
    gone = track.face.points.copy()
    gone[7] = np.nan
    missing = FramedFace(
        crops=track.crops,
        points=track.points,
        motion=track.motion,
        neutral=track.neutral,
        face=type(track.face)(points=gone, blendshapes=track.face.blendshapes, sharpness=track.face.sharpness),
    )
    paste, own = MouthPaste(), images(path)
    with Footage(path) as footage:
        for number, found in enumerate(dubbed_frames(footage, missing, frames, rendered, landmarks, paste)):
            image = own[frames[number]]
            if frames[number] == 7:
                np.testing.assert_array_equal(found, image)
                continue
            crop = track.crops[frames[number]]
            area = PasteArea.of(track.points[frames[number]], landmarks[number], crop.width, crop.height)
            mask = np.zeros(image.shape[:2], bool)
            mask[crop.y0 : crop.y1, crop.x0 : crop.x1] = area.weight > 0
            np.testing.assert_array_equal(found[~mask], image[~mask])
            assert 0.03 < mask.mean() < 0.25
    assert paste.report.frames == count - 1


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `audio2mesh/` and `lmk2video/`."""
    from tests.support.tiny_pipeline import tiny_pipeline

    folder = tmp_path_factory.mktemp("dub")
    (folder / "audio2mesh").symlink_to(tiny_weights / "audio2mesh")
    tiny_pipeline(width=64, height=64).save_pretrained(folder / "lmk2video")
    return folder


@pytest.fixture
def speech(media: Path, tmp_path: Path) -> Path:
    """Speech of 0.48 s."""
    path = tmp_path / "speech.wav"
    path.write_bytes(encode_wav(read_whole_audio(media / "audio" / "whisper_jfk.flac")[8000 : 8000 + 12 * 640]))
    return path


def short_clip(media: Path, path: Path, frames: int, rate: int = 25, turn: int = 0) -> Path:
    with Footage(media / "video" / CLIP) as footage:
        return write_video(path, [np.rot90(image, turn) for image in footage.images(0, frames)], rate=rate)


def dub(video: Path, speech: Path, weights: Path, out: Path, *more: str) -> int:
    given = [str(video), str(speech), "-o", str(out), "--weights", str(weights), "--steps", "1", "--guidance", "1"]
    return main(["dub", *given, *more])


def sidecar(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_bytes())


def test_a_video_gets_new_speech(
    media: Path, speech: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the command line: files, sound, measures, the note that it is a composite; the same again is the same."""
    out = tmp_path / "out" / "o.mp4"
    assert dub(media / "video" / CLIP, speech, weights, out) == 0
    assert sorted(file.name for file in out.parent.iterdir()) == ["o.json", "o.landmarks.mp4", "o.mp4"]
    found = probe(out)
    assert (found.video.width, found.video.height, found.video.fps) == (512, 512, 25)
    assert found.audio is not None and found.duration_s == pytest.approx(0.48, abs=0.01)
    with av.open(str(out)) as container:
        assert container.metadata["comment"].endswith("compositeWithTrainedAlgorithmicMedia")
    about = sidecar(out)
    assert about["command"] == "dub" and set(about["weights"]) == {"pipeline", "audio2mesh"}
    assert set(about["inputs"]) == {"video", "audio"} and len(about["inputs"]["video"]["sha256"]) == 64
    result = about["result"]
    assert (result["frames"], result["dubbed_frames"], result["untouched_frames"]) == (12, 12, 0)
    assert result["encoding_psnr_db"] > 35 and result["boxes"] == 1 and not result["looped"]
    assert all(value is not None and value >= 0 for value in result["paste"].values())
    fits = SOFTEST <= result["paste"]["sharpness_skin"] <= SHARPEST
    assert ("of the sharpness of the video around it" in capfd.readouterr().err) == (not fits)
    # Above the mouth the file shows the video, as well as encoding allows.
    for shown, own in zip(images(out), images(media / "video" / CLIP), strict=False):
        assert np.abs(shown[:200].astype(int) - own[:200]).mean() < 3

    again = out.with_name("again.mp4")
    assert dub(media / "video" / CLIP, speech, weights, again) == 0
    assert again.read_bytes() == out.read_bytes()


def test_head_and_eyes_are_the_videos_and_the_mouth_is_not(
    media: Path, face_model: FaceModel, speech: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the renderer is asked to show, against what is measured in the video."""
    seen: list[Motion] = []

    def render(self: Any, prepared: Any, motion: Any, **settings: Any) -> Iterator[np.ndarray]:
        seen.append(motion.whole())
        return (np.zeros((64, 64, 3), np.uint8) for _ in range(motion.count))

    monkeypatch.setattr(Lmk2VideoRenderer, "render", render)
    assert dub(media / "video" / CLIP, speech, weights, tmp_path / "o.mp4") == 0
    [asked], own = seen, tracked(media / "video" / CLIP, face_model, 12).motion
    np.testing.assert_array_equal(asked.pose_matrix, own.pose_matrix)
    upper = [*EYES, *BROWS]
    np.testing.assert_array_equal(asked.meshes()[:, upper], own.meshes()[:, upper])
    # The mouth moves with the speech, about the person's own neutral mesh.
    lips = list(INNER_LIPS)
    assert np.abs(asked.meshes()[:, lips] - own.meshes()[:, lips]).mean() > 0.02
    assert np.abs(asked.meshes()[:, lips] - own.neutral[lips]).mean() < 1
    assert np.ptp(asked.meshes()[:, lips], axis=0).max() > 0.01


@pytest.mark.parametrize(("match", "frames"), [("cut", 5), ("loop", 12)])
def test_a_video_shorter_than_the_speech(
    media: Path, speech: Path, weights: Path, tmp_path: Path, match: str, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    video = short_clip(media, tmp_path / "short.mp4", 5)
    out = tmp_path / "o.mp4"
    assert dub(video, speech, weights, out, "--match", match) == 0
    assert "the speech is 0.28 s longer than the video" in caplog.text
    result = sidecar(out)["result"]
    assert (result["frames"], result["looped"]) == (frames, match == "loop")
    own, order = images(video), tile(np.arange(5), frames)
    for shown, number in zip(images(out), order, strict=True):
        assert np.abs(shown[:200].astype(int) - own[number][:200]).mean() < 3


def test_a_video_of_another_rate_and_lying_on_its_side(
    media: Path, speech: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """30 frames per second become 25; a face that lies is dubbed as it lies."""
    video = short_clip(media, tmp_path / "lying.mp4", 12, rate=30, turn=1)
    out = tmp_path / "o.mp4"
    assert dub(video, speech, weights, out) == 0
    assert "it is dubbed as it lies" in caplog.text
    about = sidecar(out)
    assert about["inputs"]["video"]["turned_deg"] == 90 and about["result"]["frames"] == 10
    with Footage(video) as footage:
        own = list(footage.images())
    # The forehead, which is at the left now, is the video's own.
    for shown, image in zip(images(out), own, strict=True):
        assert np.abs(shown[:, :200].astype(int) - image[:, :200]).mean() < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--reference-frame", "99"], "--reference-frame 99: the face is not in that frame"),
        (["--width", "63"], "--width is 63, but with these weights it must be a multiple of 4"),
        (["--face", "3"], "1 face in frame 0 of"),
        (["--smooth-mesh", "2"], "--smooth-mesh is 2, must be an odd number"),
        (["--lips-gain", "-1"], "--lips-gain is -1, must be 0 to 10"),
    ],
)
def test_requests_that_cannot_be_met(
    media: Path,
    speech: Path,
    weights: Path,
    tmp_path: Path,
    change: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out" / "o.mp4"
    assert dub(media / "video" / CLIP, speech, weights, out, *change) == 2
    assert message in capfd.readouterr().err
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_video_is_not_replaced(media: Path, speech: Path, weights: Path, tmp_path: Path) -> None:
    video = short_clip(media, tmp_path / "clip.mp4", 5)
    before = video.read_bytes()
    assert dub(video, speech, weights, video) == 2
    assert video.read_bytes() == before


def test_the_mouth_is_shut_where_the_speech_pauses(
    media: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--still-in-silence`: over a second of silence after speech, the lips that are rendered lie at rest."""
    published_weights()
    from infer.dubbing import dub as module

    sound = np.concatenate((read_whole_audio(media / "audio" / "whisper_jfk.flac")[8000:16000], np.zeros(24_000)))
    path = tmp_path / "pause.wav"
    path.write_bytes(encode_wav(sound.astype(np.float32)))
    seen: list[Motion] = []
    shut = module.still_in_silence
    monkeypatch.setattr(module, "still_in_silence", lambda *given: seen.append(shut(*given)) or seen[-1])
    out = tmp_path / "o.mp4"
    assert dub(media / "video" / CLIP, path, weights, out, "--still-in-silence") == 0
    lips = seen[0].meshes()[-20:][:, list(INNER_LIPS)]
    np.testing.assert_allclose(lips, lips[:1].repeat(20, axis=0), atol=1e-3)
