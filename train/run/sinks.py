"""Places that the figures of a run are sent to next to `metrics.jsonl`: TensorBoard, and an online service if asked.

They also get the settings of the run, as its config.json has them, and the images and videos of each validation.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from talkinghead.files.foreign import read_limited
from talkinghead.files.uri import hide_known_secrets
from train.config import LogConfig
from train.run.previews import Medium
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder

log = logging.getLogger(__name__)

VALIDATION = "validation/"
"""Beginning of the names of what a validation gives."""
_SERVICES = ("wandb", "trackio")
_MEDIUM_BYTES = 32 << 20
_ONLY_OURS = {
    "WANDB__DISABLE_META": "true",
    "WANDB__DISABLE_MACHINE_INFO": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_SAVE_CODE": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_SYMLINK": "false",
}
"""Settings of W&B, as environment variables, by which it takes what it is given and nothing else: by itself it also
sends the command line (which may name keys of an object store), the log, the machine and the user's code. A variable
that the user has set stays."""


class Sink(Protocol):
    """Place that figures are sent to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step, all finite."""
        ...

    def show(self, step: int, media: list[Medium]) -> None:
        """Take the images and videos of the validation of a step."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


def check_online(config: LogConfig) -> None:
    """Check that the package of the asked service is installed; raises `ValueError` if not."""
    # It is going to be imported, so no other name may stand there.
    if config.online not in (None, *_SERVICES):
        raise ValueError(f"log.online is {config.online!r:.100}: it must be {' or '.join(_SERVICES)}")
    spec = importlib.util.find_spec(config.online) if config.online else None
    # A spec without an origin is no package but a folder of that name, as wandb leaves one in the working folder.
    if config.online and (spec is None or spec.origin is None):
        raise ValueError(
            f"log.online is {config.online}, and that package is not installed: pip install {config.online},"
            " or leave log.online out"
        )


def open_sinks(run: RunFolder, config: LogConfig, step: int) -> list[Sink]:
    """Places that a run's settings ask for.

    Args:
        run: Folder of the run.
        config: Places to write to.
        step: Step from which the training goes on; 0 for a new one.

    Raises:
        ValueError: The package of the service is missing, or it refuses the user.
    """
    check_online(config)
    sinks: list[Sink] = []
    settings = settings_of(run.config)
    if config.tensorboard:
        sinks.append(TensorBoard(run.tensorboard, step, settings))
    if config.online:
        try:
            sinks.append(Online(config.online, config.project, run, settings))
        except ServiceUnreachable as error:
            log.warning("%s gets no figures of this start, metrics.jsonl has them all: %s", config.online, error)
    return sinks


def settings_of(config: RunConfig) -> dict[str, str | int | float | bool]:
    """Everything that decides how a run comes out, flat: `recipe.train.optimizer.learning_rate` → value. Credentials
    in URIs are hidden."""
    return {name: _shown(value) for name, value in _leaves(config.to_json())}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, item in value.items():
        found += _leaves(item, f"{prefix}{name}.") if isinstance(item, Mapping) else [(prefix + name, item)]
    return found


def _shown(value: Any) -> str | int | float | bool:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(str(_shown(item)) for item in value)
    return "none" if value is None else hide_known_secrets(str(value))


class TensorBoard:
    """TensorBoard's event files; a viewer hides what an earlier, killed training wrote after the step.

    Args:
        folder: Folder of the files.
        step: Step from which the training goes on.
        settings: Settings of the run, shown as a table under Text and as hyperparameters under HParams.
    """

    def __init__(self, folder: Path, step: int, settings: Mapping[str, str | int | float | bool]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        rows = [f"| {name} | {_escaped(value)} |" for name, value in settings.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]), step)
        # Not by `add_hparams`, which begins another folder of events.
        for summary in hparams(dict(settings), {"loss": math.nan, "held_out/loss": math.nan}):
            self._file_writer.add_summary(summary, step)

    @property
    def _file_writer(self) -> Any:
        return self._writer._get_file_writer()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, media: list[Medium]) -> None:
        """Write the images, and the previews of the videos, which it shows as they are."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        for medium in media:
            path = medium.preview or medium.path
            data = read_limited(path, _MEDIUM_BYTES, "image")
            with Image.open(path) as image:
                width, height = image.size
            # 3: RGB. The encoded file goes in as it is: only then a GIF stays animated, and no moviepy is needed.
            encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            value = Summary.Value(tag=VALIDATION + medium.title, image=encoded)
            self._file_writer.add_summary(Summary(value=[value]), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def _escaped(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


class ServiceUnreachable(Exception):
    """An online service does not answer, which says nothing about the training."""


class Online:
    """Online service: wandb or trackio, which has wandb's interface. A resumed run goes on under its identity.

    Args:
        package: Package of the service.
        project: Project at the service.
        run: Folder of the run: its name is shown, its identity tells it from others of the same name.
        settings: Settings of the run.

    Raises:
        ValueError: The service refuses the user.
        ServiceUnreachable: It does not answer.
    """

    def __init__(
        self, package: str, project: str, run: RunFolder, settings: Mapping[str, str | int | float | bool]
    ) -> None:
        assert package in _SERVICES
        if package == "wandb":
            for variable, value in _ONLY_OURS.items():
                os.environ.setdefault(variable, value)
        self._package = importlib.import_module(package)
        name, identity = run.path.name, run.run_id or run.path.name
        # trackio tells runs apart by their names, and keeps its files in the cache of the user.
        options: dict[str, Any] = {"name": f"{name}-{identity[:8]}" if run.run_id else name}
        if package == "wandb":
            options = {"name": name, "id": identity, "dir": str(run.path)}
        refused = getattr(getattr(self._package, "errors", None), "UsageError", ())
        try:
            self._package.init(project=project, resume="allow", config=dict(settings), **options)
        except refused as error:
            raise ValueError(
                f"log.online is {package}, which refuses: {hide_known_secrets(' '.join(str(error).split()))}; log in"
                f" ({package} login), set WANDB_MODE=offline, or leave log.online out"
            ) from error
        except (getattr(self._package, "Error", ()), OSError) as error:  # type: ignore[misc]
            raise ServiceUnreachable(hide_known_secrets(" ".join(str(error).split()))) from error
        if package == "wandb":
            # Figures of a validation come late, and wandb drops what is older than its own step: make `step` the axis.
            self._package.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the figures."""
        self._send(step, dict(values))

    def show(self, step: int, media: list[Medium]) -> None:
        """Send the images and videos."""
        shown: dict[str, Any] = {}
        for medium in media:
            if medium.preview is None:
                shown[VALIDATION + medium.title] = self._package.Image(str(medium.path))
            else:
                shown[VALIDATION + medium.title] = self._package.Video(str(medium.path), format="mp4")
        if shown:
            self._send(step, shown)

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if self._package.__name__ == "wandb":
            self._package.log({"step": step} | values)
        else:
            self._package.log(values, step=step)

    def close(self) -> None:
        """Send what is left and end the session."""
        self._package.finish()
