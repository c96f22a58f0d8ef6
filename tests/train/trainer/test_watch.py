"""The line at the start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.support.training import recipe, train


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("training on ")]


def test_one_line_says_how_a_training_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train(tmp_path / "run", recipe(steps=4, parallel={"precision": "bf16"}, schedule={"name": "constant"}))
    (line,) = said(caplog)
    # Two blocks of a norm (16) and 8 x 8 + 8, a head of 9; features of 6 x 8 + 8 that are frozen.
    assert line == (
        "training on 1 x CPU (ddp, bf16): global batch 4 = 1 rank x 2 accumulated x microbatch 2;"
        " 185 of 241 parameters trained; from the first step"
    )
    caplog.clear()
    train(tmp_path / "run", recipe(steps=6, parallel={"precision": "bf16"}))
    assert said(caplog)[0].endswith("; from the checkpoint of step 4")
    by_length = recipe({"num_samples": 20}, microbatch_seconds=3.0)
    caplog.clear()
    train(tmp_path / "other", by_length)
    assert "2 microbatches a step, 2 of up to 3 s for each of 1 rank" in said(caplog)[0]
