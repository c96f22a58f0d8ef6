"""Small models of tests, and their one thread: steps of one frame gain nothing from more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from talkinghead.models.speech.weights import Pretrained


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
