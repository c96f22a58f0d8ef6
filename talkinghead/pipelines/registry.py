"""Registries of drivers and renderers by name, which other packages can join.

A package joins by entry points in its `pyproject.toml`:

    [project.entry-points."talkinghead.drivers"]
    my-driver = "my_package.driver:MyDriver"

    [project.entry-points."talkinghead.renderers"]
    my-renderer = "my_package.renderer:MyRenderer"

The value names a class of `protocols.Driver` or `protocols.Renderer`, whose attributes `gives` or `takes` hold for the
class too, so that `pair` can be asked before an object is made. A name that is taken already is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from talkinghead.pipelines.protocols import Driver, Renderer

DRIVERS_GROUP = "talkinghead.drivers"
"""Group of the entry points of drivers."""
RENDERERS_GROUP = "talkinghead.renderers"
"""Group of the entry points of renderers."""

_OURS: dict[str, dict[str, str]] = {
    DRIVERS_GROUP: {
        "audio2lmk": "talkinghead.pipelines.audio2lmk.driver:Audio2LmkDriver",
        "still": "talkinghead.pipelines.still_driver:StillDriver",
    },
    RENDERERS_GROUP: {
        "lmk2video": "talkinghead.pipelines.lmk2video.renderer:Lmk2VideoRenderer",
        "landmarks": "talkinghead.pipelines.landmark_renderer:LandmarkRenderer",
    },
}
"""Group → name → class of the library's own, imported when they are asked for."""


def driver_class(name: str) -> Any:
    """Class of the driver of a name; raises `ValueError` where there is none."""
    return _load(DRIVERS_GROUP, name)


def renderer_class(name: str) -> Any:
    """Class of the renderer of a name; raises `ValueError` where there is none."""
    return _load(RENDERERS_GROUP, name)


def driver_names() -> tuple[str, ...]:
    """Names of all drivers, the library's own first."""
    return tuple(_found(DRIVERS_GROUP))


def other_drivers() -> tuple[str, ...]:
    """Names of the drivers of other packages."""
    return tuple(name for name in driver_names() if name not in _OURS[DRIVERS_GROUP])


def renderer_names() -> tuple[str, ...]:
    """Names of all renderers, the library's own first."""
    return tuple(_found(RENDERERS_GROUP))


def load_driver(folder: Path | str) -> Driver:
    """The driver whose weights lie in a folder; they are read when it first moves.

    Raises:
        ValueError: No driver knows the folder, or it is damaged.
    """
    return _of_folder(DRIVERS_GROUP, Path(folder))


def load_renderer(folder: Path | str) -> Renderer:
    """The renderer whose weights lie in a folder; they are read when it first renders.

    Raises:
        ValueError: No renderer knows the folder, or it is damaged.
    """
    return _of_folder(RENDERERS_GROUP, Path(folder))


def _of_folder(group: str, folder: Path) -> Any:
    what = group.rpartition(".")[2]
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    for name in _found(group):
        kind = _load(group, name)
        # Not all lie in folders: a still face needs no weights.
        if hasattr(kind, "holds") and kind.holds(folder):
            return kind.of_folder(folder)
    raise ValueError(f"{folder} holds none of the {what} {', '.join(_found(group))}")


def _found(group: str) -> Mapping[str, EntryPoint]:
    found = {name: EntryPoint(name=name, value=value, group=group) for name, value in _OURS[group].items()}
    for entry in entry_points(group=group):
        if entry.name in found and found[entry.name].value != entry.value:
            raise ValueError(
                f"{entry.value} wants to be {entry.name!r} among the {group}, which {found[entry.name].value} is"
                " already: uninstall one of the packages"
            )
        found[entry.name] = entry
    return found


def _load(group: str, name: str) -> Any:
    found, what = _found(group), group.rpartition(".")[2]
    if name not in found:
        raise ValueError(f"there is no {name!r} among the {what}: take one of {', '.join(found)}")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} of the {what} cannot be loaded from {found[name].value}: {error}") from error
