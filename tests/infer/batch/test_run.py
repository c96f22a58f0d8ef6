"""`infer batch`: rows that are done, skipped and failed, a batch that is killed, and weights that are loaded once."""

from __future__ import annotations

import csv
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infer.__main__ import main
from infer.renderers import lmk2video
from talkinghead.media.audio import encode_wav, read_whole_audio
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `audio2mesh/`, `audio2pose/` and `lmk2video/`."""
    from tests.support.tiny_pipeline import tiny_pipeline

    folder = tmp_path_factory.mktemp("batch")
    for kind in ("audio2mesh", "audio2pose"):
        (folder / kind).symlink_to(tiny_weights / kind)
    tiny_pipeline(width=64, height=64).save_pretrained(folder / "lmk2video")
    return folder


@pytest.fixture
def speech(media: Path, tmp_path: Path) -> Path:
    """Speech of 0.16 s."""
    path = tmp_path / "speech.wav"
    path.write_bytes(encode_wav(read_whole_audio(media / "audio" / "whisper_jfk.flac")[8000 : 8000 + 4 * 640]))
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def arguments(table: Path, weights: Path) -> list[str]:
    return ["batch", "--table", str(table), "--set", f"weights={weights}", "steps=1", "guidance=1"]


def states(table: Path) -> list[str]:
    with (table.parent / "results.csv").open(newline="") as stream:
        return [row["state"] for row in csv.DictReader(stream)]


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.mp4")}


def test_rows_are_done_skipped_and_failed(
    media: Path,
    weights: Path,
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One failure costs one row; weights are loaded once; a second time only what changed is made again."""
    loaded: list[Any] = []
    load = lmk2video.load_pipeline
    monkeypatch.setattr(lmk2video, "load_pipeline", lambda *given, **more: loaded.append(given) or load(*given, **more))
    clip = media / "video" / "Real3DPortrait_May_5s.mp4"
    face = media / "image" / "tfjs-models_portrait.jpg"
    rows = [
        {"reference": face, "audio": speech, "output": tmp_path / "out" / "one.mp4"},
        {"reference": tmp_path / "gone.png", "audio": speech, "output": tmp_path / "out" / "two.mp4"},
        {"reference": face, "driving": clip, "limit_seconds": 0.12, "output": tmp_path / "out" / "three.mp4"},
        {"reference": face, "audio": speech, "output": tmp_path / "out" / "four.mp4", "seed": "none"},
        {"video": clip, "audio": speech, "output": tmp_path / "out" / "five.mp4"},
    ]
    table = write_table(tmp_path / "table.csv", rows)
    assert main(arguments(table, weights)) == 1
    out, err = capfd.readouterr()
    assert out == f"{table.parent / 'results.csv'}\n"
    assert "error: 2 of 5 rows failed (3 done, 0 skipped, 2 failed); the first, row 2: " in err
    assert states(table) == ["done", "failed", "done", "failed", "done"] and len(loaded) == 1
    with (table.parent / "results.csv").open(newline="") as stream:
        errors = [row["error"] for row in csv.DictReader(stream)]
    assert "gone.png" in errors[1] and "seed is 'none'" in errors[3] and errors[0] == errors[2] == errors[4] == ""
    made = hashes(tmp_path / "out")
    assert {"one.mp4", "three.mp4", "five.mp4"} < made.keys()

    # The same again: nothing is loaded. Then other speech: what it is in is made anew.
    loaded.clear()
    assert main(arguments(table, weights)) == 1
    assert states(table) == ["skipped", "failed", "skipped", "failed", "skipped"] and not loaded
    assert hashes(tmp_path / "out") == made
    speech.write_bytes(encode_wav(read_whole_audio(media / "audio" / "whisper_jfk.flac")[16000 : 16000 + 4 * 640]))
    assert main(arguments(table, weights)) == 1
    assert states(table) == ["done", "failed", "skipped", "failed", "done"]
    again = hashes(tmp_path / "out")
    assert again["three.mp4"] == made["three.mp4"] and again["one.mp4"] != made["one.mp4"]

    # A video that is not whole, another setting, newer weights.
    (tmp_path / "out" / "one.mp4").write_bytes(b"torn")
    rows[2]["seed"] = 5
    rows[4]["seed"] = rows[0]["seed"] = 0
    write_table(table, [rows[0], rows[2], rows[4]])
    capfd.readouterr()
    assert main(arguments(table, weights)) == 0
    assert states(table) == ["done", "done", "skipped"]
    (weights / "lmk2video" / "model_index.json").touch()
    assert main(arguments(write_table(table, [rows[4]]), weights)) == 0
    assert states(table) == ["done"]
    assert hashes(tmp_path / "out")["one.mp4"] == again["one.mp4"]


