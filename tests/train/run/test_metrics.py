"""Where the figures go, and how they come back from metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.training import lines, recipe, train
from train.config import LogConfig
from train.run.metrics import MOST_FIGURES, Metrics, Skip, Tracker, check_online, cut, read_metrics


def tracker(folder: Path, step: int = 0, **config: Any) -> Tracker:
    return Tracker(folder / "metrics.jsonl", folder / "tensorboard", LogConfig(**config), step, "run-1")


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
    first = tracker(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.skipped(3, "loss", ["a"])
    first.close()
    second = tracker(tmp_path, step=2, tensorboard=False)
    second.log(3, {"loss": 9.0})
    second.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 9.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_lines_are_json_whatever_the_figures(tmp_path: Path) -> None:
    writer = tracker(tmp_path)
    writer.log(1, {"loss": 1.0, "odd": float("nan"), "large": float("inf")})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0, "odd": null, "large": null}\n'


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, recipe(log={"tensorboard": True}))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("loss")}
    assert written == pytest.approx({line["step"]: line["loss"] for line in lines(tmp_path)})
    assert {"samples_per_s", "step_s", "data_wait", "memory_gb", "gradient_norm"} <= set(events.Tags()["scalars"])


def test_a_restart_hides_the_steps_after_it_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = tracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"loss": 1.0})
    first.close()
    second = tracker(tmp_path, step=1)
    second.log(2, {"loss": 5.0})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 5.0)]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_package_is_said_before_training(package: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"log.online is {package}, .* pip install {package}"):
        check_online(LogConfig(online=package))  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_online_figures_keep_their_step(package: str, tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    module = types.ModuleType(package)
    module.__spec__ = types.SimpleNamespace(origin="there")  # type: ignore[assignment]  # find_spec looks at it
    for name in ("init", "log", "finish", "define_metric"):
        setattr(module, name, lambda *args, _name=name, **options: calls.append((_name, args, options)))
    monkeypatch.setitem(sys.modules, package, module)
    writer = tracker(tmp_path, tensorboard=False, online=package)
    writer.log(4, {"loss": 1.0})
    writer.close()
    (begin, *_), sent, end = calls[0], calls[-2], calls[-1]
    assert begin == "init" and calls[0][2]["name"] == "run-1" and calls[0][2]["resume"] == "allow"
    expected = ((({"step": 4, "loss": 1.0}),), {}) if package == "wandb" else (({"loss": 1.0},), {"step": 4})
    assert sent == ("log", *expected)
    assert end[0] == "finish"


def test_only_known_services_are_imported(tmp_path: Path, monkeypatch: Any) -> None:
    """The name comes out of RUN/config.json, and a stranger may have written it."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("evil", "evil.part", "os"):
        with pytest.raises(ValueError, match="must be wandb or trackio"):
            check_online(LogConfig(online=name))  # type: ignore[arg-type]
    assert not (tmp_path / "owned").exists()


def test_wandb_gets_figures_only(tmp_path: Path, monkeypatch: Any) -> None:
    """By itself it sends the command line, with the keys of an object store in it, and the log."""
    seen: dict[str, str] = {}
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(origin="there")  # type: ignore[assignment]  # find_spec looks at it
    module.init = lambda **options: seen.update(os.environ, **{name: str(value) for name, value in options.items()})  # type: ignore[attr-defined]
    module.define_metric = lambda *args, **options: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    before = dict(os.environ)
    try:
        tracker(tmp_path, tensorboard=False, online="wandb")
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
    assert seen["WANDB__DISABLE_META"] == "true" and seen["WANDB_SYMLINK"] == "false"
    assert seen["WANDB_CONSOLE"] == "wrap", "what the user has set stays"
    assert seen["id"] == seen["name"] == "run-1" and "config" not in seen


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
    writer = tracker(tmp_path, tensorboard=False)
    writer.log(2, {"loss": 1.0})
    writer.close()
    assert (tmp_path / "thesis.txt").read_text() == '{"step": 1, "loss": 1.0}\n'
