"""What Ray is told: which packages go to a cluster, and at which address one is looked for."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from talkinghead.runtime.ray_cluster import cluster_address, our_packages


def test_package_holds_our_packages_only(tmp_path: Path) -> None:
    """Whatever else lies next to them: the environment, media, what git ignores."""
    from ray._private.runtime_env.packaging import create_package

    root = tmp_path / "root"
    for path in ("talkinghead/media/clip.py", "shards/__init__.py", "talkinghead/__init__.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    for path in (".venv/x.py", ".git/config", "build/x", "data/clip.mp4", "talkinghead/__pycache__/a.pyc", "notes.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    create_package(str(root), tmp_path / "package.zip", True, excludes=["__pycache__", *our_packages(root)["excludes"]])
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert files == {"talkinghead/media/clip.py", "shards/__init__.py", "talkinghead/__init__.py"}


def test_an_empty_address_is_a_private_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray has it, and as a Makefile passes on a variable that nobody set."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(None) is None and cluster_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_address(None) == "head:6379" and cluster_address("other:1") == "other:1"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster_address(None) is None
