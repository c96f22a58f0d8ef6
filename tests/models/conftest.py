"""Small models of tests, and their one thread: steps of one frame gain nothing from more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.speech.weights import Pretrained

SMALL_POSE: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "feed_forward": 48, "num_identities": 5}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow where several run at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Configuration of the tiny speech encoder."""
    return Pretrained("tiny").wav2vec_config()


def small_pose(wav2vec: dict[str, Any], **settings: Any) -> Audio2Pose:
    """An Audio2Pose in evaluation mode whose weights all matter; equal for equal settings."""
    torch.manual_seed(3)
    model = Audio2Pose(wav2vec, **(SMALL_POSE | settings))
    torch.nn.init.normal_(model.pose_map_r.weight, std=0.3)
    torch.nn.init.normal_(model.pose_map_r.bias, std=0.3)
    return model.eval()
