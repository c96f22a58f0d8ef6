"""Names of drivers and renderers; an installed package joins by entry points; folders say who reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.speech.weights import Pretrained
from talkinghead.pipelines import registry
from talkinghead.pipelines.protocols import pair
from talkinghead.pipelines.registry import load_driver, load_renderer
from talkinghead.timebase import SAMPLE_RATE
from tests.support.drawn_portrait import drawn_portrait
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import tiny_pipeline

PACKAGE = """
from talkinghead.pipelines.protocols import MESHES, MotionKind

class Nodding:
    name = "nodding"
    gives = MotionKind(space=MESHES)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `audio2mesh/`, `audio2pose/` and `lmk2video/`, all tiny."""
    folder = tmp_path_factory.mktemp("weights")
    encoder = Pretrained("tiny").wav2vec_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mesh = Audio2Mesh(wav2vec=encoder, hidden=32)
        torch.nn.init.normal_(mesh.out_fn.weight, std=0.02)
        pose = Audio2Pose(wav2vec=encoder, width=32, layers=1, heads=2, feed_forward=64, num_identities=8, context=25)
    mesh.save_pretrained(folder / "audio2mesh")
    pose.save_pretrained(folder / "audio2pose")
    tiny_pipeline(width=64, height=64, context_frames=8).save_pretrained(folder / "lmk2video")
    return folder


def speech(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(size=round(seconds * SAMPLE_RATE)).astype(np.float32)


def test_an_installed_package_joins(tmp_path: Path) -> None:
    """A real distribution on the path: its driver is named, paired, and refused where its name is taken."""
    info = tmp_path / "nodding-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nodding\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[talkinghead.drivers]\nnodding = nodding_driver:Nodding\n")
    (tmp_path / "nodding_driver.py").write_text(PACKAGE)

    def run(code: str) -> str:
        given = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
        done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    printed = run("from infer.__main__ import main; main(['pairs'])")
    assert sum(line.startswith("nodding ") for line in printed.splitlines()) == 2, printed
    (info / "entry_points.txt").write_text("[talkinghead.drivers]\nstill = nodding_driver:Nodding\n")
    names = "from talkinghead.pipelines.registry import driver_names; driver_names()"
    assert "wants to be 'still'" in run(names)
    (info / "entry_points.txt").write_text("[talkinghead.drivers]\ngone = nodding_driver:Gone\n")
    assert "cannot be loaded from nodding_driver:Gone" in run(
        "from talkinghead.pipelines.registry import driver_class; driver_class('gone')"
    )


def test_names_that_nobody_has() -> None:
    with pytest.raises(ValueError, match=r"no 'dance' among the drivers: take one of audio2lmk, still"):
        registry.driver_class("dance")
    with pytest.raises(ValueError, match="lmk2video, landmarks"):
        registry.renderer_class("dance")


def test_folders_are_opened_without_their_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "audio2mesh").mkdir()
    (tmp_path / "audio2mesh" / "config.json").write_bytes((folder / "audio2mesh" / "config.json").read_bytes())
    driver = load_driver(tmp_path)
    assert pair(driver, load_renderer(folder)).fps == 25, "no weights lie there"
    with pytest.raises(ValueError, match="there is no folder"):
        load_driver(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds none of the renderers"):
        load_renderer(tmp_path)


def test_any_driver_moves_any_renderer(folder: Path) -> None:
    """The example of the documentation, for each pair: as many frames as the motion, of the renderer's size."""
    face = drawn_portrait()
    drivers: dict[Any, Any] = {load_driver(folder): speech(0.4), registry.driver_class("still")(): 0.4}
    for driver, source in drivers.items():
        for renderer in (load_renderer(folder), registry.renderer_class("landmarks")()):
            pairing = pair(driver, renderer)
            driver.check(face, source, None)
            options = {}
            prepared = renderer.prepare(face, None)
            if renderer.name == "lmk2video":
                from talkinghead.pipelines.lmk2video.renderer import VideoSettings

                prepared = renderer.prepare(face, VideoSettings(steps=1, guidance=1))
            motion = pairing.convert(driver.move(face, source, None, fps=pairing.fps, **options))
            frames = list(renderer.render(prepared, motion))
            assert len(frames) == 10 and frames[0].shape == (64, 64, 3)


def test_the_first_frame_comes_before_the_last_motion(folder: Path) -> None:
    """In order of recording: frames of the first windows are there while later motion is not made."""
    from talkinghead.pipelines.lmk2video.renderer import VideoSettings

    face, driver, renderer = drawn_portrait(), load_driver(folder), load_renderer(folder)
    events: list[str] = []
    motion = driver.move(face, speech(45), None)
    total = motion.count
    motion = motion.each(lambda part, first: (events.append("motion"), part)[1])
    for number, _ in enumerate(renderer.render(renderer.prepare(face, VideoSettings(steps=1, guidance=1)), motion)):
        events.append("frame")
        if number > 260:
            break
    assert total == 1125 and events.index("frame") < len(events) - 1 - events[::-1].index("motion")
    drawn = registry.renderer_class("landmarks")()
    seen = iter(drawn.render(drawn.prepare(face), driver.move(face, speech(45), None).each(lambda part, first: part)))
    assert next(seen).shape == (64, 64, 3)
