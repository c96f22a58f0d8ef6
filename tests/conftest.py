"""Fixtures for the real media next to the repository, and for small synthetic media made on the spot."""

from __future__ import annotations

import os
import secrets
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import talkinghead  # noqa: F401  before any test imports PyTorch: it settles how threads wait
from tests.support.paths import SHARED

if TYPE_CHECKING:
    from talkinghead.geometry.canonical import CanonicalFace
    from tests.support.hdtf_original import Original
    from tests.support.object_store import LocalS3


# A run of the tests has one outcome, on any machine: no example may fail because it took long, and the examples are the
# same each time. `--hypothesis-profile=search` draws others.
settings.register_profile("same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

# A shell starts its commands in the background with Ctrl-C ignored, and all that they start would ignore it, too. Tests
# of interruptions hold there as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Beside other test processes a computation on several threads mostly waits for them. Read when PyTorch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray reads how it authenticates once, when it is imported; several tests start a private Ray in this process.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

# With the official face model next to the repository the tests use it; without it they use what `make models` finds.
if (SHARED / "models").is_dir():
    os.environ.setdefault("TALKINGHEAD_MODELS", str(SHARED / "models"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real clips, official metadata, goldens; the test is skipped, and says so, where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("needs the real media and goldens in ../shared, which are not here")
    return SHARED


@pytest.fixture(scope="session")
def media(shared: Path) -> Path:
    """Real clips, portraits and speech."""
    return shared / "media"


@pytest.fixture(scope="session")
def task_file(shared: Path) -> Path:
    """The official face model bundle."""
    return shared / "models" / "face_landmarker.task"


@pytest.fixture(scope="session")
def geometry_metadata(task_file: Path) -> bytes:
    """The geometry metadata inside the bundle."""
    return zipfile.ZipFile(task_file).read("geometry_pipeline_metadata_landmarks.binarypb")


@pytest.fixture(scope="session")
def official_face(geometry_metadata: bytes) -> CanonicalFace:
    """MediaPipe's canonical face."""
    from talkinghead.geometry.canonical import canonical_face

    return canonical_face(geometry_metadata)


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    """A local S3 server, with its credentials in the environment."""
    from tests.support.object_store import LocalS3

    server = LocalS3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture(scope="session")
def original(media: Path) -> Original:
    """A published clip of HDTF, to be put back into a raw source."""
    from tests.support.hdtf_original import read_original

    return read_original(media)
