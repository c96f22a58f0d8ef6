"""Face models for the tests: the real bundle, and a home without any model."""

from __future__ import annotations

from pathlib import Path

import pytest

from talkinghead.face.model import FaceModel, load_official


@pytest.fixture(scope="session")
def official(shared: Path) -> FaceModel:
    """The official bundle."""
    return load_official(shared / "models" / "face_landmarker.task")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that names no model and has an empty cache; returns the cache folder."""
    for name in ("TALKINGHEAD_MODELS", "TALKINGHEAD_FACE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "talkinghead" / "models"
