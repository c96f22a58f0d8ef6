"""RUN/index.html, one page about a training: how far it is, what it learnt, from which data, with which settings.

The page contains its images; videos stay next to it in RUN and are linked. Whatever does not exist yet (a validation,
weights) is left out, so the page can be made at any time, also of a training that failed.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from infer.evaluation.evaluation_result import Evaluation, number, read_evaluations
from infer.metrics import METRICS
from infer.metrics.learned_metrics import LEARNED
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import entries_below, open_regular, read_json, read_limited
from talkinghead.provenance import hash_stream
from train.run.curve_groups import HELD_OUT_LOSS, Plot, groups_of
from train.run.kept_weights import BEST
from train.run.metrics import Curve, Metrics, read_metrics
from train.run.plots import plot_all, plot_loss, plot_several, plot_small
from train.run.run_folder import folder_name, steps_in
from train.run.run_lock import refuse_strange

PAGE = "index.html"
MOST_EVENTS = 20
"""Number of events of a kind (skipped steps, alarms, replaced samples) that the page lists, the newest ones."""
MOST_FILES = 100
"""Number of images, and of videos, that the page shows of a validation."""
_IMAGE_BYTES = 16 << 20
_NAME_BYTES = 1000
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """Plot inside the page."""

    title: str
    uri: str
    """`data:` URI with the PNG."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """Video next to the page."""

    title: str
    href: str
    """Path relative to RUN, quoted for a link."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Newest validation with results."""

    step: int
    evaluations: Mapping[str, Evaluation]
    images: Sequence[EmbeddedImage]
    videos: Sequence[Video]
    error: str | None = None
    """Why its numbers, or some of its images, are missing; None when they are not."""

    @property
    def of_videos(self) -> bool:
        """Whether videos were validated: images are contact sheets then, and videos show several side by side."""
        return any(evaluation.kind == "video" for evaluation in self.evaluations.values())


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """File of exported weights."""

    name: str
    """Path in the folder of the export."""
    size: int
    """Size in bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ValidatedWeights:
    """Weights of a validated step that are kept."""

    step: int
    folder: str
    """Folder in RUN."""
    size: int
    """Size in bytes."""
    best: bool
    """Whether they are the best by the figure that the settings name."""


def write_overview(run: Path) -> Path:
    """Write RUN/index.html, whole or not at all.

    Args:
        run: Folder of the run.

    Returns:
        Path of the page.

    Raises:
        ValueError: There is no run, or it holds what no training writes.
        OSError: The folder cannot be read or written.
    """
    refuse_strange(run)  # the page contains files of RUN, and is passed on: no link may put others into it
    config = _json(run / "config.json")
    if not config:
        raise ValueError(f"there is no run at {run}: it has no readable config.json")
    # Read all that there is, fill the template, replace the page. Names of files may hold bytes that are no UTF-8:
    # those are escaped.
    metrics, validation = read_metrics(run / "metrics.jsonl"), newest_validation(run)
    try:
        page = render(run, config, metrics, validation)
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{run} holds something that no training writes, and has no overview ({reason:.200})"
        ) from error
    write_whole(run / PAGE, page.encode("utf-8", "backslashreplace"))
    return run / PAGE


def render(run: Path, config: Mapping[str, Any], metrics: Metrics, validation: Validation | None) -> str:
    """HTML of the page of a run."""
    folder = Path(__file__).parent
    # Names and messages come from data and are escaped; a name that the template does not know is an error.
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _whole, "value": number, "bytes": _bytes}
    # Each section gets its data here; None and empty lists leave a section out.
    train = _nested(config, "recipe", "train")
    loss = metrics.training.get("loss")
    held_out = metrics.training.get(HELD_OUT_LOSS)
    return environment.get_template("overview.html.j2").render(
        style=Markup((folder / "overview.css").read_text(encoding="utf-8")),
        name=run.name,
        run=str(run),
        config=config,
        steps=train.get("steps"),
        metrics=metrics,
        events={
            "skips": metrics.skips[-MOST_EVENTS:],
            "alarms": metrics.alarms[-MOST_EVENTS:],
            "replaced": metrics.replaced[-MOST_EVENTS:],
        },
        loss_first=_first(loss),
        loss_last=loss.last if loss else None,
        last={key: curve.last for key, curve in metrics.training.items()},
        loss_plot=_image("loss", plot_loss(loss, metrics.skips, held_out=held_out)) if loss else None,
        held_out_last=held_out.last if held_out else None,
        groups=[(group.title, [_plotted(plot) for plot in group.plots]) for group in groups_of(metrics.training)],
        validation_plots=_images({key: curve for key, curve in metrics.validation.items() if len(curve.steps) > 1}),
        validation=validation,
        meanings={key: metric.meaning for key, metric in (METRICS | LEARNED).items()},
        settings={"model and loss": flat(_nested(config, "recipe", "config")), "training": flat(train)},
        speakers=_speakers(_json(run / "task" / "speakers.json").get("speakers")),
        statistics=flat(_json(run / "task" / "statistics.json")),
        weights=weight_files(run / "pretrained_model"),
        kept=validated_weights(run / "weights"),
    )


def newest_validation(run: Path) -> Validation | None:
    """Validation of the latest step that left results; None when there is none."""
    for step in reversed(steps_in(run / "validation")):
        folder = run / "validation" / folder_name(step)
        if not (folder / "validation.json").exists():
            continue
        evaluations: dict[str, Evaluation] = {}
        errors: list[str] = []
        # Damaged numbers are reported on the page, next to plots and videos that can still be seen.
        try:
            evaluations = read_evaluations(folder)
        except ValueError as damaged:
            errors.append(str(damaged))
        images: list[EmbeddedImage] = []
        for path in sorted(folder.rglob("*.png"))[:MOST_FILES]:
            try:
                images.append(_image(_title(path, folder), read_limited(path, _IMAGE_BYTES, "plot")))
            except ValueError as large:
                errors.append(str(large))
        videos = [
            Video(title=_title(path, folder), href=quote(os.fsencode(path.relative_to(run).as_posix())))
            for path in sorted(folder.rglob("*.mp4"))[:MOST_FILES]
        ]
        error = "; ".join(errors) or None
        return Validation(step=step, evaluations=evaluations, images=images, videos=videos, error=error)
    return None


def weight_files(folder: Path) -> list[WeightFile]:
    """Files of the exported weights with their hashes."""
    found = sorted(path for pattern in _WEIGHTS for path in folder.rglob(pattern))
    files: list[WeightFile] = []
    for path in found:
        with open_regular(path) as stream:
            sha256 = hash_stream(stream)
            size = stream.tell()
        files.append(WeightFile(name=path.relative_to(folder).as_posix(), size=size, sha256=sha256))
    return files


def validated_weights(folder: Path) -> list[ValidatedWeights]:
    """Weights of validated steps in RUN/weights, by step."""
    try:
        best = read_limited(folder / BEST, _NAME_BYTES).decode(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        best = ""
    names = {step: folder_name(step) for step in steps_in(folder)}
    sizes = {
        step: sum(entry.stat(follow_symlinks=False).st_size for entry in entries_below(folder / name))
        for step, name in names.items()
    }
    return [
        ValidatedWeights(step=step, folder=f"{folder.name}/{name}", size=sizes[step], best=name == best)
        for step, name in names.items()
    ]


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as a flat dict, such as `optimizer.learning_rate` → value."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found |= flat(item, f"{prefix}{name}.")
        else:
            found[prefix + name] = item
    return found


def _plotted(plot: Plot) -> EmbeddedImage:
    if len(plot.curves) == 1:
        return _image(plot.title, plot_small(plot.title, next(iter(plot.curves.values()))))
    return _image(plot.title, plot_several(plot.title, plot.curves))


def _images(curves: Mapping[str, Curve]) -> list[EmbeddedImage]:
    return [_image(name, data) for name, data in plot_all(curves).items()]


def _image(title: str, data: bytes) -> EmbeddedImage:
    return EmbeddedImage(title=title, uri="data:image/png;base64," + base64.b64encode(data).decode())


def _title(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _first(curve: Curve | None) -> float | None:
    if curve is None:
        return None
    return next((float(value) for value in curve.values if math.isfinite(value)), None)


def _json(path: Path) -> dict[str, Any]:
    """Object of a JSON file; empty where the file is missing or damaged: the page shows what there is."""
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _speakers(rows: Any) -> list[dict[str, Any]]:
    """Rows of `speakers.json` that are whole."""
    kinds = {"identity": int, "name": str, "num_frames": int, "neutral_num_frames": int}
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items())
    ]


def _nested(value: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        item = value.get(name)
        value = item if isinstance(item, Mapping) else {}
    return value


def _whole(value: float) -> str:
    """Rounded number with thin spaces between thousands, such as 12 345."""
    return f"{round(value):,}".replace(",", "\u202f")


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
