"""Licences of the data of a training, which are noted next to its weights."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from shards.manifest import DatasetManifest, write_manifest
from talkinghead.files.storage import Storage
from train.data_sets import DataSets


def data_set(root: Path, licences: dict[str, int]) -> str:
    manifest = DatasetManifest(
        datasets=["folder"],
        counts={"samples": sum(licences.values())},
        licences=licences,
        tool_versions={},
        plan_hash="0" * 64,
        media=[],
        annotations=[],
    )
    write_manifest(Storage(root), manifest)
    return str(root)


def test_licences_of_all_data_sets_are_added_up(tmp_path: Path) -> None:
    one = data_set(tmp_path / "one", {"CC BY 4.0": 3, "CC0-1.0": 2})
    two = data_set(tmp_path / "two", {"CC BY 4.0": 4})
    assert DataSets(locations=(one, two)).licences() == {"CC BY 4.0": 7, "CC0-1.0": 2}


def test_data_that_are_gone_do_not_stop_an_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After weeks of training the weights are written all the same, and the log says what they lack."""
    caplog.set_level(logging.WARNING)
    one = data_set(tmp_path / "one", {"CC0-1.0": 2})
    assert DataSets(locations=(one, str(tmp_path / "gone"))).licences() is None
    assert "the licences of the data are not noted" in caplog.text
