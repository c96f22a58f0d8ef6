"""Rows about reading: what they say of a small data set, with a store and without one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestration.bench import reading_rows
from tests.support.face_clips import build_face_data

NAMES = [f"read_{stage}_{what}" for stage in ("stage1", "stage2") for what in ("store", "requests", "size")]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight samples of small images."""
    stages = [dataclasses.replace(stage, samples=8) for stage in reading_rows.STAGES]
    monkeypatch.setattr(reading_rows, "STAGES", stages)
    monkeypatch.setattr(reading_rows, "SIDE", 64)


def test_requests_and_bytes_are_those_of_a_sample(tmp_path: Path) -> None:
    storage = build_face_data(tmp_path / "data")
    rows = {row.name: row for row in reading_rows.reading_rows(storage)}
    assert list(rows) == ["read_stage1_local", "read_stage2_local", *NAMES]
    for stage in ("stage1", "stage2"):
        requests, size = rows[f"read_{stage}_requests"], rows[f"read_{stage}_size"]
        assert requests.met and requests.ours is not None and 1 <= requests.ours <= 3
        assert size.met and size.ours is not None and size.baseline is not None
        assert size.baseline * 1e6 < sum(file.stat().st_size for file in storage.local_root.rglob("*.tar"))  # type: ignore[union-attr]
        # 20 ms a request, and four samples of one microbatch at once.
        store = rows[f"read_{stage}_store"]
        assert store.ours is not None and store.ours <= 4 / 0.02 and "20 ms added" in store.note
        # An H100 takes 56 images and 6 windows a second.
        assert store.baseline == rows[f"read_{stage}_local"].baseline
    assert rows["read_stage1_store"].baseline == pytest.approx(7.04, abs=0.01)
    assert rows["read_stage2_store"].baseline == pytest.approx(0.763, abs=0.001)


def test_without_moto_the_rows_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    storage = build_face_data(tmp_path / "data")
    rows = {row.name: row for row in reading_rows.reading_rows(storage)}
    assert [name for name, row in rows.items() if row.ours is None] == NAMES
    assert all(rows[name].note.startswith("skipped: moto is not installed") for name in NAMES)
    assert rows["read_stage1_local"].ours and rows["read_stage2_local"].ours
