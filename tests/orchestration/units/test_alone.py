"""A unit in a process of its own, on a machine on which processes start slowly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestration.units.alone import run_alone
from orchestration.units.records import Attempt
from orchestration.units.unit import Unit
from talkinghead.files.storage import Storage


def test_where_it_hung_is_on_record_however_long_it_took_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(3)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    unit = Unit(
        job="test",
        key="hang",
        pkey="0123456789abcdef",
        function="tests.support.poison:behave",
        payload={"behaviour": "hang", "runs": str(tmp_path / "runs")},
        source="hang.mp4",
        time_limit_s=12.0,
    )
    outcome = run_alone(Storage(tmp_path / "data"), unit, attempts=1, memory_gb=2.0)
    assert isinstance(outcome, Attempt) and outcome.cause == "timeout"
    assert "poison.py" in outcome.trace
