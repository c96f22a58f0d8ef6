"""Fixtures of the tests of downloads: a server on this machine, and a small video for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.video_server import VideoServer, render


@pytest.fixture
def server() -> Iterator[VideoServer]:
    """A server that serves nothing yet."""
    with VideoServer.running() as running:
        yield running


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Content of a whole video file."""
    return render(tmp_path_factory.mktemp("video") / "v.mp4").read_bytes()
