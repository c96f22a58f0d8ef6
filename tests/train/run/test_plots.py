"""Plots that show what they should."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from infer.evaluation.motion_evaluation import Trace, TrueClip
from talkinghead.geometry.canonical import mean_face
from tests.support.motions import a_motion
from train.run.metrics import Curve, Skip
from train.run.plots import (
    MOST_LINES,
    PREDICTIONS,
    TRUTH,
    ValidationFigures,
    plot_loss,
    plot_mouth_opening,
    plot_pose,
    plot_several,
    plot_small,
)


def curve(values: list[float]) -> Curve:
    return Curve(steps=np.arange(1, len(values) + 1), values=np.array(values))


def pixels(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[..., ::-1]


def count(png: bytes, colour: str) -> int:
    """Pixels of exactly this colour."""
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((pixels(png) == rgb).all(axis=-1).sum())


def trace(kind: str, frames: int = 80, *, key: str = "folder-a", faceless: tuple[int, ...] = (10, 11)) -> Trace:
    valid = np.ones(frames, bool)
    valid[list(faceless)] = False
    rng = np.random.default_rng(0)
    motion = a_motion(frames, gaps=faceless)
    clip = TrueClip(key=key, speaker="p", audio=np.zeros(frames * 640, np.float32), motion=motion)
    if kind == "mesh":
        true = np.repeat(mean_face().vertices[None], frames, axis=0)
        true[:, 14, 1] -= 1 + np.sin(np.arange(frames) / 5)
        predictions = {"prediction": true + rng.normal(0, 0.02, true.shape)}
    else:
        true = np.cumsum(rng.normal(size=(frames, 6)), axis=0)
        predictions = {"free-running": true * 0.5, "teacher-forced": true + 0.3}
    true = np.where(valid.reshape(-1, *[1] * (true.ndim - 1)), true, np.nan)
    return Trace(clip=clip, kind=kind, still=np.zeros(1), true=true, predictions=predictions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [[1.0], [0.1] * 60, [1e-4, 1.0, 50.0], [float("nan")] * 3, list(np.linspace(1, 0, 400)), [0.0, 0.0], []]
)
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    assert pixels(plot_loss(curve(values), (Skip(step=1, what="loss", keys=()),))).shape[1] > 900
    assert pixels(plot_small("gradient norm", curve(values))).shape[1] < 500


def test_a_curve_shows_its_values() -> None:
    """A falling loss: the line is high on the left and low on the right."""
    image = pixels(plot_loss(curve([1.0, 0.75, 0.5, 0.25])))
    inside = (image == [int(PREDICTIONS[0][at : at + 2], 16) for at in (1, 3, 5)]).all(axis=-1)
    rows, columns = np.nonzero(inside)
    assert rows[columns < columns.min() + 20].mean() < rows[columns > columns.max() - 20].mean() - 100


def test_mouth_and_pose_plots_show_truth_and_predictions() -> None:
    mouth, pose = plot_mouth_opening(trace("mesh")), plot_pose(trace("pose"))
    assert count(mouth, TRUTH) > 500
    assert count(mouth, PREDICTIONS[0]) > 200
    for colour in (TRUTH, *PREDICTIONS[:2]):
        assert count(pose, colour) > 500
    assert plot_pose(trace("pose", 1, faceless=()))
    assert plot_mouth_opening(trace("mesh", 3, faceless=(0, 1, 2)))


def test_validation_figures(tmp_path: Path) -> None:
    """The first two clips get a plot and a video."""
    videos: list[str] = []

    def video(one: Trace, path: Path) -> None:
        videos.append(one.clip.key)
        path.write_bytes(b"video")

    figures = ValidationFigures(tmp_path, video, most=2)
    for key, kind in (("a", "mesh"), ("b", "pose"), ("c", "mesh")):
        figures(trace(kind, key=key))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "mouth-a.png", "pose-b.png"]
    assert videos == ["a", "b"]


def test_the_held_out_loss_is_next_to_that_of_the_training() -> None:
    plain, both = plot_loss(curve([3.0, 2.0, 1.0])), plot_loss(curve([3.0, 2.0, 1.0]), held_out=curve([3.5, 3.0, 2.9]))
    assert count(plain, PREDICTIONS[1]) == 0 and count(both, PREDICTIONS[1]) > 50
    assert count(both, PREDICTIONS[0]) > 50


def test_figures_that_are_compared_have_a_colour_each() -> None:
    two = plot_several("loss by timestep", {"t000-249": curve([3.0, 2.0]), "a $strange_ name": curve([1.0, 2.0])})
    assert count(two, PREDICTIONS[0]) > 20 and count(two, PREDICTIONS[1]) > 20 and count(two, PREDICTIONS[2]) == 0
    many = {f"network {number}": curve([float(number + 1), float("nan"), 1e200]) for number in range(MOST_LINES + 3)}
    assert len(plot_several("x" * 200, many)) > 1000
    assert len(plot_several("empty", {"a": curve([float("nan")]), "b": curve([])})) > 1000
