"""Landmarks on their way: no more than the frames at work are held, whatever the length of the video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from talkinghead.pipelines.lmk2video.moving_landmarks import MovingLandmarks
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request


def test_they_come_as_they_are_asked_for_and_go_when_they_are_released() -> None:
    points = tiny_request(6)["landmarks"]
    moving = MovingLandmarks(iter((points[:2], points[2:4])), 6)
    assert len(moving) == 6 and np.array_equal(moving[1], points[1])
    moving.release([0, 1])
    with pytest.raises(KeyError):
        _ = moving[0]
    with pytest.raises(ValueError, match="end after 4 of 6 frames"):
        _ = moving[5]


def test_a_frame_without_a_face_is_named_by_its_number() -> None:
    points = tiny_request(4)["landmarks"]
    broken = points.copy()
    broken[1] = np.nan
    with pytest.raises(ValueError, match="first in frame 5"):
        _ = MovingLandmarks(iter((points, broken)), 8)[7]


def test_streamed_frames_are_those_of_the_whole_and_few_are_held() -> None:
    """Twice the frames, the same most of landmarks at work; and the frames of an array."""
    pipeline, most = tiny_pipeline(), {}
    pipeline.set_progress_bar_config(disable=True)
    for frames in (48, 96):
        asked = tiny_request(frames)
        settings = {"reference_landmarks": asked["reference_landmarks"], "num_inference_steps": 1, "guidance_scale": 1}
        taken = held = 0

        def parts(points: np.ndarray = asked["landmarks"]) -> Iterator[np.ndarray]:
            nonlocal taken
            for point in points:
                taken += 1
                yield point[None]

        moving = MovingLandmarks(parts(), frames)
        found = []
        for frame in pipeline.stream(asked["reference"], moving, width=64, height=64, **settings):
            found.append(frame)
            shown = len(found)
            held = max(held, taken - shown)
        most[frames] = held
        whole = list(pipeline.stream(asked["reference"], asked["landmarks"], width=64, height=64, **settings))
        assert all(map(np.array_equal, found, whole)) and len(found) == frames
    assert most[48] == most[96] < 48
