"""`infer doctor`: reports which weights are there, and what a request costs; properties of the estimate."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from infer import estimate
from infer.__main__ import main
from infer.estimate import Request, device_bytes, layout_of, shape_of
from talkinghead.models.lmk2video.cost import video_cost
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.pipelines.memory import PRESETS
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A folder with a pipeline and a mesh model, and no pose model."""
    path = tmp_path_factory.mktemp("weights")
    tiny_pipeline(width=64, height=64).save_pretrained(path / "lmk2video")
    shutil.copytree(tiny_weights / "audio2mesh", path / "audio2mesh")
    return path


def test_says_what_is_there_and_what_is_not(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--weights", str(folder), "--seconds", "2", "--steps", "4", "--device", "cpu"]) == 0
    text = capfd.readouterr().out
    assert f"torch {torch.__version__}" in text and "CPU cores" in text
    assert f"pipeline      trained weights in {folder / 'lmk2video'}, made for 64x64" in text
    assert f"audio2mesh    weights in {folder / 'audio2mesh'}" in text
    assert "audio2pose    not usable: no audio2pose weights in" in text
    assert "50 frames of 64x64 at 25 fps, 4 steps" in text
    ours, theirs = map(float, re.findall(r"([\d.e+-]+) TFLOP for each frame", text))
    assert 0 < ours < theirs
    assert "TFLOP/s, measured" in text
    assert [int(found) for found in re.findall(r"--memory (\d+)", text)] == list(PRESETS)


def test_what_cannot_be_estimated(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--width", "70"], "the nearest width is 68 or 72"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--width", "0"], "--width is 0"),
        (["--guidance", "nan"], "--guidance is nan"),
    ):
        assert main(["doctor", "--weights", str(folder), "--device", "cpu", *options]) == 2
        assert message in capfd.readouterr().err


@pytest.mark.slow
def test_published_weights_are_counted_as_they_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their PoseGuider normalises over windows, so it is computed once for each window, and nothing is shared."""
    seen: list[HollowNetworks] = []

    def speed(networks: HollowNetworks, *_: Any) -> float:
        seen.append(networks)
        return 1e12

    monkeypatch.setattr(estimate, "measured_speed", speed)
    assert main(["doctor", "--device", "cpu", "--seconds", "2", "--width", "64", "--height", "64"]) == 0
    assert "60 frames of 64x64" in capfd.readouterr().out
    assert not seen[0].pose_guider.frames_are_independent
    case = {"width": 64, "height": 64, "seconds": 2, "fps": 30, "steps": 4, "guidance": 3.5}
    request, running = Request(**case), HollowNetworks.published()
    flops = {}
    for name, networks in (("running", running), ("published", seen[0].to(torch.float32))):
        layout = layout_of(request, networks, compat=True)
        flops[name] = video_cost(networks, shape_of(request, layout)).flops
        covered = sum(len(window) for window in layout.windows)
        if name == "published":
            assert flops[name]["pose"] == pytest.approx(flops["running"]["pose"] * covered / 60, rel=1e-6)
            assert flops[name]["denoiser"] > flops["running"]["denoiser"]


def test_memory_under_the_presets_at_published_sizes() -> None:
    """Each preset fits the memory it is named after, smaller ones need less, and longer videos do not need more."""
    networks = HollowNetworks.published().to(torch.float16)
    needed = {}
    for seconds in (60, 600):
        request = Request(width=512, height=512, seconds=seconds, fps=25, steps=25, guidance=3.5)
        layout = layout_of(request, networks, compat=False)
        cost = video_cost(networks, shape_of(request, layout))
        for gigabytes, preset in PRESETS.items():
            needed[seconds, gigabytes] = device_bytes(networks, request, layout, preset, cost)
    for gigabytes in PRESETS:
        assert needed[60, gigabytes] < gigabytes * 2**30
        assert needed[600, gigabytes] == pytest.approx(needed[60, gigabytes], rel=0.02)
    assert [needed[60, key] for key in PRESETS] == sorted(needed[60, key] for key in PRESETS)
