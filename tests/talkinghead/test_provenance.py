"""Versions of libraries, which are in every provenance key."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from talkinghead.provenance import library_versions


def test_an_installation_is_searched_once_for_each_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers ask for each of their units, and a search takes longer than writing a record."""
    asked: list[str] = []
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: asked.append(name) or version(name))
    for _ in range(3):
        assert library_versions("numpy", "Pygments")["numpy"] == np.__version__
    assert asked.count("Pygments") <= 1 and asked.count("numpy") <= 1


def test_what_is_not_installed_is_an_error() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        library_versions("talkinghead-of-nobody")
