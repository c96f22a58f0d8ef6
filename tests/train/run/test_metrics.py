"""Where the figures go, and how they come back from metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.training import lines
from train.run.metrics import MOST_FIGURES, Metrics, Replaced, Skip, Tracker, cut, read_metrics


def tracker(folder: Path, step: int = 0) -> Tracker:
    return Tracker(folder / "metrics.jsonl", step)


def test_lines_after_the_step_and_torn_ones_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 3}\n{"step": 2, "validation/loss": 1.0}\n{"step": 3, "lo')
    cut(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2, "validation/loss": 1.0}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    cut(tmp_path / "none", 2)


def test_damaged_lines_are_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": \xff2}\n\n[3]\n{"step": "4"}\n{"step": 2}\n')
    cut(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [record.getMessage() for record in caplog.records] == [f"3 lines of {file} cannot be read and are dropped"]


def test_it_goes_on_in_the_same_file(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.skipped(3, "loss", ["a"])
    first.close()
    second = tracker(tmp_path, step=2)
    second.log(3, {"loss": 9.0})
    second.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 9.0}]


def test_lines_are_json_whatever_the_figures(tmp_path: Path) -> None:
    writer = tracker(tmp_path)
    writer.log(1, {"loss": 1.0, "odd": float("nan"), "large": float("inf")})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0, "odd": null, "large": null}\n'


# --- reading ----------------------------------------------------------------------------------------------------------


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_metrics_are_read_by_name(tmp_path: Path) -> None:
    path = written(
        tmp_path / "metrics.jsonl",
        {"step": 10, "epoch": 0.5, "loss": 3.0, "learning_rate": 1e-4, "whatever": 7},
        {"step": 12, "event": "skipped", "what": "loss", "keys": ["a", "b"]},
        {"step": 20, "epoch": 1.0, "loss": float("nan"), "learning_rate": 1e-4},
        {"step": 30, "epoch": 1.5, "loss": 2.0},
        {"step": 20, "validation/mesh_l1": 0.4},
        {"step": 30, "loss": 1.0, "note": "text", "flag": True},
        "\n",
        '{"step": 40, "loss": 0.',
    )
    found = read_metrics(path)
    assert list(found.training) == ["loss", "learning_rate", "whatever"]
    assert found.training["loss"].steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(found.training["loss"].values, [3, np.nan, 1])
    assert found.training["loss"].last == 1.0
    assert list(found.validation) == ["mesh_l1"]
    assert found.skips == (Skip(step=12, what="loss", keys=("a", "b")),)
    assert (found.step, found.epoch, found.damaged_lines) == (30, 1.5, 1)


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == Metrics()
    assert read_metrics(written(tmp_path / "metrics.jsonl", "[1]\n", '"x"\n', '{"loss": 1}\n')).damaged_lines == 3


def test_a_file_of_a_stranger_is_read_line_by_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "metrics.jsonl",
        {"step": 1, "loss": 1.0},
        '{"step": 2, "loss": 1' + "0" * 400 + "}\n",
        '{"step": 3, "loss": 1' + "0" * 5000 + "}\n",
        '{"step": 4, "loss": 1e400, "epoch": 1' + "0" * 400 + "}\n",
        "[" * 100_000 + "\n",
        '{"step": 5, "text": "' + "x" * (2 << 20) + '"}\n',
        {"step": True, "loss": 2.0},
        {"step": -1, "loss": 2.0},
        {"step": 2**60, "loss": 2.0},
        {"step": 6, "event": "skipped", "keys": 5},
        {"step": 7, "event": ["skipped"], "loss": [1]},
        {"step": 8, "loss": 3.0},
    )
    found = read_metrics(path)
    curve = found.training["loss"]
    assert found.step == 8 and curve.steps.tolist() == [1, 2, 4, 8]
    assert np.isfinite(curve.values).tolist() == [True, False, False, True]
    assert found.skips == (Skip(step=6, what="", keys=()),) and found.epoch is not None and math.isnan(found.epoch)
    assert found.damaged_lines == 8, "of the long line there are three parts"
    cut(path, 7)
    assert read_metrics(path).step == 7 and read_metrics(path).damaged_lines == 0


def test_no_more_figures_are_read_than_can_be_drawn(tmp_path: Path) -> None:
    rows = [{"step": step} | {f"figure {number}": 1.0 for number in range(MOST_FIGURES + 50)} for step in (1, 2)]
    found = read_metrics(written(tmp_path / "metrics.jsonl", *rows))
    assert len(found.training) == MOST_FIGURES and all(len(curve.steps) == 2 for curve in found.training.values())


def test_a_file_that_is_too_large_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    os.truncate(path, 1 << 40)
    for read in (read_metrics, lambda file: cut(file, 1)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl has .* bytes: too large"):
            read(path)


def test_figures_are_written_to_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "thesis.txt")
    writer = tracker(tmp_path)
    writer.log(2, {"loss": 1.0})
    writer.close()
    assert (tmp_path / "thesis.txt").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_replaced_samples_are_read_back_and_are_no_figures(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written_by = tracker(tmp_path)
    event = Replaced(step=3, slot=11, key="a", replacement="b", reason="it is cut off")
    written_by.replaced(event)
    written_by.log(3, {"loss": 1.0})
    written_by.close()
    # One that a stranger wrote, without a slot, says nothing.
    with path.open("a") as file:
        file.write('{"step": 4, "event": "replaced", "slot": "x", "key": "a"}\n')
    found = read_metrics(path)
    assert found.replaced == (event,) and found.step == 4
    assert list(found.training) == ["loss"]
