"""Rows about a busy neighbour: animating, training and annotating while another process computes, against without it.

`python -m orchestration.bench.neighbour_rows REPEATS` measures animating and training in a process of its own with as
many threads as a user's: the bench itself has one, and a single thread waits for no other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import torch

from orchestration.bench.annotate_rows import WORKERS, warm_workers
from orchestration.bench.material import Material
from orchestration.bench.row import Row
from orchestration.bench.timing import busy_neighbour, in_turns, measured_apart
from orchestration.bench.video_lengths import FPS, POINTS, tiny_pipeline
from orchestration.bench.video_rows import IMAGES, StepMaterial
from talkinghead.face.model import FaceModel

GOAL = 2.0
"""Goal of the ratio. Two threads and the neighbour on two cores take half as long again at best."""
SIDE = 64
"""Width and height of the images in pixels."""
SAMPLING_STEPS = 4
TRAINING_STEPS = 5
PASSES = 1


def neighbour_rows(material: Material, model: FaceModel, repeats: int) -> list[Row]:
    """Measure a row for each kind of work.

    Args:
        material: Clips to annotate.
        model: Face model that annotates them.
        repeats: Number of rounds of each comparison.
    """
    # Animating and training in one process with all threads, annotating in one process per worker.
    apart = measured_apart("orchestration.bench.neighbour_rows", str(repeats), threads=True)
    threads = f"{apart['threads']} threads"
    with warm_workers(material, model) as annotate:
        annotating = _quiet_and_busy(lambda: annotate(PASSES), repeats)
    return [
        _row("animate", apart["animate"], f"1 s of video, {SAMPLING_STEPS} steps with guidance, size tiny, {threads}"),
        _row("stage1", apart["stage1"], f"{TRAINING_STEPS} steps of {IMAGES} images, size tiny, {threads}"),
        _row("annotate", annotating, f"{PASSES * material.num_frames} frames in {WORKERS} warm processes"),
    ]


def _row(job: str, seconds: list[float], work: str) -> Row:
    """Row from the seconds without and with the neighbour."""
    quiet, busy = seconds
    return Row(
        name=f"{job}_busy_neighbour",
        ours=busy,
        baseline=quiet,
        unit="s",
        better="lower",
        goal=GOAL,
        note=f"{work}; with a busy neighbour (one process that computes all the time), against without",
    )


def _quiet_and_busy(call: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of a call in seconds, without a neighbour and with one."""

    def busy(_: int) -> None:
        with busy_neighbour():
            call()

    costs = in_turns({"quiet": lambda _: call(), "busy": busy}, repeats)
    return [costs["quiet"].wall, costs["busy"].wall]


def _animation() -> Callable[[], object]:
    """Function that animates one second with guidance; the landmarks do not move, which costs the same."""
    pipeline, noise = tiny_pipeline(), np.random.default_rng(0)
    portrait = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    face = noise.random((POINTS, 3), dtype=np.float32)
    landmarks = np.broadcast_to(face, (FPS, *face.shape))

    def animate() -> None:
        stream = pipeline.stream(
            portrait, landmarks, reference_landmarks=face, num_inference_steps=SAMPLING_STEPS, width=SIDE, height=SIDE
        )
        assert sum(1 for _ in stream) == FPS

    return animate


def _training() -> Callable[[], object]:
    """Function that trains some steps of stage 1 on latents that are already encoded."""
    material = StepMaterial(IMAGES, 1, SIDE, motion=False)
    material.module.train_images(fold=True)
    cached = material.encode()

    def train() -> None:
        for _ in range(TRAINING_STEPS):
            material.step(cached)

    return train


def _measure(repeats: int) -> dict[str, object]:
    """Number of threads, and seconds without and with the neighbour for each kind of work."""
    found: dict[str, object] = {"threads": torch.get_num_threads()}
    for name, make in (("animate", _animation), ("stage1", _training)):
        call = make()
        call()  # the first turn takes memory and chooses kernels
        found[name] = _quiet_and_busy(call, repeats)
    return found


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
