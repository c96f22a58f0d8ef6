"""Folder of a pipeline, read strictly: every tensor of every network is checked, and no code that it names is run.

`diffusers` imports the modules that a `model_index.json` names, fills missing weights with random numbers, and does not
find networks whose class is outside of its own packages. So the parts are read here, by loaders chosen by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from talkinghead.media.talking_video import LARGEST, SMALLEST
from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.image.weights import load_image_encoder, load_vae
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.network_settings import read_settings
from talkinghead.models.noise_schedule import Distillation
from talkinghead.runtime.errors import error_text

INDEX = "model_index.json"
"""Name of the index file, which `save_pretrained` writes last: a folder without it is no whole pipeline."""

_LOADERS: Mapping[str, Callable[[Path], Any]] = {
    "vae": lambda folder: load_vae(str(folder)),
    "image_encoder": lambda folder: load_image_encoder(str(folder)),
    "reference_net": ReferenceNet.from_pretrained,
    "denoiser": Denoiser.from_pretrained,
    "pose_guider": PoseGuider.from_pretrained,
    "audio2mesh": Audio2Mesh.from_pretrained,
    "audio2pose": Audio2Pose.from_pretrained,
}
"""Loaders of the parts from their subfolders, by name of the part. The scheduler's class is read from the index."""
_SETTINGS: Mapping[str, tuple[tuple[type, ...], float, float]] = {
    "compat": ((bool,), False, True),
    "fps": ((int, float), 1, 240),
    "width": ((int,), SMALLEST, LARGEST),
    "height": ((int,), SMALLEST, LARGEST),
    "context_frames": ((int,), 1, 1000),
}
"""Kinds and range of a pipeline's settings that are numbers."""
_CHOICES: Mapping[str, tuple[str, ...]] = {"distilled": get_args(Distillation)}
"""Values of a pipeline's settings that are names; each may be None."""
_SCHEDULER_FILE = "scheduler_config.json"
_MOST_TIMESTEPS = 100_000
_RENAMED = {"CosineCodec": "CosineVae"}
"""Present class names by those in older folders. Modules are never looked up by the names that an index gives."""
PARTS = (*_LOADERS, "scheduler")
"""Names of the parts of a pipeline; its other arguments are settings."""


def read_index(folder: Path, class_name: str) -> dict[str, Any]:
    """Parts and settings that a pipeline's index names.

    Args:
        folder: Folder that `save_pretrained` wrote.
        class_name: Expected class of the pipeline.

    Returns:
        Library and class of each part, and the value of each setting, by name.

    Raises:
        ValueError: There is no pipeline, it is damaged, or it is of another class.
    """
    file = folder / INDEX
    try:
        index = read_settings(file, "JSON")
    except OSError as error:
        raise ValueError(
            f"no pipeline in {folder}: {file} cannot be read ({error.strerror}). Give the folder that training or"
            " conversion wrote"
        ) from error
    found = index.get("_class_name")
    if found != class_name:
        raise ValueError(f"{file} describes {found or 'no pipeline'}; wanted is {class_name}")
    for name, (kinds, least, most) in _SETTINGS.items():
        value = index.get(name)
        if value is not None and not (type(value) in kinds and least <= value <= most):
            raise ValueError(f"{file} has {name} {value!r}, which no pipeline has: copy the folder again")
    for name, choices in _CHOICES.items():
        value = index.get(name)
        if value is not None and value not in choices:
            raise ValueError(f"{file} has {name} {value!r}, must be null or one of {', '.join(choices)}")
    return {name: value for name, value in index.items() if not name.startswith("_")}


def read_parts(
    folder: Path, index: Mapping[str, Any], wanted: Iterable[str], optional: Iterable[str]
) -> dict[str, Any]:
    """Parts of a pipeline by name, networks in single precision and evaluation mode.

    Args:
        folder: Folder of the pipeline.
        index: Result of `read_index`.
        wanted: Names of the parts to read.
        optional: Names of parts that may be missing; they become None.

    Raises:
        ValueError: A part is missing, damaged, or of another class than the index says.
    """
    parts: dict[str, Any] = {}
    for name in wanted:
        # The index has [library, class] for each part, and [null, null] for a part that the pipeline lacks.
        entry = index.get(name)
        library, kind = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if kind is None:
            if name not in optional:
                raise ValueError(f"{folder / INDEX} names no {name}: the folder is damaged, copy or convert it again")
            parts[name] = None
            continue

        # Read by our own loader, then compared with the class that the index names.
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} has no folder {name}, though its {INDEX} names one: copy it again")
        part = _read_scheduler(folder, str(kind)) if name == "scheduler" else _LOADERS[name](folder / name)
        if type(part).__name__ != _RENAMED.get(kind, kind):
            raise ValueError(f"{folder / name} holds {type(part).__name__}, but {INDEX} names {library}.{kind}")
        parts[name] = part
    return parts


def _read_scheduler(folder: Path, kind: str) -> SchedulerMixin:
    # Users may swap the scheduler, so any of `diffusers` itself is allowed, and nothing else.
    found = getattr(diffusers, kind, None) if kind.endswith("Scheduler") else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(
            f"{folder / INDEX} names the scheduler {kind}, which diffusers {diffusers.__version__} has not"
        )
    make: Any = found
    file = folder / "scheduler" / _SCHEDULER_FILE
    try:
        settings = read_settings(file)
        _check_numbers(settings)
        # Private ones name classes to look up. Others that this class lacks are kept, as `diffusers` does.
        defaults = settings.get("_use_default_values") or ()
        return make.from_config(
            {name: value for name, value in settings.items() if not name.startswith("_") and name not in defaults}
        )
    except MemoryError:
        raise
    except Exception as error:  # their classes fail in many ways on settings they do not expect
        text = " ".join(error_text(error).split())[:300]
        raise ValueError(f"{folder / 'scheduler'} is no whole {kind}: {text}") from error


def _check_numbers(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a number or a list that would make a scheduler's tables fill the memory."""
    for name, value in settings.items():
        size = len(value) if isinstance(value, (list, str)) else value
        if isinstance(size, (int, float)) and not abs(size) <= _MOST_TIMESTEPS:
            raise ValueError(f"{name} is too large: a schedule has at most {_MOST_TIMESTEPS} timesteps")
