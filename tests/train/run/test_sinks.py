"""TensorBoard and online services: what they get, and what they do not."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy_task
from tests.support.train_commands import ROOT, SITE
from tests.support.training import lines, recipe, start, train, trainer_of
from tests.train.run.test_previews import write_validation
from train.config import LogConfig
from train.run.metrics import Tracker
from train.run.previews import write_previews
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.run.sinks import check_online, open_sinks, settings_of

RUN_ID = "0123456789abcdef0123456789abcdef"
PNG = b"\x89PNG"


def folder_of(path: Path, run_id: str | None = RUN_ID, **changes: Any) -> RunFolder:
    config = RunConfig(task="toy", recipe_name="tiny", recipe=toy_task.tiny(), data="none", run_id=run_id)
    path.mkdir(exist_ok=True)
    return RunFolder(path, dataclasses.replace(config, **changes))


def tracker(run: RunFolder, step: int = 0, **config: Any) -> Tracker:
    return Tracker(run.metrics, step, open_sinks(run, LogConfig(**config), step))


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    train(tmp_path, recipe(log={"tensorboard": True}, validation={"loss_every": 4}))
    events = events_of(tmp_path / "tensorboard")
    written = {event.step: event.value for event in events.Scalars("loss")}
    assert written == pytest.approx({line["step"]: line["loss"] for line in lines(tmp_path) if "loss" in line})
    names = {name for line in lines(tmp_path) for name, value in line.items() if value is not None} - {"step"}
    assert names <= set(events.Tags()["scalars"]) and "held_out/loss" in names


def test_a_restart_hides_the_steps_after_it_in_tensorboard(tmp_path: Path) -> None:
    run = folder_of(tmp_path / "run")
    first = tracker(run)
    for step in (1, 2, 3):
        first.log(step, {"loss": 1.0, "part": float("nan")})
    first.close()
    second = tracker(run, step=1)
    second.log(2, {"loss": 5.0})
    second.close()
    events = events_of(run.tensorboard)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 5.0)]
    assert "part" not in events.Tags()["scalars"], "what has no value is left out"
    assert json.loads(run.metrics.read_text().splitlines()[0]) == {"step": 1, "loss": 1.0, "part": None}


def test_tensorboard_shows_settings_and_moving_videos(tmp_path: Path) -> None:
    run = folder_of(tmp_path / "run", data="s3://me:secret@bucket/data")
    folder = write_validation(run.path / "validation" / "step-00000002")
    write_previews(folder)
    writer = tracker(run)
    writer.show(2, folder)
    writer.close()
    events = events_of(run.tensorboard)
    (text,) = events.Tensors("settings/text_summary")
    (table,) = text.tensor_proto.string_val
    assert b"| recipe.train.optimizer.learning_rate | 0.01 |" in table
    assert b"secret" not in table and b"bucket/data" in table
    assert "_hparams_/session_start_info" in str(events.summary_metadata) or "hparams" in str(events.summary_metadata)
    (sheet,) = events.Images("validation/held-out/sheet-clip_1")
    (video,) = events.Images("validation/held-out/clip_1")
    assert sheet.encoded_image_string.startswith(PNG) and (sheet.width, sheet.height, sheet.step) == (64, 48, 2)
    assert video.encoded_image_string.startswith(b"GIF89a") and (video.width, video.height) == (64, 48)
    # As the plugin serves it: a browser plays a GIF.
    from tensorboard.util import img_mime_type_detector

    assert img_mime_type_detector.from_bytes(video.encoded_image_string) == "image/gif"
    assert not (run.tensorboard / "hparams").exists() and len(list(run.tensorboard.iterdir())) == 1


def test_a_validation_that_is_done_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SITE, str(ROOT)]))  # the validation is a process of its own
    chosen = recipe({"show": True}, validation={"every": 8, "loss_every": 0}, log={"tensorboard": True})
    run = start(tmp_path / "run", chosen)
    trainer = trainer_of(run.path, chosen)
    trainer.fit()
    trainer.validations.wait()
    trainer.close()
    events = events_of(run.tensorboard)
    (sheet,), (video,) = events.Images("validation/sheet"), events.Images("validation/clip")
    assert sheet.step == video.step == 8 and video.encoded_image_string.startswith(b"GIF89a")
    assert "validation/loss" in events.Tags()["scalars"]


def test_an_image_that_is_none_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = folder_of(tmp_path / "run")
    folder = run.path / "validation" / "step-00000002"
    folder.mkdir(parents=True)
    (folder / "sheet.png").write_bytes(b"none")
    writer = tracker(run)
    writer.show(2, folder)
    writer.log(3, {"loss": 1.0})
    writer.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("images and videos of the validation of step 2 are not all shown: ")
    assert [event.step for event in events_of(run.tensorboard).Scalars("loss")] == [3]


def test_settings_are_flat_and_hold_no_secret(tmp_path: Path) -> None:
    base = toy_task.tiny()
    odd = dataclasses.replace(base, config=dataclasses.replace(base.config, features="s3://k:s3cret@there/f?a=b"))
    settings = settings_of(folder_of(tmp_path / "run", recipe=odd).config)
    assert settings["task"] == "toy" and settings["recipe.train.steps"] == 8
    assert settings["recipe.train.optimizer.betas"] == "0.9, 0.999" and settings["recipe.lora.match"] == "none"
    assert settings["recipe.train.log.tensorboard"] is False and settings["run_id"] == RUN_ID
    assert "s3cret" not in str(settings) and "there/f" in str(settings["recipe.config.features"])


# --- online services --------------------------------------------------------------------------------------------------


class Service:
    """A package that records how it is called.

    Attributes:
        calls: Name, arguments and options of each call.
    """

    def __init__(self, name: str, fails: Exception | None = None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.module = types.ModuleType(name)
        self.module.__spec__ = types.SimpleNamespace(origin="there")  # type: ignore[assignment]  find_spec looks at it
        self.module.Error = Unanswered  # type: ignore[attr-defined]
        self.module.errors = types.SimpleNamespace(UsageError=Refused)  # type: ignore[attr-defined]
        for called in ("init", "log", "finish", "define_metric", "Image", "Video"):
            setattr(self.module, called, self._recorder(called, fails if called == "init" else None))

    def _recorder(self, called: str, fails: Exception | None) -> Any:
        def record(*arguments: Any, **options: Any) -> Any:
            self.calls.append((called, arguments, options))
            if fails is not None:
                raise fails
            return called, *arguments

        return record

    def options(self, called: str) -> dict[str, Any]:
        return next(options for name, _, options in self.calls if name == called)


class Unanswered(Exception):
    """As wandb.Error."""


class Refused(Unanswered):
    """As wandb.errors.UsageError."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Environment without W&B's variables, which is as it was afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    yield monkeypatch
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_package_is_said_before_training(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"log.online is {package}, .* pip install {package}"):
        check_online(LogConfig(online=package))  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_online_figures_keep_their_step(package: str, tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    service = Service(package)
    environment.setitem(sys.modules, package, service.module)
    writer = tracker(folder_of(tmp_path / "run"), tensorboard=False, online=package)
    writer.log(4, {"loss": 1.0})
    writer.close()
    begin, sent, end = service.calls[0], service.calls[-2], service.calls[-1]
    assert begin[0] == "init" and begin[2]["resume"] == "allow"
    expected = ((({"step": 4, "loss": 1.0}),), {}) if package == "wandb" else (({"loss": 1.0},), {"step": 4})
    assert sent == ("log", *expected)
    assert end[0] == "finish"


def test_two_runs_of_one_name_are_two(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """And one that goes on stays the same; one of older code goes by its name."""
    identities = []
    for parent, run_id in (("a", RUN_ID), ("b", "f" * 32), ("a", RUN_ID), ("c", None)):
        service = Service("wandb")
        environment.setitem(sys.modules, "wandb", service.module)
        (tmp_path / parent).mkdir(exist_ok=True)
        tracker(folder_of(tmp_path / parent / "run", run_id), tensorboard=False, online="wandb").close()
        options = service.options("init")
        assert options["name"] == "run" and options["resume"] == "allow"
        identities.append(options["id"])
    assert identities == [RUN_ID, "f" * 32, RUN_ID, "run"]
    service = Service("trackio")
    environment.setitem(sys.modules, "trackio", service.module)
    tracker(folder_of(tmp_path / "a" / "run"), tensorboard=False, online="trackio").close()
    assert service.options("init")["name"] == "run-01234567" and "id" not in service.options("init")


def test_wandb_gets_settings_images_and_videos(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    service = Service("wandb")
    environment.setitem(sys.modules, "wandb", service.module)
    run = folder_of(tmp_path / "run", data="s3://me:secret@bucket/data")
    folder = write_validation(run.path / "validation" / "step-00000002")
    write_previews(folder)
    writer = tracker(run, tensorboard=False, online="wandb")
    writer.show(2, folder)
    writer.close()
    settings = service.options("init")["config"]
    assert settings["recipe.train.global_batch"] == 4 and "secret" not in str(settings)
    (sent,) = [arguments[0] for name, arguments, _ in service.calls if name == "log"]
    assert sent == {
        "step": 2,
        "validation/held-out/sheet-clip_1": ("Image", str(folder / "held-out/sheet-clip_1.png")),
        "validation/held-out/clip_1": ("Video", str(folder / "held-out/clip_1.mp4")),
    }
    assert service.options("Video") == {"format": "mp4"}


def test_a_service_that_does_not_answer_ends_no_training(
    tmp_path: Path, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("wandb", Unanswered("timed out,\n  see s3://me:secret@there/log"))
    environment.setitem(sys.modules, "wandb", service.module)
    run = folder_of(tmp_path / "run")
    writer = tracker(run, tensorboard=False, online="wandb")
    writer.log(1, {"loss": 1.0})
    writer.close()
    assert run.metrics.read_text() == '{"step": 1, "loss": 1.0}\n'
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("wandb gets no figures of this start, metrics.jsonl has them all: timed out, see")
    assert "secret" not in said


def test_a_user_whom_it_does_not_know_is_told_what_to_do(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    service = Service("wandb", Refused("api_key not configured (no-tty)"))
    environment.setitem(sys.modules, "wandb", service.module)
    with pytest.raises(ValueError, match=r"api_key not configured \(no-tty\); log in \(wandb login\), set WANDB"):
        tracker(folder_of(tmp_path / "run"), tensorboard=False, online="wandb")


def test_only_known_services_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name comes out of RUN/config.json, and a stranger may have written it."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("evil", "evil.part", "os"):
        with pytest.raises(ValueError, match="must be wandb or trackio"):
            check_online(LogConfig(online=name))  # type: ignore[arg-type]
    assert not (tmp_path / "owned").exists()


def test_wandb_gets_nothing_by_itself(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """By itself it sends the command line, with the keys of an object store in it, and the log."""
    service = Service("wandb")
    environment.setitem(sys.modules, "wandb", service.module)
    environment.setenv("WANDB_CONSOLE", "wrap")
    environment.setenv("WANDB_MODE", "offline")
    tracker(folder_of(tmp_path / "run"), tensorboard=False, online="wandb").close()
    assert os.environ["WANDB__DISABLE_META"] == "true" and os.environ["WANDB_SYMLINK"] == "false"
    assert os.environ["WANDB_CONSOLE"] == "wrap", "what the user has set stays"
    assert os.environ["WANDB_MODE"] == "offline" and "mode" not in service.options("init")