def test_a_batch_that_is_killed_goes_on(media: Path, weights: Path, speech: Path, tmp_path: Path) -> None:
    """Killed while it works on a row, and run again: the files of a batch that was left alone."""
    face = media / "image" / "tfjs-models_portrait.jpg"

    def table(folder: str) -> Path:
        rows = [
            {"reference": face, "audio": speech, "output": tmp_path / folder / f"{seed}.mp4", "seed": seed}
            for seed in range(4)
        ]
        return write_table(tmp_path / folder / "table.csv", rows)

    assert main(arguments(table("whole"), weights)) == 0
    killed = table("killed")
    command = [sys.executable, "-m", "infer", *arguments(killed, weights)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (killed.parent / "1.mp4").exists():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed.parent / "3.mp4").exists(), "it was killed on its way"
    assert main(arguments(killed, weights)) == 0
    found = states(killed)
    assert found[:2] == ["skipped", "skipped"] and found[3] == "done" and len(found) == 4
    assert hashes(killed.parent) == hashes(tmp_path / "whole")


_DEADLY = """
import os, signal, sys
from infer.__main__ import main
from infer.batch import run

make = run.maker

def deadly(command):
    def made(request):
        if request.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(command)(request)
    return made

run.maker = deadly
sys.exit(main(sys.argv[1:]))
"""
"""Program of `infer` in which a row with seed 1 ends the process."""


def test_a_row_that_ends_the_process_twice_is_given_up(
    media: Path, weights: Path, speech: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed at the same row in two processes; then that row counts as failed and the others are done."""
    face = media / "image" / "tfjs-models_portrait.jpg"
    rows = [
        {"reference": face, "audio": speech, "output": tmp_path / "out" / f"{seed}.mp4", "seed": seed}
        for seed in (1, 2)
    ]
    table = write_table(tmp_path / "table.csv", rows)
    for _ in range(2):
        command = [sys.executable, "-c", _DEADLY, *arguments(table, weights)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-1000:]
        assert states(table) == [] and not (tmp_path / "out" / "2.mp4").exists()
    assert b"row 1 is begun again" in ended.stderr
    assert main(arguments(table, weights)) == 1
    assert states(table) == ["failed", "done"]
    with (tmp_path / "results.csv").open(newline="") as stream:
        assert "it ended the process 2 times" in next(csv.DictReader(stream))["error"]
    assert "--retry begins it" in capfd.readouterr().err
    assert main(arguments(table, weights)) == 1
    assert states(table) == ["failed", "skipped"]
    assert main([*arguments(table, weights), "--retry"]) == 0
    assert states(table) == ["done", "skipped"] and not (tmp_path / "results.begun").exists()


def test_folders_by_name(
    media: Path, weights: Path, speech: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    faces, talks, out = (tmp_path / name for name in ("faces", "talks", "out"))
    faces.mkdir()
    talks.mkdir()
    (faces / "ann.jpg").write_bytes((media / "image" / "tfjs-models_portrait.jpg").read_bytes())
    (talks / "ann.wav").write_bytes(speech.read_bytes())
    folders = ["--portraits", str(faces), "--speeches", str(talks), "-o", str(out)]
    assert main(["batch", *folders, "--set", f"weights={weights}", "steps=1", "guidance=1"]) == 0
    assert capfd.readouterr().out == f"{out / 'results.csv'}\n"
    assert (out / "ann.mp4").exists()


def test_a_wrong_batch_begins_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "--table", str(tmp_path / "gone.csv")]) == 2
    assert "gone.csv" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
