"""The cache of model files: whole files only, and one line where it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from talkinghead.files.model_cache import cache_folder, store_in_cache


def test_files_are_whole_and_nothing_else_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store_in_cache({})
    assert cache_folder() == tmp_path / "talkinghead" / "models" and list(cache_folder().iterdir()) == []
    store_in_cache({"one": b"1", "two": b"22"})
    store_in_cache({"two": b"333"})
    assert {path.name: path.read_bytes() for path in cache_folder().iterdir()} == {"one": b"1", "two": b"333"}


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where a folder should be: so it is for root, too."""
    (tmp_path / "talkinghead").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"cannot write to the model cache .*set XDG_CACHE_HOME") as caught:
        store_in_cache({"one": b"1"})
    assert "\n" not in str(caught.value)
