"""The demo, the whole project on its embedded sample: clips → shards → four tiny models → a portrait that speaks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from orchestration import ROOT
from orchestration.units.unit import JobStoppedError
from shards.reader import SPEECH, ShardReader
from talkinghead.files.atomic import staged_file


@dataclass(frozen=True)
class DemoStep:
    """One command of the project, as a user would type it."""

    title: str
    arguments: list[str]
    """Arguments of `python`, after `-m`."""


def demo_steps(folder: Path) -> list[DemoStep]:
    """Steps after the data side: training from its shards, then animating its portrait.

    The recipes are `tiny` with fewer steps: enough to see each model learn within minutes on two cores.

    Args:
        folder: Folder of the demo. `data` in it is the data set; `portrait.png` and `speech.wav` are the reference and
            the driving audio of the animation.
    """

    def training(task: str, title: str, *settings: str) -> DemoStep:
        place = ["--data", str(folder / "data"), "--run", str(folder / task)]
        return DemoStep(title, ["train", task, "tiny", *place, *settings])

    # Stage 2 starts from the networks of stage 1.
    stage1 = ["--config.stage1", str(folder / "stage1")]
    # Both stages split their batch into two microbatches and compute on one thread per rank: two ranks use two cores.
    ranks = ["--workers", "2"] if len(os.sched_getaffinity(0)) > 1 else []
    given = ["--reference", str(folder / "portrait.png"), "--audio", str(folder / "speech.wav")]
    made = ["--weights", str(folder), "--output", str(folder / "animation.mp4"), "--steps", "10"]
    return [
        training("audio2mesh", "train speech → mesh", *_short(200)),
        training("audio2pose", "train speech → head pose", *_short(200)),
        training("stage1", "train portrait and landmarks → image (stage 1)", *_short(600), *ranks),
        training("stage2", "train motion between images (stage 2)", *stage1, *_short(60), *ranks),
        DemoStep("animate a portrait", ["infer", "audio", *given, *made]),
    ]


def run_demo(folder: Path, make_shards: Callable[[], None]) -> Path:
    """Make shards of the sample, train the four models on them, and animate a portrait.

    An interrupted demo goes on where it stopped.

    Args:
        folder: Folder of the demo, for everything that it makes.
        make_shards: Builds the data set `folder/data` from the embedded sample.

    Returns:
        Path of the video.

    Raises:
        JobStoppedError: A step failed; it has printed its own message before.
    """
    # The data side, in this process; then its media give a portrait and speech to animate.
    started = time.monotonic()
    make_shards()
    write_inputs(folder)
    # Training and animation: each step is the command that a user would type, in a process of its own.
    steps = demo_steps(folder)
    for number, step in enumerate(steps, 1):
        _say(f"[{number}/{len(steps)}] {step.title}: python -m {' '.join(step.arguments)}")
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *step.arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise JobStoppedError(f"the demo's step {number}, {step.title}, ended with exit status {done.returncode}")
        _say(f"[{number}/{len(steps)}] {step.title}: {time.monotonic() - began:.0f} s")
    _say(
        f"{time.monotonic() - started:.0f} s total. {folder}/data/report/index.html shows the data,"
        f" {folder}/<model>/index.html the trainings, {folder}/animation.landmarks.mp4 the motion that was asked for."
        " The models are tiny and saw a few seconds of video: they show that everything works, not what it can do."
    )
    return folder / "animation.mp4"


def write_inputs(folder: Path) -> None:
    """Write `portrait.png`, the first frame with a face of one sample, and `speech.wav`, the speech of another."""
    reader = ShardReader(str(folder / "data"), split=None, columns=("valid",), at_most=SPEECH)
    portrait, speech = reader[0], reader[len(reader) - 1]
    first = int(np.flatnonzero(portrait.annotation("valid"))[0])
    # OpenCV takes BGR.
    encoded, image = cv2.imencode(".png", cv2.cvtColor(portrait.video(first, 1)[0], cv2.COLOR_RGB2BGR))
    assert encoded
    for name, content in (("portrait.png", image.tobytes()), ("speech.wav", speech.member("wav"))):
        with staged_file(folder / name) as scratch:
            scratch.write_bytes(content)


def _short(steps: int) -> list[str]:
    """Options of a training of so many steps that is validated at its end only."""
    return ["--train.steps", str(steps), "--train.validation.every", str(steps)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
