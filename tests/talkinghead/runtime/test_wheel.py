"""Files out of wheels that pip downloads from a registry of the test's."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from talkinghead.runtime.errors import UnreachableError
from talkinghead.runtime.wheel import wheel_files
from tests.support.wheels import write_wheel


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_files_by_name_whatever_the_project_pins(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pins := registry / "pins.txt").write_text("some_models==9.9\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(pins))
    write_wheel(registry, "some_models", "1.0", {"some/a.bin": b"one", "some/b.bin": b"two"})
    assert wheel_files("some-models==1.0", {"mine": "some/b.bin"}, largest=3) == {"mine": b"two"}


def test_what_is_missing_or_too_large(registry: Path) -> None:
    with pytest.raises(UnreachableError, match=r"pip cannot fetch some-models==1.0 "):
        wheel_files("some-models==1.0", {}, largest=3)
    path = write_wheel(registry, "some_models", "1.0", {"some/a.bin": bytes(1 << 20)})
    with pytest.raises(KeyError, match=r"some/c\.bin"):
        wheel_files("some-models==1.0", {"mine": "some/c.bin"}, largest=3)
    with pytest.raises(ValueError, match="unpacks to 1,048,576 bytes"):
        wheel_files("some-models==1.0", {"mine": "some/a.bin"}, largest=(1 << 20) - 1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises((UnreachableError, zipfile.BadZipFile)):
        wheel_files("some-models==1.0", {"mine": "some/a.bin"}, largest=1 << 20)
