"""`infer animate` with an installed package: its drivers and renderer, their options, and pairs that never fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.__main__ import main
from talkinghead.media.audio import encode_wav
from talkinghead.media.video_source import VideoSource
from tests.support.landmark_files import read_landmark_file
from tests.support.other_package import install_other_package
from tests.support.paths import ROOT

WATCHED = """
import sys
from pathlib import Path
folder = Path({folder!r})
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and str(args[0]).startswith(str(folder)) else None)
from infer.__main__ import main
status = main({arguments!r})
print("status", status, "opened", len(opened))
"""  # noqa: E501


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the package, on the path of modules."""
    folder = tmp_path / "site"
    install_other_package(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    path.write_bytes(encode_wav(0.3 * np.sin(np.arange(12_800) / 3).astype(np.float32)))
    return path


@pytest.fixture
def given(media: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "out").mkdir()
    return {"--reference": media / "image" / "AniPortrait_lyl.png", "-o": tmp_path / "out" / "o.mp4"}


def command(options: dict[str, Any], **more: Any) -> list[str]:
    both = options | {"--" + name.replace("_", "-"): value for name, value in more.items()}
    parts = [(name, *(value if isinstance(value, list) else [value])) for name, value in both.items()]
    return ["animate", *(str(part) for group in parts for part in group)]


def test_its_driver_moves_the_head_of_a_speaking_face(
    installed: Path, given: dict[str, Any], speech: Path, tiny_weights: Path
) -> None:
    """By name and options; the mouth is the speech's, and the sidecar knows both."""
    mouth = {"mouth": f"audio:{speech}", "weights": tiny_weights, "renderer": "landmarks", "width": 128}
    assert main(command(given, **mouth, pose="still")) == 0
    alone = read_landmark_file(given["-o"].with_suffix(".npz"))
    options = ["degrees=20", "way=down", "shifts=0;1;0", "seconds=0.8"]
    assert main(command(given, **mouth, pose="nodding", driver_option=options)) == 0
    found = read_landmark_file(given["-o"].with_suffix(".npz"))
    np.testing.assert_array_equal(found.mesh, alone.mesh)
    np.testing.assert_allclose(found.pose[:, 0], -20 * np.sin(np.arange(20) / 25), atol=1e-9)
    np.testing.assert_allclose(found.pose[:, 4], 1, atol=1e-9)
    sidecar = json.loads(given["-o"].with_suffix(".json").read_bytes())
    assert sidecar["driver"] == "audio2lmk, pose: nodding" and sidecar["result"]["pose: nods"] == 1
    assert sidecar["settings"]["driver_option"] == options


def test_its_renderer_shows_any_motion(installed: Path, given: dict[str, Any], speech: Path) -> None:
    shown = command(given, driver="still", audio=speech, renderer="paint", renderer_option=["side=32", "level=40"])
    assert main(shown) == 0
    with VideoSource(given["-o"]) as source:
        frames = [frame.image for frame in source.frames()]
    assert len(frames) == 20 and frames[0].shape == (32, 32, 3) and abs(frames[7].mean() - 40) < 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"driver": "nodding"}, "nodding gives head, and landmarks takes landmarks: another driver must move the face"),
        ({"mouth": "still", "pose": "nodding", "driver_option": ["degrees=100"]}, "degrees is 100, must be within 90"),
        ({"mouth": "still", "pose": "nodding", "driver_option": ["speed=1"]}, "with one of degrees, seconds, way"),
        ({"mouth": "still", "driver_option": ["degrees=1"]}, "--driver-option is for one driver of another package"),
        ({"mouth": "still", "renderer_option": ["side=1"]}, "--renderer-option is for a renderer of another package"),
        ({"mouth": "still", "renderer": "paint"}, "paint needs --renderer-option side=VALUE"),
        ({"mouth": "still", "pose": "nodding:"}, "must be keep, still, audio:FILE"),
        ({"mouth": "still", "eyes": "numbers"}, "put together as meshes, but numbers gives bfm-deep3d"),
        ({"driver": "numbers"}, "coefficients of bfm-deep3d cannot be turned into meshes here"),
    ],
)
def test_what_is_wrong_is_one_line(
    installed: Path, given: dict[str, Any], options: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(given, **({"renderer": "landmarks"} | options))) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0] and not list(given["-o"].parent.iterdir())


def test_the_table_lists_its_pairs_and_options(installed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum("does not fit: nodding gives head" in line for line in lines) == 3
    assert "nodding: --driver-option degrees=float (default: 5.0)" in lines
    assert "paint: --renderer-option side=int (must be given)" in lines


@pytest.mark.parametrize("state", ["gone", "damaged", "whole"])
def test_a_misfit_is_said_before_any_file_is_opened(
    installed: Path, given: dict[str, Any], tiny_weights: Path, tmp_path: Path, state: str
) -> None:
    """Of the portrait, the weights and their configurations none is read; for a pair that fits, they are."""
    folder = tmp_path / "weights"
    if state != "gone":
        for file in tiny_weights.rglob("*.*"):
            copy = folder / file.relative_to(tiny_weights)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(b"{no weights" if state == "damaged" else file.read_bytes())

    def run(**options: Any) -> str:
        arguments = command(given, weights=folder, **options)
        code = WATCHED.format(folder=str(folder), arguments=arguments)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return done.stdout + done.stderr

    printed = run(driver="numbers", renderer="lmk2video")
    assert "error: numbers gives bfm-deep3d, and lmk2video takes landmarks" in printed, printed
    assert "status 2 opened 0" in printed
    missing = run(driver="numbers", renderer="lmk2video", reference=tmp_path / "gone.png")
    assert "numbers gives bfm-deep3d" in missing, "the portrait comes later, too"
    if state == "damaged":
        printed = run(driver="audio2lmk", renderer="landmarks", audio=tmp_path / "gone.wav")
        assert "status 2" in printed and "opened 0" not in printed, printed
